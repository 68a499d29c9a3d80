"""Fine-tuning from the command line, in each layout: train, evaluate, resume; killed, in two ranks, from a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hetcl.cli import main
from hetcl.datasets import open_detection
from hetcl.downstream.plan import scaled
from hetcl.downstream.report_text import plain
from hetcl.downstream.scores import score
from hetcl.runs.folder import RunFolder
from hetcl.settings import resolve_finetune
from hetcl.weights.sources import load_backbone
from tests.downstream.layouts import write_cityscapes, write_coco, write_lvis, write_voc
from tests.downstream.scores.random_detections import read_back
from tests.downstream.small_sets import command
from tests.pretraining import processes

pytestmark = pytest.mark.usefixtures("light")
LAYOUTS: dict[str, Callable[[Path], object]] = {
    "coco": lambda root: write_coco(root, train=6, val=3),
    "lvis": lambda root: write_lvis(root, train=6, val=3),
    "voc": lambda root: write_voc(root, train=6, val=3),
    "cityscapes": lambda root: write_cityscapes(root, train=6, val=3),
}
TASKS = {
    "coco-c4": ("coco", "--neck c4"),
    "lvis": ("lvis", "--model mask-rcnn --repeat_threshold 0.5 --score_threshold 0.0001 --detections 40"),
    "voc": ("voc", "--model faster-rcnn"),
    "voc-fcn": ("voc", "--model fcn"),
    "cityscapes": ("cityscapes", "--model mask-rcnn"),
    "cityscapes-fcn": ("cityscapes", "--model fcn --precise_bn 2"),
}
LIGHT = "timm:test_resnet"
"""A backbone of 0.4 million weights."""
FIGURES = {
    "coco-c4": {"box_ap", "mask_ap", "mask_ap_s"},
    "lvis": {"box_ap", "mask_ap", "mask_ap_r"},
    "voc": {"box_ap", "box_ap50", "box_ap75"},
    "voc-fcn": {"miou", "pixel_accuracy"},
    "cityscapes": {"mask_ap", "mask_ap50"},
    "cityscapes-fcn": {"miou", "pixel_accuracy"},
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set in each layout."""
    root = tmp_path_factory.mktemp("sets")
    for name, write in LAYOUTS.items():
        write(root / name)
    return root


def result(out: Path) -> tuple[bytes, bytes, bytes]:
    last = (out / "checkpoints" / "last.ckpt").read_bytes()
    return (out / "backbone.safetensors").read_bytes(), (out / "metrics.csv").read_bytes(), last


