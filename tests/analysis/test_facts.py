"""Each encoder gets its images as it was trained to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hetcl.analysis.extractor import Extractor, Renormalize
from hetcl.cli import main
from hetcl.model.pyramid import build_pyramid
from hetcl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from hetcl.weights.encoder import load_encoder
from hetcl.weights.facts import InputFacts

ARCH = "timm:test_resnet"
OTHER = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2], "channels": "BGR"}


def per_channel(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)


def write(path: Path, facts: dict[str, object]) -> str:
    save_file(build_pyramid(ARCH, seed=5).state_dict(), path, {"hetcl": json.dumps({"arch": ARCH, **facts})})
    return str(path)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_images_are_normalized_anew(order: str) -> None:
    pixels = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    facts = InputFacts((0.5, 0.4, 0.3), (0.5, 0.25, 0.2), 32, order, "the file")
    given = (pixels - per_channel(IMAGENET_MEAN)) / per_channel(IMAGENET_STD)
    wanted = ((pixels.flip(1) if order == "BGR" else pixels) - per_channel(facts.mean)) / per_channel(
        facts.std
    )
    torch.testing.assert_close(Renormalize(facts)(given.float()).double(), wanted, atol=1e-6, rtol=0)


def test_the_usual_facts_change_no_bit() -> None:
    facts = InputFacts(IMAGENET_MEAN, IMAGENET_STD, None, "RGB", "assumed")
    images = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert Renormalize(facts)(images) is images


def test_features_are_those_of_the_model_fed_as_its_file_says(tmp_path: Path) -> None:
    encoder = load_encoder(write(tmp_path / "other.safetensors", OTHER))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    given = (pixels.double() - per_channel(IMAGENET_MEAN)) / per_channel(IMAGENET_STD)
    found = Extractor(encoder, ["pooled"], unit=False)(given.float())["pooled"]
    own = (pixels.flip(1).double() - per_channel(OTHER["mean"])) / per_channel(OTHER["std"])
    with torch.no_grad():
        wanted = build_pyramid(ARCH, seed=5).eval()(own.float())[-1].mean((2, 3))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_equal_weights_with_other_facts_are_another_encoder(tmp_path: Path) -> None:
    usual = load_encoder(
        write(tmp_path / "usual.safetensors", {"method": "hcl"})
    )  # hetcl trains with ImageNet's
    other = load_encoder(write(tmp_path / "other.safetensors", OTHER))
    stated = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "channels": "RGB"}
    same = load_encoder(write(tmp_path / "same.safetensors", stated))
    assert usual.digest == same.digest != other.digest


@pytest.mark.parametrize("verb", ["contrast", "probe"])
def test_it_is_said_and_the_work_goes_through(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(tmp_path / "other.safetensors", OTHER)
    words = (
        f"--data scenes:30 --out {tmp_path / 'out'} --size 32 --threads 1 --workers 0 --device cpu".split()
    )
    assert main([verb, model, *words]) == 0
    out = capsys.readouterr().out
    assert "its images with mean 0.5, 0.4, 0.3, std 0.5, 0.25, 0.2, BGR (the file)" in out
