"""A run that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pretraining import processes
from tests.pretraining.small import command


@pytest.fixture(scope="package")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of both stages that nothing disturbed; left as it is."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    said = out.parent / "said"
    assert processes.run(command(out), said) == 0, said.read_text()
    return out
