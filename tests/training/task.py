"""The smallest thing that can be trained: a line through points, by SGD."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from hetcl.draws import seed_of
from hetcl.runs.folder import RunFolder, Table
from hetcl.training.engine import Loop
from hetcl.training.progress import Reporter
from hetcl.training.schedule import schedule

COLUMNS = ("stage", "epoch", "step", "loss", "score", "lr")


class Line:
    """Fits ``[6]`` weights to noise. ``disturb`` is called with the step, before it."""

    def __init__(
        self, *, epochs: int = 2, steps: int = 5, disturb: Callable[[int, Line], None] | None = None
    ) -> None:
        self.lr_setting, self.slow_evaluation = "line.lr", False
        self.name, self.seed, self.epochs, self.steps_per_epoch, self.images_per_step = (
            "line",
            7,
            epochs,
            steps,
            4,
        )
        self.weight = torch.zeros(6, requires_grad=True)
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=0.9)
        self.disturb = disturb
        self.draws: list[float] = []
        self.evaluated: list[int] = []

    def batches(self, epoch: int, start: int) -> Iterator[Tensor]:
        for step in range(start, self.steps_per_epoch):
            draw = torch.Generator().manual_seed(seed_of(self.seed, epoch, step))
            yield torch.randn(4, 6, generator=draw)

    def step(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        if self.disturb:
            self.disturb(step, self)
        self.draws.append(float(torch.rand(())))  # what a module that draws for itself would get
        loss = (batch @ self.weight - 1).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss.detach()}

    def evaluate(self, epoch: int) -> dict[str, float]:
        self.evaluated.append(epoch)
        return {"score": float(epoch)}

    def messages(self, row: Mapping[str, float]) -> Iterable[str]:
        return ()

    def line(self, row: Mapping[str, float]) -> str:
        return ""

    def brief(self, row: Mapping[str, float]) -> list[str]:
        return []

    def close(self) -> None: ...

    def before_save(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight.detach().clone(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.weight.copy_(state["weight"])
        self.optimizer.load_state_dict(state["optimizer"])


def loop_of(task: Line, path: Path, *, resumed_bytes: int = 0, **settings: Any) -> Loop:
    """A loop as ``pretrain`` would make it, quiet."""
    folder = RunFolder(path)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    folder.write_settings({})
    metrics = Table(folder.metrics, COLUMNS)
    metrics.cut(resumed_bytes)
    rate = schedule("cosine-step", lr=0.1, epochs=task.epochs, steps_per_epoch=task.steps_per_epoch)
    fabric = Fabric(accelerator="cpu", devices=1)
    return Loop(
        task,
        fabric=fabric,
        folder=folder,
        metrics=metrics,
        learning_rate=rate,
        reporter=Reporter(quiet=True),
        **settings,
    )
