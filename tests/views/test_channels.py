"""Views of other channels than RGB: the same crops and draws, and the colour changes that there are for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hetcl.images.sources import open_source
from hetcl.types import PixelFormat, ViewPolicy
from hetcl.views import photometric
from hetcl.views.central import Central
from hetcl.views.loader import ViewLoader
from hetcl.views.pairs import Pairs
from hetcl.views.photometric import Photometric

POLICY = ViewPolicy(jitter_p=1.0, grayscale_p=0.5, blur_p=0.5, blur_sigma=(0.5, 1.0))
ONE = ((0.0,), (1.0,))


def reference(image: Tensor, draw: np.ndarray, kernel: int) -> Tensor:
    """Brightness and contrast in their order, blur, flip; one image ``[C, H, W]`` in plain words."""
    x = image.double()
    for change in draw[photometric.FIRST : photometric.FIRST + 4].astype(int):
        if change == photometric.BRIGHTNESS:
            x = (x * float(draw[photometric.BRIGHTNESS])).clamp(0, 1)
        elif change == photometric.CONTRAST:
            factor = float(draw[photometric.CONTRAST])
            x = (x * factor + x.mean() * (1 - factor)).clamp(0, 1)
    if draw[photometric.SIGMA] > 0:
        half = kernel // 2
        at = torch.arange(-half, half + 1, dtype=torch.float64)
        weights = torch.exp(-0.5 * (at / float(draw[photometric.SIGMA])) ** 2)
        weights = torch.outer(weights, weights) / weights.sum() ** 2
        padded = F.pad(x[:, None], (half,) * 4, mode="reflect")
        x = F.conv2d(padded, weights[None, None])[:, 0]
    return x.flip(-1) if draw[photometric.FLIP] else x


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_each_image_is_changed_as_plain_words_say(channels: int) -> None:
    generator, rng = torch.Generator().manual_seed(channels), np.random.default_rng(channels)
    images = torch.rand(24, channels, 13, 17, generator=generator)
    kept = images.clone()
    draws = np.stack([photometric.draw(POLICY, rng) for _ in range(24)])
    mean = tuple(rng.random(channels).tolist())
    std = tuple((rng.random(channels) + 0.1).tolist())
    out = Photometric(POLICY, mean, std, dtype=torch.float64)(images, torch.from_numpy(draws))
    assert torch.equal(images, kept)
    kernel = photometric.kernel_size(POLICY, 13, 17)
    for image, draw, found in zip(images, draws, out, strict=True):
        wanted = reference(image, draw, kernel) - torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
        torch.testing.assert_close(found, wanted / torch.tensor(std, dtype=torch.float64).view(-1, 1, 1))


def test_colour_of_three_channels_is_the_same_from_floats() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (16, 3, 12, 12), np.uint8))
    color = torch.from_numpy(np.stack([photometric.draw(POLICY, rng) for _ in range(16)]))
    change = Photometric(POLICY, dtype=torch.float64)
    torch.testing.assert_close(change(images.double() / 255, color), change(images, color), rtol=0, atol=0)


def some(root: Path, channels: int = 5) -> Path:
    rng = np.random.default_rng(0)
    for i in range(10):
        np.save(root / f"{i}.npy", rng.integers(0, 4096, (40 + i, 60 - i, channels), np.uint16))
    return root


def test_loaders_cut_all_channels_alike(tmp_path: Path) -> None:
    """A channel of the views is the view of that channel alone, whatever the workers."""
    source, pixels = open_source(str(some(tmp_path))), PixelFormat(5, 4095)
    policy = replace(POLICY, area=(0.3, 0.9))
    how = {"policy": policy, "size": 32, "batch": 5, "seed": 3, "stage": "x"}
    batch = next(ViewLoader(source, pixels=pixels, **how).epoch(0))  # type: ignore[arg-type]
    assert batch.images.shape == (2, 5, 5, 32, 32)
    assert batch.images.dtype == torch.float32
    assert 0 <= float(batch.images.min()) < float(batch.images.max()) <= 1
    loader = ViewLoader(source, pixels=pixels, workers=1, **how)  # type: ignore[arg-type]
    there = next(loader.epoch(0))
    loader.close()
    assert torch.equal(there.images, batch.images)
    assert torch.equal(there.color, batch.color)

    single = tmp_path / "single"
    single.mkdir()
    for i in range(10):
        np.save(single / f"{i}.npy", np.load(tmp_path / f"{i}.npy")[..., 2:3])
    alone = next(
        ViewLoader(open_source(str(single)), pixels=PixelFormat(1, 4095), **how).epoch(0)  # type: ignore[arg-type]
    )
    assert torch.equal(alone.boxes, batch.boxes)
    torch.testing.assert_close(alone.images[:, :, 0], batch.images[:, :, 2], atol=1e-6, rtol=0)


def test_central_views_and_pairs(tmp_path: Path) -> None:
    source, pixels = open_source(str(some(tmp_path))), PixelFormat(5, 4095)
    central = Central(source, range(10), size=32, batch=4, whole=True, pixels=pixels)
    (_, views), *_ = central.run(range(central.steps))
    (batch,) = views.values()
    stored = torch.from_numpy(np.load(tmp_path / source.name(0).rpartition("/")[2]) / np.float32(4095))
    wanted = F.interpolate(stored.permute(2, 0, 1)[None], (32, 32), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(batch.images[0, 0], wanted, atol=1e-6, rtol=0)
    pairs = Pairs(source, [POLICY], size=32, batch=4, seed=0, pixels=pixels)
    (_, drawn), *_ = pairs.run(range(1))
    (two,) = drawn.values()
    assert two.images.shape == (2, 4, 5, 32, 32)
    out = Photometric(POLICY, *ONE)(two.images[0], two.color[0])
    assert out.shape == (4, 5, 32, 32)
