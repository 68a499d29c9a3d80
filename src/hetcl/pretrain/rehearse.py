"""A try of the model before anything is written: what cannot run is found while nothing is lost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hetcl.errors import InputError, out_of_memory

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, MemoryError)


@torch.no_grad()
def rehearse(build: Callable[[], nn.Module], *, name: str, images: int, size: int) -> None:
    """Build a model and make one pass forward in training mode, on the CPU; then let go of it.

    Args:
        build: makes the model.
        name: of the stage, for the message.
        images: how many at once; two do, since batch norm fails on one where it fails at all.
        size: of the pictures in pixels.

    Raises:
        InputError: the model does not take such pictures, with the library's reason.
    """
    try:
        with torch.random.fork_rng(devices=[]):  # a dropout layer draws
            build().train()(torch.zeros(images, 3, size, size))
    except FAILURES as e:
        reason = out_of_memory(e) or (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
        raise InputError(
            f"the model of {name} does not run on {images} picture{'s' * (images != 1)} of {size} pixels ({reason}); "
            "change size, batch, groups or backbone, or the width of the branches"
        ) from None
