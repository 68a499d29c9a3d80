"""Every full-size cell begins: its recipe, on data in the published layouts, as far as its dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hetcl.downstream.finetune import FinetuneRun
from hetcl.downstream.plan import new_plan as new_finetune_plan
from hetcl.pretraining.plan import new_plan
from hetcl.pretraining.run import PretrainRun
from hetcl.reproduce.cells import Cell, Plan
from hetcl.reproduce.experiments import EXPERIMENTS, experiment
from hetcl.reproduce.scales import load_scale
from hetcl.runs.folder import RunFolder
from hetcl.runs.resume import Request
from tests.downstream import layouts

NAMES = ("images", "coco", "lvis", "voc", "cityscapes")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each data set, tiny, in its published layout; images in a folder for each class."""
    root = tmp_path_factory.mktemp("roots")
    for index in range(80):
        path = root / "images/train" / f"n{index % 2:08d}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        layouts.save(path, layouts.scene_of("train", index).pixels)
    made = {
        "coco": layouts.write_coco(root / "coco"), "lvis": layouts.write_lvis(root / "lvis"),
        "voc": layouts.write_voc(root / "voc"), "cityscapes": layouts.write_cityscapes(root / "cityscapes"),
    }  # fmt: skip
    return {"images": str(root / "images/train")} | {name: f"{name}:{path}" for name, path in made.items()}


def cells() -> list[str]:
    """Keys of the cells of pre-training and fine-tuning, one for each recipe; 1x and 2x differ in steps alone."""
    seen: dict[str, str] = {}
    for key, cell in plan_of(dict.fromkeys(NAMES, "scenes:100"), Path("/nowhere")).cells.items():
        if cell.verb in ("pretrain", "finetune"):
            seen.setdefault(cell.recipe.removesuffix("-1x").removesuffix("-2x"), key)
    return list(seen.values())


def plan_of(data: dict[str, str], out: Path) -> Plan:
    scale = load_scale("full")
    tables = [experiment(name) for name in EXPERIMENTS]
    return Plan(scale, tables, out=out, data=data, weights={}, seeds=3, compute={})


@pytest.mark.slow
@pytest.mark.parametrize("key", cells())
def test_it_begins(key: str, roots: dict[str, str], tmp_path: Path) -> None:
    cell: Cell = plan_of(roots, tmp_path).cells[key]
    folder = RunFolder(tmp_path / "run")
    if cell.verb == "pretrain":
        asked = Request(cell.data, cell.recipe, None, (), [*cell.words, "--device=cpu"])
        run: Any = PretrainRun(folder, new_plan(asked), resume=False)
        assert run.dry_runs
    else:
        words = [
            *cell.words,
            "--device=cpu",
            "--batch=2",
        ]  # (16 images of 800 pixels want more memory than a CPU has)
        asked = Request(cell.data, cell.recipe, "torchvision:resnet50:random", (), words)
        run = FinetuneRun(folder, new_finetune_plan(asked), resume=False)
        assert run.estimate is not None
    assert not folder.path.exists()
