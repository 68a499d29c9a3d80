"""One loop for all training: steps, schedule, rows of figures, checkpoints, signals, resume.

The loop knows a :class:`Task` and a :class:`RunFolder`, nothing else. Everything that decides the numbers is a
function of the step or lies in the checkpoint, so a run killed at any moment and resumed ends in the same bits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from hetcl.draws import seed_of
from hetcl.errors import InputError, Stopped, WorkFailed, mark_alone
from hetcl.quantities import count, duration
from hetcl.ranks import world
from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder, Table
from hetcl.signals import StopSignal
from hetcl.training.meters import Meters, Stopwatch
from hetcl.training.progress import Reporter
from hetcl.training.schedule import Schedule
from hetcl.training.task import Task

CHECKPOINT_MINUTES = 15.0
"""A kill costs no more than these, by default."""
TIMING_COLUMNS = ("stage", "step", "images_per_second", "waiting", "seconds")
"""The header of timing.csv."""


class Loop:
    """Trains one task into a run folder.

    Args:
        task: what to train.
        fabric: devices and ranks.
        folder: where to write.
        metrics: the table of rows; its columns are the task's figures with ``stage, epoch, step, lr`` before them.
        learning_rate: of each step.
        reporter: what a person sees.
        log_every: steps between rows.
        checkpoint_every: steps between checkpoints besides the end of each epoch; 0 for none.
        checkpoint_minutes: minutes after which there is one in any case, by the first rank's clock; 0 for none.
        extra: saved with each checkpoint as it is (what is needed to build the model again).
    """

    def __init__(
        self,
        task: Task,
        *,
        fabric: Fabric,
        folder: RunFolder,
        metrics: Table,
        learning_rate: Schedule,
        reporter: Reporter,
        log_every: int = 50,
        checkpoint_every: int = 0,
        checkpoint_minutes: float = CHECKPOINT_MINUTES,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.task, self.fabric, self.folder, self.metrics = task, fabric, folder, metrics
        self.learning_rate, self.reporter = learning_rate, reporter
        self.log_every, self.checkpoint_every, self.extra = log_every, checkpoint_every, dict(extra or {})
        self.checkpoint_seconds, self.saved = 60 * checkpoint_minutes, time.monotonic()
        self.timing = Table(folder.timing, TIMING_COLUMNS)
        self.meters, self.watch = Meters(), Stopwatch()
        self.evaluation: float | None = None
        """Seconds of the last evaluation of this process."""
        self.epoch = self.step = 0
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=fabric.device)

    @property
    def main(self) -> bool:
        """Whether this rank writes files."""
        return self.fabric.global_rank == 0

    def fit(self, resumed: Mapping[str, Any] | None = None) -> None:
        """Train to the end, from the start or from a checkpoint's state.

        Raises:
            Stopped: a signal came; the state is saved.
            WorkFailed: a value was not finite, the disk refused, or a process died; what could be saved is.
        """
        with StopSignal() as signal:
            if resumed is not None:
                self._restore(resumed)
            elif self.epoch == self.step == 0:
                self._row(self.task.evaluate(0))
            total = self.task.epochs * self.task.steps_per_epoch
            self.reporter.start(self.task.name, self.done, total)
            self.watch, self.saved = Stopwatch(), time.monotonic()
            try:
                while self.epoch < self.task.epochs:
                    self._epoch(signal)
            finally:
                self.reporter.stop()

    @property
    def done(self) -> int:
        """Steps done in this stage."""
        return self.epoch * self.task.steps_per_epoch + self.step

    def _epoch(self, signal: StopSignal) -> None:
        task, watch = self.task, self.watch
        waiting_since = time.monotonic()
        batches = task.batches(self.epoch, self.step)
        while (batch := self._next(batches)) is not None:
            watch.waited += time.monotonic() - waiting_since
            lr = self.learning_rate(self.done)
            for group in task.optimizer.param_groups:
                group["lr"] = lr
            # Modules that draw for themselves (drop path) draw the same after a resume.
            torch.manual_seed(seed_of(task.seed, task.name, self.done, self.fabric.global_rank))
            values = task.step(batch, self.done)
            bad = ~torch.isfinite(values["loss"].detach()) & (self.first_bad < 0)
            self.first_bad = torch.where(bad, self.done, self.first_bad)
            self.meters.add(values)
            self.step += 1
            watch.steps += 1
            self.reporter.advance(self.done)
            if self.done % self.log_every == 0 and self.step < task.steps_per_epoch:
                self._row({})
            number, late = self._agreed(signal)
            if self.step < task.steps_per_epoch:
                if number:
                    self._stopped(number)
                if late or (self.checkpoint_every and self.done % self.checkpoint_every == 0):
                    self.save()
            waiting_since = time.monotonic()
        self._check_finite()
        if task.slow_evaluation:
            self.save()  # whatever becomes of the evaluation, the training is kept
        task.before_save()
        speed = watch.take(task.images_per_step)
        began = time.monotonic()
        figures = self._evaluated()
        self.evaluation = time.monotonic() - began
        self.epoch, self.step = self.epoch + 1, 0
        self._row(figures, speed=speed, last=True)
        self.save()
        watch.restart()
        number, _ = self._agreed(signal)
        if number:
            self._stopped(number)

    def _next(self, batches: Iterator[Any]) -> Any:
        """The next batch, or None at the end. What was trained is saved before an error in the data goes on its way."""
        try:
            return next(batches, None)
        except Exception as error:
            mark_alone(error)
            if world()[1] == 1:
                if isinstance(error, Stopped):
                    self._stopped(error.signum)
                with contextlib.suppress(WorkFailed):
                    self.save()
            raise

    def _evaluated(self) -> dict[str, float]:
        """Figures of the epoch that ends. A signal that stops them saves the training; they come after a resume."""
        try:
            return self.task.evaluate(self.epoch + 1)
        except Stopped as stopped:
            if world()[1] == 1:
                self._stopped(stopped.signum)
            raise

    def _row(
        self, extra: Mapping[str, float], *, speed: Mapping[str, float] | None = None, last: bool = False
    ) -> None:
        """Write the figures since the last row, with ``extra`` ones. CPU-GPU sync point."""
        speed = self.watch.take(self.task.images_per_step) if speed is None else speed
        self._check_finite()
        lr = self.task.optimizer.param_groups[0]["lr"] if self.meters.count else None
        figures = {**self.meters.take(), **extra}
        if not figures or not self.main:
            return
        head: dict[str, Any] = {"stage": self.task.name, "epoch": self.epoch, "step": self.done}
        row = figures if lr is None else {**figures, "lr": lr}
        self.metrics.append({**head, **{k: v for k, v in row.items() if k in self.metrics.columns}})
        if speed:
            spent = time.monotonic() - self.watch.began
            self.timing.append({"stage": self.task.name, "step": self.done, **speed, "seconds": spent})
        with self.reporter.reporting():
            self._show(row, speed or {}, last)

    def _show(self, row: Mapping[str, float], speed: Mapping[str, float], last: bool) -> None:
        """A row for a person: TensorBoard, a line, messages."""
        self.reporter.scalars({f"{self.task.name}/{k}": v for k, v in {**row, **speed}.items()}, self.done)
        left = self.task.epochs * self.task.steps_per_epoch - self.done
        ahead = self._ahead(left) if speed and left else ""
        pace = ""
        if speed:
            fast = speed["images_per_second"]
            pace = f"{fast:.{0 if fast >= 10 else 1}f} img/s, waiting {speed['waiting']:.0%}"
        words = [
            f"{self.task.name} {self.epoch}/{self.task.epochs} step {self.done}",
            self.task.line(row),
            pace,
            ahead,
        ]
        short = tuple(self.task.brief(row))
        rest = [w for w in words[1].split("  ") if not w.startswith(short)]
        of = f"step {self.done:,} of {self.task.epochs * self.task.steps_per_epoch:,}"
        at = of if self.task.slow_evaluation else f"epoch {self.epoch}/{self.task.epochs}, {of}"
        self.reporter.row(
            "  ".join(w for w in words if w), left=ahead, short=short, below=[at, *rest, pace], last=last
        )
        for message in self.task.messages({**row, "epoch": self.epoch, "step": self.done}):
            self.reporter.warn(message)

    def _ahead(self, steps: int) -> str:
        """How long ``steps`` more will take, with the evaluations that are to come where those are slow."""
        if not self.task.slow_evaluation:
            return f"{duration(self.watch.left(steps))} left"
        evaluations = self.task.epochs - self.epoch
        seconds = self.watch.left(steps) + evaluations * (self.evaluation or 0.0)
        more = "" if self.evaluation is not None else f" and {count(evaluations, 'evaluation')}"
        return f"{duration(seconds)} left{more}"

    def _check_finite(self) -> None:
        """Stop every rank when a loss was not finite on any. CPU-GPU sync point."""
        first = self.first_bad
        if dist.is_available() and dist.is_initialized():
            never = torch.iinfo(torch.int64).max
            first = torch.where(first < 0, never, first)
            dist.all_reduce(first, dist.ReduceOp.MIN)
            first = torch.where(first == never, -1, first)
        if int(first) >= 0:
            self._not_finite(f"the loss of {self.task.name} is not finite at step {int(first)}")

    def _check_weights(self) -> None:
        """Stop before weights that are not finite replace good ones: the loss shows it a step later. Sync point."""
        weights = [p.detach() for group in self.task.optimizer.param_groups for p in group["params"]]
        if not bool(torch.stack([w.isfinite().all() for w in weights]).all()):
            self._not_finite(f"the weights of {self.task.name} are not finite after step {self.done - 1}")

    def _not_finite(self, what: str) -> None:
        last = self.folder.checkpoints / "last.ckpt"
        kept = f"; {last} is from before it" if last.exists() else ""
        start = "start a new run" + (f", with --init {last} if you like" if kept else "")
        raise WorkFailed(f"{what}{kept}; lower {self.task.lr_setting} or set precision to fp32, and {start}")

    def _agreed(self, signal: StopSignal) -> tuple[int, bool]:
        """The signal that any rank received, and whether it is time to save (ranks ask each other every tenth step)."""
        late = 0 < self.checkpoint_seconds <= time.monotonic() - self.saved
        if world()[1] == 1:
            return signal.number, late
        if self.done % 10 and self.step:
            return 0, False
        both = torch.tensor([signal.number, int(late and self.main)], device=self.fabric.device)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        number, due = both.tolist()
        return number, bool(due)

    def _stopped(self, number: int) -> None:
        self.save()
        raise Stopped(
            number, f"stopped at step {self.done} of {self.task.name} after saving; go on with --resume"
        )

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {
            **self.extra,
            "stage": self.task.name,
            "epoch": self.epoch,
            "step": self.step,
            "task": self.task.state_dict(),
            "meters": {"sums": self.meters.sums, "count": self.meters.count},
            "metrics_bytes": self.metrics.size() if self.main else 0,
            "metrics": torch.from_numpy(np.frombuffer(self.metrics.held, np.uint8).copy()),
        }

    def save(self) -> None:
        """Write last.ckpt; what was there stays as previous.ckpt."""
        self._check_finite()
        self._check_weights()
        self.task.before_save()
        self.meters.share()
        if self.main:
            checkpoint.save(self.folder.checkpoints / "last.ckpt", self.state(), keep_previous=True)
        self.fabric.barrier()
        self.saved = time.monotonic()

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Raises ``InputError`` when the state is not of this task."""
        device = self.fabric.device
        try:
            self.epoch, self.step = state["epoch"], state["step"]
            self.task.load_state_dict(state["task"])
            sums, count = state["meters"]["sums"], state["meters"]["count"]
            self.meters = Meters({k: v.to(device) for k, v in sums.items()}, count)
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as e:
            why = (str(e).splitlines() or [""])[0][:120]
            raise InputError(
                f"the checkpoint in {self.folder.checkpoints} does not fit this run ({type(e).__name__}: {why}); put "
                "back the run's own, or start a new folder"
            ) from e
