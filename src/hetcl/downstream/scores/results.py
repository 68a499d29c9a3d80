"""Predictions in COCO's results format, and back (https://cocodataset.org/#format-results).

n  detections of an image     H W  height and width in pixels
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hetcl.datasets.annotations import DetectionSet, Prediction, Rle
from hetcl.datasets.masks import decode
from hetcl.downstream.scores.images import by_id, empty, paired
from hetcl.errors import InputError


def results(data: DetectionSet, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """One entry a detection, in the data set's order: plain numbers and strings, fit for JSON, nothing rounded.

    ``image_id`` and ``category_id`` as the data set's own files say, ``bbox`` is left, top, width, height,
    ``segmentation`` compressed run lengths (absent without masks).

    Raises:
        InputError: as ``score`` does.
    """
    ids = [category.id for category in data.classes]
    entries: list[dict[str, Any]] = []
    for _, predicted in paired(data, predictions):
        rows = zip(
            predicted.labels.tolist(), xywh(predicted.boxes).tolist(), predicted.scores.tolist(), strict=True
        )
        for row, (label, box, score) in enumerate(rows):
            entry = {"image_id": predicted.image_id, "category_id": ids[label], "bbox": box, "score": score}
            if predicted.masks is not None:
                entry["segmentation"] = text_rle(predicted.masks[row])
            entries.append(entry)
    return entries


def predictions_of(data: DetectionSet, entries: Any) -> list[Prediction]:
    """What ``results`` wrote, for each image of the set, best first; images without an entry are empty.

    Args:
        entries: Parsed JSON of a results file.

    Raises:
        InputError: naming the first bad entry by its index: unknown image or category, a missing key, NaN, a negative
            size, a mask of another size or that cannot be read, a mask missing where other entries have one.
    """
    if not isinstance(entries, list):
        raise InputError(
            f"results must be a list of entries (COCO's results format), not {type(entries).__name__}"
        )
    truths, labels = by_id(data), {category.id: label for label, category in enumerate(data.classes)}
    masks = any(isinstance(entry, dict) and "segmentation" in entry for entry in entries)
    rows: dict[int | str, list[tuple[float, int, list[float], Rle | None]]] = {}
    for index, entry in enumerate(entries):
        image, category, box, score = _plain(entry, index)
        if image not in truths:
            raise InputError(f"entry {index}: unknown image_id {image!r}; the data set has no such image")
        if category not in labels:
            raise InputError(
                f"entry {index}: unknown category_id {category!r}; the data set has no such class"
            )
        mask = _mask(entry, index, truths[image].size) if masks else None
        rows.setdefault(image, []).append((score, labels[category], box, mask))
    nothing = masks or (not entries and data.has_masks)
    return [_prediction(name, rows[name]) if name in rows else empty(name, nothing) for name in truths]


def xywh(boxes: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom -> left, top, width, height; float64 ``[n, 4]``."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def text_rle(rle: Rle) -> Rle:
    """The same run lengths with ``counts`` as text, as JSON needs it."""
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts if isinstance(counts, str) else counts.decode(),
    }


def _plain(entry: Any, index: int) -> tuple[Any, Any, list[float], float]:
    """Image id, category id, box and score of an entry whose keys and numbers are in order."""
    if not isinstance(entry, dict):
        raise InputError(f"entry {index}: must be an object with image_id, category_id, bbox and score")
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
    if missing:
        raise InputError(f"entry {index}: has no {' and no '.join(missing)}")
    image, category, box, score = (entry[key] for key in ("image_id", "category_id", "bbox", "score"))
    for key, value, kinds in (("image_id", image, (int, str)), ("category_id", category, (int,))):
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise InputError(f"entry {index}: {key} is {value!r}, of the wrong type")
    if not (isinstance(box, list) and len(box) == 4 and all(_finite(number) for number in box)):
        raise InputError(
            f"entry {index}: bbox must be four finite numbers (left, top, width, height), not {box!r}"
        )
    if box[2] < 0 or box[3] < 0:
        raise InputError(f"entry {index}: bbox of negative size: {box!r} (left, top, width, height)")
    if not _finite(score):
        raise InputError(f"entry {index}: score must be a finite number, not {score!r}")
    return image, category, [float(number) for number in box], float(score)


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of a thousand digits
        return False


def _mask(entry: dict[str, Any], index: int, size: tuple[int, int]) -> Rle:
    """The run lengths of an entry, with ``counts`` as bytes."""
    rle = entry.get("segmentation")
    if rle is None:
        raise InputError(
            f"entry {index}: has no segmentation, but other entries have one; give it for all or for none"
        )
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str) or "size" not in rle:
        raise InputError(
            f"entry {index}: segmentation must be compressed run lengths: size and counts (a string)"
        )
    if rle["size"] != list(size):
        raise InputError(
            f"entry {index}: a mask of size {rle['size']}, but the image is {list(size)} (height, width)"
        )
    mask = {"size": list(size), "counts": rle["counts"].encode()}
    try:
        decode(mask)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"entry {index}: the mask cannot be read: {error}") from error
    return mask


def _prediction(name: int | str, rows: list[tuple[float, int, list[float], Rle | None]]) -> Prediction:
    rows = sorted(rows, key=lambda row: -row[0])
    scores, labels, boxes, masks = zip(*rows, strict=True)
    box = np.array(boxes, dtype=np.float64)
    box[:, 2:] += box[:, :2]
    given = tuple(mask for mask in masks if mask is not None)
    return Prediction(name, box, np.array(scores), np.array(labels, dtype=np.int64), given or None)
