"""Whether the boxes of a set are in the convention that its layout has, judged over the whole set.

A single box seldom shows it: ``[10, 20, 60, 80]`` is a box with two corners as well as with width and height. Over a
set it does: read in another convention than they were written in, boxes leave their images, and boxes and outlines
do not agree.

    M  boxes     H W  height and width of an image in pixels
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hetcl.boxes import box_iou
from hetcl.datasets.annotations import Segment
from hetcl.datasets.masks import box_of

Read = Callable[[np.ndarray], np.ndarray]
"""Four numbers of each box, float64 ``[M, 4]``, -> left, top, right, bottom, ``[M, 4]``."""

MOST = 50_000
"""Boxes that are judged, the first ones."""
OUTLINED = 2_000
"""Boxes that are compared with their outlines, the first ones."""
_LARGEST = 1e12
"""The largest number in a box, so that no area overflows."""
PIXELS, SHARE = 2.0, 0.02
"""A box may leave its image by so many pixels, or by so large a share of the image's side."""


@dataclass(frozen=True)
class Convention:
    """A way to write a box in four numbers."""

    name: str
    read: Read
    to_sides: str = ""
    """What makes it COCO's, for a person."""
    to_corners: str = ""
    """What makes it VOC's."""
    whole: float = 0.0
    """What the side of the image counts as, where the numbers are no pixels: 1, 100 (percent) or 1000."""


def _sides(v: np.ndarray) -> np.ndarray:
    return np.concatenate([v[:, :2], v[:, :2] + v[:, 2:]], 1)


def _centre(v: np.ndarray) -> np.ndarray:
    return np.concatenate([v[:, :2] - v[:, 2:] / 2, v[:, :2] + v[:, 2:] / 2], 1)


SUM, DIFFERENCE = "x2 = x1 + width, y2 = y1 + height", "width = x2 - x1, height = y2 - y1"
SIDES = Convention("left, top, width, height", _sides, "", SUM)
"""COCO's."""
CORNERS = Convention("x1, y1, x2, y2 (two corners)", lambda v: v, DIFFERENCE, "")
"""VOC's."""
WAYS = (
    SIDES,
    CORNERS,
    Convention(
        "centre x, centre y, width, height",
        _centre,
        "left = x - width / 2, top = y - height / 2",
        "x1 = x - width / 2, x2 = x + width / 2, and y alike",
    ),
    Convention(
        "y, x, height, width", lambda v: _sides(v[:, [1, 0, 3, 2]]), "x before y", f"x before y, {SUM}"
    ),
    Convention("y1, x1, y2, x2", lambda v: v[:, [1, 0, 3, 2]], f"x before y, {DIFFERENCE}", "x before y"),
    Convention("x1, x2, y1, y2", lambda v: v[:, [0, 2, 1, 3]], DIFFERENCE, "y1 before x2"),
    Convention("x2, y2, x1, y1", lambda v: v[:, [2, 3, 0, 1]], f"x1, y1 first, {DIFFERENCE}", "x1, y1 first"),
)
UNITS = (
    (0.0, ""),
    (1.0, "shares of the image's width and height (0 to 1), as "),
    (100.0, "percent of the image, as "),
    (1000.0, "thousandths of the image, as "),
)


@dataclass(frozen=True)
class Verdict:
    """What the boxes of a set look like."""

    text: str
    certain: bool


@dataclass
class Boxes:
    """The boxes of a set as they stand in its file, being collected."""

    stated: Convention
    names: list[str] = field(default_factory=list)
    values: array[float] = field(default_factory=lambda: array("d"))
    sides: array[float] = field(default_factory=lambda: array("d"))
    outlined: array[int] = field(default_factory=lambda: array("q"))
    outlines: array[float] = field(default_factory=lambda: array("d"))

    def add(
        self, values: Sequence[float], size: tuple[int, int], name: str, segment: Segment | None = None
    ) -> None:
        """A box of an image of ``size`` (H, W); ``name`` for messages. Absurd numbers are passed over."""
        if len(self.names) >= MOST or not all(abs(value) <= _LARGEST for value in values):
            return
        self.values.extend(values)
        self.sides.extend((size[1], size[0]))
        if segment is not None and len(self.outlined) < OUTLINED:
            self.outlined.append(len(self.names))
            self.outlines.extend(box_of(segment))
        self.names.append(name)

    def verdict(self) -> Verdict | None:
        """What speaks against the stated convention; None: nothing."""
        return _Judge(self).verdict() if self.names else None


