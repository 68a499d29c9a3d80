"""The figures of a pre-training run, stage by stage: where each stage began and where it ended. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hetcl.reporting.read import Result, mapping, number

Row = Mapping[str, Any]
LATE = 0.1
"""Share of a stage's rows that its last figures are the mean of."""


def parts_in(rows: Sequence[Row]) -> list[str]:
    """The parts that have figures of their own, in the order of the columns, whatever the method."""
    end = "_accuracy_batch"
    return list(dict.fromkeys(key.removesuffix(end) for row in rows for key in row if key.endswith(end)))


@dataclass(frozen=True)
class Stage:
    """What the rows of one stage say."""

    name: str
    method: str
    epochs: int
    """As many as were asked for."""
    rows: Sequence[Row]
    """Those with figures of training, in order."""
    batch: int
    log_every: int

    def first(self, key: str) -> float | None:
        """The first value that was logged."""
        return next((v for row in self.rows if (v := number(row.get(key))) is not None), None)

    def late(self, key: str) -> float | None:
        """The mean of the last tenth of the values."""
        values = [v for row in self.rows if (v := number(row.get(key))) is not None]
        last = values[-max(1, round(LATE * len(values))) :]
        return sum(last) / len(last) if last else None

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return int(self.rows[-1].get("epoch", 0)) if self.rows else 0

    @property
    def step(self) -> int:
        """Steps that were taken."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def over(self) -> bool:
        return self.epoch >= self.epochs

    @property
    def measure(self) -> str:
        """The accuracy that says whether this stage learns: within the batch, or of the labels."""
        return "accuracy" if self.method == "supervised" else "accuracy_batch"

    @property
    def chance(self) -> float:
        """What chance gives of :attr:`measure`."""
        loss = self.late("chance")
        return math.exp(-loss) if self.method == "supervised" and loss else 1 / max(1, self.batch)

    def rise(self) -> tuple[float, float] | None:
        """How much :attr:`measure` rose since the first row, and two standard errors of that; None: one row or none.

        Queries are taken as independent, which views of the same images are not quite.
        """
        first, late = self.first(self.measure), self.late(self.measure)
        if first is None or late is None or len(self.rows) < 2:
            return None
        per_row = max(1, self.batch * self.log_every)
        rows = max(1, round(LATE * len(self.rows)))
        error = math.sqrt(first * (1 - first) / per_row + late * (1 - late) / (per_row * rows))
        return late - first, 2 * error


def stages_of(run: Result) -> list[Stage]:
    """The stages that the settings ask for; of those that have not begun the rows are empty."""
    stated = {name: mapping(run.settings.get(name)) for name in ("stage1", "stage2")}
    epochs = {name: int(number(s.get("epochs")) or 0) for name, s in stated.items()}
    if run.tree.get("init") and all(epochs.values()):
        del stated["stage1"]  # --init takes its place
    return [
        Stage(
            name,
            str(s.get("method", "?")),
            epochs[name],
            [r for r in run.rows if r.get("stage") == name and "loss" in r],
            int(number(run.settings.get("batch")) or 1),
            int(number(run.settings.get("log_every")) or 1),
        )
        for name, s in stated.items()
        if epochs[name]
    ]


def seconds_left(run: Result, stages: Sequence[Stage]) -> float | None:
    """What the rest will take at the pace of the last rows; None before the first epoch has ended."""
    ended = [(int(r["step"]), int(number(r.get("epoch")) or 0)) for s in stages for r in s.rows]
    steps = next(
        (step / epoch for step, epoch in ended if epoch), None
    )  # the first row after an epoch ends it
    paces = [v for row in run.timing if (v := number(row.get("images_per_second")))][-5:]
    if steps is None or not paces:
        return None
    rest = sum(max(0.0, steps * stage.epochs - stage.step) for stage in stages)
    return rest * stages[0].batch * len(paces) / sum(paces)


@dataclass(frozen=True)
class Knn:
    """Neighbours' accuracy of the backbone, before the first step and at the last check."""

    before: float
    after: float
    checks: int
    images: int
    """That were asked about, at most."""

    @property
    def error(self) -> float:
        """Two standard errors of the difference, as if the images were others each time."""
        p = (self.before + self.after) / 2
        return 2 * math.sqrt(2 * p * (1 - p) / max(1, self.images))


def knn_of(run: Result) -> Knn | None:
    """None where it was not measured at least twice, the first time before training."""
    found = [(int(r["step"]), v) for r in run.rows if (v := number(r.get("knn"))) is not None]
    if len(found) < 2 or found[0][0] != 0:
        return None
    queries = int(number(mapping(run.settings.get("knn")).get("queries")) or 1)
    data = mapping(run.summary.get("data"))
    images = number(data.get("images")) or number(data.get("pictures")) or 5 * queries
    return Knn(found[0][1], found[-1][1], len(found), min(queries, max(1, int(images) // 5)))
