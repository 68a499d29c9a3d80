"""The batch on the device against torchvision, one sample at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hetcl.draws import generator
from hetcl.types import ViewPolicy
from hetcl.views import photometric
from hetcl.views.photometric import COLUMNS, FIRST, NOTHING, Photometric, draw, kernel_size
from hetcl.views.policies import POLICIES
from tests.reference import views as slow


def random_images(count: int, height: int = 20, width: int = 17, seed: int = 0) -> torch.Tensor:
    """Noise, with flat gray, black, white and pure colours in a corner (where hue has no meaning, or ties)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    corner = [
        [128] * 3,
        [0] * 3,
        [255] * 3,
        [255, 0, 0],
        [0, 255, 255],
        [90, 90, 10],
        [10, 90, 90],
        [9, 8, 9],
    ]
    images[:, :, 0, : len(corner)] = np.array(corner, np.uint8).T[:, :width]
    return torch.from_numpy(images)


def rows(policy: ViewPolicy, count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.stack([draw(policy, generator("test", seed, i)) for i in range(count)]))


def expected(
    policy: ViewPolicy, images: torch.Tensor, color: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    return torch.stack(
        [slow.photometric(policy, x, c.tolist(), dtype) for x, c in zip(images, color, strict=True)]
    )


@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 3e-5)])
def test_equals_torchvision_sample_by_sample(name: str, dtype: torch.dtype, atol: float) -> None:
    policy, images = POLICIES[name], random_images(24, seed=len(name))
    color = rows(policy, 24)
    before = images.clone()
    out = Photometric(policy, dtype=dtype)(images, color)
    torch.testing.assert_close(out, expected(policy, images, color, dtype), atol=atol, rtol=0)
    assert torch.equal(images, before)
    assert out.dtype == dtype


def test_the_memory_format_of_the_views_changes_no_bit() -> None:
    policy, images = POLICIES["moco-v2"], random_images(24, 32, 32)
    color = rows(policy, 24)
    color[:, :2] = 0.9
    color[:, FIRST : FIRST + 4] = torch.tensor(
        [1.0, 0, 2, 3]
    )  # contrast, which sums over pixels, of all at once
    last = images.contiguous(memory_format=torch.channels_last)
    out = Photometric(policy)(last, color)
    assert torch.equal(out, Photometric(policy)(images, color))
    assert out.is_contiguous()


@pytest.mark.parametrize("first", [True, False])
def test_every_order_of_jitter_with_strong_factors(first: bool) -> None:
    policy = ViewPolicy(grayscale_first=first)
    color = torch.from_numpy(np.stack([NOTHING] * 24))
    rng = np.random.default_rng(5)
    color[:, :3] = torch.from_numpy(rng.uniform(0, 2, (24, 3)))
    color[:, 3] = torch.from_numpy(rng.uniform(-0.5, 0.5, 24))
    color[:, FIRST : FIRST + 4] = torch.tensor(list(itertools.permutations(range(4))))
    color[::5, photometric.GRAY] = 1
    images = random_images(24)
    out = Photometric(policy, dtype=torch.float64)(images, color)
    torch.testing.assert_close(out, expected(policy, images, color, torch.float64), atol=1e-9, rtol=0)


def test_chunks_of_any_size_and_one_group_for_all_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, images = POLICIES["moco-v2"], random_images(13)
    color = rows(policy, len(images))
    outs = []
    for chunk in (1, 4 * 20 * 17, 10**6):
        monkeypatch.setattr(photometric, "CPU_CHUNK", chunk)
        outs.append(Photometric(policy, dtype=torch.float64)(images, color))
    torch.testing.assert_close(outs[0], outs[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(outs[0], outs[2], atol=1e-12, rtol=0)


def test_nothing_is_only_normalized() -> None:
    images = random_images(3)
    out = Photometric(POLICIES["moco-v2"])(images, torch.from_numpy(np.stack([NOTHING] * 3)))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (photometric.IMAGENET_MEAN, photometric.IMAGENET_STD))
    torch.testing.assert_close(out, (images / 255 - mean) / std, atol=1e-6, rtol=0)


def test_memory_layout_and_autocast_change_nothing() -> None:
    policy, images = POLICIES["moco-v2"], random_images(6)
    color = rows(policy, 6)
    change = Photometric(policy)
    plain = change(images, color)
    torch.testing.assert_close(change(images.contiguous(memory_format=torch.channels_last), color), plain)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(change(images, color), plain, atol=1e-6, rtol=0)


def test_small_images_take_a_kernel_that_can_be_reflected() -> None:
    policy = POLICIES["moco-v2"]
    assert kernel_size(policy, 224, 224) == 13
    images, color = random_images(2, 4, 5), torch.from_numpy(np.stack([NOTHING] * 2))
    color[:, photometric.SIGMA] = 1.5
    out = Photometric(policy, dtype=torch.float64)(images, color)
    torch.testing.assert_close(out, expected(policy, images, color, torch.float64), atol=1e-9, rtol=0)


def test_draws_follow_the_policy() -> None:
    policy = POLICIES["moco-v2"]
    color = rows(policy, 4000).numpy()
    column = {name: color[:, i] for i, name in enumerate(COLUMNS)}
    jittered = column["brightness"] != 1
    assert abs(jittered.mean() - 0.8) < 0.03
    for name, strength in zip(("brightness", "contrast", "saturation"), policy.jitter, strict=False):
        assert abs(column[name][jittered].mean() - 1) < 0.02
        assert column[name].min() >= 1 - strength - 1e-6
        assert column[name].max() <= 1 + strength + 1e-6
        assert abs(column[name][jittered].std() - strength / 3**0.5) < 0.01
    assert np.abs(column["hue"]).max() <= 0.1
    assert abs(column["hue"].mean()) < 0.005
    assert abs(column["gray"].mean() - 0.2) < 0.03
    assert abs(column["flip"].mean() - 0.5) < 0.03
    blurred = column["sigma"] > 0
    assert abs(blurred.mean() - 0.5) < 0.03
    assert column["sigma"][blurred].min() >= 0.1
    assert abs(column["sigma"][blurred].mean() - 1.05) < 0.05
    orders, counts = np.unique(color[:, FIRST : FIRST + 4], axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 110
    assert (np.sort(orders) == np.arange(4)).all()


def test_policies_differ_only_where_they_say() -> None:
    v2, hcl = rows(POLICIES["moco-v2"], 200), rows(POLICIES["hcl"], 200)
    assert torch.equal(v2[:, : photometric.FLIP], hcl[:, : photometric.FLIP])
    assert not hcl[:, photometric.FLIP].any()
    v1 = rows(POLICIES["moco-v1"], 200)
    assert not v1[:, photometric.SIGMA].any()
    assert (v1[:, 0] != 1).all()
    assert v1[:, 3].abs().max() > 0.2
    crop = rows(POLICIES["crop"], 50)
    assert (
        np.delete(crop.numpy(), range(FIRST, FIRST + 4), 1) == np.delete(NOTHING, range(FIRST, FIRST + 4))
    ).all()
