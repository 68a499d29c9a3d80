"""Correspondence against a double loop; features that encode position, identity or nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hetcl.analysis.where.correspondence import WITHIN, match, places

Box = tuple[float, float, float, float]


def slowly(first: torch.Tensor, second: torch.Tensor, a: Box, b: Box) -> tuple[dict[str, list[float]], int]:
    """One image ``[C, S, S]``, cell by cell."""
    side, n = first.shape[-1], 0
    sums = {name: [0.0] * len(WITHIN) for name in ("features", "position", "chance")}
    for i in range(side):
        for j in range(side):
            x = a[0] + (j + 0.5) / side * (a[2] - a[0])
            y = a[1] + (i + 0.5) / side * (a[3] - a[1])
            u, v = (x - b[0]) / (b[2] - b[0]) * side, (y - b[1]) / (b[3] - b[1]) * side
            if not (0 < u < side and 0 < v < side):
                continue
            n += 1
            scores = {}
            for k in range(side):
                for m in range(side):
                    p, q = first[:, i, j].double(), second[:, k, m].double()
                    if len(p) == 1:
                        scores[k, m] = -abs(float(p - q))
                    else:
                        scores[k, m] = float(p @ q / (p.norm() * q.norm()))
            best = max(scores, key=lambda c: scores[c])
            for at, within in enumerate(WITHIN):
                near = {c: max(abs(c[1] + 0.5 - u), abs(c[0] + 0.5 - v)) <= within + 1e-6 for c in scores}
                sums["features"][at] += near[best]
                sums["position"][at] += near[i, j]
                sums["chance"][at] += sum(near.values()) / side**2
    return {name: [s / max(1, n) for s in row] for name, row in sums.items()}, n


corner, length = st.floats(0, 60), st.floats(5, 50)
box = st.tuples(corner, corner, length, length).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(max_examples=30)
@given(a=box, b=box, side=st.integers(1, 6), channels=st.integers(1, 5), seed=st.integers(0, 999))
def test_equals_a_double_loop(a: Box, b: Box, side: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    maps = torch.randn(2, 1, channels, side, side)
    boxes = torch.tensor([[a], [b]], dtype=torch.float64)
    found = match(maps[0], maps[1], boxes)
    expected, n = slowly(maps[0, 0], maps[1, 0], a, b)
    assert found.cells.tolist() == [n]
    for name, row in expected.items():
        np.testing.assert_allclose(getattr(found, name)[0], row, atol=1e-9, err_msg=name)


def position_maps(boxes: torch.Tensor, side: int) -> torch.Tensor:
    """Features that say where a cell's centre lies in the image: a direction for every place. ``[2, B, 4, S, S]``."""
    step = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    left, top, right, bottom = boxes.unbind(-1)
    x = (left[..., None] + step * (right - left)[..., None])[:, :, None, :].expand(-1, -1, side, side) / 100
    y = (top[..., None] + step * (bottom - top)[..., None])[:, :, :, None].expand(-1, -1, side, side) / 100
    return torch.stack([x.cos(), x.sin(), y.cos(), y.sin()], dim=2).float()


@given(a=box, b=box, side=st.integers(1, 8))
@settings(max_examples=50, suppress_health_check=[HealthCheck.filter_too_much])
def test_features_that_encode_the_place_find_every_cell(a: Box, b: Box, side: int) -> None:
    boxes = torch.tensor([[a], [b]], dtype=torch.float64)
    maps = position_maps(boxes, side)
    found = match(maps[0].double(), maps[1].double(), boxes)
    place, inside = places(boxes, side)
    off = (place - place.floor() - 0.5).abs().amax(-1)
    assume(bool(((off < 0.45) | ~inside).all()))  # a place on the line between two cells is as near to both
    assume(bool(inside.any()))
    assert found.features[0].tolist() == [1.0] * len(WITHIN)


def test_the_same_crop_twice() -> None:
    boxes = torch.tensor([[[0.0, 0, 40, 20]]] * 2)
    maps = torch.randn(1, 8, 5, 5)
    found = match(maps, maps, boxes)
    assert found.features.tolist() == found.position.tolist() == [[1.0] * 3]
    assert found.cells.tolist() == [25]


def test_random_features_score_chance_and_equal_ones_nothing() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[[0.0, 0, 40, 40]], [[10.0, 5, 50, 45]]]).expand(2, 400, 4)
    found = match(torch.randn(400, 16, 7, 7), torch.randn(400, 16, 7, 7), boxes)
    spread = found.features.std(0) / math.sqrt(400)
    assert bool(((found.features.mean(0) - found.chance.mean(0)).abs() < 4 * spread).all())
    equal = torch.ones(1, 16, 7, 7)
    assert match(equal, equal, boxes[:, :1]).features.tolist() == [[0.0] * 3]


def test_crops_that_do_not_meet() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[10.0, 0, 20, 10]]])
    found = match(torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4), boxes)
    assert found.cells.tolist() == [0]
    assert not found.features.any()
    assert not found.chance.any()


def test_places() -> None:
    place, inside = places(torch.tensor([[[0.0, 0, 40, 20]], [[20.0, 0, 60, 20]]]), 2)
    assert place[0].tolist() == [[-0.5, 0.5], [0.5, 0.5], [-0.5, 1.5], [0.5, 1.5]]
    assert inside[0].tolist() == [False, True, False, True]


@pytest.mark.parametrize("shift", [0.0, 1e-9])
def test_a_place_between_two_cells_belongs_to_both(shift: float) -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4]], [[0.5 + shift, 0, 4.5 + shift, 4]]], dtype=torch.float64)
    assert match(torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4), boxes).position[0, 0] == 1
