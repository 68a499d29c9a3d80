"""AP by the rules of COCO and of LVIS, counted by faster-coco-eval (equal to pycocotools and to the ``lvis`` package).

    T  IoU thresholds, 0.50:0.05:0.95     R  recalls, 0:0.01:1     K  classes     A  areas: all, small, medium, large
    n  objects or detections of an image

Both packages take a detection's size from its ``bbox`` where the results have one, in the AP of masks too, and so do
we: a tool that reads our results file finds our figures. (detectron2 takes the boxes out before it scores masks, which
can move AP of small, medium and large masks a little; AP, AP50 and AP75 are the same.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from hetcl.datasets.annotations import Annotations, Category, Metrics, Prediction, Rle
from hetcl.datasets.masks import rle_of
from hetcl.downstream.scores.images import Pair
from hetcl.downstream.scores.results import text_rle, xywh

LVIS_MOST = 300
"""Detections of an image that count, all classes together (``LVISResults``)."""

AREAS = ("", "_s", "_m", "_l")


def score_coco(pairs: list[Pair], classes: tuple[Category, ...], masks: bool, lvis: bool = False) -> Metrics:
    """``box_ap``, ``box_ap50``, ``box_ap75``, ``box_ap_s``, ``_m``, ``_l``, and ``mask_...`` if ``masks``.

    LVIS adds ``_r``, ``_c`` and ``_f``. COCO counts up to 100 detections of a class in an image, LVIS up to 300 in a
    image. Per class: ``box_ap`` and ``box_ap50``, and of masks likewise.
    """
    # The order of ids decides between equal scores: both packages sort their images by id.
    pairs = sorted(pairs, key=lambda pair: (isinstance(pair[0].image_id, str), pair[0].image_id))
    figures: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {category.name: {} for category in classes}
    for prefix in ("box", "mask") if masks else ("box",):
        ap = _precision(pairs, classes, prefix == "mask", lvis)
        figures[f"{prefix}_ap"] = _percent(ap[..., 0])
        figures[f"{prefix}_ap50"] = _percent(ap[0, :, :, 0])
        figures[f"{prefix}_ap75"] = _percent(ap[5, :, :, 0])
        for area in (1, 2, 3):
            figures[f"{prefix}_ap{AREAS[area]}"] = _percent(ap[..., area])
        for letter in "rcf" if lvis else "":
            group = [label for label, category in enumerate(classes) if category.frequency == letter]
            figures[f"{prefix}_ap_{letter}"] = _percent(ap[:, :, group, 0])
        for label, category in enumerate(classes):
            per_class[category.name][f"{prefix}_ap"] = _percent(ap[:, :, label, 0])
            per_class[category.name][f"{prefix}_ap50"] = _percent(ap[0, :, label, 0])
    return Metrics(figures, per_class)


def _percent(precision: np.ndarray) -> float:
    """Mean over what could be measured (the packages write -1 elsewhere), in percent."""
    measured = precision[precision > -1]
    return 100 * float(measured.mean()) if measured.size else float("nan")


def _precision(pairs: list[Pair], classes: tuple[Category, ...], masks: bool, lvis: bool) -> np.ndarray:
    """float64 ``[T, R, K, A]``: precision at each recall, -1 where a class has no object of the area."""
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for number, (truth, predicted) in enumerate(pairs, start=1):
        images.append(_image(number, truth))
        objects += _objects(number, truth, masks, lvis)
        detections += _detections(number, _lvis_only(truth, predicted) if lvis else predicted, masks)
    for entries in (objects, detections):
        for number, entry in enumerate(entries, start=1):
            entry["id"] = number
    categories = [
        {"id": label + 1, "name": c.name, "frequency": c.frequency or "f"} for label, c in enumerate(classes)
    ]
    gt, dt = (
        COCO({"images": images, "categories": categories, "annotations": entries}, print_function=_silent)
        for entries in (objects, detections)
    )
    kind = "segm" if masks else "bbox"
    evaluation = COCOeval_faster(gt, dt, kind, print_function=_silent, lvis_style=lvis)
    if lvis:
        evaluation.params.maxDets = [LVIS_MOST]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., -1]


def _silent(*_: Any) -> None:
    """In place of ``print``."""


def _image(number: int, truth: Annotations) -> dict[str, Any]:
    height, width = truth.size
    return {
        "id": number,
        "height": height,
        "width": width,
        "neg_category_ids": [label + 1 for label in truth.negative],
        "not_exhaustive_category_ids": [label + 1 for label in truth.not_exhaustive],
    }


def _annotation(number: int, label: int, box: list[float], area: float) -> dict[str, Any]:
    """An object or a detection as COCO writes it."""
    entry = {"image_id": number, "category_id": int(label) + 1, "bbox": box, "area": float(area)}
    return entry | {"iscrowd": 0}


def _objects(number: int, truth: Annotations, masks: bool, lvis: bool) -> list[dict[str, Any]]:
    """The truths of an image as COCO's annotations. LVIS knows no crowds."""
    entries = []
    for row, box in enumerate(xywh(truth.boxes).tolist()):
        annotation = _annotation(number, truth.labels[row], box, truth.areas[row])
        annotation["iscrowd"] = int(truth.crowd[row] and not lvis)
        if masks:
            annotation |= _segmentation(truth, row)
        entries.append(annotation)
    return entries


def _segmentation(truth: Annotations, row: int) -> dict[str, Any]:
    """An object's mask. One without is neither missed nor found: its box becomes a region that is ignored."""
    segment = truth.segments[row] if truth.segments else None
    if segment is not None:
        return {"segmentation": _rle(segment, truth)}
    left, top, right, bottom = truth.boxes[row]
    corners = np.array([[left, top], [left, bottom], [right, bottom], [right, top]])
    return {"segmentation": _rle((corners,), truth), "iscrowd": 1}


def _rle(segment: Any, truth: Annotations) -> Rle:
    return text_rle(rle_of(segment, truth.size))


def _detections(number: int, predicted: Prediction, masks: bool) -> list[dict[str, Any]]:
    """The detections of an image as COCO's annotations."""
    annotations = []
    for row, box in enumerate(xywh(predicted.boxes).tolist()):
        annotation = _annotation(number, predicted.labels[row], box, box[2] * box[3])
        annotation["score"] = float(predicted.scores[row])
        if masks and predicted.masks is not None:
            annotation["segmentation"] = text_rle(predicted.masks[row])
        annotations.append(annotation)
    return annotations


def _lvis_only(truth: Annotations, predicted: Prediction) -> Prediction:
    """The best 300; of those, the classes that are known to be in the image or known to be absent.

    The evaluator leaves the other classes out as well; doing it here saves gigabytes on LVIS' 1,230 classes.
    """
    best = np.argsort(-predicted.scores, kind="stable")[:LVIS_MOST]
    best = best[np.isin(predicted.labels[best], [*truth.labels.tolist(), *truth.negative])]
    masks = None if predicted.masks is None else tuple(predicted.masks[row] for row in best)
    return Prediction(
        predicted.image_id, predicted.boxes[best], predicted.scores[best], predicted.labels[best], masks
    )
