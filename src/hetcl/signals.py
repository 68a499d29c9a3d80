"""The signals that ask a command to stop, as a flag that is read between steps and while something is waited for."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

from hetcl.errors import Stopped

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

    That needs no Python in the main thread, which may be inside a call that never returns (another rank hangs).
    Signals are received by the main thread; used in another, ``number`` stays 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._old: dict[int, Any] = {}
        self._ear: socket.socket | None = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number

    def _listen(self) -> None:
        """Have a thread told of every signal by the system's handler itself."""
        ear, mouth = socket.socketpair()
        mouth.setblocking(False)
        self._ear, self._fd_before = mouth, signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_end_at_second, args=(ear,), daemon=True, name="hetcl-signals").start()

    def check(self, what: str) -> None:
        """Raise ``Stopped``, which says ``what``, once a signal has come."""
        if self.number:
            raise Stopped(self.number, what)

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            ours = {n for one in _current for n in one._old}
            taken = [n for n in OTHERS if n in ours or signal.getsignal(n) is signal.SIG_DFL]
            for number in (*ALWAYS, *taken):
                self._old[number] = signal.signal(number, self._receive)
            self._listen()
        self.number = asked()
        _current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.remove(self)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._ear is not None:
            signal.set_wakeup_fd(self._fd_before)
            self._ear.close()


def _end_at_second(ear: socket.socket) -> None:
    """End the program at the second SIGTERM or SIGINT."""
    first = None
    with ear:
        while numbers := ear.recv(64):
            for number in numbers:
                if first is None:
                    first = time.monotonic()
                elif number in ALWAYS and time.monotonic() - first > APART:
                    os._exit(128 + number)


def asked() -> int:
    """The signal that has asked to stop, inside a :class:`StopSignal`; else 0."""
    return next((one.number for one in reversed(_current) if one.number), 0)
