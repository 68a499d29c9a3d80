"""The two ways a command can fail on purpose, and the way it can be stopped.

``cli.py`` turns them into one line on the console and an exit status; nothing else exits the process.
"""

from __future__ import annotations

import re

from hetcl.printable import printable


class _Told(Exception):
    """An error whose arguments are its lines; each is made printable, whatever names it holds."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(printable, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class InputError(_Told):
    """Unusable arguments or input (exit status 2). Each line names the file or setting and the fix."""


class WorkFailed(_Told):
    """The work began and could not go on (exit status 1). The message says what is kept and what to do."""


class Stopped(Exception):
    """A signal asked the run to stop, and it has saved itself (exit status 128 + signal)."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def mark_alone(error: BaseException) -> None:
    """Note that an error befell this rank alone, which has to say so itself."""
    error.alone = True  # type: ignore[attr-defined]


def others_ended(error: BaseException) -> bool:
    """Whether an error means that another rank is gone (as gloo and NCCL put it)."""
    words = r"connection (closed|reset|refused)|remote process exited|broken pipe|TCPStore"
    return isinstance(error, RuntimeError) and bool(re.search(words, str(error), re.IGNORECASE))


def out_of_memory(error: BaseException | str) -> str | None:
    """``out of memory (tried to allocate 240000000000 bytes)`` when that is what an error means, else None."""
    text = str(error)
    if not isinstance(error, MemoryError) and not re.search(
        r"out of memory|(can't|cannot|unable to) allocate|bad_alloc|failed to map segment",
        text,
        re.IGNORECASE,
    ):
        return None
    size = re.search(r"allocate ([\d.]+ ?[A-Za-z]+)", text)
    return f"out of memory (tried to allocate {size[1]})" if size else "out of memory"
