"""Classes of cells: which class fills a cell, and mean IoU with its interval.

n  images     K  classes     S  side of the grid     L = S * S
"""

from __future__ import annotations

import numpy as np

from hetcl.analysis.statistics import Estimate

VOID = -1
"""The value in a label map of what does not count."""
DRAWS, CONFIDENCE = 1000, 0.95
"""The bootstrap: how often images are drawn, and what share of the draws an interval holds."""


def cell_labels(label_map: np.ndarray, side: int) -> np.ndarray:
    """The class that fills most of each cell, of equals the smaller (void first): int16 ``[side, side]``.

    The map is laid under a grid that is stretched over it; a pixel belongs to the cell that holds its centre, and where
    cells are smaller than pixels, to the nearest.

    Args:
        label_map: integers ``[H, W]``, -1 void.
        side: S.
    """
    height, width = label_map.shape
    rows, columns = _parts(height, side), _parts(width, side)
    out = np.empty((side, side), np.int16)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            out[i, j] = np.bincount(label_map[top:bottom, left:right].ravel() + 1).argmax() - 1
    return out


def _parts(length: int, side: int) -> list[tuple[int, int]]:
    """First and last pixel of each cell along an axis, at least one each."""
    edges = np.ceil(np.arange(side + 1) * length / side - 0.5).astype(int)
    near = np.floor((np.arange(side) + 0.5) * length / side).astype(int).clip(0, length - 1)
    return [(a, b) if b > a else (m, m + 1) for a, b, m in zip(edges[:-1], edges[1:], near, strict=True)]


def counts_of(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Cells of each class that are right, that are true, and that are predicted: int64 ``[3, K]``, void left out."""
    known = truth != VOID
    p, t = predicted[known].astype(np.int64), truth[known].astype(np.int64)
    right, true, called = (np.bincount(x, minlength=classes) for x in (t[p == t], t, p))
    return np.stack([right, true, called])


def iou_of(counts: np.ndarray) -> np.ndarray:
    """IoU of each class ``[..., K]`` from counts ``[..., 3, K]``; NaN for one that is neither true nor predicted."""
    right, true, called = (counts[..., i, :].astype(np.float64) for i in range(3))
    whole = true + called - right
    return np.divide(right, whole, out=np.full(right.shape, np.nan), where=whole > 0)


def mean_iou(counts: np.ndarray) -> Estimate:
    """Mean IoU over the classes, with a 95% bootstrap interval over images (percentiles of ``DRAWS`` draws).

    Args:
        counts: ``[n, 3, K]``, as :func:`counts_of` gives them for each image.
    """
    return _estimate(float(np.nanmean(iou_of(counts.sum(axis=0)))), _drawn(counts))


def paired_mean_iou(first: np.ndarray, second: np.ndarray) -> Estimate:
    """The first's mean IoU minus the second's on the same images, with the 95% bootstrap interval of the difference."""
    value = np.nanmean(iou_of(first.sum(axis=0))) - np.nanmean(iou_of(second.sum(axis=0)))
    return _estimate(float(value), _drawn(first) - _drawn(second))


def _drawn(counts: np.ndarray) -> np.ndarray:
    """Mean IoU of each draw of n images out of n: ``[DRAWS]``; the same draws for equal n."""
    n = len(counts)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(np.float64)
    sums = (weights @ counts.reshape(n, -1)).reshape(DRAWS, *counts.shape[1:])
    return np.nanmean(iou_of(sums), axis=-1)


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    low, high = np.nanquantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Estimate(value, min(value, float(low)), max(value, float(high)))
