"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

Schedule = Callable[[int], float]
"""Number of finished steps -> learning rate of the next."""


def schedule(
    kind: Literal["cosine", "cosine-step", "step"],
    *,
    lr: float,
    epochs: int,
    steps_per_epoch: int,
    milestones: Sequence[int] = (),
    warmup: float = 0.0,
) -> Schedule:
    """The learning rate of every step.

    Args:
        kind: ``cosine`` is MoCo's and the paper's ``lr * (1 + cos(pi * e / E)) / 2`` with whole epochs e;
            ``cosine-step`` the same with the fraction of steps done; ``step`` multiplies by 0.1 at each milestone.
        lr: at the start, before the schedule.
        milestones: epochs, for ``step``.
        warmup: epochs of linear rise, applied on top of either kind.
    """
    rising = round(warmup * steps_per_epoch)

    def at(step: int) -> float:
        epoch = step // steps_per_epoch
        if kind == "step":
            value = lr * 0.1 ** sum(epoch >= m for m in milestones)
        else:
            done = epoch / epochs if kind == "cosine" else step / (epochs * steps_per_epoch)
            value = lr * (1 + math.cos(math.pi * done)) / 2
        return value * (step + 1) / (rising + 1) if step < rising else value

    return at
