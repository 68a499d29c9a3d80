"""What the loop trains: a task, as it sees one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Task(Protocol):
    """What is trained."""

    name: str
    """Name of the stage, which goes into rows and checkpoints."""
    lr_setting: str
    """What the setting of its learning rate is called, for messages."""
    seed: int
    epochs: int
    steps_per_epoch: int
    images_per_step: int
    """Images in a step over all ranks."""
    slow_evaluation: bool
    """Whether an evaluation takes so long, or fails so easily, that the state is saved before it, too."""
    optimizer: torch.optim.Optimizer

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Batches of an epoch from step ``start`` on."""
        ...

    def step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """One optimiser step; named scalars on the device, among them ``loss``."""
        ...

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Figures after ``epoch`` epochs (0: before training); called on every rank."""
        ...

    def messages(self, row: Mapping[str, float]) -> Iterable[str]:
        """What a person should know about a row of figures."""
        ...

    def line(self, row: Mapping[str, float]) -> str:
        """A row in words, two spaces apart."""
        ...

    def brief(self, row: Mapping[str, float]) -> Sequence[str]:
        """The two figures of a row that say most, in few words, the more important first."""
        ...

    def close(self) -> None:
        """Let go of workers."""
        ...

    def before_save(self) -> None:
        """Called on every rank before the state is read (ranks agree on their buffers here)."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
