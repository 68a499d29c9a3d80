"""Small detectors for the tests of whole commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.downstream.light import small_heads


@pytest.fixture(scope="module")
def light() -> Iterator[None]:
    """Detectors of this module have small heads, as those of the fork server's processes (``processes.py``) have."""
    with pytest.MonkeyPatch.context() as patch:
        small_heads(patch)
        yield
