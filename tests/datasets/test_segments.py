"""Run lengths and polygons: read, packed and unpacked, against COCO's own code and slow counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.datasets import segments
from hetcl.datasets.cityscapes import THINGS, instances
from hetcl.datasets.masks import bitmap, decode, encode, from_uncompressed
from hetcl.datasets.segments import Unusable, pack, parse, run_lengths, unpack
from tests.downstream.layouts import rectangles, runs

bitmaps = st.tuples(
    st.integers(1, 70), st.integers(1, 9), st.integers(0, 2**32), st.sampled_from([0.0, 0.02, 0.5, 1.0])
).map(lambda a: np.random.default_rng(a[2]).random(a[:2]) < a[3])


def refuse(reason: str) -> None:
    raise AssertionError(reason)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(bitmaps)
def test_compressed_counts_are_read_as_they_were_counted(mask: np.ndarray) -> None:
    assert run_lengths(encode(mask)["counts"]).tolist() == runs(mask)


@pytest.mark.parametrize("sides", [(3000, 1), (70000, 3), (2048, 512)])
def test_compressed_counts_of_long_runs(sides: tuple[int, int]) -> None:
    mask = np.zeros(sides, bool)
    mask[5 : sides[0] // 2] = True
    mask[-1, -1] = True
    assert run_lengths(encode(mask)["counts"]).tolist() == runs(mask)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(bitmaps)
def test_every_form_gives_the_bitmap(mask: np.ndarray) -> None:
    size = (mask.shape[0], mask.shape[1])
    forms = [
        {"size": list(size), "counts": runs(mask)},
        {"size": list(size), "counts": encode(mask)["counts"].decode()},
    ]
    if mask.any():
        forms.append(rectangles(mask))  # type: ignore[arg-type]
    for form in forms:
        segment = parse(form, size, refuse)
        assert segment is not None
        kind, data = pack(segment)
        again = unpack(kind, data, size)
        assert again is not None
        assert (bitmap(again, size) == mask).all()


@pytest.mark.parametrize(
    ("ring", "form"),
    [
        ([0.01, 0.29, 655.35, 1.15, 3, 479.99], segments.HUNDREDTHS),
        ([0.001, 1, 2, 3, 4, 5], segments.FLOATS),
        ([-0.5, 1, 2, 3, 4, 5], segments.FLOATS),
        ([655.36, 1, 2, 3, 4, 5], segments.FLOATS),
        ([1 / 3, 1, 2, 3, 4, 5], segments.FLOATS),
    ],
)
def test_polygons_are_kept_exactly(ring: list[float], form: int) -> None:
    value = [ring, [5.5, 6, 7, 8, 9, 10, 11, 12]]
    segment = parse(value, (480, 640), refuse)
    kind, data = pack(segment)
    again = unpack(kind, data, (480, 640))
    assert kind == form
    assert isinstance(again, tuple)
    assert all(r.dtype == np.float64 for r in again)
    assert [r.reshape(-1).tolist() for r in again] == value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"size": [4, 5], "counts": [10, 6]}, "mask of another size"),
        ({"counts": [10, 6]}, "mask of another size"),
        ({"size": [4, 4], "counts": [10, 5]}, "do not fill"),
        ({"size": [4, 4], "counts": [20, -4]}, "do not fill"),
        ({"size": [4, 4], "counts": [8.0, 7.5]}, "do not fill"),
        ({"size": [4, 8], "counts": [32]}, "mask of another size"),
        ({"size": [4, 4], "counts": ""}, "do not fill"),
        ({"size": [4, 4], "counts": "~"}, "do not fill"),
        ({"size": [4, 4], "counts": "0ö"}, "do not fill"),
        ({"size": [4, 4], "counts": "o" * 50}, "do not fill"),
        ({"size": [4, 4], "counts": "ooooooooooooooo0"}, "do not fill"),
        ({"size": [4, 4]}, "do not fill"),
        ("polygon", "neither"),
        (7, "neither"),
    ],
)
def test_masks_that_cannot_be_used(value: object, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        parse(value, (4, 4), refuse)


@pytest.mark.parametrize(
    ("ring", "reason"),
    [
        ([1, 1, 2, 2], "fewer than 3 points"),
        ([1, 1, 2, 2, 3, 3, 4], "no list of x, y"),
        ([1, 1, 2, 2, 3, float("nan")], "not finite"),
        ([1, 1, 2, 2, 3, float("inf")], "not finite"),
        ([1, 1, 2, 2, 3, 1e7], "beyond 1,000,000"),
        ([1, 1, 2, 2, 3, None], "not finite"),
        ([1, 1, 2, 2, 3, 10**400], "no list of x, y"),
        ([[1, 1], [2, 2], [3, 1]], "no list of x, y"),
        (7, "no list of x, y"),
        ("1234", "no list of x, y"),
        ({"x": 1}, "no list of x, y"),
    ],
)
def test_polygons_that_cannot_be_used(ring: object, reason: str) -> None:
    dropped: list[str] = []
    good = [0, 0, 3, 0, 3, 3]
    segment = parse([good, ring], (4, 4), dropped.append)
    assert segment is not None
    assert [r.reshape(-1).tolist() for r in segment] == [good]  # type: ignore[union-attr]
    assert len(dropped) == 1
    assert reason in dropped[0]
    with pytest.raises(Unusable, match="without a usable polygon"):
        parse([ring], (4, 4), dropped.append)


@pytest.mark.parametrize("value", [None, [], {}, [[]], [[], []]])
def test_no_segment(value: object) -> None:
    assert parse(value, (4, 4), refuse) is None
    assert unpack(*pack(None), (4, 4)) is None


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_instances_of_a_map(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    choice = np.array([0, 7, 24, 26, 29, 24000, 24001, 26005, 29001, 33999, 65535], np.int32)
    values = choice[rng.integers(0, len(choice), (height, width))]
    values[rng.random((height, width)) < 0.5] = 24001
    found = instances(values)
    things = [c.id for c in THINGS]
    wanted = [v for v in sorted(set(values.reshape(-1).tolist())) if (v if v < 1000 else v // 1000) in things]
    assert [one.value for one in found] == wanted
    for one in found:
        mask = values == one.value
        y, x = np.nonzero(mask)
        assert one.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert one.area == mask.sum()
        assert (decode(one.rle) == mask).all()
        assert one.rle == encode(mask)  # the very bytes


def test_uncompressed_counts_become_the_same_bytes() -> None:
    mask = np.random.default_rng(3).random((9, 7)) < 0.4
    assert from_uncompressed(runs(mask), (9, 7)) == encode(mask)
