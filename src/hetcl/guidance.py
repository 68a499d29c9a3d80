"""What a number of images allows, and published weights to start from where they are few. Free of torch.

Sources: docs/facts.md, "How many images it takes".
"""

from __future__ import annotations

import re

LEAST_IMAGES = 10_000
"""Images from which learning from random weights is worth trying."""
LEAST_EPOCHS = 100
"""Passes over them that it takes at least."""
USUAL = "torchvision:resnet50:IMAGENET1K_V2"
"""The MODEL to start from where nothing is published for an architecture."""
PUBLISHED = {
    **{f"torchvision:resnet{depth}": "IMAGENET1K_V1" for depth in (18, 34)},
    **{f"torchvision:resnet{depth}": "IMAGENET1K_V2" for depth in (50, 101, 152)},
    **{f"torchvision:wide_resnet{depth}_2": "IMAGENET1K_V2" for depth in (50, 101)},
    "torchvision:convnext_tiny": "IMAGENET1K_V1",
    "timm:resnet10t": "c3_in1k",
    "timm:resnet14t": "c3_in1k",
    "timm:resnet18": "a1_in1k",
    "timm:resnet26": "bt_in1k",
    "timm:resnet50": "a1_in1k",
    "timm:convnext_tiny": "in12k_ft_in1k",
}
"""Architecture -> its weights that its library takes by default."""


def published(arch: str) -> str | None:
    """The MODEL of published weights for an architecture, which a verb downloads when it is named."""
    return f"{arch}:{PUBLISHED[arch]}" if arch in PUBLISHED else None


def start_from(arch: str) -> str:
    """The words of the command line that start ``hetcl pretrain`` from published weights."""
    model = published(arch)
    return f"--init {model}" if model else f"--backbone torchvision:resnet50 --init {USUAL}"


def too_few(images: int, epochs: int, arch: str, *, init: str | None = None) -> str:
    """What to say before a training that has too few images or passes, and what to do instead; empty where it has not.

    Args:
        images: that differ.
        epochs: of all stages.
        init: the MODEL that it starts from; None: random weights.
    """
    if init is not None:
        if images >= LEAST_IMAGES:
            return ""
        return (
            f"{images:,} images are few: they may adapt the weights of --init, or spoil them; before you use the run, "
            f"hold it against them: hetcl contrast RUN {init} --data DATA --out contrast"
        )
    asked = f"at least about {LEAST_IMAGES:,} images and {LEAST_EPOCHS} epochs are advised (docs/facts.md)"
    if images < LEAST_IMAGES:
        return (
            f"{images:,} images are too few to learn much from random weights: {asked}. Start from published weights, "
            f"which are downloaded by their name: add {start_from(arch)}; or leave pre-training out: hetcl finetune "
            f"--init {published(arch) or USUAL} --data DATASET --out detector"
        )
    if epochs < LEAST_EPOCHS and images * epochs < LEAST_IMAGES * LEAST_EPOCHS:
        return (
            f"{images:,} images, {epochs} times each, are little to learn from random weights: {asked}, which is "
            f"{LEAST_IMAGES * LEAST_EPOCHS:,} looks at an image. Train longer (--stage1.epochs), or start from "
            f"published weights: {start_from(arch)}"
        )
    return ""


def random_start(init: str, images: int) -> str:
    """What to say before fine-tuning that starts from random weights on few images; empty where it does not.

    Args:
        init: the MODEL of the backbone.
        images: to learn from.
    """
    match = re.fullmatch(r"((?:torchvision|timm):[^:]+)(:random)?", init.strip())
    if match is None or images >= LEAST_IMAGES:
        return ""
    return (
        f"--init {init} is random weights, from which {images:,} images teach little (docs/facts.md): name published "
        f"weights, which are downloaded, --init {published(match[1]) or USUAL}, or a run of hetcl pretrain"
    )
