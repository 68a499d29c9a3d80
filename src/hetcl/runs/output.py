"""The folder that ``--out`` names: looked at before the work, made and locked when the work begins. Free of torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hetcl.errors import InputError
from hetcl.ranks import first_process
from hetcl.runs.files import write_atomic
from hetcl.runs.lock import FolderLock, is_lock


def held_in(out: Path, meant: str = "a folder") -> set[str]:
    """Names of what a folder holds besides its lock; none where there is no folder yet.

    Raises:
        InputError: it is a file; the message says to name what is ``meant``.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name {meant}")
    return {p.name for p in out.iterdir() if not is_lock(p.name)} if out.is_dir() else set()


@contextlib.contextmanager
def reserved(lock: FolderLock, check: Callable[[], None]) -> Iterator[FolderLock]:
    """Inside, a folder that exists is locked; a new one will be by :func:`claim`. Both are let go at the end.

    Args:
        check: raises ``InputError`` when the folder may not be written; asked on the first rank, before anything else.
    """
    if first_process():
        check()
    with lock:
        yield lock


@contextlib.contextmanager
def making(folder: Path, what: str) -> Iterator[None]:
    """Inside, an ``OSError`` is the ``InputError`` that the folder cannot be made."""
    try:
        yield
    except OSError as e:
        raise InputError(f"cannot make the {what} {folder}: {e.strerror}; name another with --out") from None


def claim(
    lock: FolderLock,
    check: Callable[[], None],
    prepare: Callable[[], object] = lambda: None,
    what: str = "folder",
) -> None:
    """Make and lock the folder, look again whether it may be written, and prepare what is in it.

    Raises:
        InputError: it cannot be made or written, or ``check`` says no.
    """
    with making(lock.folder, what):
        lock.folder.mkdir(parents=True, exist_ok=True)
        lock.hold()
        check()
        prepare()


def write_report(path: Path, tree: Mapping[str, Any]) -> None:
    """Save what a verb found as JSON. Raises ``WorkFailed`` when the disk refuses."""
    write_atomic(path, (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode())
