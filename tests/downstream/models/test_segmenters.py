"""The FCN: stride, dilations, where a cell is drawn, loss, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hetcl.downstream.models import param_groups, segmenter
from hetcl.downstream.models.segmenters import upsampled
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


def slow(x: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Each pixel between the middles of its two nearest cells, a cell being ``factor`` pixels at any size."""

    def weights(cells: int, side: int) -> Tensor:
        out = torch.zeros(side, cells, dtype=torch.float64)
        for pixel in range(side):
            place = min(max((pixel + 0.5) / factor - 0.5, 0.0), cells - 1.0)
            first, share = int(place), place - int(place)
            out[pixel, first] += 1 - share
            out[pixel, min(first + 1, cells - 1)] += share
        return out

    rows, columns = weights(x.shape[-2], size[0]), weights(x.shape[-1], size[1])
    return (rows @ x.double() @ columns.T).to(x)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([2, 16]))
def test_cells_are_enlarged_by_the_stride(height: int, width: int, factor: int) -> None:
    x = torch.rand(1, 2, -(-height // factor), -(-width // factor))
    torch.testing.assert_close(
        upsampled(x, factor, (height, width)), slow(x, factor, (height, width)), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("arch", ["resnet18", "timm:resnet18", "timm:convnext_atto"])
@pytest.mark.parametrize("size", [(128, 96), (120, 97), (113, 65), (33, 7)])
def test_logits_are_those_of_the_cells_at_any_size(arch: str, size: tuple[int, int]) -> None:
    model = segmenter(arch, classes=3, norm="tuned", seed=0).eval()
    image = torch.rand(1, 3, *size)
    with torch.no_grad():
        coarse = model.head(model.features(image))
        torch.testing.assert_close(model(image), slow(coarse, 16, size), atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", ["timm:resnet18", "timm:convnext_atto"])
@pytest.mark.parametrize("size", [(128, 96), (120, 97), (113, 65)])
def test_c5_lies_over_c4_at_any_size(arch: str, size: tuple[int, int]) -> None:
    """Half of the channels are C4's own; the others are C5's, a cell of it over two by two of C4's."""
    model = segmenter(arch, classes=3, norm="tuned", seed=0).eval()
    seen: list[tuple[Tensor, ...]] = []
    model.backbone.register_forward_hook(lambda module, given, maps: seen.append(maps))
    with torch.no_grad():
        features = model.features(torch.rand(1, 3, *size))
    c4, c5 = seen[0][2:]
    assert tuple(c4.shape[-2:]) == tuple(2 * side for side in c5.shape[-2:])
    assert torch.equal(features[:, : c4.shape[1]], c4)
    lower = slow(c5, 2, (c4.shape[-2], c4.shape[-1]))
    torch.testing.assert_close(features[:, c4.shape[1] :], lower, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(368, 528), (360, 513), (353, 514)])
def test_what_stands_in_a_cell_is_drawn_over_its_own_pixels(size: tuple[int, int]) -> None:
    """A network that answers where a pixel is bright: each cell knows the mean of its own 16 x 16 pixels."""
    model = segmenter("resnet18", classes=2, norm="tuned", seed=0).eval()
    row, column = 280, 400
    image = torch.zeros(1, 3, *size)
    image[..., row, column] = 1.0
    model.features = lambda x: torch.nn.functional.avg_pool2d(x[:, :2], 16, ceil_mode=True)  # type: ignore[method-assign]
    model.head = nn.Identity()  # type: ignore[assignment]
    drawn = model(image)[0, 0]
    middle = [
        float((torch.arange(side) * drawn.sum(1 - axis)).sum() / drawn.sum())
        for axis, side in enumerate(size)
    ]
    assert abs(middle[0] - (row // 16 * 16 + 7.5)) < 1
    assert abs(middle[1] - (column // 16 * 16 + 7.5)) < 1


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


def test_images_of_which_nothing_counts_give_no_loss_and_no_nan() -> None:
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


def test_a_segmenter_learns_one_image() -> None:
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
