"""Polygons to bitmaps in memory bounded by the image, with the pixels of COCO's C code.

That code walks along the whole outline in steps of a fifth of a pixel, however far it leaves the image, and keeps every
step; here an edge is asked for its crossing with each column of the image alone.

    m  corners     e  edges     H W  height and width in pixels
"""

from __future__ import annotations

import numpy as np

_SCALE = 5
"""COCO's steps in a pixel."""
_AT_ONCE = 1 << 18
"""Crossings that are computed at a time."""


def steps(ring: np.ndarray) -> int:
    """How many steps COCO's code takes, 20 bytes each; ``ring``: float64 ``[m, 2]``."""
    corners = _corners(ring)
    return int(np.abs(np.diff(corners, axis=0)).max(1).sum()) + len(ring)


def filled(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The inside of a polygon, uint8 ``[H, W]`` (Fortran order) of 0 and 1, as ``rleFrPoly`` of COCO's API has it.

    Column ``k`` changes between out and in at row ``ceil(y)`` of each place where the outline, rounded to fifths of a
    pixel, passes from fifth ``5 k + 2`` to ``5 k + 3``; a change runs on into the next columns until another one.

    Args:
        ring: float64 ``[m, 2]``, x and y of the corners, within a million pixels.
        size: height and width.
    """
    height, width = size
    corners = _corners(ring)
    start, end = corners[:-1], corners[1:]
    flip = np.where(_flat(start, end), start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])[:, None]
    start, end = np.where(flip, end, start), np.where(flip, start, end)
    # Edges and the columns of the image that each of them crosses.
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.maximum(-(-(low - 2) // _SCALE), 0)
    last = np.minimum((high - 3) // _SCALE, width - 1)
    many = np.maximum(last - first + 1, 0)
    changes = np.zeros(height * width + 1, bool)
    ends = np.cumsum(many)
    for begin in range(0, int(ends[-1]), _AT_ONCE):
        numbers = np.arange(begin, min(begin + _AT_ONCE, int(ends[-1])))
        edge = np.searchsorted(ends, numbers, side="right")
        column = first[edge] + numbers - (ends[edge] - many[edge])
        row = _rows(start[edge], end[edge], column * _SCALE + 2, height)
        places, times = np.unique(column * height + row, return_counts=True)
        changes[places[times % 2 == 1]] ^= True
    inside = np.logical_xor.accumulate(changes)[:-1]
    return inside.view(np.uint8).reshape(width, height).T


def _corners(ring: np.ndarray) -> np.ndarray:
    """Corners in fifths of a pixel, the first one again at the end: int64 ``[m + 1, 2]``."""
    corners = (_SCALE * ring + 0.5).astype(np.int64)  # C's cast: towards zero
    return np.concatenate([corners, corners[:1]])


def _flat(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Which edges are at least as wide as they are high."""
    wide, high = np.abs(end - start).T
    return wide >= high


def _rows(start: np.ndarray, end: np.ndarray, left: np.ndarray, height: int) -> np.ndarray:
    """The rows at which edges pass from fifth ``left`` to the next one, all int64 ``[e]``, within the image."""
    flat = _flat(start, end)
    (x, y), (wide, high) = start.T.astype(np.float64), (end - start).T.astype(np.float64)
    slope = np.where(flat, high, wide) / np.where(flat, wide, high)
    at = left - x
    beside = [np.trunc(y + slope * (at + more) + 0.5) for more in (0, 1)]
    # A steep edge is walked down: the last step on the side where it begins.
    rising = slope > 0
    down = np.where(flat, 0.0, np.floor((left + 0.5 - x) / np.where(flat, 1.0, slope)))

    def passed(step: np.ndarray) -> np.ndarray:
        there = np.trunc(x + slope * step + 0.5)
        return np.asarray(np.where(rising, there > left, there <= left) & ~flat)

    for _ in range(3):  # rounding puts the guess off by a step at most
        down = np.where(passed(down), down - 1, down)
    for _ in range(3):
        down = np.where(passed(down + 1) | flat, down, down + 1)
    lower = np.where(flat, np.minimum(*beside), y + down)
    return np.ceil(np.clip((lower + 0.5) / _SCALE - 0.5, 0, height)).astype(np.int64)
