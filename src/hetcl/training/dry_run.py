"""A try before anything is written: what cannot run is found while nothing is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hetcl.errors import InputError, out_of_memory

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, MemoryError)


@contextlib.contextmanager
def dry_run(failure: str, advice: str) -> Iterator[None]:
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
