"""What tests of ``hetcl predict`` share besides their fixtures (``conftest.py``)."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest

import hetcl
from hetcl.downstream import predictions

LIGHT = "timm:test_resnet"
CPU: dict[str, Any] = {"device": "cpu", "threads": 1, "workers": 0}
LOW = {"score_threshold": 0.001}
"""A detector of four steps is sure of nothing."""


def run(
    model: Path, images: Any, out: Path, *, resume: bool = False, overwrite: bool = False, **more: Any
) -> Any:
    return hetcl.predict(
        model, images, out=out, resume=resume, overwrite=overwrite, overrides=CPU | LOW | more
    )


def found(tree: dict[str, Any]) -> dict[str, Any]:
    """All but what no image decides."""
    return {name: value for name, value in tree.items() if name != "info"}


def counted(monkeypatch: pytest.MonkeyPatch, *, stop_at: int = -1) -> list[int]:
    """Numbers of the images that the model is asked about; a signal comes with one of them."""
    inner, asked, calls = predictions.answers, list[int](), itertools.count()

    def answers(*args: Any, **kwargs: Any) -> Any:
        for answer in inner(*args, **kwargs):
            asked.append(answer[0])
            if next(calls) == stop_at:
                signal.raise_signal(signal.SIGINT)
            yield answer

    monkeypatch.setattr(predictions, "answers", answers)
    return asked


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder of predictions but the log."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in ("log.txt", "run.lock") and not p.name.startswith(".")
    }
