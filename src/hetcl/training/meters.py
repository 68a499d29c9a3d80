"""Figures between two rows: running sums of a task's, and how fast it goes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

PACE = 0.8
"""What an older row counts for, against the next, when the time that is left is judged."""


@dataclass
class Meters:
    """Running sums of a task's figures since the last row; saved with the checkpoint."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add a step's scalars; no wait for the device."""
        for name, value in values.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def share(self) -> None:
        """Sums become their mean over ranks, on each: what is saved holds for all of them."""
        if self.sums and dist.is_available() and dist.is_initialized():
            stacked = torch.stack(list(self.sums.values()))
            dist.all_reduce(stacked)
            stacked /= dist.get_world_size()
            self.sums = dict(zip(self.sums, stacked, strict=True))

    def take(self) -> dict[str, float]:
        """Means over steps and ranks, then start anew. CPU-GPU sync point."""
        if not self.count:
            return {}
        self.share()
        stacked = torch.stack(list(self.sums.values())) / self.count
        out = dict(zip(self.sums, stacked.tolist(), strict=True))
        self.sums, self.count = {}, 0
        return out


@dataclass
class Stopwatch:
    """Images a second and the share of time spent waiting for data since the last row, and the pace of late."""

    began: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    steps: int = 0
    rows: int = 0
    paced: tuple[float, float] = (0.0, 0.0)
    """Seconds and steps of the rows so far, the older the less; by them the rest is judged."""

    def take(self, images_per_step: int) -> dict[str, float]:
        """Figures since the last call (or :meth:`restart`); nothing when no step was made."""
        if not self.steps:
            return {}
        spent = max(time.monotonic() - self.since, 1e-9)
        out = {"images_per_second": self.steps * images_per_step / spent, "waiting": self.waited / spent}
        kept = PACE if self.rows > 1 else 0.0  # the first row has the start of the workers in it
        self.paced = kept * self.paced[0] + spent, kept * self.paced[1] + self.steps
        self.rows += 1
        self.restart()
        return out

    def restart(self) -> None:
        """Leave out what happened since the last row (an evaluation)."""
        self.since, self.waited, self.steps = time.monotonic(), 0.0, 0

    def left(self, steps: int) -> float:
        """Seconds for ``steps`` more, by the pace of the last rows."""
        seconds, done = self.paced
        return steps * seconds / max(done, 1.0)
