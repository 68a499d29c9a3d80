"""Localization: where is the main object, by a linear function of a frozen map?

    n  images

Boxes are left, top, right, bottom in shares of the image's width and height, float64 ``[n, 4]``. The overlap of two
boxes does not change when an axis is scaled, so images of any shape count alike.
"""

from __future__ import annotations

import numpy as np

from hetcl.boxes import box_iou

GOOD = 0.75
"""Overlap from which a box counts as found, as in AP75."""


def main_box(boxes: np.ndarray, areas: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """The box of the object with the largest area (of equals the first), in shares of the image: ``[4]``.

    Args:
        boxes: ``[k, 4]`` in pixels.
        areas: ``[k]``.
        size: height and width in pixels.

    Returns:
        None where there is no object.
    """
    if not len(boxes):
        return None
    height, width = size
    box = np.asarray(boxes[int(np.argmax(areas))], np.float64) / (width, height, width, height)
    return box.clip(0, 1)


def overlap(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU of predicted and true boxes: float64 ``[n]``. A prediction whose edges are the wrong way round is turned."""
    a, b = np.asarray(boxes, np.float64), np.asarray(truth, np.float64)
    turned = np.concatenate([np.minimum(a[:, :2], a[:, 2:]), np.maximum(a[:, :2], a[:, 2:])], axis=1)
    return box_iou(turned, b)
