"""COCO's figures against pycocotools and LVIS' against the ``lvis`` package, on the same files."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lvis import LVIS, LVISEval, LVISResults
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hetcl.datasets.annotations import Metrics
from hetcl.downstream.scores import results, score
from tests.downstream.scores.random_detections import (
    CLASSES,
    ellipse,
    made,
    random_set,
    read,
    rle,
    said_of,
    truth_of,
    truths_of,
)

COCO_NAMES = ("_ap", "_ap50", "_ap75", "_ap_s", "_ap_m", "_ap_l")


def written(folder: Path, raw: dict[str, Any], entries: list[dict[str, Any]]) -> tuple[str, str]:
    for name, content in (("truth.json", raw), ("results.json", entries)):
        (folder / name).write_text(json.dumps(content))
    return str(folder / "truth.json"), str(folder / "results.json")


def official_coco(truth: str, said: str) -> dict[str, float]:
    """The twelve AP of boxes and masks, and the AP of each class, as pycocotools counts them."""
    gt = COCO(truth)
    dt = gt.loadRes(said)
    figures = {}
    for prefix, kind in (("box", "bbox"), ("mask", "segm")):
        evaluation = COCOeval(gt, dt, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures |= {prefix + name: float(evaluation.stats[i]) for i, name in enumerate(COCO_NAMES)}
        for column, category in enumerate(evaluation.params.catIds):
            precision = evaluation.eval["precision"][:, :, column, 0, -1]
            figures[f"{prefix}_{category}"] = float(precision.mean())
    return figures


def assert_equal(ours: dict[str, float], official: dict[str, float]) -> None:
    assert ours.keys() == official.keys()
    for name, value in official.items():
        if value == -1:
            assert np.isnan(ours[name]), name
        else:
            assert ours[name] == pytest.approx(100 * value, abs=1e-10), name  # 1e-12 of 0..1


def flat(outcome: Metrics) -> dict[str, float]:
    """Figures, and each class's AP under its category id."""
    each = {
        f"{prefix}_{c.id}": outcome.per_class[c.name][f"{prefix}_ap"]
        for c in CLASSES
        for prefix in ("box", "mask")
    }
    return outcome.figures | each


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools_on_the_same_results_file(
    seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw, predictions = random_set(seed)
    data = read(raw)
    official = official_coco(*written(tmp_path, raw, results(data, predictions)))
    capfd.readouterr()
    ours = score(data, predictions)
    assert capfd.readouterr() == ("", "")
    assert_equal(flat(ours), official)
    assert 5 < ours.figures["box_ap"] < 95


def test_twelve_figures_are_all_measured_in_the_comparison() -> None:
    """Else the test above would compare NaN with -1."""
    figures = [score(read(raw), said).figures for raw, said in map(random_set, range(6))]
    for name in (prefix + name for prefix in ("box", "mask") for name in COCO_NAMES):
        assert sum(figure[name] > 0 for figure in figures) >= 2, name


def test_more_than_a_hundred_detections_of_a_class() -> None:
    """The right one comes 101st in the first image and 100th in the second."""
    data = made(truth_of(i, boxes=[[0, 0, 50, 50]]) for i in (1, 2))
    wrong = [[60.0, 60.0, 90.0, 90.0]]
    said = [
        said_of(i, wrong * before + [[0, 0, 50, 50]], [0.9] * before + [0.5])
        for i, before in ((1, 100), (2, 99))
    ]
    # One of two found: 51 of the 101 recalls are reached, at a precision of 1 in 200 detections.
    assert score(data, said).figures["box_ap50"] == pytest.approx(100 * 51 / 101 / 200)


def test_ids_may_be_text_and_scenes_are_scored_likewise() -> None:
    raw, predictions = random_set(3)
    named = made((replace(t, image_id=f"p{t.image_id}") for t in truths_of(read(raw))), "scenes")
    said = [replace(p, image_id=f"p{p.image_id}") for p in predictions]
    np.testing.assert_equal(score(named, said).figures, score(read(raw), predictions).figures)


def test_the_order_of_predictions_does_not_matter() -> None:
    raw, predictions = random_set(4)
    one, other = score(read(raw), predictions[::-1]), score(read(raw), predictions)
    np.testing.assert_equal(flat(one), flat(other))


def test_nothing_said_is_zero_and_nothing_to_find_is_nan() -> None:
    raw, predictions = random_set(5)
    data = read(raw)
    figures = score(data, []).figures
    assert set(figures.values()) == {0.0}
    assert len(figures) == 12
    assert all(np.isnan(value) for value in score(made([truth_of(1)]), []).figures.values())
    nothing = made(truth_of(t.image_id, t.size) for t in truths_of(data))
    assert all(np.isnan(value) for value in score(nothing, predictions).figures.values())
    assert np.isnan(score(data, predictions).per_class["yak"]["box_ap"])


def test_boxes_alone_have_no_figures_of_masks() -> None:
    raw, predictions = random_set(6)
    data = read(raw)
    boxes = [replace(p, masks=None) for p in predictions]
    both = score(data, predictions).figures
    expected = {name: value for name, value in both.items() if name.startswith("box")}
    np.testing.assert_equal(score(data, boxes).figures, expected)
    bare = made(replace(t, segments=None) for t in truths_of(data))
    np.testing.assert_equal(score(bare, predictions).figures, expected)


def test_an_object_without_a_mask_is_ignored_when_masks_are_scored() -> None:
    size, boxes = (100, 100), [[0.0, 0.0, 40.0, 40.0], [50.0, 50.0, 90.0, 90.0]]
    masks = tuple(rle(ellipse(box, size)) for box in boxes)
    data = made([truth_of(1, size, boxes=boxes, segments=(masks[0], None))])
    for found in ([0], [0, 1]):
        said = said_of(1, [boxes[i] for i in found], [0.5] * len(found), masks=tuple(masks[i] for i in found))
        assert score(data, [said]).figures["mask_ap"] == pytest.approx(100)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_lvis_package(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)  # the package is of numpy 1's time
    logging.getLogger("lvis").setLevel(logging.ERROR)
    raw, predictions = random_set(seed, lvis=True)
    data = read(raw, "lvis")
    truth, said = written(tmp_path, raw, results(data, predictions))
    assert max(len(p.boxes) for p in predictions) > 300
    official = {}
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    for prefix, kind in (("box", "bbox"), ("mask", "segm")):
        gt = LVIS(truth)
        evaluation = LVISEval(gt, LVISResults(gt, said), kind)
        evaluation.run()
        for name, ours in zip(names, (*COCO_NAMES, "_ap_r", "_ap_c", "_ap_f"), strict=True):
            official[prefix + ours] = float(evaluation.results[name])
    assert_equal(score(data, predictions).figures, official)
    assert all(value > 0 for name, value in official.items() if name[-2:] in ("_r", "_c", "_f"))


def test_lvis_counts_the_best_300_of_a_image_whatever_their_class() -> None:
    """The object is found by the 301st detection, behind 300 of another class."""
    data = made([truth_of(1, boxes=[[0, 0, 50, 50]], labels=[0], negative=(1,))], "lvis")
    for before, expected in ((299, 100.0), (300, 0.0)):
        boxes = [[60, 60, 90, 90]] * before + [[0, 0, 50, 50]]
        said = said_of(1, boxes, [0.9] * before + [0.5], [1] * before + [0])
        assert score(data, [said]).figures["box_ap_c"] == pytest.approx(expected)


def test_lvis_forgives_what_nobody_looked_for() -> None:
    """A wrong box costs only where the class is known to be absent, or wholly annotated."""
    boxes, labels, scores = [[60, 60, 90, 90], [0, 0, 50, 50]], [0, 0], [0.9, 0.5]
    there = truth_of(1, boxes=[[0, 0, 50, 50]])
    for other, expected in (({}, 100.0), ({"negative": (0,)}, 50.0)):
        data = made([there, truth_of(2, **other)], "lvis")
        said = [said_of(1, boxes[1:], scores[1:]), said_of(2, boxes[:1], scores[:1])]
        assert score(data, said).figures["box_ap_c"] == pytest.approx(expected)
    for other, expected in (((), 50.0), ((0,), 100.0)):
        data = made([replace(there, not_exhaustive=other)], "lvis")
        assert score(data, [said_of(1, boxes, scores, labels)]).figures["box_ap_c"] == pytest.approx(expected)
