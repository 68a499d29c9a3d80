"""A pass of each stage's model before anything is written, and the memory that training will take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hetcl.methods import METHODS
from hetcl.quantities import count
from hetcl.training.dry_run import dry_run
from hetcl.training.memory import Need, bytes_of, outlook
from hetcl.views.workers import room


@dataclass(frozen=True)
class Rehearsed:
    """What a try has shown, in fp32."""

    weights: int
    """Bytes of the parameters."""
    activations: int
    """Bytes that an image's way through the model leaves for the way back."""
    length: int
    """Of the vector that is contrasted; 0 where none is."""


def rehearse(build: Callable[[], nn.Module], *, name: str, images: int, size: int) -> Rehearsed:
    """Build a model and make one pass forward in training mode, on the CPU; then let go of it.

    Args:
        build: makes the model.
        name: of the stage, for the message.
        images: how many at once; two do, since batch norm fails on one where it fails at all.
        size: of the images in pixels.

    Raises:
        InputError: the model does not take such images, with the library's reason.
    """
    with dry_run(
        f"the model of {name} does not run on {count(images, 'image')} of {size} pixels",
        "change size, batch, groups or backbone, or the width of the branches",
    ):
        model = build().train()
        activations = bytes_of(lambda: model(torch.zeros(images, 3, size, size))) // images
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return Rehearsed(weights, activations, sum(getattr(model, "dims", {}).values()))


def memory_of(
    stages: Sequence[tuple[Rehearsed, str, int]],
    *,
    batch: int,
    pieces: int,
    size: int,
    precision: str,
    device: torch.device,
    processes: int,
    workers: int,
) -> tuple[str, str]:
    """What the largest of some stages will take, in words, and what to be warned of (see ``memory.outlook``).

    A step holds weights, gradients and SGD's momentum, the key encoder, the queue, the activations of a piece, and the
    images as floats (of two views one is shuffled besides).

    Args:
        stages: each with its method and the length of its queue.
        batch: of a process, taken in that many ``pieces``.
        processes: that share the memory of this machine, where it is where they compute.
    """
    here = 1 if device.type == "cuda" else processes
    factor = here * {"bf16": 0.6, "fp64": 2.0}.get(precision, 1.0)
    needs = []
    for one, method, queue in stages:
        views, models = (1, 3) if METHODS[method].labels else (2, 4)
        pixels = 3 * size * size * batch * (views + (views > 1))
        step = (
            one.weights * models + 4 * queue * one.length + one.activations * -(-batch // pieces) + 5 * pixels
        )
        needs.append(Need(round(factor * step), here * room(workers, views * batch * 3 * size * size)))
    if not needs:
        return "", ""
    largest = max(needs, key=lambda need: need.device)
    return outlook(largest, device, "lower batch, size or workers, or raise accumulate")
