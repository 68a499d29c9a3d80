"""What all verbs that compute do alike: clock, ranks and console; and, of those that train, the way into the folder."""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from lightning_fabric import Fabric

from hetcl.errors import InputError, WorkFailed
from hetcl.quantities import duration
from hetcl.runs import resume as resuming
from hetcl.runs.folder import RunFolder, Table, machine
from hetcl.training.bad_images import BadImages
from hetcl.training.devices import device_name, make_fabric, precision_on, workers_of
from hetcl.training.engine import TIMING_COLUMNS, Loop
from hetcl.training.progress import Reporter
from hetcl.training.schedule import Schedule
from hetcl.training.task import Task
from hetcl.training.trackers import Trackers, check_installed

Found = TypeVar("Found")
"""What the work of a verb gives: its report is made of it."""


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
        self, s: Any, log: Path | None, tensorboard: Path | None = None, *, batch: int = 0, groups: int = 0
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

    def say_where(self, place: Path, what: str = "folder", *, precision: str = "", memory: str = "") -> None:
        """The lines of device, memory (where it is known) and the folder, or ``what`` else is written."""
        ranks = self.fabric.world_size
        line = f"device    {device_name(self.fabric.device)}" + (f" x {ranks}" if ranks > 1 else "")
        self.reporter.say(line + (f", {precision}" if precision else ""))
        if memory:
            self.reporter.say(f"memory    {memory}")
        self.reporter.say(f"{what:<10}{place}")

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

    def cost(self) -> dict[str, Any]:
        """The end of a report: machine and seconds."""
        return {"machine": self.machine(), "seconds": self.seconds()}

    def say_done(self, seconds: float, where: object, *, megabytes: int | None = None) -> None:
        """The last line: how long it took, at most how much memory, and where the results are."""
        used = "" if megabytes is None else f", {megabytes:,} MB at most"
        self.reporter.say(f"done in {duration(seconds)}{used}: {where}", style="bold" if used else "")


class ReportingSession(Session, Generic[Found]):
    """Besides, of a verb that ends in a report: the order of its work, of which the verb gives the parts."""

    claim: Callable[[], None]
    """Makes and locks the folder; called on the first rank."""

    def go(self) -> dict[str, Any]:
        """Make the folder, work, and write what was found; the content of the report on the first rank."""
        if self.main:
            self.claim()
        self.fabric.barrier()
        self._introduce()
        with self.working():
            found = self._work()
        report: dict[str, Any] = {}
        if self.main:
            report = self._write(found)
            with self.reporter.reporting():
                self._say(report)
        self.fabric.barrier()
        return report

    @abstractmethod
    def _introduce(self) -> None:
        """Say what is worked on."""

    @abstractmethod
    def _work(self) -> Found:
        """All that takes its time; every rank takes part, and the first one's result counts."""

    @abstractmethod
    def _write(self, found: Found) -> dict[str, Any]:
        """Save the report, and what belongs to it; the report."""

    @abstractmethod
    def _say(self, report: Mapping[str, Any]) -> None:
        """The report, for a person."""


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
        self._tree: Mapping[str, Any] = {}
        self.begun = resuming.is_begun(folder, resume=resume)

    def start(self, s: Any, *args: Any, **more: Any) -> None:
        """As of ``Session``. Raises ``InputError`` besides for a tracker that is not installed."""
        self._tracked = getattr(s, "track", ())  # a probe has none
        check_installed(self._tracked)
        super().start(s, *args, **more)

    def keep_ledger(self, max_bad: float, images: int) -> None:
        """Count unusable images of ``images``, and list them in the folder."""
        self.bad = BadImages(self.folder.bad_images, max_bad, images)
        self.bad.warn = self.reporter.warn
        self.notes += [self.bad.list.notes] if self.bad.list.notes else []

    def begin(
        self, stages: Sequence[str], columns: Sequence[str], settings: Mapping[str, Any], *, known: bool,
        ended: Sequence[str] = (), **of: str,
    ) -> dict[str, Any] | None:  # fmt: skip
        """Make and lock the folder; every rank finds the state to go on from, and the tables are as they were then.

        Args: as of ``resume.begin``, ``resume.checkpoint_of`` and :meth:`settle`.
        """
        if self.main:
            resuming.begin(self.folder, resume=self.resume, known=known)
        self.fabric.barrier()
        found = resuming.checkpoint_of(self.folder, stages, ended, **of) if self.resume else None
        self.notes += self.settle(found, columns, settings)
        self._tree = settings
        return found.state if found else None

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """As of ``Session``; inside, the trackers that were asked for get what TensorBoard gets."""
        reporter, names = self.reporter, self._tracked if self.main else ()
        reporter.trackers = Trackers(names, self.folder, self._tree, say=reporter.say, warn=reporter.warn)
        failed = True
        try:
            with super().working():
                yield
            failed = False
        finally:
            reporter.trackers.close(failed=failed)

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

    def warn_of(self, seconds: float, smaller: str) -> None:
        """Say so when training would take more than a day here; ``smaller`` names what takes less."""
        if seconds > 86400:
            self.reporter.warn(
                f"this would take about {duration(seconds)} here. Ctrl-C stops it at any time and --resume goes on; "
                f"{smaller}"
            )

    def loop(self, task: Task, learning_rate: Schedule, s: Any = None, **how: Any) -> Loop:
        """The loop that trains ``task`` into the folder; ``how`` as of ``Loop``, which ``s`` says in part."""
        names = ("log_every", "checkpoint_every", "checkpoint_minutes") if s is not None else ()
        return Loop(
            task, fabric=self.fabric, folder=self.folder, metrics=self.metrics, reporter=self.reporter,
            learning_rate=learning_rate, **{name: getattr(s, name) for name in names}, **how,
        )  # fmt: skip

    def write_summary(self, tree: Mapping[str, Any], **more: Any) -> float:
        """Save what was learned, with machine and seconds at the end; these seconds."""
        seconds = self.seconds()
        end = {"machine": self.machine(), **more, "seconds_of_this_process": seconds}
        self.folder.write_summary({**tree, **end})
        return seconds
