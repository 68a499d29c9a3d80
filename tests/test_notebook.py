"""The notebook of the README's path: valid, without outputs, and every cell runs in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.downstream.light import small_heads

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "first-hour.ipynb"


def cells() -> list[dict[str, Any]]:
    tree = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (tree["nbformat"], tree["nbformat_minor"]) == (4, 5)
    return tree["cells"]


def test_it_is_a_notebook_as_it_should_lie_in_a_repository() -> None:
    ids = [cell["id"] for cell in cells()]
    assert len({*ids}) == len(ids)
    for cell in cells():
        assert cell["cell_type"] in ("markdown", "code")
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_heads(monkeypatch)
    names: dict[str, object] = {}
    threads = torch.get_num_threads()
    for cell in cells():
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {cell['id']}", "exec"), names)
    torch.set_num_threads(threads)
    for file in ("report.html", "backbone.pth", "detector/predictions.png", "predictions/predictions.json"):
        assert (tmp_path / file).is_file()
