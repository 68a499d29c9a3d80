"""Classes of cells by counting pixels; mean IoU and its interval."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.analysis.where.cells import VOID, cell_labels, counts_of, iou_of, mean_iou, paired_mean_iou


@given(height=st.integers(1, 23), width=st.integers(1, 23), side=st.integers(1, 9), seed=st.integers(0, 999))
def test_cells_hold_the_commonest_class(height: int, width: int, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label_map = rng.choice(np.array([0, 1, 2, VOID], np.int16), (height, width))
    found = cell_labels(label_map, side)
    for i in range(side):
        for j in range(side):
            inside = [
                int(label_map[y, x])
                for y in range(height)
                for x in range(width)
                if i <= (y + 0.5) * side / height < i + 1 and j <= (x + 0.5) * side / width < j + 1
            ]
            if inside:
                assert found[i, j] == min((-inside.count(k), k) for k in (VOID, 0, 1, 2))[1]
            elif side <= min(height, width):
                raise AssertionError("a cell without a pixel")


def test_a_grid_finer_than_the_image_takes_the_nearest_pixel() -> None:
    assert cell_labels(np.array([[1, 2]], np.int16), 4).tolist() == [[1, 1, 2, 2]] * 4


@given(seed=st.integers(0, 999), n=st.integers(1, 5))
def test_iou_equals_sets(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array([0, 1, 2, VOID]), (n, 6, 6))
    predicted = rng.integers(0, 3, (n, 6, 6))
    counts = np.stack([counts_of(p, t, 3) for p, t in zip(predicted, truth, strict=True)])
    expected = []
    for k in range(3):
        t, p = (truth == k)[truth != VOID], (predicted == k)[truth != VOID]
        expected.append((t & p).sum() / (t | p).sum() if (t | p).any() else np.nan)
    np.testing.assert_allclose(iou_of(counts.sum(0)), expected)


def test_interval_holds_the_value_and_narrows() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (200, 8, 8))
    flips = rng.random((200, 8, 8)) < rng.random((200, 1, 1)) / 2
    counts = np.stack([counts_of(p, t, 2) for p, t in zip(truth ^ flips, truth, strict=True)])
    few, many = mean_iou(counts[:20]), mean_iou(counts)
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 2
    same = paired_mean_iou(counts, counts)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_class_that_nobody_has_is_left_out() -> None:
    counts = counts_of(np.zeros((2, 2), int), np.zeros((2, 2), int), 3)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mean_iou(counts).value == pytest.approx(1)
