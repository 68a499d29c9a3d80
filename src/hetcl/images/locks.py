"""Locks among processes and threads, for whoever shares a cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hetcl.paths import drop_link


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file ``path``, made when it is missing and left behind; it ends with the process at the latest.

    Args:
        path: the lock file.
        wait: for whoever holds it; else give ``False`` at once when it is held.

    Yields:
        whether it is held. A file system without locks counts as held.
    """
    lock, mine = FileLock(path, timeout=-1 if wait else 0, thread_local=False), True
    try:
        drop_link(path)  # filelock opens none, and then nothing would be locked
        lock.acquire()
    except Timeout:
        mine = False
    except (OSError, NotImplementedError):
        pass
    try:
        yield mine
    finally:
        lock.release()
