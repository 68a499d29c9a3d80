"""Masks as bitmaps, run lengths and polygons, and from one to another. COCO's own C code does the counting.

H W  height and width in pixels     Rle, Polygons, Segment: see ``annotations.py``
"""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from hetcl.datasets import outlines
from hetcl.datasets.annotations import Polygons, Rle, Segment

MOST_STEPS = 1 << 22
"""COCO's code may take so many along outlines at a time, 20 bytes each."""


def encode(bitmap: np.ndarray) -> Rle:
    """Bool or uint8 ``[H, W]`` -> run lengths."""
    rle = coco_mask.encode(np.asfortranarray(bitmap, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": _bytes(rle["counts"])}


def decode(rle: Rle) -> np.ndarray:
    """Run lengths -> uint8 ``[H, W]`` of 0 and 1."""
    return np.ascontiguousarray(coco_mask.decode(rle))


def rle_of(segment: Segment, size: tuple[int, int]) -> Rle:
    """A segment as run lengths in an image of ``size`` (H, W), by COCO's rules for polygons.

    Memory: a few times the image's pixels, wherever the polygons go and however many there are.
    """
    if isinstance(segment, dict):
        return segment
    if sum(map(outlines.steps, segment)) <= MOST_STEPS:
        whole = _by_coco(segment, size)
    else:
        whole = encode(np.zeros(size, np.uint8))
        for ring in segment:
            short = outlines.steps(ring) <= MOST_STEPS
            one = _by_coco((ring,), size) if short else encode(outlines.filled(ring, size))
            whole = coco_mask.merge([whole, one])
    return {"size": [int(side) for side in whole["size"]], "counts": _bytes(whole["counts"])}


def _by_coco(segment: Polygons, size: tuple[int, int]) -> Any:
    rings = [np.asarray(ring, dtype=np.float64).reshape(-1).tolist() for ring in segment]
    return coco_mask.merge(coco_mask.frPyObjects(rings, *size))


def bitmap(segment: Segment, size: tuple[int, int]) -> np.ndarray:
    """A segment as uint8 ``[H, W]`` of 0 and 1."""
    return decode(rle_of(segment, size))


def area(segment: Segment, size: tuple[int, int]) -> float:
    """Pixels covered."""
    return float(coco_mask.area(rle_of(segment, size)))


def box_of(segment: Segment) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what is covered; all 0 where nothing is."""
    if isinstance(segment, dict):
        left, top, width, height = (float(v) for v in coco_mask.toBbox(segment))
        return left, top, left + width, top + height
    points = np.concatenate(segment)
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return left, top, right, bottom


def from_uncompressed(counts: list[int], size: tuple[int, int]) -> Rle:
    """COCO's uncompressed run lengths (a list of numbers, zeros first, column by column) -> compressed ones."""
    rle: Any = coco_mask.frPyObjects({"counts": counts, "size": list(size)}, *size)
    return {"size": [int(side) for side in rle["size"]], "counts": _bytes(rle["counts"])}


def _bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts
