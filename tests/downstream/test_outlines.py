"""Polygons that leave their image, or wind through all of it: the masks of COCO's code, without its memory."""

from __future__ import annotations

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.datasets import masks, outlines

coordinate = st.one_of(
    st.floats(-30, 90, allow_nan=False),
    st.integers(-20, 80).map(float),
    st.integers(-200, 200).map(lambda n: n / 5),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    ring=st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=9),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_equal_to_coco_inside_and_outside(ring: list[tuple[float, float]], size: tuple[int, int]) -> None:
    corners = np.array(ring)
    wanted = coco_mask.decode(coco_mask.frPyObjects([corners.reshape(-1).tolist()], *size))[..., 0]
    assert (outlines.filled(corners, size) == wanted).all()


@pytest.mark.parametrize("far", [1.0, 3.0, 100.0, 3000.0])
def test_equal_to_coco_far_away(far: float) -> None:
    rng = np.random.default_rng(int(far))
    for _ in range(100):
        size = tuple(map(int, rng.integers(1, 70, 2)))
        ring = rng.uniform(-far, far + 1, (int(rng.integers(3, 12)), 2)) * size[::-1]
        wanted = coco_mask.decode(coco_mask.frPyObjects([ring.reshape(-1).tolist()], *size))[..., 0]
        assert (outlines.filled(ring, size) == wanted).all()


def test_many_crossings_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = np.random.default_rng(3).uniform(-5, 60, (40, 2))
    wanted = outlines.filled(ring, (50, 50))
    monkeypatch.setattr(outlines, "_AT_ONCE", 17)
    assert (outlines.filled(ring, (50, 50)) == wanted).all()


def test_unions_are_equal_by_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    segment = tuple(rng.uniform(-20, 60, (5, 2)) for _ in range(4))
    wanted = masks.bitmap(segment, (40, 50))
    for most in (0, 1500):  # none, some of the polygons are short enough for COCO's code
        monkeypatch.setattr(masks, "MOST_STEPS", most)
        assert (masks.bitmap(segment, (40, 50)) == wanted).all()
