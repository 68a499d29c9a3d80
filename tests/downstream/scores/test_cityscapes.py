"""Cityscapes' figures against cityscapesScripts, on files in the layout it reads, and worked by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hetcl.downstream.objects import Category, Prediction
from hetcl.downstream.scores import score
from hetcl.errors import InputError
from tests.downstream.scores.made_up import Made, ellipse, rle, said_of, truth_of

NAMES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
CLASSES = tuple(Category(i, name) for i, name in NAMES.items())
SIZE = (128, 256)
STUFF = (0, 3, 4, 7, 11, 23, 30)
"""Void (0, 3, 4 and a trailer's group) and not."""


class City(Made):
    """With instance ids, as ``*_gtFine_instanceIds.png`` has them."""

    def __init__(self, maps: list[np.ndarray]) -> None:
        truths = [truth_of(f"aachen_{i:06}_000019", m.shape) for i, m in enumerate(maps)]
        super().__init__(truths, "cityscapes", CLASSES)
        self.maps = maps

    def instance_map(self, index: int) -> np.ndarray:
        return self.maps[index]


def random_city(seed: int) -> tuple[City, list[Prediction]]:
    """Strips of stuff, objects, groups and small ones; no trains; found well, badly, twice, or in the void.

    The last picture has nothing that counts.
    """
    rng = np.random.default_rng(seed)
    maps, predictions = [], []
    for place in range(5):
        ids = np.repeat(rng.choice(STUFF, 8), SIZE[1] // 8)[None].repeat(SIZE[0], 0).astype(np.int32)
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
    return City(maps), predictions


def _box(rng: np.random.Generator) -> np.ndarray:
    """Some of fewer than 100 pixels."""
    corner = rng.uniform(0, [220, 100])
    return np.concatenate([corner, corner + rng.choice([9, 25, 60]) * rng.uniform(0.8, 1.3, 2)])


def official(
    folder: Path, data: City, predictions: list[Prediction], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Averages by cityscapesScripts, of numpy 1's time, from instance ids and predictions written in its layout."""
    from pycocotools import mask as coco_mask

    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    tool = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    monkeypatch.setattr(tool, "writeDict2JSON", lambda *_: None)  # it cannot write numpy 2's numbers
    truths, texts = [], []
    for place, said in enumerate(predictions):
        city = folder / "gtFine" / "val" / "aachen"
        results = folder / "results"
        for place_of in (city, results):
            place_of.mkdir(parents=True, exist_ok=True)
        truths.append(str(city / f"{said.image_id}_gtFine_instanceIds.png"))
        Image.fromarray(data.maps[place].astype(np.uint16)).save(truths[-1])
        lines = []
        for row, mask in enumerate(said.masks or ()):
            name = f"{said.image_id}_{row}.png"
            Image.fromarray(coco_mask.decode(mask) * 255).save(results / name)
            lines.append(f"{name} {CLASSES[said.labels[row]].id} {float(said.scores[row])!r}\n")
        texts.append(str(results / f"{said.image_id}.txt"))
        Path(texts[-1]).write_text("".join(lines))
    args = tool.args
    for name, value in (
        ("predictionPath", str(folder / "results")),
        ("gtInstancesFile", str(folder / "gtInstances.json")),
        ("JSONOutput", False),
        ("quiet", True),
    ):
        monkeypatch.setattr(args, name, value)
    return tool.evaluateImgLists(texts, truths, args)["averages"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_equals_cityscapesscripts(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, predictions = random_city(seed)
    theirs = official(tmp_path, data, predictions, monkeypatch)
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


def test_what_lies_in_the_void_costs_nothing() -> None:
    """A car found, and a better-scored one invented: on the road, in the void, or over a group of cars."""
    car, other = [10.0, 10.0, 50.0, 50.0], [70.0, 10.0, 110.0, 50.0]
    masks = tuple(rle(ellipse(box, SIZE)) for box in (other, car))
    for ground, expected in ((7, 50), (0, 100), (26, 100), (24, 50)):
        ids = np.full(SIZE, 7, dtype=np.int32)
        ids[:, 64:] = ground
        ids[ellipse(car, SIZE) > 0] = 26001
        data = City([ids])
        said = said_of(data.truth(0).image_id, [other, car], [0.9, 0.5], [2, 2], masks)
        # Not ignored: (recall 1, precision 1/2), (0, 0), (0, 1): half of 1/2, and half of 0. Ignored: (1, 1), (0, 1).
        figure = score(data, [said]).figures["mask_ap50"]
        assert figure == pytest.approx(25 if expected == 50 else 100)


def test_without_instance_maps_the_truths_are_painted() -> None:
    """Cars and a group of cars from run lengths; what is neither is not void."""
    boxes = [[10.0, 10.0, 50.0, 50.0], [70.0, 10.0, 110.0, 50.0], [130.0, 10.0, 170.0, 50.0]]
    masks = tuple(rle(ellipse(box, SIZE)) for box in boxes)
    truth = truth_of(1, SIZE, boxes=boxes[:2], labels=[2, 2], crowd=[False, True], segments=masks[:2])
    data = Made([truth], "cityscapes", CLASSES)
    for found, expected in (([0], 100), ([1, 0], 100), ([2, 0], 25), ([1], 0)):
        said = said_of(
            1,
            [boxes[i] for i in found],
            [0.9, 0.5][: len(found)],
            [2] * len(found),
            [masks[i] for i in found],
        )
        assert score(data, [said]).figures["mask_ap50"] == pytest.approx(expected)


def test_nothing_said_and_nothing_to_find() -> None:
    data, predictions = random_city(0)
    assert score(data, []).figures == {"mask_ap": 0, "mask_ap50": 0}
    empty = City([np.full(SIZE, 7, dtype=np.int32)] * len(data))
    assert all(np.isnan(value) for value in score(empty, predictions).figures.values())


def test_boxes_alone_are_scored_as_coco_scores_them() -> None:
    data = Made([truth_of(1, boxes=[[0, 0, 50, 50]])], "cityscapes", CLASSES)
    assert score(data, [said_of(1, [[0, 0, 50, 50]], [1])]).figures["box_ap"] == pytest.approx(100)


def test_instance_ids_of_another_size_are_refused() -> None:
    data, predictions = random_city(0)
    data.maps[1] = data.maps[1][:-1]
    with pytest.raises(InputError, match="aachen_000001"):
        score(data, predictions)
