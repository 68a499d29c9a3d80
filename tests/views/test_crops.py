"""Crop boxes, and cutting, against torchvision and PIL."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF
from torchvision.transforms.v2 import functional as v2

from hetcl.draws import generator
from hetcl.views import crops
from tests.images.make import pixels as smooth
from tests.reference import views as slow

sides = st.integers(1, 4000)


def draw_box(
    rng: np.random.Generator,
    width: int,
    height: int,
    area: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    return crops.box_from(rng.random((crops.TRIES, 4)), width, height, area, ratio)


@given(
    sides, sides, st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.2, 5), st.floats(0.2, 5), st.integers()
)
def test_boxes_lie_inside_and_keep_the_limits(
    width: int, height: int, a: float, b: float, p: float, q: float, seed: int
) -> None:
    area, ratio = (min(a, b), max(a, b)), (min(p, q), max(p, q))
    box = draw_box(generator(seed % 2**60), width, height, area, ratio)
    l, t, r, bottom = box
    assert all(isinstance(v, int) for v in box)
    assert 0 <= l < r <= width
    assert 0 <= t < bottom <= height
    w, h = r - l, bottom - t
    # sides are rounded to whole pixels, so the limits hold give or take half a pixel a side
    fallback = (
        abs(2 * l - (width - w)) <= 1 and abs(2 * t - (height - h)) <= 1 and (w == width or h == height)
    )
    if not fallback:
        assert (w - 0.5) * (h - 0.5) <= area[1] * width * height * (1 + 1e-9)
        assert (w + 0.5) * (h + 0.5) >= area[0] * width * height * (1 - 1e-9)
    if min(w, h) > 1:
        assert (w - 0.5) / (h + 0.5) <= ratio[1] * (1 + 1e-9)
        assert (w + 0.5) / (h - 0.5) >= ratio[0] * (1 - 1e-9)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (224, 224), (600, 200)])
def test_boxes_have_torchvisions_distribution(width: int, height: int) -> None:
    torch.manual_seed(3)
    image, n = Image.new("L", (width, height)), 4000
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    theirs = theirs[:, [1, 0, 3, 2]].astype(float)  # top, left, height, width -> left, top, width, height
    ours = np.array([draw_box(generator("box", i), width, height) for i in range(n)], float)
    ours[:, 2:] -= ours[:, :2]
    for numbers in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2], lambda b: b[:, 2] / b[:, 3]):
        a, b = np.sort(numbers(theirs)), np.sort(numbers(ours))
        at = np.concatenate([a, b])
        gap = np.abs(np.searchsorted(a, at, "right") - np.searchsorted(b, at, "right")).max() / n
        assert gap < 1.95 * math.sqrt(2 / n)  # Kolmogorov-Smirnov, level 0.001


def test_every_place_is_as_likely() -> None:
    places = [draw_box(generator("place", i), 5, 6, (0.3, 0.3), (1.0, 1.0))[:2] for i in range(2400)]
    _, counts = np.unique(places, axis=0, return_counts=True)
    assert len(counts) == 3 * 4  # a square of 3 pixels in 5 x 6
    assert counts.min() > 140
    assert counts.max() < 260


@pytest.mark.parametrize("shape", [(1000, 10), (10, 1000), (3, 1)])
def test_long_images_fall_back_to_torchvisions_central_crop(shape: tuple[int, int]) -> None:
    width, height = shape
    box = draw_box(generator(1), width, height, (1.0, 1.0))
    t, l, h, w = RandomResizedCrop.get_params(Image.new("L", shape), [1.0, 1.0], [3 / 4, 4 / 3])
    assert box == (l, t, l + w, t + h)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 300), st.integers(2, 300), st.integers(1, 64), st.integers(0, 10**6))
def test_cut_equals_torchvisions_resized_crop(w: int, h: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    two = [draw_box(generator(seed, v), w, h) for v in range(2)]
    out = crops.cut(pixels, two, size)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    exact = torch.stack([v2.resized_crop(tensor, t, l, b - t, r - l, [size, size]) for l, t, r, b in two])
    # torchvision takes a detour over floats where the processor lacks AVX2
    same = 0 if "AVX" in torch.backends.cpu.get_cpu_capability() else 1
    assert np.abs(out.astype(int) - exact.numpy()).max() <= same
    assert np.abs(out.astype(int) - slow.cut(pixels, two, size)).max() <= 1  # PIL, other roundings
    assert np.array_equal(out, crops.cut(pixels, two, size, plane=(w, h)))


@pytest.mark.parametrize("factor", [2, 4])
def test_a_reduced_image_gives_nearly_the_same_views(factor: int) -> None:
    whole = smooth(1201, 803, seed=2)
    small = np.array(
        Image.fromarray(whole).resize((-(-1201 // factor), -(-803 // factor)), Image.Resampling.BOX)
    )
    two = [(3, 5, 903, 805 - 2), (301, 100, 1201, 760)]
    a = crops.cut(whole, two, 64).astype(float)
    b = crops.cut(small, two, 64, plane=(1201, 803)).astype(float)
    assert np.abs(a - b).mean() < 1.0
    shifted = crops.cut(whole, [(l + 20, t, r + 20, b) for l, t, r, b in [(3, 5, 903, 803)]], 64)
    assert np.abs(a[:1] - shifted).mean() > np.abs(a[:1] - b[:1]).mean()


@given(sides, sides, st.integers(8, 300), st.integers(0, 10**6))
def test_no_crop_falls_below_the_size_by_reduction(w: int, h: int, size: int, seed: int) -> None:
    two = [draw_box(generator(seed, v), w, h) for v in range(2)]
    k = crops.reduction(w, h, two, size)
    least = min(min(r - l, b - t) for l, t, r, b in two)
    assert k in (1, 2, 4, 8)
    assert k == 1 or least / k >= size
    if w * h >= crops.LARGE and k < 8:
        assert least / (2 * k) < size


def test_a_photo_of_12_megapixels_is_always_reduced() -> None:
    for seed in range(300):
        two = [draw_box(generator(seed, v), 4000, 3000) for v in range(2)]
        assert crops.reduction(4000, 3000, two, 224) >= 4
    assert crops.reduction(640, 480, [(0, 0, 640, 480)], 32) == 1


@given(sides, sides, st.integers(1, 500))
def test_the_central_view_is_central_and_square(w: int, h: int, size: int) -> None:
    l, t, r, b = crops.centre_box(w, h, size)
    assert 0 <= l < r <= w
    assert 0 <= t < b <= h
    assert r - l == b - t
    assert abs(l + r - w) <= 1
    assert abs(t + b - h) <= 1
    if min(w, h) <= size:
        assert r - l == min(w, h)


def test_the_central_view_is_resize_256_crop_224() -> None:
    whole = smooth(512, 384, seed=4)
    resized = TF.center_crop(TF.resize(Image.fromarray(whole), 256), [224, 224])
    ours = crops.cut(whole, [crops.centre_box(512, 384, 224)], 224)[0].transpose(1, 2, 0)
    assert np.abs(ours.astype(float) - np.asarray(resized)).mean() < 1.0  # of 255: half a resampling step


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 1000))
def test_an_area_of_one_is_the_same_box_for_every_draw(width: int, height: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = {draw_box(rng, width, height, area=(1.0, 1.0)) for _ in range(5)}
    assert len(boxes) == 1
    if 3 / 4 <= width / height <= 4 / 3:
        assert boxes == {(0, 0, width, height)}
