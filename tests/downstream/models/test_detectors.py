"""Whole detectors: gradients everywhere, images without objects, other backbones, learning one image."""

from __future__ import annotations

import copy

import pytest
import torch

from hetcl.downstream.models import param_groups
from hetcl.errors import InputError
from hetcl.model.pyramid import build_pyramid
from tests.downstream.models.making import bare, batch, small, total

pytestmark = pytest.mark.usefixtures("light")

NAMES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


@pytest.mark.parametrize("neck", ["fpn", "c4"])
@pytest.mark.parametrize("masks", [True, False])
def test_every_weight_gets_a_gradient(neck: str, masks: bool) -> None:
    torch.manual_seed(0)
    model = small(neck, masks=masks).train()
    images, targets = batch()
    losses = model(images, targets)
    assert set(losses) == NAMES - (set() if masks else {"loss_mask"})
    total(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.startswith("backbone"):
            assert parameter.grad.any(), name


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_images_without_objects_train(neck: str) -> None:
    torch.manual_seed(0)
    model = small(neck).train()
    image, target = bare((100, 128))
    alone = model([image], [target])
    total(alone).backward()
    assert all(v.isfinite() for v in alone.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert alone["loss_mask"] == alone["loss_box_reg"] == alone["loss_rpn_box_reg"] == 0
    images, targets = batch()
    both = model([image, *images], [target, *targets])
    assert all(v.isfinite() and v > 0 for v in both.values())


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_a_image_in_which_nothing_is_found(neck: str) -> None:
    torch.manual_seed(0)
    model = small(neck, score_threshold=0.999).eval()
    with torch.no_grad():
        found = model([bare((60, 90))[0]])[0]
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "masks": (0, 1, 60, 90),
    }


def test_targets_are_left_as_they_were() -> None:
    torch.manual_seed(0)
    images, targets = batch(size=96)
    before = copy.deepcopy(targets)
    small().train()(images, targets)
    assert all(torch.equal(before[0][k], v) for k, v in targets[0].items())


@pytest.mark.parametrize("label", [0, 11])
def test_labels_outside_one_to_the_number_of_classes_are_refused(label: int) -> None:
    images, targets = batch()
    targets[0]["labels"][0] = label
    with pytest.raises(ValueError, match=r"1\.\.10"):
        small().train()(images, targets)


def test_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(0)
    first = small(seed=4).state_dict()
    state = torch.random.get_rng_state()
    second = small(seed=4).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    other = small(seed=5).state_dict()
    for part in ("backbone.body.conv1", "backbone.fpn.inner_blocks.0.0", "roi_heads.box_head.fc6"):
        assert not torch.equal(first[f"{part}.weight"], other[f"{part}.weight"])


def test_a_step_is_a_function_of_torchs_seed() -> None:
    """Also that a copy of a C4 detector runs its own layer4."""
    images, targets = batch()
    model = small("c4", min_size=(96, 112, 128)).train()
    twin = copy.deepcopy(model)
    steps = []
    for one in (model, twin):
        torch.manual_seed(1)
        total(one(images, targets)).backward()
        steps.append({n: p.grad for n, p in one.named_parameters()})
    assert all(torch.equal(g, steps[1][n]) for n, g in steps[0].items())
    assert steps[1]["backbone.body.layer4.0.conv1.weight"].any()


@pytest.mark.parametrize("arch", ["timm:convnext_atto", "torchvision:shufflenet_v2_x0_5"])
def test_other_backbones_work_with_an_fpn(arch: str) -> None:
    torch.manual_seed(0)
    model = small(arch=arch).train()
    total(model(*batch())).backward()
    idle = [n for n, p in model.named_parameters() if n.startswith("backbone") and p.grad is None]
    assert not idle
    with torch.no_grad():
        assert len(model.eval()(batch()[0])) == 1


def test_a_resnet_of_timm_works_with_c4() -> None:
    torch.manual_seed(0)
    model = small("c4", "timm:resnet18").train()
    total(model(*batch())).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_pyramid_that_is_given_becomes_part_of_the_detector() -> None:
    pyramid = build_pyramid("resnet18", seed=2)
    assert small(arch=pyramid).backbone.body is pyramid


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"neck": "c4", "arch": "timm:convnext_atto"}, "neck c4: timm:convnext_atto is no ResNet"),
        ({"neck": "pan"}, "neck 'pan'.*fpn or c4"),
        ({"classes": 0}, "classes 0"),
        ({"min_size": ()}, "min_size"),
        ({"regions": 0}, "regions"),
        ({"anchor_scale": 0.0}, "anchor_scale"),
        ({"arch": "resnet19"}, "resnet19"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words) -> None:
    with pytest.raises(InputError, match=words):
        small(**settings)


def test_half_precision_gives_losses_and_boxes_in_full() -> None:
    torch.manual_seed(0)
    model = small()
    images, targets = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.train()(images, targets)
        with torch.no_grad():
            found = model.eval()(images)[0]
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_a_detector_learns_one_image_by_heart() -> None:
    torch.manual_seed(0)
    model = small(regions=16, min_size=(64,), test_size=64, test_proposals=50).train()
    images, targets = batch(size=64)
    optimiser = torch.optim.SGD(param_groups(model, 0.02, 1e-4), momentum=0.9)
    history = []
    for step in range(12):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * min(1.0, (step + 1) / 10)
        loss = total(model(images, targets))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert sum(history[-3:]) < 0.7 * sum(history[:3])
