"""IoU of boxes, against torchvision."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou as tv_box_iou

from hetcl.boxes import Box, box_iou

boxes = st.tuples(*[st.floats(0, 500, width=32)] * 4).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)


@given(st.lists(st.tuples(boxes, boxes), min_size=1, max_size=20))
def test_iou_equals_torchvisions(pairs: list[tuple[Box, Box]]) -> None:
    a, b = np.array(pairs, np.float64).swapaxes(0, 1)
    ours = box_iou(a, b)
    theirs = tv_box_iou(torch.from_numpy(a), torch.from_numpy(b)).diagonal().nan_to_num(0).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_box_with_its_edges_the_wrong_way_round_is_empty() -> None:
    assert box_iou(np.array([9, 9, 1, 1]), np.array([0, 0, 10, 10])) == 0
