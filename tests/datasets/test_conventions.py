"""Boxes in another convention than their layout's: found in a set, and never in a set that is in order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.datasets.conventions import CORNERS, SIDES, Boxes, Convention, Verdict
from hetcl.datasets.masks import encode

WRITTEN: dict[str, Callable[..., list[float]]] = {
    "left, top, width, height": lambda a, b, c, d: [a, b, c - a, d - b],
    "x1, y1, x2, y2": lambda a, b, c, d: [a, b, c, d],
    "centre x, centre y, width, height": lambda a, b, c, d: [(a + c) / 2, (b + d) / 2, c - a, d - b],
    "y, x, height, width": lambda a, b, c, d: [b, a, d - b, c - a],
    "y1, x1, y2, x2": lambda a, b, c, d: [b, a, d, c],
    "x1, x2, y1, y2": lambda a, b, c, d: [a, c, b, d],
    "x2, y2, x1, y1": lambda a, b, c, d: [c, d, a, b],
}


def corners(n: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random boxes within an image of (H, W), of a twentieth to two fifths of its sides."""
    rng, sides = np.random.default_rng(seed), np.array(size[::-1])
    spans = rng.uniform(0.05, 0.4, (n, 2)) * sides
    first = rng.uniform(0, 1, (n, 2)) * (sides - spans)
    return np.concatenate([first, first + spans], 1)


def judged(
    stated: Convention,
    way: str,
    *,
    n: int = 40,
    size: tuple[int, int] = (480, 640),
    outlines: str = "",
    unit: float = 0,
) -> Verdict | None:
    boxes = Boxes(stated)
    height, width = size
    for i, box in enumerate(corners(n, size).tolist()):
        written = np.array(WRITTEN[way](*box))
        if unit:
            written = np.array(WRITTEN[way](*(np.array(box) / [width, height, width, height] * unit)))
        left, top, right, bottom = box
        segment = None
        if outlines == "polygons":
            segment = (np.array([[left, top], [right, top], [right, bottom], [left, bottom]]),)
        elif outlines == "runs":
            bitmap = np.zeros(size, np.uint8)
            bitmap[round(top) : round(bottom), round(left) : round(right)] = 1
            segment = encode(bitmap)  # type: ignore[assignment]
        boxes.add(written.tolist(), size, f"box {i}", segment)
    return boxes.verdict()


@pytest.mark.parametrize("outlines", ["", "polygons", "runs"])
@pytest.mark.parametrize("n", [12, 60])
@pytest.mark.parametrize("stated", [SIDES, CORNERS], ids=["coco", "voc"])
@pytest.mark.parametrize("way", WRITTEN)
def test_every_convention_is_told(way: str, stated: Convention, n: int, outlines: str) -> None:
    verdict = judged(stated, way, n=n, outlines=outlines)
    if stated.name.startswith(way):
        assert verdict is None
        return
    if verdict is None:  # a dozen boxes with centres may all lie in their images
        assert (n, outlines) == (12, "")
        return
    assert f"look like {way}" in verdict.text or not verdict.certain
    assert verdict.certain or (n == 12 and not outlines)


@pytest.mark.parametrize("stated", [SIDES, CORNERS], ids=["coco", "voc"])
@pytest.mark.parametrize("way", list(WRITTEN)[:3])
def test_shares_of_the_image_are_told(stated: Convention, way: str) -> None:
    verdict = judged(stated, way, unit=1)
    assert verdict is not None
    assert verdict.certain
    assert f"shares of the image's width and height (0 to 1), as {way}" in verdict.text
    assert "multiply by width and height" in verdict.text


@pytest.mark.parametrize("way", list(WRITTEN)[:3])
def test_percent_and_thousandths(way: str) -> None:
    small = judged(SIDES, way, unit=100, size=(60, 80))
    assert small is not None
    assert "percent" in small.text
    large = judged(SIDES, way, unit=100)
    assert large is not None
    assert "in percent?" in large.text
    assert not large.certain
    thousand = judged(SIDES, way, unit=1000)
    assert thousand is not None
    assert "thousandths of the image" in thousand.text


def test_the_fix_is_said() -> None:
    fixes = {way: judged(SIDES, way) for way in WRITTEN if way != "left, top, width, height"}
    assert all(verdict is not None for verdict in fixes.values())
    said = {way: verdict.text.split("Convert them: ")[1] for way, verdict in fixes.items() if verdict}
    assert said["x1, y1, x2, y2"] == "width = x2 - x1, height = y2 - y1"
    assert said["centre x, centre y, width, height"] == "left = x - width / 2, top = y - height / 2"
    assert said["y1, x1, y2, x2"].startswith("x before y")
    assert "e.g. box " in fixes["x1, y1, x2, y2"].text  # type: ignore[union-attr]


