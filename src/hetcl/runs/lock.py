"""One writer for each folder: a lock that ends with its process, and a note of who holds it. Free of torch.

``FOLDER/.lock`` is locked by the system (``filelock``: flock on POSIX, which NFS clients pass on to their server), so
whatever ends a process ends its lock, and a file that was left behind locks nothing. ``.lock.json`` says who holds it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any

from hetcl.errors import InputError
from hetcl.paths import drop_link
from hetcl.ranks import first_process
from hetcl.runs.files import replacing, seal, unseal
from hetcl.trees import TreeError

log = logging.getLogger(__name__)

NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system without locks answers."""


def is_lock(name: str) -> bool:
    """Whether a file in a folder is its lock's, and none of its content."""
    return name.startswith(NAME)


class Held(InputError):
    """Another process holds the lock."""


class FolderLock:
    """Keeps a second process from writing what this one writes. The first process of a job holds it for all its ranks.

    As a context: a folder that exists is locked at once, a new one by :meth:`hold` after it was made, and both are let
    go at the end.

    Args:
        folder: the folder that is written.
        name: of the lock file in it.
    """

    def __init__(self, folder: Path, name: str = NAME) -> None:
        self.folder, self.file, self.note = folder, folder / name, folder / f"{name}.json"
        self._lock: Any = None
        self._home = 0

    def hold(self) -> None:
        """Take the lock, or keep it. On other ranks than the first this does nothing.

        Raises:
            Held: another process holds it.
            InputError: the folder cannot be written.
        """
        if self._lock is not None or not first_process():
            return
        from filelock import FileLock, Timeout

        lock = FileLock(self.file, timeout=0, thread_local=False)
        try:
            drop_link(self.file)  # filelock opens none
            lock.acquire()
        except Timeout:
            raise Held(f"{self.folder} is being written by {self._holder()}: wait until it ends") from None
        except (OSError, NotImplementedError) as e:
            if isinstance(e, OSError) and e.errno not in NO_LOCKS:
                raise InputError(
                    f"cannot write in {self.folder}: {e.strerror}; make it writable, or name another folder"
                ) from None
            log.warning(
                "%s: the file system has no locks; see that no second process writes there", self.folder
            )
        self._lock, self._home = lock, os.getpid()
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with (
            contextlib.suppress(OSError),
            replacing(self.note) as f,
        ):  # a full disk: it is locked all the same
            f.write(seal(who | {"command": shlex.join(sys.argv)[:300]}))

    def _holder(self) -> str:
        """Who holds the lock, as far as its note says."""
        try:
            who = unseal(self.note.read_bytes())
            pid, host, since, command = (str(who[k]) for k in ("pid", "host", "since", "command"))
        except (OSError, TreeError, KeyError):
            return "another process"
        return f"process {pid} on {host} since {since} ({command})"

    def release(self) -> None:
        """Let go, and leave no file."""
        if self._lock is None or self._home != os.getpid():  # (or a fork, which inherited this)
            return
        for file in (self.note, self.file):  # while it is held: whoever waits on the old file notices
            with contextlib.suppress(OSError):
                file.unlink()
        self._lock.release()
        self._lock = None

    def __enter__(self) -> FolderLock:
        if self.folder.is_dir():
            self.hold()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
