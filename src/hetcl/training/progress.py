"""What a person sees while it runs: a live bar on a terminal, a line a row elsewhere, the same words in log.txt."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.paths import appending, create
from hetcl.printable import printable
from hetcl.runs.folder import disk_problem
from hetcl.training.bar import Bar
from hetcl.training.trackers import Trackers


class Events:
    """A TensorBoard file of scalars, written in this thread, so that a full disk is an ordinary error.

    A resumed run writes another one, and what it repeats has the same values.

    Args:
        folder: where event files lie; this one is new.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = Event
        self._path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(create(self._path))
        except OSError as e:
            raise disk_problem(self._path, e) from None
        self._write(file_version="brain.Event:2")

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Scalars of a step. Raises ``WorkFailed`` when the disk refuses."""
        self._write(step=step, summary={"value": [{"tag": k, "simple_value": v} for k, v in values.items()]})

    def _write(self, **content: Any) -> None:
        try:
            self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
            self._writer.flush()
        except OSError as e:
            with contextlib.suppress(OSError):  # now, or what is buffered would be tried again at exit
                self._writer.close()
            raise disk_problem(self._path, e) from None


class _Output:
    """Standard output, whose end stops no work: a terminal that was closed, a pipe that nobody reads any more."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stdout.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()


class Reporter:
    """Lines for a person and for log.txt, a bar on a terminal, and TensorBoard. Silent on all ranks but the first.

    Args:
        log: the file to append to, or None.
        tensorboard: the folder of event files, or None.
        quiet: say nothing at all (ranks above 0).
    """

    def __init__(
        self, log: Path | None = None, tensorboard: Path | None = None, *, quiet: bool = False
    ) -> None:
        self.quiet, self._log, self._tensorboard = quiet, log, tensorboard
        self.console = Console(file=cast(IO[str], _Output()), highlight=False, soft_wrap=True)
        self._bar: Bar | None = None
        self._live: Live | None = None
        self._events: Events | None = None
        self.trackers: Trackers | None = None
        """Who gets the same figures as TensorBoard."""
        self._shown = 0.0

    def say(self, text: str, *, style: str = "", wrap: bool = False) -> None:
        """A line that stays; ``wrap``: a terminal gets it broken between words."""
        if self.quiet:
            return
        soft = not (wrap and self.console.is_terminal)
        self.console.print(escape(printable(text)), style=style, soft_wrap=soft)
        self.note(text)

    def show(self, table: Table) -> None:
        """A table for a person, and as plain text for log.txt."""
        if self.quiet:
            return
        self.console.print(table)
        plain = Console(width=140, no_color=True, highlight=False, record=True, file=io.StringIO())
        plain.print(table)
        for line in plain.export_text().splitlines():
            self.note(line.rstrip())

    def warn(self, text: str) -> None:
        """A line that should not be overlooked."""
        self.say(f"! {text}", style="yellow", wrap=True)

    def note(self, text: str) -> None:
        """A line for log.txt alone."""
        if self._log is None or self.quiet:
            return
        try:
            with appending(self._log) as f:
                f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(text)}\n".encode())
        except OSError as e:
            raise disk_problem(self._log, e) from None

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Inside, what cannot be shown is said, and stops nothing that was computed. A full disk is another matter."""
        try:
            yield
        except (InputError, WorkFailed, Stopped):
            raise
        except Exception as e:
            why = (str(e).splitlines() or [""])[0][:200]
            self.warn(f"some of this could not be shown ({type(e).__name__}: {why}); the files have it")

    def start(self, name: str, done: int, total: int) -> None:
        """A new stage of ``total`` steps."""
        self.stop()
        if not self.quiet and self.console.is_terminal:
            self._bar = Bar(printable(name), done, total)
            self._live = Live(self._bar, console=self.console)
            self._live.start()

    def advance(self, done: int) -> None:
        """Steps done so far (cheap; call every step)."""
        if self._bar is not None:
            self._bar.done = done

    def row(
        self,
        text: str,
        *,
        left: str = "",
        short: Sequence[str] = (),
        below: Sequence[str] = (),
        last: bool = False,
    ) -> None:
        """A row of figures: words around the bar on a terminal, else a line every ten seconds at most; all in log.txt.

        Args:
            text: the row in a line.
            left: on a terminal, the time that is left, in words.
            short: beside the bar: one or two figures, the first more important.
            below: on the line under it: as many of these as fit.
        """
        if self.quiet:
            return
        self.note(text)
        text = printable(text)
        if self._bar is not None:
            self._bar.left = left
            self._bar.short, self._bar.below = (
                [printable(word) for word in words] for words in (short, below)
            )
        elif last or time.monotonic() - self._shown > 10:
            self.console.print(escape(text))
            self._shown = time.monotonic()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Values for TensorBoard, and for the trackers that were asked for."""
        if self._tensorboard is None or self.quiet:
            return
        if self.trackers is not None:
            self.trackers.log(values, step)
        if self._events is None:
            self._events = Events(self._tensorboard)
        self._events.add(values, step)

    def stop(self) -> None:
        """End the bar."""
        if self._live is not None:
            self._live.stop()
            self._live = self._bar = None
