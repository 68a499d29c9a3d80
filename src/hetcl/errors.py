"""The two ways a command can fail on purpose, and the way it can be stopped.

``cli.py`` turns them into one line on the console and an exit status; nothing else exits the process.
"""

from __future__ import annotations


class InputError(Exception):
    """Unusable arguments or input (exit status 2). The message names the file or setting and the fix."""


class WorkFailed(Exception):
    """The work began and could not go on (exit status 1). The message says what is kept and what to do."""


class Stopped(Exception):
    """A signal asked the run to stop, and it has saved itself (exit status 128 + signal)."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
