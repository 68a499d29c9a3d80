"""The cells of a reproduction: pieces of work that are done once, each a call of a verb with a folder of its own."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hetcl.reproduce.experiments import Column, Experiment
from hetcl.reproduce.scales import Method, Scale, Task

COMPUTE = ("device", "devices", "threads", "workers")
"""Settings that only say where and how, of every verb."""


@dataclass(frozen=True)
class Cell:
    """One call of a verb."""

    key: str
    """``pretrain/hcl-seed0``: its folder, below that of the reproduction."""
    verb: str
    models: Mapping[str, str]
    """Method -> MODEL that is tested or begun from; of a pre-training the MODEL of ``--init``, if any."""
    data: str = ""
    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    compute: Mapping[str, Any] = field(default_factory=dict)
    """Settings that only say where and how, such as ``threads``."""
    needs: tuple[str, ...] = ()
    """Keys of the cells that must be done before."""
    at: tuple[float, ...] = ()
    """Shares of the steps at which a fine-tuning is looked at on its way."""
    timed: Mapping[str, Method] = field(default_factory=dict)
    """Of ``pace``: the methods whose steps are timed ..."""
    rounds: int = 0
    """... so many times in turn."""

    @property
    def words(self) -> list[str]:
        """The settings as words of the command line."""
        return words_of({**self.settings, **self.compute})

    def command(self, out: Path) -> str:
        """What one would type; of ``pace``, which is no verb, what it times."""
        folder = str(out / self.key)
        if self.verb in ("contrast", "probe"):
            words = [self.verb, *self.models.values()]
        elif self.verb == "pace":
            return "timed: a step of stage 1 and of each kind of stage 2, in turn"
        else:
            words = [self.verb, *(w for model in self.models.values() for w in ("--init", model))]
        words += ["--data", self.data, "--out", folder]
        words += ["--recipe", self.recipe] if self.recipe else []
        return shlex.join(["hetcl", *words, *self.words])


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings by dotted name as words of the command line."""
    return [f"--{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in settings.items()]


@dataclass(frozen=True)
class Place:
    """Where a figure of a table is found once its cell is done."""

    cell: str
    method: str
    figure: str


class Plan:
    """Everything that is to be done, and where each figure will be found.

    Args:
        scale, experiments: what, and at which size.
        out: the folder of the reproduction.
        data: name -> DATA or DATASET, for each that is there.
        weights: method -> MODEL that takes the place of its run.
        seeds: how many.
        compute: settings that only say where and how, such as ``threads``.
    """

    def __init__(
        self, scale: Scale, experiments: Sequence[Experiment], *, out: Path, data: Mapping[str, str],
        weights: Mapping[str, str], seeds: int, compute: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.scale, self.out, self.data, self.weights, self.seeds = scale, out, data, weights, seeds
        self.compute = compute
        self.cells: dict[str, Cell] = {}
        self.places: dict[tuple[str, str, Column, int], Place] = {}
        """Experiment, method, column and seed -> place."""
        self.missing: dict[tuple[str, str, Column], str] = {}
        """Experiment, method and column -> why it cannot be run."""
        self.wanted: dict[str, set[str]] = {}
        """Name of data that is not there -> experiments that need it."""
        for experiment in experiments:
            self._add(experiment)

    def _add(self, experiment: Experiment) -> None:
        for column in experiment.columns:
            for method in experiment.rows:
                why = self._lacks(experiment, method, column.task)
                if why:
                    self.missing[experiment.name, method, column] = why
        for seed in range(self.seeds):
            for column in experiment.columns:
                able = [m for m in experiment.rows if (experiment.name, m, column) not in self.missing]
                for method in able:
                    self.places[experiment.name, method, column, seed] = self._place(
                        experiment, method, able, column, seed
                    )

    def _lacks(self, experiment: Experiment, method: str, task: str) -> str:
        """Why a row has no figure in a column at this scale; empty: it has."""
        if task not in self.scale.tasks:
            return f"no such task at the scale {self.scale.name}"
        if method not in self.scale.methods:
            return f"not part of the scale {self.scale.name}"
        way, needed = self._way(method), []
        if not (way.recipe or way.model or method in self.weights):
            return f"nobody has published these weights or images; --weights {method}=MODEL gives them"
        if not way.model and method not in self.weights:
            needed.append("images")
        data = self._task(task).data
        needed += [data] if data else []
        for name in needed:
            if name not in self.data:
                self.wanted.setdefault(name, set()).add(experiment.name)
        lacking = [name for name in needed if name not in self.data]
        return f"needs --{lacking[0]}" if lacking else ""

    def _way(self, method: str) -> Method:
        """The method, or the one whose backbone it is."""
        way = self.scale.methods[method]
        return self.scale.methods[way.of] if way.of else way

    def _task(self, task: str) -> Task:
        """The task, or the one that it is looked at on the way of."""
        found = self.scale.tasks[task]
        return self.scale.tasks[found.of] if found.of else found

    def data_of(self, task: str) -> str:
        """DATA or DATASET that a task is given; empty: none."""
        return self.data.get(self._task(task).data, "") if task in self.scale.tasks else ""

    def _place(
        self, experiment: Experiment, method: str, able: Sequence[str], column: Column, seed: int
    ) -> Place:
        task, at = self._task(column.task), self.scale.tasks[column.task].at
        name = self.scale.tasks[column.task].of or column.task
        if task.verb == "finetune":
            key = f"{name}/{method}-seed{seed}"
            if key not in self.cells:
                model, needs = self._model(method, seed)
                changed = {**task.settings, **self.scale.methods[method].finetune}
                ways = {t.at for t in self.scale.tasks.values() if t.of == name}
                self.cells[key] = Cell(
                    key, "finetune", {method: model}, self.data[task.data], task.recipe,
                    {**changed, "seed": seed}, self.compute, needs, tuple(sorted(ways)),
                )  # fmt: skip
            return Place(key, method, column.figure if at == 1 else f"{column.figure}@{at:g}")
        key = f"{name}/{experiment.name}-seed{seed}"
        if key not in self.cells and task.verb == "pace":
            timed = {m: self._way(m) for m in able}
            self.cells[key] = Cell(key, "pace", {}, compute=self.compute, timed=timed, rounds=task.rounds)
        elif key not in self.cells:
            found = {m: self._model(m, seed) for m in able if m != "random" or task.verb != "probe"}
            self.cells[key] = Cell(
                key, task.verb, {m: model for m, (model, _) in found.items()}, self.data[task.data],
                settings={**task.settings, "seed": seed},
                compute=self.compute,
                needs=tuple(dict.fromkeys(need for _, needs in found.values() for need in needs)),
            )  # fmt: skip
        return Place(key, method, column.figure)

    def _model(self, method: str, seed: int) -> tuple[str, tuple[str, ...]]:
        """The MODEL of a row, and the cell that makes it, if any."""
        way = self.scale.methods[method]
        if method in self.weights:
            return self.weights[method], ()
        if way.of:
            return self._model(way.of, seed)
        if way.model:
            return way.model, ()
        seed %= self.scale.pretrain_seeds
        key = f"pretrain/{method}-seed{seed}"
        if key not in self.cells:
            init, needs = self._model(way.init, seed) if way.init else ("", ())
            self.cells[key] = Cell(
                key, "pretrain", {way.init: init} if init else {}, self.data["images"], way.recipe,
                {**way.settings, "seed": seed}, self.compute, needs,
            )  # fmt: skip
        return str(self.out / key), (key,)
