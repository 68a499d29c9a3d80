"""The check itself: it sees what is equal, and above all what is not."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from hetcl.errors import InputError, WorkFailed
from hetcl.weights import export_proof, writers
from hetcl.weights.export_proof import differences, random_images, run_code, same_weights
from hetcl.weights.plain_resnet import detectron2_name, plain_resnet, resnet_maps
from tests.reference.backbones import BLOCKS, ResNet, detectron2_keys

LAYERS = ["layer1", "layer2", "layer3", "layer4"]


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def torchvision_resnet(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model, its batch norms away from their defaults, and its state without the classifier."""
    model = torchvision.models.get_model(name, weights=None).eval()
    for n, v in model.state_dict().items():
        if n.endswith("running_var"):
            v.uniform_(0.5, 1.5)
        elif v.ndim == 1 and not n.startswith("fc"):
            v.add_(torch.randn_like(v) * 0.2)
    return model, {n: v for n, v in model.state_dict().items() if not n.startswith("fc.")}


# ---- the ResNet of functions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("detectron2", [True, False])
@torch.no_grad()
def test_it_is_torchvisions(name: str, detectron2: bool) -> None:
    model, state = torchvision_resnet(name)
    state = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    if detectron2:
        state = {detectron2_name(n): v for n, v in state.items()}
    x = torch.randn(2, 3, 67, 90)
    theirs = create_feature_extractor(model, LAYERS)(x).values()
    for ours, wanted in zip(resnet_maps(state, x, detectron2=detectron2), theirs, strict=True):
        assert torch.allclose(ours, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@torch.no_grad()
def test_it_is_the_reference_in_detectron2s_names() -> None:
    model = ResNet(34).eval()
    state = {n: v for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    x = torch.randn(1, 3, 64, 64)
    for ours, wanted in zip(resnet_maps(state, x, detectron2=True), model(x), strict=True):
        assert torch.allclose(ours, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_a_stride_in_the_1x1_would_be_seen() -> None:
    """What happens to those who leave detectron2's default STRIDE_IN_1X1."""
    model = ResNet(50).eval()
    state = {n: v for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    for i in (3, 4, 5):
        block = getattr(model, f"res{i}")[0]
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    with pytest.raises(WorkFailed, match="C3 differs"):
        differences(model, lambda x: resnet_maps(state, x, detectron2=True), random_images(1))


def test_a_key_too_few_or_too_many_is_named() -> None:
    _, state = torchvision_resnet("resnet18")
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises(WorkFailed, match=r"1 keys have no use, e\.g\. layer2\.0\.extra"):
        resnet_maps(state | {"layer2.0.extra": x}, x, detectron2=False)
    with pytest.raises(WorkFailed, match=r"layer3\.0\.bn2\.bias is missing"):
        resnet_maps({n: v for n, v in state.items() if n != "layer3.0.bn2.bias"}, x, detectron2=False)


def test_names_of_detectron2_by_rule() -> None:
    _, state = torchvision_resnet("resnet50")
    names = {detectron2_name(n) for n in state if not n.endswith("num_batches_tracked")}
    assert names == detectron2_keys(50)
    assert detectron2_name("layer1.0.bn2.bias") == "res2.0.conv2.norm.bias"
    assert detectron2_name("bn1.weight") == "stem.conv1.norm.weight"


@pytest.mark.parametrize("depth", BLOCKS)
def test_plain_resnets_are_told_by_their_weights(depth: int) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(f"resnet{depth}").state_dict()
    state = {n: v for n, v in state.items() if not n.startswith("fc.")}
    found = plain_resnet(state, "x")
    assert (found.depth, found.groups, found.width_per_group) == (depth, 1, 64)
    assert found.name == f"R{depth}"
    changed = state | {"layer4.0.downsample.0.weight": torch.empty(7, 7, 1, 1, device="meta")}
    for broken in (changed, state | {"layer1.0.se.weight": state["bn1.weight"]}, {}):
        with pytest.raises(InputError, match="x is no plain ResNet"):
            plain_resnet(broken, "x")


@pytest.mark.parametrize(
    ("name", "groups", "width"), [("resnext101_32x8d", 32, 8), ("wide_resnet50_2", 1, 128)]
)
def test_groups_and_widths_are_told_too(name: str, groups: int, width: int) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    found = plain_resnet({n: v for n, v in state.items() if not n.startswith("fc.")}, name)
    assert (found.groups, found.width_per_group) == (groups, width)


# ---- comparing -------------------------------------------------------------------------------------------------------


def maps(scale: float = 1.0, nudge: float = 0.0) -> Any:
    def of(x: Tensor) -> list[Tensor]:
        out = [scale * torch.nn.functional.avg_pool2d(x, s) for s in (4, 8, 16, 32)]
        peak = out[2].abs().argmax()
        out[2].view(-1)[(peak + 1) % out[2].numel()] += nudge * float(out[2].abs().max())
        return out

    return of


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_tolerance_follows_the_scale(scale: float) -> None:
    images = random_images()
    gaps = differences(maps(scale), maps(scale, 5e-6), images)
    assert gaps[:2] == (0.0, 0.0)
    assert 3e-6 < gaps[2] < 7e-6
    with pytest.raises(WorkFailed, match=r"C4 differs by 2\.\de-05"):
        differences(maps(scale), maps(scale, 2.5e-5), images)


def test_what_is_no_number_or_has_another_shape_fails() -> None:
    images = random_images()
    with pytest.raises(WorkFailed, match="C4 differs by nan"):
        differences(maps(), maps(nudge=float("nan")), images)
    with pytest.raises(WorkFailed, match=r"C2 has shape"):
        differences(maps(), lambda x: maps()(x[..., 8:]), images)


def test_maps_that_are_all_zero_are_compared_as_they_are() -> None:
    assert differences(maps(0.0), maps(0.0), random_images(1)) == (0.0,) * 4
    with pytest.raises(WorkFailed):
        differences(maps(0.0), maps(1.0), random_images(1))


def test_images_are_the_same_each_time_and_of_many_sizes() -> None:
    first, again = random_images(6), random_images(6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({p.shape for p in first}) == 6
    assert all(p.shape[:2] == (2, 3) and min(p.shape[2:]) >= 64 and max(p.shape[2:]) <= 160 for p in first)
    assert random_images(1, size=(32, 48))[0].shape == (2, 3, 32, 48)


def test_weights_are_compared_to_the_bit() -> None:
    a = {"w": torch.tensor([1.0, 2.0])}
    assert same_weights({"w": np.array([1.0, 2.0], np.float32)}, a) == 1
    with pytest.raises(WorkFailed, match="w came back"):
        same_weights({"w": torch.tensor([1.0, np.nextafter(np.float32(2), np.float32(3))])}, a)
    with pytest.raises(WorkFailed, match="w came back"):
        same_weights({"w": a["w"].double()}, a)
    with pytest.raises(WorkFailed, match=r"1 keys have no partner, e\.g\. b"):
        same_weights(a | {"b": a["w"]}, a)


def test_code_that_stops_is_a_failure_in_one_line() -> None:
    assert run_code("x = FILE + '!'", Path("here"))["x"] == "here!"
    with pytest.raises(WorkFailed, match=r"stopped: ValueError first$"):
        run_code("raise ValueError('first\\nsecond')", Path("f"))
    with pytest.raises(ImportError):
        run_code("import no_such_module_at_all", Path("f"))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", [(n, False) for n in LAYERS]),
        ("convnext_tiny", [(f"features.{i}", False) for i in (1, 3, 5)] + [("features", False)]),
        ("swin_t", [(f"features.{i}", True) for i in (1, 3, 5)] + [("permute", False)]),
    ],
)
def test_stages_of_torchvisions_models(name: str, stages: list[tuple[str, bool]]) -> None:
    assert writers.stage_modules(torchvision.models.get_model(name), (64, 96)) == stages


def test_a_pickle_may_hold_arrays_alone() -> None:
    data = pickle.dumps({"a": print})
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print is no array"):
        export_proof.ArraysOnly(io.BytesIO(data)).load()
