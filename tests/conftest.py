"""For every test: one thread, no example that fails for being slow (none asserts a time), the longest files first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = (
    "1"  # here and in every process that a test starts; read when torch is imported
)

from hypothesis import settings

settings.register_profile("hetcl", deadline=None)
settings.load_profile("hetcl")

LONGEST = (
    "bench/test_gpu.py test_readme.py analysis/contrast/test_run.py downstream/models/test_detectors.py "
    "pretraining/test_resume.py analysis/test_yardstick.py pretraining/test_ranks.py weights/test_exporters.py "
    "pretraining/test_trajectory.py analysis/test_ranks.py downstream/test_finetune.py model/test_trajectory.py"
).split()
"""Files of more than ten seconds, longest first: one that begins late keeps one core busy and the others idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    rank = {here / name: i for i, name in enumerate(LONGEST)}
    assert all(path.exists() for path in rank), "tests/conftest.py names a file that is gone"
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
