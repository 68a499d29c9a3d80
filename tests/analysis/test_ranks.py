"""Two processes do what one does; killed at any moment, a test resumes to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pretraining import processes

QUICK = (
    "--batch 16 --workers 0 --threads 1 --device cpu --dims 8 --examples 0 --views crop --gallery 20".split()
)
KEPT = ("test", "views", "models", "results", "parts", "differences", "skipped", "sentences")


def command(models: list[Path], out: Path, *more: str) -> list[str]:
    return ["contrast", *map(str, models), "--data", "scenes:300", "--out", str(out), *QUICK, *more]


def report_of(out: Path) -> dict[str, Any]:
    return {k: v for k, v in json.loads((out / "contrast.json").read_text()).items() if k in KEPT}


@pytest.fixture(scope="module")
def one(hcl: Path, moco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "out"
    said = out.parent / "said"
    assert processes.run(command([hcl, moco], out), said) == 0, said.read_text()
    return out


def same_features(a: Path, b: Path) -> None:
    folders = sorted(p.name for p in (a / "features").iterdir())
    assert folders == sorted(p.name for p in (b / "features").iterdir())
    for folder in folders:
        for name in ("query", "key", "index", "boxes"):
            np.testing.assert_array_equal(
                *(np.load(out / "features" / folder / f"{name}.npy") for out in (a, b))
            )


def test_two_ranks_find_what_one_process_finds(one: Path, hcl: Path, moco: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    assert processes.run_ranks(command([hcl, moco], tmp_path / "two"), said) == [0, 0], said.read_text()
    same_features(one, tmp_path / "two")
    assert report_of(one) == report_of(tmp_path / "two")
    assert said.read_text().count("done in") == 1


@pytest.mark.parametrize("die_at", [4, 25, 40])
def test_killed_and_resumed_gives_the_same(
    one: Path, hcl: Path, moco: Path, tmp_path: Path, die_at: int
) -> None:
    out, said = tmp_path / "out", tmp_path / "said"
    status = processes.run(command([hcl, moco], out), said, die_at=die_at, folder=out)
    assert status in (0, -9)
    assert processes.run(command([hcl, moco], out, "--resume"), said) == 0, said.read_text()
    same_features(one, out)
    assert report_of(one) == report_of(out)
