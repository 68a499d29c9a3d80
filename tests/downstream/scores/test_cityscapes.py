"""Cityscapes' figures against cityscapesScripts, on files in the layout it reads, and worked by hand."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from hetcl.cli import main
from hetcl.datasets import open_detection
from hetcl.datasets.annotations import Prediction
from hetcl.datasets.cityscapes import LABELS, THINGS, CityscapesDetection
from hetcl.downstream.predict import EvaluationResult
from hetcl.downstream.scores import score
from hetcl.errors import InputError
from tests.downstream.layouts import save, write_cityscapes
from tests.downstream.scores.random_detections import ellipse, rle, said_of
from tests.downstream.small_sets import command

NAMES = {category.id: category.name for category in THINGS}
SIZE = (128, 256)
STUFF = (0, 3, 4, 5, 7, 11, 23, 30)
"""Void (0, 3, 4, 5 and a trailer's group) and not."""
MAPS = "gtFine/val/aachen"


def city(root: Path, maps: list[np.ndarray]) -> CityscapesDetection:
    """A validation part with these instance maps, on disk in Cityscapes' layout, as ``hetcl`` opens it."""
    for i, ids in enumerate(maps):
        stem = f"aachen_{i:06}_000019"
        save(root / "leftImg8bit/val/aachen" / f"{stem}_leftImg8bit.png", np.zeros((*ids.shape, 3), np.uint8))
        save(root / MAPS / f"{stem}_gtFine_instanceIds.png", ids.astype(np.uint16))
    data = open_detection(f"cityscapes:{root}", "val")
    assert isinstance(data, CityscapesDetection)
    return data


def random_city(root: Path, seed: int) -> tuple[CityscapesDetection, list[Prediction]]:
    """Strips of stuff, objects, groups and small ones; no trains; found well, badly, twice, or in the void.

    The last image has nothing that counts.
    """
    rng = np.random.default_rng(seed)
    maps, predictions = [], []
    for place in range(5):
        ids = np.repeat(rng.choice(STUFF, 8), SIZE[1] // 8)[None].repeat(SIZE[0], 0)
        boxes: list[Any] = []
        for number in range(14 if place < 4 else 0):
            box, of_class = (
                _box(rng),
                int(rng.choice([24, 25, 26, 27, 28, 29, 32, 33], p=[0.3, 0.1, 0.3] + [0.06] * 5)),
            )
            ids[ellipse(box, SIZE) > 0] = of_class if rng.random() < 0.2 else of_class * 1000 + number
            boxes += [
                (box + rng.normal(0, 0.07 * (box[2] - box[0]), 4), of_class)
                for _ in range(rng.integers(0, 4))
            ]
        boxes += [(_box(rng), int(rng.choice([24, 26, 31]))) for _ in range(6)]
        boxes += [(np.array([300.0, 300, 310, 310]), 24)]  # outside: an empty mask
        boxes = [(box, of_class) for box, of_class in boxes if of_class in NAMES]
        labels = [list(NAMES).index(of_class) for _, of_class in boxes]
        masks = tuple(rle(ellipse(box, SIZE)) for box, _ in boxes)
        scores = np.sort(rng.random(len(boxes)).round(1))[::-1]  # ties
        maps.append(ids)
        said = said_of(f"aachen_{place:06}_000019", [box for box, _ in boxes], scores, labels, masks)
        predictions.append(said)
    return city(root, maps), predictions


def _box(rng: np.random.Generator) -> np.ndarray:
    """Some of fewer than 100 pixels."""
    corner = rng.uniform(0, [220, 100])
    return np.concatenate([corner, corner + rng.choice([9, 25, 60]) * rng.uniform(0.8, 1.3, 2)])


def official(
    root: Path, predictions: list[Prediction], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Averages by cityscapesScripts, of numpy 1's time: the set in ``root`` against predictions in its own layout."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    tool = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    monkeypatch.setattr(tool, "writeDict2JSON", lambda *_: None)  # it cannot write numpy 2's numbers
    truths, texts, results = [], [], folder / "results"
    results.mkdir(parents=True)
    for said in predictions:
        truths.append(str(root / MAPS / f"{said.image_id}_gtFine_instanceIds.png"))
        lines = []
        for row, mask in enumerate(said.masks or ()):
            name = f"{said.image_id}_{row}.png"
            Image.fromarray(coco_mask.decode(mask) * 255).save(results / name)
            lines.append(f"{name} {THINGS[said.labels[row]].id} {float(said.scores[row])!r}\n")
        texts.append(str(results / f"{said.image_id}.txt"))
        Path(texts[-1]).write_text("".join(lines))
    args = tool.args
    for name, value in (
        ("predictionPath", str(results)),
        ("gtInstancesFile", str(folder / "gtInstances.json")),
        ("JSONOutput", False),
        ("quiet", True),
    ):
        monkeypatch.setattr(args, name, value)
    return tool.evaluateImgLists(texts, truths, args)["averages"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_equals_cityscapesscripts(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    data, predictions = random_city(root, seed)
    theirs = official(root, predictions, tmp_path / "theirs", monkeypatch)
    with np.errstate(all="raise"):
        ours = score(data, predictions[::-1])
    assert ours.figures["mask_ap"] == pytest.approx(100 * theirs["allAp"], abs=1e-9)
    assert ours.figures["mask_ap50"] == pytest.approx(100 * theirs["allAp50%"], abs=1e-9)
    for name, row in ours.per_class.items():
        expected = {"mask_ap": theirs["classes"][name]["ap"], "mask_ap50": theirs["classes"][name]["ap50%"]}
        scaled = {key: 100 * value for key, value in expected.items()}
        assert row == pytest.approx(scaled, abs=1e-9, nan_ok=True)
    assert 5 < ours.figures["mask_ap"] < ours.figures["mask_ap50"] < 95
    assert np.isnan(ours.per_class["train"]["mask_ap"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_commands_give_cityscapesscripts_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``finetune`` and ``evaluate``, of a detector whose detections are made up: many of them lie in the void."""
    root, run = write_cityscapes(tmp_path / "set", train=2, val=0), tmp_path / "run"
    _, predictions = random_city(root, 7)
    theirs = official(root, predictions, tmp_path / "theirs", monkeypatch)
    monkeypatch.setattr("hetcl.downstream.predict.detect", lambda *_, **__: EvaluationResult(predictions))
    data = f"cityscapes:{root}"
    more = "--model mask-rcnn --steps 1 --milestones 1 --warmup 0 --evaluations 1".split()
    assert main(command(run, data, *more, init="timm:test_resnet")) == 0
    assert main(["evaluate", str(run), "--data", data, "--out", str(tmp_path / "e"), "--device", "cpu"]) == 0
    for report in (run / "summary.json", tmp_path / "e" / "evaluation.json"):
        figures = json.loads(report.read_text())["figures"]
        assert figures["mask_ap"] == pytest.approx(100 * theirs["allAp"], abs=1e-9)
        assert figures["mask_ap50"] == pytest.approx(100 * theirs["allAp50%"], abs=1e-9)


def test_what_lies_in_the_void_costs_nothing(tmp_path: Path) -> None:
    """A car found, and a better-scored one invented: on the road, in the void, or over a group of cars."""
    car, other = [10.0, 10.0, 50.0, 50.0], [70.0, 10.0, 110.0, 50.0]
    masks = tuple(rle(ellipse(box, SIZE)) for box in (other, car))
    for ground, expected in ((7, 50), (0, 100), (3, 100), (4, 100), (5, 100), (26, 100), (24, 50)):
        ids = np.full(SIZE, 7)
        ids[:, 64:] = ground
        ids[ellipse(car, SIZE) > 0] = 26001
        data = city(tmp_path / str(ground), [ids])
        said = said_of(data.annotations(0).image_id, [other, car], [0.9, 0.5], [2, 2], masks)
        # Not ignored: (recall 1, precision 1/2), (0, 0), (0, 1): half of 1/2, and half of 0. Ignored: (1, 1), (0, 1).
        figure = score(data, [said]).figures["mask_ap50"]
        assert figure == pytest.approx(25 if expected == 50 else 100)


def test_nothing_said_and_nothing_to_find(tmp_path: Path) -> None:
    data, predictions = random_city(tmp_path / "set", 0)
    assert score(data, []).figures == {"mask_ap": 0, "mask_ap50": 0}
    empty = city(tmp_path / "empty", [np.full(SIZE, 7)] * len(data))
    assert all(np.isnan(value) for value in score(empty, predictions).figures.values())


def test_boxes_alone_are_scored_as_coco_scores_them(tmp_path: Path) -> None:
    data = city(tmp_path, [np.pad(np.full((50, 50), 24001), ((0, 78), (0, 206)), constant_values=7)])
    said = said_of("aachen_000000_000019", [[0, 0, 50, 50]], [1])
    assert score(data, [said]).figures["box_ap"] == pytest.approx(100)


def test_instance_maps_that_changed_are_refused(tmp_path: Path) -> None:
    data, predictions = random_city(tmp_path, 0)
    path = tmp_path / MAPS / "aachen_000001_000019_gtFine_instanceIds.png"
    save(path, data.instance_map(1)[:-1].astype(np.uint16))
    with pytest.raises(InputError, match="aachen_000001"):
        score(data, predictions)
    path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"aachen_000001.*put the file back"):
        score(data, predictions)


def test_the_command_gives_cityscapesscripts_miou(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the maps that ``evaluate`` wrote, of images of odd sides with every label id in them."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    tool = importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    root, run, out = write_cityscapes(tmp_path / "set", train=2, val=0), tmp_path / "run", tmp_path / "e"
    rng, truths, said = np.random.default_rng(0), [], []
    for i, size in enumerate([(61, 97), (80, 47)]):
        stem = f"aachen_{i:06}_000019"
        pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        save(root / "leftImg8bit/val/aachen" / f"{stem}_leftImg8bit.png", pixels)
        ids = np.arange(size[0] * size[1]).reshape(size) // 20 % (26 + 8 * i)  # not all classes in the first
        truths.append(str(save(root / MAPS / f"{stem}_gtFine_labelIds.png", ids.astype(np.uint8))))
    data = f"cityscapes:{root}"
    more = "--model fcn --steps 2 --milestones 1 --warmup 0 --evaluations 1".split()
    assert main(command(run, data, *more, init="timm:test_resnet")) == 0
    assert main(["evaluate", str(run), "--data", data, "--out", str(out), "--device", "cpu"]) == 0
    for i, path in enumerate(sorted((out / "label_maps").iterdir())):
        said.append(
            str(save(tmp_path / f"{i}.png", np.array(list(LABELS), np.uint8)[np.asarray(Image.open(path))]))
        )
    for name, value in (("evalInstLevelScore", False), ("JSONOutput", False), ("quiet", True)):
        monkeypatch.setattr(tool.args, name, value)
    theirs = tool.evaluateImgLists(said, truths, tool.args)
    report = json.loads((out / "evaluation.json").read_text())
    assert 0 < report["figures"]["miou"] == pytest.approx(100 * theirs["averageScoreClasses"], abs=1e-9)
    assert {name: row["iou"] for name, row in report["per_class"].items()} == pytest.approx(
        {name: 100 * theirs["classScores"][name] for name in report["per_class"]}, abs=1e-9
    )
