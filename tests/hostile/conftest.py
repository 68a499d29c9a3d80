"""A hostile user at the command line: one clear line with the fix, the right status, and nothing lost.

Everything runs in this process through ``hetcl.cli.main``, on a model of 0.4 million weights at 32 pixels.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hetcl.cli import main

TINY = (
    "--backbone timm:test_resnet --size 32 --batch 8 --groups 2 --spatial.side 4 --spatial.width 8 "
    "--semantic.dim 8 --stage1.epochs 1 --stage2.epochs 1 --threads 1 --workers 0 --device cpu --knn.every 0"
).split()

linux = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full, or file names of any bytes"
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder to be in, a cache of one's own, and the number of threads put back."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HETCL_CACHE", str(tmp_path.parent / "cache"))
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of both stages on ``scenes:16``; copy it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["pretrain", "--data", "scenes:16", "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture
def run(finished: Path) -> Path:
    """A copy of the finished run, as ``run``."""
    shutil.copytree(finished, "run")
    return Path("run")


class Says:
    """Runs a command and keeps what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str, status: int = 2) -> str:
        """What the command complained of, which must be one line; ``status`` is what it must exit with."""
        assert main(list(words)) == status
        self.out, err = self._capsys.readouterr()
        self.err = err
        assert "Traceback" not in err
        if status == 0:
            return err
        lines = [line for line in err.splitlines() if line.startswith("hetcl: ")]
        assert len(lines) == 1, err  # (what was noticed on the way may stand above it)
        assert err.splitlines()[-1] == lines[0]
        return lines[0].removeprefix("hetcl: ")

    def pretrain(self, *words: str, data: str = "scenes:16", out: str = "new", status: int = 2) -> str:
        """``hetcl pretrain`` with tiny settings; a refusal must not write anything."""
        there = sorted(os.listdir("."))
        said = self("pretrain", "--data", data, "--out", out, *TINY, *words, status=status)
        if status == 2:
            assert sorted(os.listdir(".")) == there, "something was written"
        return said


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Says:
    return Says(capsys)


# ---- data ------------------------------------------------------------------------------------------------------------
