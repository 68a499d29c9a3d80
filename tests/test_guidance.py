"""What so many images allow, and weights to start from: the names are those that the libraries publish."""

from __future__ import annotations

import pytest
import timm
from torchvision.models import get_model_weights

from hetcl.guidance import PUBLISHED, USUAL, published, random_start, start_from, too_few

RESNET = "torchvision:resnet50"


@pytest.mark.parametrize("arch", [*PUBLISHED, RESNET])
def test_each_name_is_one_that_its_library_takes_by_default(arch: str) -> None:
    library, _, name = arch.partition(":")
    model = published(arch)
    assert model is not None
    which = model.removeprefix(f"{arch}:")
    if library == "torchvision":
        assert get_model_weights(name).DEFAULT.name == which  # type: ignore[attr-defined]
    else:
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        assert config.tag == which
        assert config.has_weights


def test_an_architecture_without_published_weights_gives_way_to_one_that_has_them() -> None:
    assert published("timm:test_resnet") is None
    assert published(RESNET) == USUAL
    assert start_from(RESNET) == f"--init {USUAL}"
    assert start_from("timm:test_resnet") == f"--backbone {RESNET} --init {USUAL}"


@pytest.mark.parametrize(
    ("images", "epochs", "init", "words"),
    [
        (
            800,
            60,
            None,
            ["800 images are too few", "--init torchvision:resnet50:IMAGENET1K_V2", "10,000 images"],
        ),
        (9_999, 400, None, ["9,999 images are too few", "hetcl finetune"]),
        (10_000, 99, None, ["10,000 images, 99 times each", "1,000,000 looks", "--stage1.epochs"]),
        (10_000, 100, None, []),
        (20_000, 50, None, []),  # as many looks
        (800, 60, "moco:x.pth", ["800 images are few", "hetcl contrast RUN moco:x.pth"]),
        (10_000, 1, "moco:x.pth", []),
    ],
)
def test_what_is_said_of_so_many_images(images: int, epochs: int, init: str | None, words: list[str]) -> None:
    said = too_few(images, epochs, RESNET, init=init)
    assert bool(said) == bool(words)
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    ("init", "images", "words"),
    [
        ("torchvision:resnet18:random", 120, "--init torchvision:resnet18:IMAGENET1K_V1"),
        ("timm:resnet10t", 9_999, "--init timm:resnet10t:c3_in1k"),
        ("timm:test_resnet:random", 5, f"--init {USUAL}"),
        ("torchvision:resnet18:random", 10_000, ""),
        ("torchvision:resnet18:IMAGENET1K_V1", 120, ""),
        ("torchvision:resnet18:a/file.pth", 120, ""),
        ("run", 120, ""),
        ("moco:x.pth", 120, ""),
    ],
)
def test_a_detector_from_random_weights_is_warned_of(init: str, images: int, words: str) -> None:
    said = random_start(init, images)
    assert bool(said) == bool(words)
    assert words in said
