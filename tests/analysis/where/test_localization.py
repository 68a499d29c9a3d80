"""Boxes and their overlap against areas counted on a grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.analysis.where.localization import main_box, overlap

N = 12
edges = st.tuples(*[st.integers(0, N)] * 4)


@given(a=edges, b=edges)
def test_overlap_equals_counted_squares(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    def covered(box: tuple[int, ...]) -> np.ndarray:
        out = np.zeros((N, N), bool)
        out[min(box[1], box[3]) : max(box[1], box[3]), min(box[0], box[2]) : max(box[0], box[2])] = True
        return out

    b = (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
    one, two = covered(a), covered(b)
    union = (one | two).sum()
    expected = (one & two).sum() / union if union else 0.0
    assert overlap(np.array([a]) / N, np.array([b]) / N)[0] == pytest.approx(expected, abs=1e-12)


def test_main_box() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [5, 5, 45, 25], [-4, 0, 30, 30]])
    found = main_box(boxes, np.array([100.0, 800, 800]), (40, 50))
    assert found is not None
    assert found.tolist() == [0.1, 0.125, 0.9, 0.625]
    clipped = main_box(boxes[2:], np.array([1.0]), (40, 50))
    assert clipped is not None
    assert clipped[0] == 0
    assert main_box(np.zeros((0, 4)), np.zeros(0), (4, 4)) is None
