"""What an object covers: from COCO's JSON, checked, and to and from a few bytes.

m  corners of a polygon     H W  height and width in pixels     Segment: see ``annotations.py``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hetcl.datasets import values
from hetcl.datasets.annotations import Rle, Segment
from hetcl.datasets.masks import from_uncompressed

FAR = 1_000_000
"""Pixels; a coordinate beyond it is a slip, and COCO's code would walk along the polygon's edge for ever."""

MOST = 10_000
"""Polygons of an object."""

NONE, RUNS, HUNDREDTHS, FLOATS = range(4)
"""How a segment is stored: not at all; compressed run lengths; polygons in hundredths of a pixel, as COCO and LVIS
give them (uint16, exact); any other polygons (float64)."""


class Unusable(Exception):
    """An annotation that cannot be used; the message is the reason, the same for all of its kind."""


def parse(value: Any, size: tuple[int, int], dropped: Callable[[str], None]) -> Segment | None:
    """The ``segmentation`` of a COCO annotation.

    Args:
        value: polygons as a list of lists of numbers, or run lengths (an object); None or empty: no segment. One
            polygon without the outer list, and one as a list of points ``[x, y]``, are read too.
        size: the image's height and width.
        dropped: called with the reason for each polygon that is left out.

    Raises:
        Unusable: no polygon is left, or the run lengths are not of this image.
    """
    if isinstance(value, list) and all(ring in ([], {}, None) for ring in value):
        return None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and "counts" in value[0]:
        value = value[0]
    if value is None or value == {}:
        return None
    if isinstance(value, dict):
        return _runs(value, size)
    if not isinstance(value, list):
        raise Unusable("segmentation that is neither polygons nor run lengths")
    polygons = _polygons(value, size)
    if len(polygons) > MOST:
        raise Unusable(f"annotation of more than {MOST:,} polygons")
    rings = []
    for ring in polygons:
        try:
            rings.append(_ring(ring))
        except Unusable as reason:
            dropped(str(reason))
    if not rings:
        raise Unusable("annotation without a usable polygon")
    return tuple(rings)


def _polygons(value: list[Any], size: tuple[int, int]) -> list[Any]:
    """The polygons of a list: its entries, or itself where it is one polygon."""
    if all(not isinstance(number, list | dict) for number in value):
        if sum(n for n in map(values.number, value) if n is not None) == size[0] * size[1]:
            raise Unusable("run lengths without a size: write them as {size, counts}")
        return [value]
    if len(value) >= 3 and all(isinstance(point, list) and len(point) == 2 for point in value):
        flat = [number for point in value for number in point]
        return [flat] if None not in map(values.number, flat) else value
    return value


def _ring(ring: Any) -> np.ndarray:
    try:
        numbers = np.asarray(ring, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty((0, 0))
    if numbers.ndim != 1 or len(numbers) % 2:
        raise Unusable("polygon that is no list of x, y, x, y, ...")
    if len(numbers) < 6:
        raise Unusable("polygon with fewer than 3 points")
    if not (np.abs(numbers) <= FAR).all():
        raise Unusable(f"polygon with a coordinate that is not finite or beyond {FAR:,} pixels")
    return numbers.reshape(-1, 2)


def _runs(value: dict[str, Any], size: tuple[int, int]) -> Rle:
    counts, stated = value.get("counts"), value.get("size")
    sides = [values.whole(side) for side in stated] if isinstance(stated, list) else []
    if sides != list(size):
        exchanged = sides == list(size)[::-1]
        raise Unusable(
            "mask whose size is width, height and not height, width"
            if exchanged
            else "mask of another size than its image"
        )
    whole = size[0] * size[1]
    if isinstance(counts, list):
        runs = [values.whole(n) for n in counts]
        if not all(n is not None and 0 <= n <= whole for n in runs) or sum(runs) != whole:  # type: ignore[arg-type]
            raise Unusable("run lengths that do not fill their image")
        return from_uncompressed(runs, size)  # type: ignore[arg-type]
    try:
        data = _text(counts).encode("ascii") if isinstance(counts, str) else b""
        fits = int(run_lengths(data).sum()) == whole
    except ValueError:
        fits = False
    if not fits:
        raise Unusable("run lengths that do not fill their image")
    return {"size": list(size), "counts": data}


def _text(counts: str) -> str:
    """Counts that were bytes in Python and printed as such, without their quotes."""
    if counts[:2] in ("b'", 'b"') and counts[-1:] == counts[1]:
        return counts[2:-1].replace("\\\\", "\\")
    return counts


def run_lengths(counts: bytes) -> np.ndarray:
    """COCO's compressed counts as numbers, int64 (zeros first, column by column).

    Each number is written in digits of 5 bits, lowest first, as characters from 48 on; 32 is added where another
    digit follows, the highest bit is a sign. From the fourth number on, it is the difference to the one two before
    (``rleFrString`` of COCO's API).

    Raises:
        ValueError: no such text, or a negative number.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((digits & 32) == 0)
    if (
        not len(digits)
        or digits.min() < 0
        or digits.max() > 63
        or not len(ends)
        or ends[-1] != len(digits) - 1
    ):
        raise ValueError("no compressed run lengths")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a run of more than 32 bits")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * place), starts)
    numbers -= ((digits[ends] & 16) >> 4) << (5 * lengths)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    if numbers.min() < 0:
        raise ValueError("a run of negative length")
    return numbers


def pack(segment: Segment | None) -> tuple[int, bytes]:
    """A segment as bytes, and how they are to be read."""
    if segment is None:
        return NONE, b""
    if isinstance(segment, dict):
        return RUNS, segment["counts"]
    corners = np.array([len(segment), *(len(ring) for ring in segment)], np.uint32).tobytes()
    points = np.concatenate(segment)
    hundredths = np.rint(points * 100)
    if hundredths.min() >= 0 and hundredths.max() < 1 << 16 and (hundredths / 100 == points).all():
        return HUNDREDTHS, corners + hundredths.astype(np.uint16).tobytes()
    return FLOATS, corners + points.tobytes()


def unpack(form: int, data: bytes, size: tuple[int, int]) -> Segment | None:
    """The segment that ``pack`` was given, for an image of ``size`` (H, W)."""
    if form == NONE:
        return None
    if form == RUNS:
        return {"size": [int(side) for side in size], "counts": data}
    rings = int(np.frombuffer(data, np.uint32, 1)[0])
    corners = np.frombuffer(data, np.uint32, rings, offset=4)
    numbers = np.frombuffer(data, np.uint16 if form == HUNDREDTHS else np.float64, offset=4 * (rings + 1))
    points = numbers.astype(np.float64).reshape(-1, 2)
    if form == HUNDREDTHS:
        points /= 100
    return tuple(np.split(points, np.cumsum(corners)[:-1]))
