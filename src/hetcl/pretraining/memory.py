"""The memory that a stage of pre-training will take."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hetcl.methods import METHODS
from hetcl.training.dry_run import DryRun
from hetcl.training.memory import Need, outlook
from hetcl.types import RGB, PixelFormat
from hetcl.views.workers import room


def memory_of(
    stages: Sequence[tuple[DryRun, str, int]],
    *,
    batch: int,
    pieces: int,
    size: int,
    precision: str,
    device: torch.device,
    processes: int,
    workers: int,
    pixels: PixelFormat = RGB,
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
        values = pixels.channels * size * size * batch * (views + (views > 1))
        step = (
            one.weights * models
            + 4 * queue * one.length
            + one.activations * -(-batch // pieces)
            + (5 if pixels.rgb else 8) * values
        )
        needs.append(
            Need(round(factor * step), here * room(workers, views * batch * pixels.bytes * size * size))
        )
    if not needs:
        return "", ""
    largest = max(needs, key=lambda need: need.device)
    return outlook(largest, device, "lower batch, size or workers, or raise accumulate")
