"""What a section is given: where it runs, for how long, on what data, and how it writes rows."""

from __future__ import annotations

import json
import math
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Section:
    """The surroundings of one section."""

    rows: Path
    """The file that rows are appended to."""
    work: Path
    """A folder for what need not be kept."""
    seconds: float
    """How long the section should take; it leaves out what does not fit."""
    toy: bool = False
    """Small models on a CPU: the same code, rehearsed."""
    photos: str | None = None
    """A folder of photographs; None: the built-in scenes."""
    shards: str | None = None
    """Tar shards (DATA) with labels for the evidence run; None: the built-in scenes."""
    masks: str | None = None
    """A data set with masks for the frozen regression (DATASET); None: the built-in scenes."""
    began: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """The GPU; in a rehearsal the CPU."""
        return torch.device("cpu" if self.toy else "cuda")

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.began + self.seconds - time.monotonic()

    def row(self, name: str, **values: Any) -> None:
        """Write a row; it is on disk when this returns. Numbers that are not finite become null."""
        line = json.dumps(plain({"name": name, **values}), allow_nan=False)
        with open(self.rows, "a", encoding="utf-8") as f:
            f.write(line + "\n")
            f.flush()
            os.fsync(f.fileno())
        print(line, flush=True)

    def attempt(self, name: str, work: Callable[[], dict[str, Any]], *, cap: float, **known: Any) -> bool:
        """A row of what ``work`` finds, or of why it could not: no time, no memory, an error.

        Args:
            cap: most seconds it may take on a GPU; it is left out when the section has less than a third of that left.
            **known: values that the row has in any case.

        Returns:
            whether it was found.
        """
        cap *= 20 if self.toy else 1  # a rehearsal is about the code
        if self.left < min(cap / 3, 20):
            self.row(name, **known, skipped=f"{max(0.0, self.left):.0f} s left")
            return False
        print(f"... {name}", flush=True)
        began = time.monotonic()
        try:
            with at_most(min(cap, max(1.0, self.left))):
                found = work()
        except Exception as error:
            traceback.print_exc()
            self.row(name, **known, error=reason(error), seconds=time.monotonic() - began)
            return False
        finally:
            free(self.device)
        self.row(name, **known, **found, seconds=time.monotonic() - began)
        return True


def plain(value: Any) -> Any:
    """A value as JSON has it: floats to six digits, what is not finite to null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def reason(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:300]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` inside when it takes longer (at the next return to Python)."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def free(device: torch.device) -> None:
    """Give back what is no longer used."""
    if device.type == "cuda":
        import gc

        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
