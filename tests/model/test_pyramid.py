"""Backbones as pyramids: names, shapes, strides, seeds, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from hetcl.errors import InputError
from hetcl.model.pyramid import Pyramid, build_pyramid

SMALL = [
    "timm:convnext_atto",
    "timm:swin_tiny_patch4_window7_224",
    "timm:regnety_002",
    "timm:efficientnet_b0",
    "resnet10t",
    "torchvision:convnext_tiny",
    "torchvision:swin_t",
    "torchvision:regnet_y_400mf",
    "torchvision:mobilenet_v3_small",
    "torchvision:densenet121",
]


def check_maps(pyramid: Pyramid, height: int, width: int) -> None:
    with torch.no_grad():
        maps = pyramid.eval()(torch.randn(1, 3, height, width))
    for level, channels, stride in zip(maps, pyramid.spec.channels, pyramid.spec.strides, strict=True):
        assert level.shape == (1, channels, height // stride, width // stride)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_torchvision_resnets_keep_their_names_without_fc(name: str) -> None:
    pyramid = build_pyramid(name)
    theirs = getattr(torchvision.models, name)(weights=None)
    assert list(pyramid.state_dict()) == [n for n in theirs.state_dict() if not n.startswith("fc.")]
    missing = theirs.load_state_dict(pyramid.state_dict(), strict=False)
    assert missing.missing_keys == ["fc.weight", "fc.bias"]
    assert missing.unexpected_keys == []
    assert pyramid.arch == f"torchvision:{name}"
    check_maps(pyramid, 64, 96)


@torch.no_grad()
def test_c5_is_what_torchvision_pools() -> None:
    pyramid = build_pyramid("resnet18").eval()
    theirs = torchvision.models.resnet18(weights=None).eval()
    theirs.load_state_dict(pyramid.state_dict(), strict=False)
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(pyramid(images)[3].mean((2, 3)), theirs(images))


@pytest.mark.parametrize("name", SMALL)
def test_any_four_stage_backbone_is_a_pyramid(name: str) -> None:
    pyramid = build_pyramid(name, seed=1)
    check_maps(pyramid, 64, 96)
    again = build_pyramid(name, seed=2)
    again.load_state_dict(pyramid.state_dict())
    copied = copy.deepcopy(pyramid)
    wrapped = nn.ModuleDict({"pyramid": again})
    assert set(wrapped.state_dict()) == {f"pyramid.{n}" for n in pyramid.state_dict()}
    wrapped.load_state_dict(wrapped.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = pyramid.eval()(images)
        for other in (again.eval(), copied.eval()):
            for a, b in zip(other(images), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)
        # The copy shares nothing, and goes to double precision whole.
        maps = copied.double().eval()(images.double())
        assert all(m.dtype == torch.float64 for m in maps)
        assert next(pyramid.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "mobilenet_v3_small"])
def test_other_torchvision_state_dicts_load_into_torchvision(name: str) -> None:
    theirs = getattr(torchvision.models, name)(weights=None)
    result = theirs.load_state_dict(build_pyramid(f"torchvision:{name}").state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all(n.startswith(("classifier.", "head.", "norm.")) for n in result.missing_keys)


def test_timm_takes_the_blocks_outputs_of_the_right_strides() -> None:
    pyramid = build_pyramid("timm:regnety_002")  # five maps, the first of stride 2
    assert pyramid.spec.channels == (24, 56, 152, 368)


@pytest.mark.parametrize("name", ["resnet18", "timm:convnext_atto"])
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    torch.manual_seed(1)
    first = build_pyramid(name, seed=7).state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = build_pyramid(name, seed=7).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    third = build_pyramid(name, seed=8).state_dict()
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert any(not torch.equal(first[n], third[n]) for n in first)


@pytest.mark.parametrize("name", ["resnet18", "torchvision:convnext_tiny", "timm:regnety_002"])
def test_every_parameter_gets_a_gradient_in_training(name: str) -> None:
    pyramid = build_pyramid(name, seed=0).train().to(memory_format=torch.channels_last)
    maps = pyramid(torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last))
    sum(m.square().mean() for m in maps).backward()
    silent = [n for n, p in pyramid.named_parameters() if p.grad is None]
    assert silent == []


def test_train_and_eval_reach_a_traced_body() -> None:
    pyramid = build_pyramid("torchvision:mobilenet_v3_small")
    images = torch.randn(2, 3, 64, 64)
    norm = next(m for m in pyramid.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        pyramid.eval()(images)
        assert norm.num_batches_tracked == 0
        pyramid.train()(images)
        assert norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnt50", "did you mean resnet50"),
        ("timm:convnext_atoo", "convnext_atto"),
        ("torchvision:resnet10t", "no such model in torchvision"),
        ("keras:resnet50", "use torchvision:NAME or timm:NAME"),
        ("vit_b_32", "no maps of strides 4, 8, 16 and 32"),
        ("timm:vit_tiny_patch16_224", "no maps of strides 4, 8, 16 and 32"),
        ("timm:hf-hub:someone/something", "no such model in timm"),  # would download
        ("", "no such model"),
    ],
)
def test_what_is_refused_says_what_to_do(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        build_pyramid(name)


def test_a_backbone_of_one_size_says_which() -> None:
    pyramid = build_pyramid("timm:coat_tiny")
    with pytest.raises(InputError, match="takes images of 224x224 pixels only, not 64x64"):
        pyramid(torch.zeros(1, 3, 64, 64))