class _Judge:
    """The evidence: how many boxes leave their image, and how well boxes and outlines agree, as each is read."""

    def __init__(self, boxes: Boxes) -> None:
        self.stated, self.names = boxes.stated, boxes.names
        self.values = np.array(boxes.values).reshape(-1, 4)
        self.sides = np.array(boxes.sides).reshape(-1, 2)
        self.outlined = np.array(boxes.outlined, np.int64)
        self.outlines = np.array(boxes.outlines).reshape(-1, 4)
        self.top = float(np.abs(self.values).max())

    def verdict(self) -> Verdict | None:
        out, agree = self.out(self.stated), self.agreement(self.stated)
        others = [
            Convention(f"{unit}{way.name}", way.read, way.to_sides, way.to_corners, whole)
            for way in WAYS
            for whole, unit in UNITS
            if (way is not self.stated or whole) and (not whole or self._may_be(whole))
        ]
        best = min(others, key=self._badness)
        if self.top <= 1.5 and self.sides.min() >= 16:
            best = min((way for way in others if way.whole == 1), key=self._badness)
            return self._looks(best, "lie in the first two pixels as they stand", None, certain=len(out) >= 3)
        mixed = None if agree is None else self._mixed()
        if mixed is not None:
            return mixed
        if agree is not None and agree >= 0.8:  # the outlines say that all is well
            return self._outside(out)
        by_outlines = None if agree is None else self._by_outlines(best, agree)
        by_images = by_outlines or self._by_images(best, out)
        return by_images or self._corner() or self._beyond(agree) or self._outside(out)

    def _mixed(self) -> Verdict | None:
        """Some boxes that fit their outlines as they stand, and others that fit theirs in another convention alone."""
        stated = self._overlaps(self.stated, self.outlines)
        for way in WAYS:
            if way is self.stated:
                continue
            other = (stated < 0.5) & (self._overlaps(way, self.outlines) >= 0.9)
            n = int(other.sum())
            if n >= 5 and (stated >= 0.8).sum() >= 5:
                example = self._example_of(int(self.outlined[int(np.argmax(other))]))
                fix = way.to_sides if self.stated is SIDES else way.to_corners
                return Verdict(
                    f"two conventions are mixed: {n:,} of its {len(other):,} boxes with outlines fit them as "
                    f"{way.name} alone, the others as {self.stated.name} (e.g. {example}). Convert the former: {fix}",
                    certain=n >= len(other) / 20,
                )
        return None

    def _beyond(self, agree: float | None) -> Verdict | None:
        """Third and fourth number above the first and second in each of many small boxes: two corners, perhaps.

        A box may well be wider than what lies left of it, but hardly each of a set, and most of them but little.
        """
        if self.stated is not SIDES or agree is not None or len(self.values) < 30:
            return None
        first, second = self.values[:, :2], self.values[:, 2:]
        ratio = (second / np.maximum(first, 1e-9)).min(1)
        if not (ratio > 1).all() or np.median(ratio) >= 2:
            return None
        return Verdict(
            f"each of its {len(ratio):,} boxes is wider than what lies left of it and higher than what lies above it "
            f"(e.g. {self._example(None)}): are they {CORNERS.name}? Then convert them: {CORNERS.to_sides}",
            certain=False,
        )

    def _by_outlines(self, best: Convention, agree: float) -> Verdict | None:
        """Boxes against polygons and run lengths."""
        swapped = self.agreement(self.stated, self.outlines[:, [1, 0, 3, 2]]) or 0
        if swapped >= 0.9 and self.out(self.stated).mean() >= self._outlines_out():
            swapped = 0  # the outlines fit their images as they are: it is the boxes
        if (self.agreement(best) or 0) >= 0.9 and swapped < 0.9:
            return self._looks(
                best, f"and their outlines overlap by {agree:.0%} on average", None, certain=True
            )
        if agree >= 0.5:
            return None
        shares = np.abs(self.outlines).max() <= 1.5
        example = self.names[int(self.outlined[int(np.argmin(self._overlaps(self.stated, self.outlines)))])]
        if shares or swapped >= 0.9:
            what = "shares of the image (0 to 1): multiply them" if shares else "y before x: swap them"
            return Verdict(f"the points of its polygons look like {what} (e.g. {example})", certain=True)
        return Verdict(
            f"its boxes and outlines overlap by {agree:.0%} on average (e.g. {example}): one of them is of another "
            "image size, or in another convention",
            certain=False,
        )

    def _by_images(self, best: Convention, out: np.ndarray) -> Verdict | None:
        """Boxes against the sides of their images."""
        n, elsewhere = int(out.sum()), int(self.out(best).sum())
        share = n / len(out)
        if best.whole > 1:  # many numbers can be percent or thousandths
            certain = n >= 10 and share >= 0.5 and elsewhere <= n / 50
        else:
            few = n >= 6 and share >= 0.25 and not elsewhere
            certain = few or (n >= 10 and share >= 0.1 and elsewhere <= n / 50)
        if certain or (n >= 5 and elsewhere <= n / 10):
            return self._looks(best, "leave their image or have no size as they stand", out, certain=certain)
        corners, notes = self._pixels(self.stated), self._outside(out)
        apart = ((corners[:, :2] >= self.sides) | (corners[:, 2:] <= 0)).any(
            1
        )  # no part of the box is in the image
        return (
            Verdict(notes.text, certain=True) if notes and apart.sum() >= 5 and apart.mean() >= 0.1 else None
        )

    def _corner(self) -> Verdict | None:
        """Boxes that all lie in the upper left corner are of smaller images, or in percent."""
        reach = self._pixels(self.stated)[:, 2:] / self.sides
        if len(reach) < 20 or reach.max() > 0.5:
            return None
        right, bottom = reach.max(0)
        return Verdict(
            f"all of its {len(reach):,} boxes lie in the upper left corner of their images ({right:.0%} of the width, "
            f"{bottom:.0%} of the height): are they of smaller images, or in percent?",
            certain=False,
        )

    def _outside(self, out: np.ndarray) -> Verdict | None:
        """Boxes that leave their image, where they are many."""
        if out.sum() < 3 or out.mean() < 0.05:
            return None
        reach = float(np.quantile(self._pixels(self.stated)[:, 2:] / self.sides, 0.99))
        also = f"; they reach to {reach:.1f} times its side: are they of larger images?" * (reach > 1.2)
        for way in WAYS:
            if out.sum() >= 6 and (out & self.out(way)).sum() <= out.sum() / 20:
                also = f"; those look like {way.name}: are two conventions mixed?"
                break
        return Verdict(
            f"{out.sum():,} of its {len(out):,} boxes leave their image or have no size, e.g. {self._example(out)}, "
            f"read as {self.stated.name}{also}",
            certain=False,
        )

    def _looks(self, way: Convention, how: str, out: np.ndarray | None, *, certain: bool) -> Verdict:
        count = f"{len(self.names):,}" if out is None else f"{out.sum() or len(out):,} of {len(out):,}"
        steps = [f"multiply by width and height{f' / {way.whole:g}' * (way.whole > 1)}"] * bool(way.whole)
        fix = way.to_sides if self.stated is SIDES else way.to_corners
        return Verdict(
            f"its boxes look like {way.name}, not {self.stated.name}: {count} boxes {how} (e.g. {self._example(out)}). "
            f"Convert them: {'; '.join([*steps, *[fix] * bool(fix)])}",
            certain,
        )

    def _example(self, out: np.ndarray | None) -> str:
        return self._example_of(0 if out is None else int(np.argmax(out)))

    def _example_of(self, first: int) -> str:
        return f"{self.names[first]}: [{', '.join(f'{v:g}' for v in self.values[first])}]"

    # ---- figures -----------------------------------------------------------------------------------------------

    def out(self, way: Convention) -> np.ndarray:
        """Which boxes have no size or leave their image, bool ``[M]``."""
        corners, slack = self._pixels(way), np.maximum(PIXELS, SHARE * self.sides)
        inside = (corners[:, :2] >= -slack).all(1) & (corners[:, 2:] <= self.sides + slack).all(1)
        return np.logical_not(inside & (corners[:, 2:] > corners[:, :2]).all(1))

    def _outlines_out(self) -> float:
        """Share of the outlines that leave their image."""
        sides = self.sides[self.outlined]
        return float((self.outlines[:, 2:] > sides + np.maximum(PIXELS, SHARE * sides)).any(1).mean())

    def agreement(self, way: Convention, outlines: np.ndarray | None = None) -> float | None:
        """Mean overlap of boxes and outlines; None where fewer than five have one."""
        if len(self.outlined) < 5:
            return None
        return float(self._overlaps(way, self.outlines if outlines is None else outlines).mean())

    def _overlaps(self, way: Convention, outlines: np.ndarray) -> np.ndarray:
        """float64, intersection over union of the outlined boxes and their outlines' boxes."""
        return box_iou(self._pixels(way)[self.outlined], outlines)

    def _pixels(self, way: Convention) -> np.ndarray:
        corners = way.read(self.values)
        return corners * np.tile(self.sides, 2) / way.whole if way.whole else corners

    def _badness(self, way: Convention) -> tuple[float, float]:
        """The less, the likelier; of equals, pixels that are spread over the images come before shares of them."""
        spread = bool(way.whole) or (self._pixels(way)[:, 2:] / self.sides).max() > 0.5
        return float(self.out(way).mean()) - (self.agreement(way) or 0.0), way.whole if spread else 999.0

    def _may_be(self, whole: float) -> bool:
        """Whether the numbers can be shares of ``whole``: none is above it, and some come near."""
        return self.top <= 1.5 if whole == 1 else 0.5 * whole < self.top <= 1.02 * whole
