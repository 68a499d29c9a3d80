"""AP as the VOC 2007 development kit's documentation and ``VOCevaldet.m`` define it, one detection after the other.

Boxes are whole or broken pixel indices, from 1, both ends included: xmin, ymin, xmax, ymax.
"""

from __future__ import annotations

from typing import NamedTuple

Box = tuple[float, float, float, float]


class Object(NamedTuple):
    image: str
    box: Box
    difficult: bool


class Detection(NamedTuple):
    image: str
    confidence: float
    box: Box


def overlap(a: Box, b: Box) -> float:
    """Shared pixels over all pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    both = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return width * height / (both - width * height)


def average_precision(objects: list[Object], detections: list[Detection], least: float) -> float:
    """One class at one IoU, 0..1; objects that are not difficult: at least one.

    Each detection, by falling confidence (of equals the earlier first), is held against the object of its image that
    it overlaps most, difficult or not, found before or not. If that is too little, or the object was found before, it
    is a false positive; a difficult object makes it count for nothing.
    """
    wanted = sum(not thing.difficult for thing in objects)
    found: set[int] = set()
    true = false = 0
    curve: list[tuple[float, float]] = []
    for said in sorted(detections, key=lambda said: -said.confidence):
        best, which = 0.0, -1
        for place, thing in enumerate(objects):
            if thing.image == said.image and overlap(thing.box, said.box) > best:
                best, which = overlap(thing.box, said.box), place
        if which < 0 or best < least:
            false += 1
        elif not objects[which].difficult:
            if which in found:
                false += 1
            else:
                found.add(which)
                true += 1
        if true + false:
            curve.append((true / wanted, true / (true + false)))
    total = 0.0
    for tenth in range(11):
        total += max((precision for recall, precision in curve if recall >= tenth * 0.1), default=0.0)
    return total / 11
