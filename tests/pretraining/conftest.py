"""One thread for these small models: on a busy machine two threads that wait for each other are far slower."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.pretraining import processes
from tests.pretraining.small import command


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of both stages that nothing disturbed; left as it is."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    said = out.parent / "said"
    assert processes.run(command(out), said) == 0, said.read_text()
    return out
