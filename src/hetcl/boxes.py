"""Boxes as four numbers (left, top, right, bottom) in pixels, and the IoU of two: of crops, objects and annotations."""

from __future__ import annotations

import numpy as np

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes ``[..., 4]``, pair by pair: float64 ``[...]``; 0 where both are empty.

    A box whose edges are the wrong way round is empty.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    common = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clip(0).prod(-1) for box in (a, b)]
    union = areas[0] + areas[1] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
