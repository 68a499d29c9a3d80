"""A dry run: some images through a model before anything is written, so that what cannot run is found in time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hetcl.errors import InputError, out_of_memory
from hetcl.training.memory import bytes_of

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, MemoryError)


@dataclass(frozen=True)
class DryRun:
    """What a dry run has shown, in fp32."""

    seconds: float
    """For one image, on this machine's CPU."""
    weights: int
    """Bytes of the parameters that are trained."""
    activations: int
    """Bytes that an image's way through the model leaves for the way back."""
    length: int
    """Dimensions of the vector that is contrasted; 0 where none is."""


def dry_run(
    build: Callable[[], nn.Module],
    forward: Callable[[Any], Any],
    loss_of: Callable[[Any], Tensor] | None = None,
    *,
    images: int,
    failure: str,
    advice: str,
) -> DryRun:
    """Build a model and take images through it in training mode, on the CPU; then let go of it.

    Args:
        build: makes the model.
        forward: takes it and gives what it gives.
        loss_of: the loss of that, which goes back through the model; None: there is no way back.
        images: how many go through at once.
        failure, advice: see :func:`refusing`.

    Raises:
        InputError: the model does not take such images, with the library's reason.
    """
    with refusing(failure, advice):
        model = build().train()
        began, found = time.monotonic(), list[Any]()
        activations = bytes_of(lambda: found.append(forward(model)))
        if loss_of is not None:
            loss_of(found[0]).backward()
        seconds = time.monotonic() - began
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return DryRun(seconds / images, weights, activations // images, sum(getattr(model, "dims", {}).values()))


@contextlib.contextmanager
def refusing(failure: str, advice: str) -> Iterator[None]:
    """Inside, the CPU's random numbers are others', and what cannot run is an ``InputError`` with the library's reason.

    Args:
        failure: what to say then: ``the model does not run on ...``.
        advice: what to change.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except FAILURES as e:
        reason = out_of_memory(e) or (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
        raise InputError(f"{failure} ({reason}); {advice}") from None