# ---- each layout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_train_stop_resume_evaluate(task: str, sets: Path, tmp_path: Path) -> None:
    layout, more = TASKS[task]
    data, out, said = f"{layout}:{sets / layout}", tmp_path / "run", tmp_path / "said"
    argv = command(out, data, *more.split(), init=LIGHT)
    moment = 36  # after a checkpoint, somewhere in the training
    assert processes.run([*argv, "--resume"], said, die_at=moment, folder=out) == -9, said.read_text()
    assert not (out / "summary.json").exists()
    assert processes.run(["finetune", "--out", str(out), "--resume"], said) == 0, said.read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["figures"].keys() >= FIGURES[task]
    assert "going on at step" in said.read_text()

    assert main(["evaluate", str(out), "--data", data, "--out", str(tmp_path / "e"), "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert report["figures"] == summary["figures"]
    assert report["per_class"] == summary["per_class"]
    assert Image.open(tmp_path / "e" / "predictions.png").size[0] > 400
    if task.endswith("fcn"):
        maps = sorted((tmp_path / "e" / "label_maps").glob("*.png"))
        assert len(maps) == report["data"]["images"]
        assert np.asarray(Image.open(maps[0])).max() < 255
    else:
        found = json.loads((tmp_path / "e" / "results.json").read_text())
        assert found == json.loads((out / "results.json").read_text())
        val = open_detection(data, "val")
        again = plain(score(val, read_back(val, found)).figures)
        assert again == pytest.approx({name: summary["figures"][name] for name in again}, abs=1e-9)


# ---- killed, and in ranks --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    said = out.parent / "said"
    assert processes.run(command(out, f"coco:{sets / 'coco'}", init=LIGHT), said) == 0, said.read_text()
    return out


@pytest.mark.parametrize("deaths", [(14, 9), (20, 30)])
def test_killed_and_resumed_it_ends_in_the_same_bytes(
    deaths: tuple[int, ...], undisturbed: Path, sets: Path, tmp_path: Path
) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    argv = command(out, f"coco:{sets / 'coco'}", "--resume", "--workers", "1", init=LIGHT)
    for moment in deaths:
        status = processes.run(argv, said, die_at=moment, folder=out)
        assert status in (-9, 0), said.read_text()
    assert processes.run(["finetune", "--out", str(out), "--resume", "--workers", "0"], said) == 0
    for ours, theirs in zip(result(out), result(undisturbed), strict=True):
        assert ours == theirs


def test_two_ranks_train_and_evaluate_alike(undisturbed: Path, sets: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "run", f"coco:{sets / 'coco'}"
    said = tmp_path / "said"
    argv = command(out, data, "--norm", "sync", init=LIGHT)
    assert processes.run_ranks(argv, said) == [0, 0], said.read_text()
    rows = RunFolder(out).read_metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert "PyTorch synchronises batch norm on GPUs only" in (out / "log.txt").read_text()

    words = [
        "evaluate",
        str(undisturbed),
        "--data",
        "scenes:8@64",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--out",
    ]
    argv = [*words, str(tmp_path / "two"), "--score_threshold", "0.001"]
    assert processes.run_ranks(argv, said) == [0, 0], said.read_text()
    assert main([*words, str(tmp_path / "one"), "--workers", "2", "--score_threshold", "0.001"]) == 0
    one, two = (tmp_path / name for name in ("one", "two"))
    assert (one / "results.json").read_bytes() == (two / "results.json").read_bytes()
    assert len(json.loads((one / "results.json").read_text())) > 0
    figures = [json.loads((d / "evaluation.json").read_text())["figures"] for d in (one, two)]
    assert figures[0] == figures[1]


# ---- from and to backbones -------------------------------------------------------------------------------------------


def test_the_backbone_arrives_and_leaves(undisturbed: Path, sets: Path, tmp_path: Path) -> None:
    """Without training (a learning rate of next to nothing) the weights are those that were given."""
    start = tmp_path / "start.pth"
    state = load_backbone("torchvision:resnet18:random").state_dict()
    torch.save(
        {name: value + 0.001 if value.is_floating_point() else value for name, value in state.items()}, start
    )
    more = "--steps 1 --milestones 1 --warmup 0 --evaluations 1 --lr 1e-20 --weight_decay 0 --norm frozen".split()
    out = tmp_path / "run"
    assert main(command(out, f"coco:{sets / 'coco'}", *more, init=f"torchvision:resnet18:{start}")) == 0
    ours, given = load_file(out / "backbone.safetensors"), torch.load(start, weights_only=True)
    assert ours.keys() == given.keys()
    assert all(torch.equal(ours[name], given[name]) for name in ours)
    again, own = (
        load_backbone(str(undisturbed / "backbone.safetensors")),
        load_file(undisturbed / "backbone.safetensors"),
    )
    assert all(torch.equal(value, own[name]) for name, value in again.state_dict().items())


# ---- settings --------------------------------------------------------------------------------------------------------


def test_the_linear_rule_is_said() -> None:
    used, told = scaled(resolve_finetune("coco-mask-rcnn-r50-fpn-1x", ["--batch", "4"]))
    assert (used.lr, used.steps, used.milestones, used.warmup) == (0.005, 360_000, (240_000, 320_000), 4000)
    assert told == [
        "batch 4 instead of 16: lr 0.02 -> 0.005, steps 90,000 -> 360,000, milestones and warm-up alike (the linear "
        "rule; base_batch 0 switches it off)"
    ]
    same, nothing = scaled(
        resolve_finetune("coco-mask-rcnn-r50-fpn-1x", ["--batch", "4", "--base_batch", "0"])
    )
    assert (same.lr, same.steps, nothing) == (0.02, 90_000, [])


def test_steps_split_evenly_over_evaluations() -> None:
    used, told = scaled(
        resolve_finetune(None, ["--steps", "10", "--evaluations", "3", "--milestones", "5", "--warmup", "1"])
    )
    assert used.steps == 12
    assert "steps 10 -> 12" in told[0]
