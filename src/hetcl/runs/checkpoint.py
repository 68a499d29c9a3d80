"""Checkpoints: saved wholly or not at all, tested and loaded without running code."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from hetcl.errors import InputError
from hetcl.runs import archive
from hetcl.runs.files import disk_problem, replacing

FORMAT = 1
"""Version of the layout; a newer one is refused with the words to upgrade."""


NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)
"""What a file system without hard links answers."""


def save(path: Path, state: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and mappings of them) to ``path``.

    Args:
        keep_previous: keep what was there as ``previous.ckpt`` beside it.

    Raises:
        WorkFailed: the disk refused; the file that was there is untouched.
    """
    try:
        with replacing(path) as f:
            torch.save({"hetcl": FORMAT, **state}, f)
            f.flush()
            os.fsync(f.fileno())
            if keep_previous and path.exists():
                _keep(path, path.with_name("previous.ckpt"))
    except (OSError, RuntimeError) as e:
        # torch's zip writer reports a full disk as a RuntimeError of its own.
        raise disk_problem(path, e if isinstance(e, OSError) else OSError(28, str(e))) from None


def _keep(path: Path, older: Path) -> None:
    """Have ``older`` be what ``path`` is, without a moment in which neither is there."""
    part = older.with_name(older.name + ".part")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError as e:
        if e.errno not in NO_LINKS:
            raise
        os.replace(path, older)
        return
    os.replace(part, older)


class Damaged(InputError):
    """A file that is no checkpoint, or no longer one."""


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of :func:`save` onto the CPU, after its bytes have been compared with their checksums.

    Raises:
        Damaged: missing, damaged, cut short, or not a hetcl checkpoint.
        InputError: of a newer version.
    """
    state = None
    try:
        why = archive.damage(path)
        if why is None:
            state = load_tensors(path)
    except FileNotFoundError:
        raise Damaged(f"no checkpoint {path}") from None
    except UNREADABLE as e:
        why = why_unreadable(path, e)
    if why is not None:
        raise Damaged(f"cannot read checkpoint {path}: {why}")
    if not isinstance(state, dict) or type(state.get("hetcl")) is not int:
        raise Damaged(f"{path} is not a hetcl checkpoint")
    if state["hetcl"] > FORMAT:
        raise InputError(f"{path} was written by a newer hetcl (layout {state['hetcl']}); upgrade hetcl")
    return state


def load_tensors(path: Path) -> Any:
    """What a file of ``torch.save`` holds, on the CPU, without running code. Raises one of ``UNREADABLE``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True)


UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
)
"""What a damaged file may raise while it is read."""


def why_unreadable(path: Path, error: BaseException) -> str:
    """The reason in plain words: torch's own speak of its defaults and of miniz."""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR):
        return str(error.strerror)
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, MemoryError | RecursionError):
        return "reading it takes more memory than there is"
    if isinstance(error, pickle.UnpicklingError) and archive.is_zip(path):
        return "it holds more than tensors, and hetcl runs no code from files; save its state_dict alone"
    return "it is damaged, cut short or of another kind"
