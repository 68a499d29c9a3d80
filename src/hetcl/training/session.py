"""What all verbs that compute do alike: clock, ranks and console; and, of those that train, the way into the folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from hetcl.errors import InputError, WorkFailed
from hetcl.runs import resume as resuming
from hetcl.runs.folder import RunFolder, Table, machine
from hetcl.training.bad_images import BadImages
from hetcl.training.devices import device_name, make_fabric, precision_on, workers_of
from hetcl.training.engine import TIMING_COLUMNS, Loop
from hetcl.training.progress import Reporter
from hetcl.training.schedule import Schedule
from hetcl.training.task import Task


class Session:
    """Clock, ranks and console of one verb's work. The class of each verb inherits it.

    The constructor starts the clock. :meth:`start` follows once the input is read, since it may start other ranks.
    """

    fabric: Fabric
    main: bool
    """Whether this rank writes and speaks."""
    reporter: Reporter
    precision: str
    """``fp32``, ``bf16`` or ``fp64``."""
    workers: int

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.notes: list[str] = []
        """What a person should know before the work begins."""

    def start(
        self, s: Any, log: Path, tensorboard: Path | None = None, *, batch: int = 0, groups: int = 0
    ) -> None:
        """Devices, ranks and console. Raises ``InputError`` as ``make_fabric``.

        Args:
            s: has ``device``, ``devices``, ``precision``, ``threads`` and ``workers``, as the settings of every verb.
            log, tensorboard: as of ``Reporter``; ``batch`` and ``groups`` as of ``make_fabric``.
        """
        self.fabric = make_fabric(
            device=s.device, devices=s.devices, precision=s.precision, threads=s.threads, batch=batch,
            groups=groups,
        )  # fmt: skip
        self.main = self.fabric.global_rank == 0
        self.precision = precision_on(s.precision, self.fabric.device.type)
        self.workers = workers_of(s.workers)
        self.reporter = Reporter(log, tensorboard, quiet=not self.main)

    def say_where(self, folder: Path, *, precision: str = "", memory: str = "") -> None:
        """The lines of device, memory (where it is known) and folder."""
        ranks = self.fabric.world_size
        line = f"device    {device_name(self.fabric.device)}" + (f" x {ranks}" if ranks > 1 else "")
        self.reporter.say(line + (f", {precision}" if precision else ""))
        if memory:
            self.reporter.say(f"memory    {memory}")
        self.reporter.say(f"folder    {folder}")

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Inside, the work has begun: an ``InputError`` is ``WorkFailed`` now, and the bar ends in any case."""
        try:
            yield
        except InputError as e:
            raise WorkFailed(str(e)) from e
        finally:
            self.reporter.stop()

    def machine(self, **more: Any) -> dict[str, Any]:
        """This machine, this code and the devices, for the report."""
        return machine() | {
            "device": device_name(self.fabric.device),
            **more,
            "ranks": self.fabric.world_size,
        }

    def seconds(self) -> float:
        """Since the start of this process's work, to a tenth."""
        return round(time.monotonic() - self.began, 1)


class TrainingSession(Session):
    """Besides, of a verb that trains: its run folder, and what it goes on from.

    Args:
        folder: where to write.
        resume: go on if the folder holds a checkpoint.
    """

    bad: BadImages
    metrics: Table

    def __init__(self, folder: RunFolder, *, resume: bool) -> None:
        super().__init__()
        self.folder, self.resume = folder, resume
        self.begun = resuming.is_begun(folder, resume=resume)

    def keep_ledger(self, max_bad: float, images: int) -> None:
        """Count unusable images of ``images``, and list them in the folder."""
        self.bad = BadImages(self.folder.bad_images, max_bad, images)
        self.bad.warn = self.reporter.warn
        self.notes += [self.bad.list.notes] if self.bad.list.notes else []

    def open_folder(
        self, stages: Sequence[str], ended: Sequence[str] = (), *, known: bool, **of: str
    ) -> resuming.LastCheckpoint | None:
        """Make and lock the folder; every rank finds the checkpoint to go on from.

        Args: ``known`` as of ``resume.begin``; the others as of ``resume.checkpoint_of``.
        """
        if self.main:
            resuming.begin(self.folder, resume=self.resume, known=known)
        self.fabric.barrier()
        return resuming.checkpoint_of(self.folder, stages, ended, **of) if self.resume else None

    def settle(
        self,
        found: resuming.LastCheckpoint | None,
        columns: Sequence[str],
        settings: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Have the tables be as they were at the checkpoint; what a person should know.

        Args: ``settings``: of settings.yaml, where that is not written yet.
        """
        self.metrics, notes = Table(self.folder.metrics, columns), list[str]()
        if self.main:
            # First, since a folder that holds anything else without settings is not taken for a run.
            if settings is not None:
                self.folder.write_settings(settings)
            notes = resuming.settle(found, self.metrics, Table(self.folder.timing, TIMING_COLUMNS))
        self.fabric.barrier()
        return notes

    def loop(self, task: Task, learning_rate: Schedule, **how: Any) -> Loop:
        """The loop that trains ``task`` into the folder; ``how`` as of ``Loop``."""
        return Loop(
            task, fabric=self.fabric, folder=self.folder, metrics=self.metrics, reporter=self.reporter,
            learning_rate=learning_rate, **how,
        )  # fmt: skip
