"""AP by the rules of the VOC 2007 development kit, at detectron2's ten IoU thresholds.

    g  objects of one class in an image     d  detections of one class, all images     T  IoU thresholds

The kit counts boxes in whole pixels, both ends included: a width is ``xmax - xmin + 1``. Our left edge is its xmin - 1
and our right edge its xmax, so its ``+ 1`` is already in ``right - left``.
"""

from __future__ import annotations

import numpy as np

from hetcl.datasets.annotations import Category, Metrics
from hetcl.downstream.scores.images import Pair

THRESHOLDS = np.arange(50, 100, 5) / 100

RECALLS = 0.1 * np.arange(11)
"""As detectron2 has them: in floating point, recalls of exactly 3, 6 and 7 in 10 do not reach theirs by a hair."""


def score_voc(pairs: list[Pair], classes: tuple[Category, ...]) -> Metrics:
    """``box_ap``, ``box_ap50`` and ``box_ap75``: means over the classes that have an object that is not difficult."""
    per_class = {c.name: _of_class(pairs, label) for label, c in enumerate(classes)}
    figures = {}
    for name in ("box_ap", "box_ap50", "box_ap75"):
        values = [row[name] for row in per_class.values() if not np.isnan(row[name])]
        figures[name] = float(np.mean(values)) if values else float("nan")
    return Metrics(figures, per_class)


def _of_class(pairs: list[Pair], label: int) -> dict[str, float]:
    """The three figures of one class; NaN if there is no object to find."""
    scores, outcomes, objects = [], [], 0
    for truth, predicted in pairs:
        mine, ours = predicted.labels == label, truth.labels == label
        ignored = (truth.difficult | truth.crowd)[ours]
        objects += int((~ignored).sum())
        order = np.argsort(-predicted.scores[mine], kind="stable")
        scores.append(predicted.scores[mine][order])
        outcomes.append(_outcomes(predicted.boxes[mine][order], truth.boxes[ours], ignored))
    if not objects:
        return dict.fromkeys(("box_ap", "box_ap50", "box_ap75"), float("nan"))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    ap = [100 * _average_precision(row[order], objects) for row in np.concatenate(outcomes, axis=1)]
    return {"box_ap": float(np.mean(ap)), "box_ap50": ap[0], "box_ap75": ap[5]}


def _outcomes(boxes: np.ndarray, truths: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """int8 ``[T, d]``: 1 found an object, -1 found none or one found before, 0 does not count (a difficult one).

    Args:
        boxes: ``[d, 4]``, best first, of one image.
        truths: ``[g, 4]``.
        ignored: bool ``[g]``.
    """
    outcomes = np.full((len(THRESHOLDS), len(boxes)), -1, dtype=np.int8)
    if not len(truths) or not len(boxes):
        return outcomes
    overlaps = _iou(boxes, truths)
    nearest = overlaps.argmax(axis=1)  # difficult ones too, and found ones: a detection has no second choice
    for row, threshold in enumerate(THRESHOLDS):
        found = np.zeros(len(truths), dtype=bool)
        for column, truth in enumerate(nearest):
            if overlaps[column, truth] < threshold:
                continue
            if ignored[truth]:
                outcomes[row, column] = 0
            elif not found[truth]:
                outcomes[row, column] = 1
                found[truth] = True
    return outcomes


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 ``[d, g]``, 0 where both boxes are empty."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = sides.clip(min=0).prod(axis=2)
    areas = [(box[:, 2:] - box[:, :2]).prod(axis=1) for box in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _average_precision(outcomes: np.ndarray, objects: int) -> float:
    """Mean, over the 11 recalls, of the best precision at that recall or beyond; outcomes ``[d]``, best first."""
    found, false = np.cumsum(outcomes == 1), np.cumsum(outcomes == -1)
    recall, precision = found / objects, found / np.maximum(found + false, 1)
    return float(np.mean([precision[recall >= least].max(initial=0) for least in RECALLS]))
