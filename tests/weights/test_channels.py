"""Weights of RGB images made weights of other channels, and weights of other channels read, exported and read again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.models import adapt_input_conv
from torch import nn

from hetcl.errors import InputError
from hetcl.model.pyramid import build_pyramid
from hetcl.types import PixelFormat
from hetcl.weights.channels import adapt_input, settled, with_channels
from hetcl.weights.exporters import card_of, export
from hetcl.weights.facts import ASSUMED, InputFacts, input_facts
from hetcl.weights.names import input_layers
from hetcl.weights.sealed import seal_backbone
from hetcl.weights.sources import load_backbone, pyramid_of, read_weights

MEAN, STD = [0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.21, 0.22, 0.23, 0.24]
RESNET, CONVNEXT, SMALL = "torchvision:resnet18", "timm:convnext_atto", "timm:test_resnet"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def five(arch: str, path: str = "five.safetensors") -> str:
    """A backbone of 5 channels as pre-training writes it."""
    facts = {"arch": arch, "mean": MEAN, "std": STD, "channels": "stored", "in_chans": 5, "pixel_max": 4095.0}
    Path(path).write_bytes(seal_backbone(build_pyramid(arch, seed=0, in_chans=5).state_dict(), facts))
    return path


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 5, 6, 13])
def test_the_rule_is_timms(in_chans: int) -> None:
    weight = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(in_chans))
    torch.testing.assert_close(adapt_input(weight, in_chans), adapt_input_conv(in_chans, weight))


@pytest.mark.parametrize("in_chans", [1, 5])
def test_weights_are_what_timm_makes_of_them(in_chans: int) -> None:
    """timm itself builds the model of other channels from a file of RGB weights."""
    rgb = timm.create_model("test_resnet", pretrained=False)
    torch.save(rgb.state_dict(), "rgb.pth")
    overlay = {"file": str(Path("rgb.pth").resolve())}
    theirs = timm.create_model(
        "test_resnet", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans, features_only=True
    ).eval()
    ours = pyramid_of(with_channels(read_weights("timm:test_resnet:rgb.pth"), in_chans))
    images = torch.randn(2, in_chans, 64, 64)
    with torch.no_grad():
        for a, b in zip(ours(images), theirs(images)[1:], strict=True):
            torch.testing.assert_close(a, b)


def test_a_gray_image_gives_what_it_gave_as_rgb() -> None:
    weights = read_weights("timm:test_resnet:random")
    rgb, gray = pyramid_of(weights), pyramid_of(with_channels(weights, 1))
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        for a, b in zip(rgb(image.expand(-1, 3, -1, -1)), gray(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arch", [RESNET, "torchvision:regnet_y_400mf", CONVNEXT])
def test_backbones_of_other_channels(arch: str) -> None:
    pyramid = build_pyramid(arch, seed=1, in_chans=5).eval()
    again = build_pyramid(arch, seed=1, in_chans=5)
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in pyramid.state_dict().items())
    (first,) = input_layers(arch, 5)
    assert pyramid.state_dict()[first].shape[1] == 5
    rgb = build_pyramid(arch, seed=1)
    with torch.no_grad():
        wide, plain = pyramid(torch.randn(2, 5, 64, 96)), rgb.eval()(torch.randn(2, 3, 64, 96))
    assert [m.shape for m in wide] == [m.shape for m in plain]
    ratio = pyramid.state_dict()[first].std() / rgb.state_dict()[first].std()
    assert 0.7 < float(ratio) * (5 / 3) ** (0.5 if arch.startswith("torchvision") else 0.25) < 1.4


@pytest.mark.parametrize(
    ("arch", "format", "ending"),
    [
        (RESNET, "torchvision", ".pth"),
        (RESNET, "timm", ".safetensors"),
        (SMALL, "safetensors", ".safetensors"),
        (CONVNEXT, "timm", ".pth"),
        (SMALL, "full", ".safetensors"),
        (SMALL, "onnx", ".onnx"),
    ],
)
def test_exports_of_five_channels_are_equal_and_say_so(arch: str, format: str, ending: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnx")
    out = Path(f"out{ending}")
    export(five(arch), format=format, out=out)
    card = card_of(out).read_text()
    assert "| channels | 5 |" in card
    assert "(value / 4095 - mean) / std" in card
    assert "0.1, 0.2, 0.3, 0.4, 0.5" in card
    assert "[B, 5, H, W]" in card
    if format == "onnx":
        return
    again = read_weights(str(out) if format in ("full", "safetensors") else f"{arch}:{out}")
    assert again.in_chans == 5
    source = read_weights("five.safetensors").query
    assert all(torch.equal(again.query[n], v) for n, v in source.items() if v.is_floating_point())
    if ending == ".safetensors":
        backbone = load_backbone(str(out))
        assert backbone.facts.pixels == PixelFormat(5, 4095)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("format", "ending"), [("detectron2", ".pkl"), ("mmdet", ".pth")])
def test_formats_of_rgb_images_alone_say_so(format: str, ending: str) -> None:
    with pytest.raises(
        InputError, match=r"takes images of 5 channels, and .* reads RGB of 8 bits alone"
    ) as e:
        export(five(RESNET), format=format, out=f"out{ending}")
    assert "\n" not in str(e.value)
    assert not Path(f"out{ending}").exists()


def test_a_file_without_facts_tells_its_channels_by_its_shape() -> None:
    torch.save(build_pyramid(RESNET, seed=0, in_chans=4).state_dict(), "bare.pth")
    weights = read_weights("bare.pth")
    assert weights.in_chans == 4
    facts = load_backbone("bare.pth").facts  # type: ignore[attr-defined]
    assert facts.source == "assumed"
    assert facts.mean == (ASSUMED[0],) * 4
    assert settled(weights, PixelFormat(4)) is None  # measured where there are images
    stated = settled(read_weights(five(RESNET)), PixelFormat(5, 4095))
    assert stated is not None
    assert (list(stated.mean), list(stated.std)) == (MEAN, STD)


def test_what_does_not_go_together_is_refused_in_a_line() -> None:
    weights = read_weights(five(RESNET))
    with pytest.raises(InputError, match="takes images of 5 channels, and in_chans is 4: set in_chans to 5"):
        with_channels(weights, 4)
    for facts in (
        {"mean": MEAN, "std": STD[:4], "in_chans": 5},
        {"mean": MEAN, "std": STD},
        {"mean": MEAN, "std": STD, "in_chans": 5, "channels": "RGB"},
        {"mean": MEAN, "std": STD, "in_chans": 5, "pixel_max": -1},
    ):
        with pytest.raises(InputError, match="that it states cannot be"):
            input_facts(facts, RESNET, "file")


def test_facts_survive_a_settings_file() -> None:
    facts = InputFacts(tuple(MEAN), tuple(STD), 64, "stored", "measured", 4095.0)
    assert InputFacts.from_dict(facts.to_dict()) == facts
    rgb = replace(facts, mean=(0.5,) * 3, std=(0.5,) * 3, channel_order="BGR", pixel_max=0.0)
    assert InputFacts.from_dict(rgb.to_dict()) == rgb
    assert "in_chans" not in rgb.to_dict()


def test_a_model_without_rgb_convolution_is_refused() -> None:
    from hetcl.model.pyramid import set_in_chans

    with pytest.raises(InputError, match="takes RGB images alone: set in_chans to 3"):
        set_in_chans(nn.Sequential(nn.Conv2d(1, 2, 3)), 5)
