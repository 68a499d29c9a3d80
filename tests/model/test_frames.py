"""Maps laid back into the image's frame: against a slow double loop, and what must not be told by places alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetcl.methods import METHODS
from hetcl.model.embedding import normalize
from hetcl.model.frames import in_image, lay_back, shares
from hetcl.model.infonce import top1_in_batch
from hetcl.types import Crops, ViewPolicy
from hetcl.views.crops import boxes_in, frame_from

share = st.floats(0, 1, width=32)


@st.composite
def crops(draw: st.DrawFn) -> Crops:
    """A few crops, at the border and thin ones among them."""
    count = draw(st.integers(1, 4))
    boxes = []
    for _ in range(count):
        left, right = sorted(draw(st.tuples(share, share)))
        top, bottom = sorted(draw(st.tuples(share, share)))
        boxes.append([left, top, max(right, left + 1e-3), max(bottom, top + 1e-3)])
    flipped = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return Crops(torch.tensor(boxes).clamp(0, 1.001), torch.tensor(flipped))


def slow(maps: Tensor, crops: Crops) -> Tensor:
    """Each cell of the frame, each cell of the crop: the value times the area that they share."""
    count, channels, side, _ = maps.shape
    out = torch.zeros_like(maps)
    for b in range(count):
        left, top, right, bottom = crops.boxes[b].double().tolist()
        for c in range(channels):
            one = maps[b, c] - maps[b, c].mean()
            one = one.flip(1) if crops.flipped[b] else one
            for i in range(side):
                for j in range(side):
                    for k in range(side):
                        for m in range(side):
                            y0, y1 = top + (bottom - top) * k / side, top + (bottom - top) * (k + 1) / side
                            x0, x1 = left + (right - left) * m / side, left + (right - left) * (m + 1) / side
                            high = min(y1, (i + 1) / side) - max(y0, i / side)
                            wide = min(x1, (j + 1) / side) - max(x0, j / side)
                            if high > 0 and wide > 0:
                                out[b, c, i, j] += one[k, m] * high * wide * side**2
    return out


@settings(max_examples=40, deadline=None)
@given(crops=crops(), side=st.integers(1, 5), channels=st.integers(1, 2), seed=st.integers(0, 99))
def test_equal_to_a_double_loop(crops: Crops, side: int, channels: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    maps = torch.randn(len(crops.boxes), channels, side, side, generator=draw, dtype=torch.float64)
    assert torch.allclose(lay_back(maps.flatten(1), crops, side), slow(maps, crops).flatten(1), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(crops=crops(), side=st.integers(1, 14))
def test_a_crop_covers_what_it_covers(crops: Crops, side: int) -> None:
    left, top, right, bottom = crops.boxes.double().unbind(1)
    for low, high in ((left, right), (top, bottom)):
        found = shares(low, high, side)
        assert bool((found >= 0).all())
        assert bool((found.sum(2) <= 1 + 1e-9).all())
        inside = high.clamp(max=1) - low
        assert torch.allclose(found.sum((1, 2)) / side, inside, atol=1e-9)


def whole(count: int, flipped: bool = False) -> Crops:
    return Crops(torch.tensor([[0.0, 0, 1, 1]]).expand(count, 4), torch.full((count,), flipped))


def test_the_whole_image_keeps_its_map_and_a_flip_is_undone() -> None:
    maps = torch.randn(3, 2, 7, 7)
    plain = (maps - maps.mean((2, 3), keepdim=True)).flatten(1)
    assert torch.allclose(lay_back(maps.flatten(1), whole(3), 7), plain, atol=1e-6)
    mirrored = lay_back(maps.flip(3).flatten(1), whole(3, flipped=True), 7)
    assert torch.allclose(mirrored, plain, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(cell=st.tuples(st.integers(0, 3), st.integers(0, 3)), seed=st.integers(0, 99))
def test_a_crop_of_a_crop(cell: tuple[int, int], seed: int) -> None:
    """A quarter of a picture that is constant on cells, seen alone, lies where the picture has it."""
    side, (i, j) = 8, cell
    picture = torch.randn(
        1, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    view = picture[:, :, i : i + 4, j : j + 4].repeat_interleave(2, 2).repeat_interleave(2, 3)
    box = torch.tensor([[j / side, i / side, (j + 4) / side, (i + 4) / side]])
    laid = lay_back(view.flatten(1), Crops(box, torch.tensor([False])), side).unflatten(1, (side, side))[0]
    piece = picture[0, 0, i : i + 4, j : j + 4]
    assert torch.allclose(laid[i : i + 4, j : j + 4], piece - piece.mean(), atol=1e-9)
    laid[i : i + 4, j : j + 4] = 0
    assert float(laid.abs().max()) < 1e-9


def test_a_single_pixel_leaves_its_trace() -> None:
    box = torch.tensor([[0.5, 0.5, 0.501, 0.501]])
    laid = in_image({"map": torch.randn(1, 49)}, Crops(box, torch.tensor([False])), {"map": 7})["map"]
    assert laid.isfinite().all()
    assert float(lay_back(torch.arange(49.0)[None], Crops(box, torch.tensor([True])), 7).abs().max()) > 0


def test_a_map_that_does_not_vary_says_nothing() -> None:
    """Not even by its rounding."""
    maps = normalize(torch.full((4, 196), 0.1) + 1e-9 * torch.randn(4, 196))
    box = torch.tensor(
        [[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 0.3, 1.0], [0.5, 0.5, 0.51, 0.51], [0.0, 0.0, 1.0, 1.0]]
    )
    laid = in_image({"map": maps}, Crops(box, torch.zeros(4, dtype=torch.bool)), {"map": 14})["map"]
    assert float(laid.norm(dim=1).max()) < 0.2


def test_gradients() -> None:
    draw = torch.Generator().manual_seed(1)
    box = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 0.3, 1.0]])
    maps = torch.randn(2, 9, dtype=torch.float64, generator=draw, requires_grad=True)
    at = Crops(box, torch.tensor([False, True]))
    assert torch.autograd.gradcheck(partial(lay_back, crops=at, side=3), (maps,))


# ---- nothing is told by places alone ---------------------------------------------------------------------------------

BATCH, SIDE = 32, 14


def drawn(policy: ViewPolicy, count: int, rng: np.random.Generator) -> list[Crops]:
    """Crops of both views of images of many shapes, as the loader draws them."""
    views: list[list[list[float]]] = [[], []]
    for aspect in np.exp(rng.uniform(-1.4, 1.4, count)):
        width, height = round(300 * aspect**0.5), round(300 / aspect**0.5)
        frame = frame_from(rng.random(), width, height, policy.square)
        l, t, r, b = frame
        for view, box in zip(
            views, boxes_in(frame, rng.random((2, 10, 4)), policy.area, policy.ratio), strict=True
        ):
            view.append(
                [
                    (box[0] - l) / (r - l),
                    (box[1] - t) / (b - t),
                    (box[2] - l) / (r - l),
                    (box[3] - t) / (b - t),
                ]
            )
    flipped = [torch.from_numpy(rng.random(count) < policy.flip_p) for _ in views]
    return [Crops(torch.tensor(v), f) for v, f in zip(views, flipped, strict=True)]


def found_by_place(policy: ViewPolicy, kind: str, *, permuted: bool = False, batches: int = 500) -> float:
    """Top-1 within batches of maps that say nothing of their image, with the crops of ``policy``."""
    rng, draw = np.random.default_rng(0), torch.Generator().manual_seed(0)
    pattern = torch.randn(1, SIDE**2, generator=draw)
    hits = 0.0
    for _ in range(batches):
        at = drawn(policy, BATCH, rng)
        if kind == "images":  # maps that tell the images apart perfectly, in their own frames
            maps = [torch.randn(BATCH, SIDE**2, generator=draw)] * 2
        elif kind == "random":
            maps = [torch.randn(BATCH, SIDE**2, generator=draw) for _ in at]
        else:
            maps = [(torch.ones(1, SIDE**2) if kind == "constant" else pattern).expand(BATCH, -1)] * 2
        q, k = (
            in_image({"map": normalize(m)}, c, {"map": SIDE})["map"] for m, c in zip(maps, at, strict=True)
        )
        if permuted:
            k = k.roll(1, 0)
        hits += float(top1_in_batch(q, k))
    return hits / batches


CHANCE = 1 / BATCH
NOISE = 4 * (CHANCE * (1 - CHANCE) / (500 * BATCH)) ** 0.5
"""Four standard errors of 16,000 queries."""


@pytest.mark.parametrize("kind", ["random", "constant", "pattern"])
def test_features_without_content_score_chance(kind: str) -> None:
    assert found_by_place(METHODS["hcl-geo"].views, kind) < CHANCE + NOISE


def test_permuted_pairs_score_chance() -> None:
    assert found_by_place(METHODS["hcl-geo"].views, "images", permuted=True) < CHANCE + NOISE


def test_crops_in_the_whole_image_would_tell_its_shape() -> None:
    """Why the method draws its crops in a square."""
    assert found_by_place(ViewPolicy(), "pattern", batches=100) > 1.5 * CHANCE