@given(
    st.integers(1, 60),
    st.integers(24, 900),
    st.integers(24, 900),
    st.integers(0, 2**32 - 1),
    st.sampled_from([SIDES, CORNERS]),
    st.sampled_from(["", "polygons"]),
    st.floats(0, 1.5),
)
@settings(max_examples=150, deadline=None)
def test_no_false_alarm_in_a_set_that_is_in_order(
    n: int, height: int, width: int, seed: int, stated: Convention, outlines: str, out: float
) -> None:
    """Objects of any size and place, whose boxes may leave the image by a pixel or two."""
    rng, sides = np.random.default_rng(seed), np.array([width, height])
    spans = rng.uniform(0.01, 1, (n, 2)) ** rng.uniform(1, 3) * sides + 2
    first = rng.uniform(0, 1, (n, 2)) * (sides - spans).clip(0)
    boxes = Boxes(stated)
    for i, (left, top, right, bottom) in enumerate(np.concatenate([first, first + spans], 1).tolist()):
        right, bottom = min(right, width) + out, min(bottom, height) + out
        segment = (
            (np.array([[left, top], [right, top], [right, bottom], [left, bottom]]),) if outlines else None
        )
        way = "left, top, width, height" if stated is SIDES else "x1, y1, x2, y2"
        boxes.add(WRITTEN[way](left, top, right, bottom), (height, width), f"box {i}", segment)
    verdict = boxes.verdict()
    assert verdict is None or "upper left corner" in verdict.text
    assert verdict is None or not verdict.certain


def test_boxes_in_the_upper_left_corner_alone() -> None:
    boxes = Boxes(SIDES)
    for i, box in enumerate(corners(30, (200, 200)).tolist()):
        boxes.add(WRITTEN["left, top, width, height"](*box), (800, 800), f"box {i}")
    verdict = boxes.verdict()
    assert verdict is not None
    assert not verdict.certain
    assert "upper left corner of their images (25% of the width, 2" in verdict.text


def test_boxes_of_larger_images_are_refused_where_most_leave() -> None:
    boxes = Boxes(SIDES)
    for i, box in enumerate((corners(30, (480, 640)) * 2).tolist()):
        boxes.add(WRITTEN["left, top, width, height"](*box), (480, 640), f"box {i}")
    verdict = boxes.verdict()
    assert verdict is not None
    assert verdict.certain
    assert "of larger images?" in verdict.text


def test_two_conventions_mixed() -> None:
    boxes = Boxes(SIDES)
    for i, box in enumerate(corners(40, (480, 640)).tolist()):
        way = "x1, y1, x2, y2" if i % 2 else "left, top, width, height"
        boxes.add(WRITTEN[way](*box), (480, 640), f"box {i}")
    verdict = boxes.verdict()
    assert verdict is not None
    assert not verdict.certain
    assert "look like x1, y1, x2, y2 (two corners): are two conventions mixed?" in verdict.text


@pytest.mark.parametrize(("every", "certain"), [(2, True), (10, True), (60, False), (500, None)])
@pytest.mark.parametrize("way", ["x1, y1, x2, y2", "centre x, centre y, width, height"])
def test_two_conventions_that_outlines_tell_apart(way: str, every: int, certain: bool | None) -> None:
    """``every``-th box is in another convention than the others; its polygon says so."""
    boxes = Boxes(SIDES)
    for i, box in enumerate(corners(400, (480, 640)).tolist()):
        left, top, right, bottom = box
        points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        written = WRITTEN[way if i % every == 0 else "left, top, width, height"](*box)
        boxes.add(written, (480, 640), f"box {i}", (points,))
    verdict = boxes.verdict()
    assert (verdict and verdict.certain) == certain
    if verdict:
        assert verdict.text.startswith("two conventions are mixed: ")
        assert f"fit them as {way}" in verdict.text
        assert "Convert the former: " in verdict.text


@pytest.mark.parametrize("seed", range(5))
def test_corners_of_small_boxes_that_stay_in_their_images(seed: int) -> None:
    """Written as corners and read as sides, boxes in the upper left leave no image."""
    rng = np.random.default_rng(seed)
    boxes, right = Boxes(SIDES), Boxes(SIDES)
    for i in range(48):
        first, spans = rng.uniform(0.05, 0.4, 2) * 480, rng.uniform(0.04, 0.09, 2) * 480
        boxes.add([*first, *(first + spans)], (480, 480), f"box {i}")
        right.add([*first, *spans], (480, 480), f"box {i}")
    verdict = boxes.verdict()
    assert verdict is not None
    assert not verdict.certain
    assert "each of its 48 boxes is wider than what lies left of it and higher than" in verdict.text
    assert "are they x1, y1, x2, y2 (two corners)? Then convert them: width = x2 - x1" in verdict.text
    told = right.verdict()
    assert told is None or "wider than" not in told.text


def test_objects_that_fill_their_images_are_in_order() -> None:
    rng = np.random.default_rng(0)
    boxes = Boxes(SIDES)
    for i in range(60):
        first = rng.uniform(0, 0.1, 2) * 480
        boxes.add([*first, *(480 * rng.uniform(0.85, 0.99, 2) - first)], (480, 480), f"box {i}")
    assert boxes.verdict() is None


@pytest.mark.parametrize(
    ("change", "said"), [("swap", "y before x"), ("shares", "shares of the image (0 to 1)")]
)
def test_polygons_in_another_convention(change: str, said: str) -> None:
    boxes = Boxes(SIDES)
    for i, box in enumerate(corners(20, (480, 640)).tolist()):
        left, top, right, bottom = box
        points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        points = points[:, ::-1] if change == "swap" else points / [640, 480]
        boxes.add(WRITTEN["left, top, width, height"](*box), (480, 640), f"box {i}", (points,))
    verdict = boxes.verdict()
    assert verdict is not None
    assert verdict.certain
    assert "the points of its polygons look like" in verdict.text
    assert said in verdict.text


def test_numbers_that_are_not_finite_are_passed_over() -> None:
    boxes = Boxes(SIDES)
    boxes.add([float("nan"), 1, 2, 3], (10, 10), "a")
    boxes.add([float("inf"), 1, 2, 3], (10, 10), "b")
    assert boxes.verdict() is None
