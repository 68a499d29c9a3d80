"""One image through the model, forward and back, before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hetcl.downstream.loader import Examples
from hetcl.draws import generator
from hetcl.errors import InputError
from hetcl.training.dry_run import dry_run
from hetcl.training.memory import bytes_of
from hetcl.types import BadImage
from hetcl.views.loader import TRIES


@dataclass(frozen=True)
class Trial:
    """What the trial showed."""

    seconds: float
    """For one image, on this machine's CPU."""
    weights: int
    """Bytes of the parameters."""
    activations: int
    """Bytes that an image's way through the model leaves for the way back."""
    image: int
    """Bytes of an image as it comes from the loader, with its target."""


def try_one(build: Callable[[], nn.Module], examples: Examples, *, seed: int) -> Trial:
    """Train on one image, on the CPU, and forget it.

    Raises:
        InputError: no usable image, or a model that does not take it, with the library's reason.
    """
    image, target = _first(examples, seed)
    images: Any = [image.float().div_(255)]
    targets: Any = [target]
    if "boxes" not in target:
        images, targets = torch.stack(images * 2), torch.stack([target["labels"]] * 2)
    with dry_run(
        f"the model does not train on an image of {examples.description}",
        "change the sizes, neck, model or backbone",
    ):
        torch.manual_seed(seed)
        model = build().train()
        began, found = time.monotonic(), list[dict[str, Tensor]]()
        activations = bytes_of(lambda: found.append(model(images, targets)))
        torch.stack([loss.float() for loss in found[0].values()]).sum().backward()
        seconds = time.monotonic() - began
    return Trial(
        seconds / len(images),
        sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
        activations // len(images),
        sum(t.numel() * t.element_size() for t in (image, *target.values())),
    )


def _first(examples: Examples, seed: int) -> Any:
    """The first usable image and its target."""
    reason = ""
    for index in range(min(TRIES, len(examples))):
        try:
            return examples(index, generator(seed, "trial", index))
        except BadImage as error:
            reason = reason or f"{examples.name(index)}: {error}"
    raise InputError(
        f"{examples.description}: none of the first images can be used ({reason}); check the data"
    )
