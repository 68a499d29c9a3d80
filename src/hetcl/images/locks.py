"""File locks among processes, where the system has them; elsewhere everyone passes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file ``path``, made when it is missing and left behind; it ends with the process at the latest.

    Args:
        path: the lock file.
        wait: for whoever holds it; else give ``False`` at once when it is held.

    Yields:
        whether it is held. A file system without locks counts as held.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            yield True
            return
        try:
            yield True
        finally:
            # Not left to the closing of the file: a process forked meanwhile holds it open as well.
            fcntl.flock(lock, fcntl.LOCK_UN)
