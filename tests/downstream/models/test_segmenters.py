"""The FCN: stride, dilations, loss, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hetcl.downstream.models import param_groups, segmenter
from hetcl.errors import InputError


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_stride_and_dilations_are_the_papers(arch: str) -> None:
    model = segmenter(arch, classes=5, norm="tuned", seed=0).eval()
    layer4 = [m for m in model.backbone.layer4.modules() if isinstance(m, nn.Conv2d)]
    wide = [m for m in layer4 if m.kernel_size == (3, 3)]
    assert len(wide) == (4 if arch == "resnet18" else 3)
    assert all(m.stride == (1, 1) for m in layer4)
    assert all(m.dilation == m.padding == (2, 2) for m in wide)
    others = [m for n, m in model.backbone.named_modules() if isinstance(m, nn.Conv2d) and "layer4" not in n]
    assert all(m.dilation == (1, 1) for m in others)
    head = [m for m in model.head.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.kernel_size, m.dilation, m.out_channels) for m in head] == [
        ((3, 3), (6, 6), 256),
        ((3, 3), (6, 6), 256),
        ((1, 1), (1, 1), 5),
    ]
    kinds = [type(m) for m in model.head.modules() if not list(m.children())]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2 + [nn.Conv2d]
    with torch.no_grad():
        assert model.features(torch.rand(1, 3, 64, 96)).shape[-2:] == (4, 6)
        assert model(torch.rand(1, 3, 65, 97)).shape == (1, 5, 65, 97)


@pytest.mark.parametrize("arch", ["resnet18", "timm:convnext_atto"])
def test_every_weight_gets_a_gradient(arch: str) -> None:
    torch.manual_seed(0)
    model = segmenter(arch, classes=4, norm="tuned", seed=0).train()
    labels = torch.randint(0, 4, (2, 64, 64))
    model(torch.rand(2, 3, 64, 64), labels)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert model.features(torch.rand(1, 3, 64, 64)).shape[-2:] == (4, 4)


def test_the_loss_is_the_mean_over_pixels_that_count() -> None:
    torch.manual_seed(0)
    model = segmenter("resnet18", classes=3, norm="frozen", seed=0).train()
    for layer in model.modules():  # so that training and evaluation compute the same
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    images, labels = torch.rand(1, 3, 20, 30), torch.randint(0, 3, (1, 20, 30))
    labels[:, 5:, 7:] = 255
    loss = model(images, labels)["loss"].item()
    with torch.no_grad():
        logits = model.eval()(images)
    terms = []
    for row in range(20):
        for column in range(30):
            k = labels[0, row, column].item()
            if k != 255:
                values = logits[0, :, row, column].tolist()
                terms.append(math.log(sum(math.exp(v) for v in values)) - values[k])
    assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_pictures_of_which_nothing_counts_give_no_loss_and_no_nan() -> None:
    torch.manual_seed(0)
    model = segmenter("resnet18", classes=3, norm="tuned", seed=0).train()
    loss = model(torch.rand(2, 3, 64, 64), torch.full((2, 64, 64), 255))["loss"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_frozen_keeps_the_backbone_and_trains_the_head() -> None:
    model = segmenter("resnet18", classes=3, norm="frozen", seed=0).train()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, norm in norms.items():
        assert norm.training == norm.weight.requires_grad == name.startswith("head"), name
    sync = segmenter("resnet18", classes=3, norm="sync")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in sync.modules())


def test_a_segmenter_learns_one_picture() -> None:
    torch.manual_seed(0)
    model = segmenter("resnet18", classes=2, norm="tuned", seed=0).train()
    images = torch.rand(2, 3, 64, 64) * 0.2
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    images[0, :, :32] += 0.7
    labels[0, :32] = 1
    images[1, :, :, 32:] += 0.7
    labels[1, :, 32:] = 1
    optimiser = torch.optim.SGD(param_groups(model, 0.01, 1e-4), momentum=0.9)
    losses = []
    for _ in range(15):
        loss = model(images, labels)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "wrong", [{"classes": 0}, {"classes": 255}, {"norm": "x"}, {"dilation": 0}, {"arch": "resnet19"}]
)
def test_settings_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(InputError):
        segmenter(**{"arch": "resnet18", "classes": 2, "norm": "tuned", **wrong})
