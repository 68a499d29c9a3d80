"""VOC's figures against a slow reading of the development kit, and worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hetcl.datasets import open_detection
from hetcl.datasets.annotations import Annotations, Category, Prediction
from hetcl.datasets.packed import PackedDetection
from hetcl.downstream.scores import score
from tests.downstream.scores.random_detections import made, said_of, truth_of, truths_of
from tests.reference import voc

CLASSES = (Category(0, "cat"), Category(1, "dog"), Category(2, "owl"))


def set_of(truths: list[Annotations]) -> PackedDetection:
    return made(truths, "voc", CLASSES)


def on_disk(root: Path, truths: list[Annotations]) -> PackedDetection:
    """The same truths from XML files in VOC's layout, as ``hetcl`` opens them."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / "VOC2007" / folder).mkdir(parents=True)
    for truth in truths:
        lines = [f"<annotation><size><width>{truth.size[1]}</width><height>{truth.size[0]}</height></size>"]
        for box, label, hard in zip(truth.boxes, truth.labels, truth.difficult, strict=True):
            edges = zip(("xmin", "ymin", "xmax", "ymax"), inclusive(box), strict=True)
            bndbox = "".join(f"<{edge}>{value:.0f}</{edge}>" for edge, value in edges)
            lines.append(f"<object><name>{CLASSES[label].name}</name><difficult>{hard:d}</difficult>")
            lines.append(f"<bndbox>{bndbox}</bndbox></object>")
        xml = root / "VOC2007/Annotations" / f"{truth.image_id}.xml"
        xml.write_text("\n".join([*lines, "</annotation>"]))
        (root / "VOC2007/JPEGImages" / f"{truth.image_id}.jpg").touch()
    (root / "VOC2007/ImageSets/Main/trainval.txt").touch()
    names = "".join(f"{truth.image_id}\n" for truth in truths)
    (root / "VOC2007/ImageSets/Main/test.txt").write_text(names)
    data = open_detection(f"voc:{root}", "val")
    assert isinstance(data, PackedDetection)
    return data


def inclusive(box: np.ndarray) -> voc.Box:
    left, top, right, bottom = box.tolist()
    return left + 1, top + 1, right, bottom


def random_voc(root: Path, seed: int) -> tuple[PackedDetection, list[Prediction]]:
    """Whole-numbered boxes, with overlaps of exactly 0.5 and 0.75 among them; owls are all difficult."""
    rng = np.random.default_rng(seed)
    truths, predictions = [], []
    for i in range(8):
        n = int(rng.integers(2, 6)) if i else 0
        corners = rng.integers(0, 60, (n, 2))
        boxes = np.concatenate([corners, corners + rng.integers(1, 5, (n, 2)) * 8], axis=1)
        labels = rng.integers(0, 3, n)
        labels[:2] = (0, 1) if i == 2 else labels[:2]
        difficult = (rng.random(n) < 0.2 * (i != 2)) | (labels == 2)
        truths.append(truth_of(f"{i:06}", boxes=boxes, labels=labels, difficult=difficult))
        near = np.repeat(boxes, 3, axis=0) + rng.integers(-3, 4, (3 * n, 4))
        near[::3] = boxes
        near[::3, 2] -= (boxes[:, 2] - boxes[:, 0]) // rng.choice([2, 4], n)  # half or a quarter is missing
        keep = rng.random(3 * n) < 0.6
        other = rng.integers(0, 50, (3, 4)) + np.array([0, 0, 51, 51])
        found = np.concatenate([near[keep], other])
        found_labels = np.concatenate([np.repeat(labels, 3)[keep], rng.integers(0, 3, 3)])
        scores = np.sort(rng.random(len(found)).round(1))[::-1]
        if i != 1:
            predictions.append(said_of(f"{i:06}", found, scores, found_labels))
    return on_disk(root, truths), predictions


def slow(data: PackedDetection, predictions: list[Prediction]) -> tuple[dict[str, float], dict[str, float]]:
    """The three figures, and each class's AP."""
    table = []
    for label in range(2):
        objects = [
            voc.Object(str(t.image_id), inclusive(box), bool(difficult))
            for t in truths_of(data)
            for box, own, difficult in zip(t.boxes, t.labels, t.difficult, strict=True)
            if own == label
        ]
        detections = [
            voc.Detection(str(p.image_id), float(s), inclusive(box))
            for p in predictions
            for box, s, own in zip(p.boxes, p.scores, p.labels, strict=True)
            if own == label
        ]
        at = [least / 100 for least in range(50, 100, 5)]
        table.append([100 * voc.average_precision(objects, detections, least) for least in at])
    ap = np.array(table)
    each = {CLASSES[label].name: ap[label].mean() for label in range(2)}
    return {"box_ap": ap.mean(), "box_ap50": ap[:, 0].mean(), "box_ap75": ap[:, 5].mean()}, each


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_development_kit(seed: int, tmp_path: Path) -> None:
    data, predictions = random_voc(tmp_path, seed)
    figures, each = slow(data, predictions)
    ours = score(data, predictions[::-1])
    assert ours.figures == pytest.approx(figures, abs=1e-10)
    assert {name: ours.per_class[name]["box_ap"] for name in each} == pytest.approx(each, abs=1e-10)
    assert all(np.isnan(value) for value in ours.per_class["owl"].values())
    assert 0 < figures["box_ap75"] < figures["box_ap50"] <= 100


def test_worked_by_hand() -> None:
    """Two cats, one difficult cat; found, found again, difficult, invented, found: precision 1, 1/2, 1/2, 1/3, 2/4."""
    boxes = [[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]]
    data = set_of([truth_of("a", boxes=boxes, difficult=[False, False, True])])
    found = [boxes[0], boxes[0], boxes[2], [70, 70, 80, 80], boxes[1]]
    figures = score(data, [said_of("a", found, [0.9, 0.8, 0.7, 0.6, 0.5])]).figures
    assert figures == pytest.approx(dict.fromkeys(figures, 100 * (6 * 1 + 5 * 2 / 4) / 11))


def test_a_box_of_exactly_half_counts() -> None:
    data = set_of([truth_of("a", boxes=[[0, 0, 10, 10]])])
    assert score(data, [said_of("a", [[0, 0, 10, 5]], [1])]).figures["box_ap50"] == pytest.approx(100)
    assert score(data, [said_of("a", [[0, 0, 10, 4.99]], [1])]).figures["box_ap50"] == 0


def test_no_predictions_and_no_truths() -> None:
    data = set_of([truth_of("a", boxes=[[0, 0, 10, 10]]), truth_of("b")])
    assert score(data, []).figures == {"box_ap": 0, "box_ap50": 0, "box_ap75": 0}
    assert all(np.isnan(value) for value in score(set_of([truth_of("b")]), []).figures.values())
