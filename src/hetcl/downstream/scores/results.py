"""Predictions in COCO's results format (https://cocodataset.org/#format-results).

n  detections of an image     H W  height and width in pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hetcl.datasets.annotations import DetectionSet, Prediction, Rle
from hetcl.downstream.scores.images import paired


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
