"""Backbones in and out by their own names; laterals of the spatial branch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hetcl.downstream.models import load_fpn, load_pyramid, pyramid_state, segmenter
from hetcl.errors import InputError
from hetcl.model.branches import SpatialBranch
from hetcl.model.pyramid import build_pyramid
from tests.downstream.models.making import small


def model_of(kind: str, arch: str) -> Any:
    return segmenter(arch, classes=4, norm="tuned", seed=0) if kind == "fcn" else small(kind, arch)


CASES = [
    ("fpn", "resnet18"),
    ("c4", "resnet18"),
    ("fcn", "resnet18"),
    ("c4", "timm:resnet18"),
    ("fpn", "timm:convnext_atto"),
    ("fcn", "timm:convnext_atto"),
]


@pytest.mark.parametrize(("kind", "arch"), CASES)
def test_a_backbone_goes_in_and_comes_back_equal(kind: str, arch: str) -> None:
    state = build_pyramid(arch, seed=1).state_dict()
    model = model_of(kind, arch)
    assert not all(torch.equal(state[k], v) for k, v in pyramid_state(model).items())
    load_pyramid(model, state)
    back = pyramid_state(model)
    assert list(back) == list(state)
    assert all(torch.equal(state[k], v) for k, v in back.items())
    build_pyramid(arch).load_state_dict(back)


@pytest.mark.parametrize(("kind", "arch"), CASES[:2] + CASES[3:5])
def test_each_weight_has_one_name_and_the_backbone_its_own(kind: str, arch: str) -> None:
    model = model_of(kind, arch)
    places = [v.data_ptr() for v in model.state_dict().values() if v.numel()]
    assert len(set(places)) == len(places)
    own = {k.removeprefix("backbone.body.") for k in model.state_dict() if k.startswith("backbone.body.")}
    assert own == set(build_pyramid(arch).state_dict())


def test_layer4_of_c4_is_the_one_that_was_loaded() -> None:
    model = small("c4").eval()
    x = torch.rand(2, 256, 14, 14)
    other = build_pyramid("resnet18", seed=1).eval()
    load_pyramid(model, other.state_dict())
    model.roi_heads.box_head.norm = torch.nn.Identity()
    with torch.no_grad():
        assert torch.equal(model.roi_heads.box_head(x), other.layer4(x))  # type: ignore[operator]


def test_what_does_not_match_is_refused_and_nothing_loaded() -> None:
    model = small("c4")
    before = {k: v.clone() for k, v in pyramid_state(model).items()}
    good = build_pyramid("resnet18", seed=1).state_dict()
    for wrong, word in [
        ({k: v for k, v in good.items() if k != "layer4.0.conv1.weight"}, "layer4.0.conv1.weight is missing"),
        ({**good, "fc.weight": torch.zeros(3)}, "fc.weight is unknown"),
        ({**good, "bn1.bias": torch.zeros(3)}, r"bn1.bias is \[3\], not \[64\]"),
        (build_pyramid("resnet50", seed=0).state_dict(), "and .* more"),
    ]:
        with pytest.raises(InputError, match=word):
            load_pyramid(model, wrong)
    assert all(torch.equal(before[k], v) for k, v in pyramid_state(model).items())


@pytest.mark.parametrize("norm", ["tuned", "frozen"])
def test_laterals_of_the_spatial_branch_become_the_fpns(norm: str) -> None:
    model = small(norm=norm)
    branch = SpatialBranch(model.backbone.body.spec.channels, seed=7)
    torch.nn.init.normal_(branch.lateral[0].bias)  # type: ignore[arg-type]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_fpn(model, branch.state_dict())
    fpn = model.backbone.fpn
    for ours, theirs in zip(fpn.inner_blocks, branch.lateral, strict=True):
        assert torch.equal(ours[0].weight, theirs.weight)
        assert ours[0].bias is None or torch.equal(ours[0].bias, theirs.bias)
    assert (fpn.inner_blocks[0][0].bias is None) == (norm == "tuned")
    moved = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert all("inner_blocks" in k for k in moved)


def test_laterals_that_do_not_fit_are_refused() -> None:
    model = small()
    channels = model.backbone.body.spec.channels
    for branch, word in [
        (SpatialBranch(channels, width=128), "lateral.0.weight"),
        (SpatialBranch(build_pyramid("resnet50").spec.channels), "lateral.0.weight"),
        (SpatialBranch(channels[:3]), "lateral.3.weight is missing"),
    ]:
        with pytest.raises(InputError, match=word):
            load_fpn(model, branch.state_dict())
    with pytest.raises(InputError, match="no FPN"):
        load_fpn(small("c4"), SpatialBranch(channels).state_dict())
    with pytest.raises(InputError, match="unknown"):
        load_fpn(model, {**SpatialBranch(channels).state_dict(), "other": torch.zeros(1)})
