"""The signals that ask a command to stop, as a flag that is read between steps and while something is waited for."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

ALWAYS = (signal.SIGTERM, signal.SIGINT)
"""Taken whatever was there before."""
OTHERS = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
)
"""A closed terminal, the warnings of batch systems, a spent CPU limit: taken where nobody has said otherwise (nohup
ignores SIGHUP, a program may have a use of its own for SIGUSR1)."""
APART = 1.0
"""Seconds from the first signal before a second one ends the program: what one key press or one launcher sends twice
is one wish."""

_current: list[StopSignal] = []


class StopSignal:
    """Inside, the first signal that asks to stop sets ``number``; a later SIGTERM or SIGINT ends the program at once.

    Signals are received by the main thread; elsewhere ``number`` stays 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._old: dict[int, Any] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
        elif number in ALWAYS and time.monotonic() - self._since > APART:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            ours = {n for one in _current for n in one._old}
            taken = [n for n in OTHERS if n in ours or signal.getsignal(n) is signal.SIG_DFL]
            for number in (*ALWAYS, *taken):
                self._old[number] = signal.signal(number, self._receive)
        self.number = asked()
        _current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.remove(self)
        for number, handler in self._old.items():
            signal.signal(number, handler)


def asked() -> int:
    """The signal that has asked to stop, inside a :class:`StopSignal`; else 0."""
    return next((one.number for one in reversed(_current) if one.number), 0)
