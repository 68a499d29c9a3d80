"""Checkpoints: saved wholly or not at all, loaded without running code, refused when they do not fit."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from hetcl.errors import InputError
from hetcl.runs.folder import disk_problem

FORMAT = 1
"""Version of the layout; a newer one is refused with the words to upgrade."""


def save(path: Path, state: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and mappings of them) to ``path``.

    Args:
        keep_previous: keep what was there as ``previous.ckpt`` beside it.

    Raises:
        WorkFailed: the disk refused; the file that was there is untouched.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as f:
            torch.save({"hetcl": FORMAT, **state}, f)
            f.flush()
            os.fsync(f.fileno())
        if keep_previous and path.exists():
            older = path.with_name("previous.ckpt.part")
            older.unlink(missing_ok=True)
            os.link(path, older)
            os.replace(older, path.with_name("previous.ckpt"))
        os.replace(part, path)
    except (OSError, RuntimeError) as e:
        with contextlib.suppress(OSError):
            part.unlink()
        # torch's zip writer reports a full disk as a RuntimeError of its own.
        raise disk_problem(path, e if isinstance(e, OSError) else OSError(28, str(e))) from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of :func:`save` onto the CPU.

    Raises:
        InputError: missing, cut short, not a hetcl checkpoint, or of a newer version.
    """
    try:
        state = load_tensors(path)
    except FileNotFoundError:
        raise InputError(f"no checkpoint {path}") from None
    except UNREADABLE as e:
        raise InputError(f"cannot read checkpoint {path}: {why_unreadable(path, e)}") from None
    if not isinstance(state, dict) or "hetcl" not in state:
        raise InputError(f"{path} is not a hetcl checkpoint")
    if state["hetcl"] > FORMAT:
        raise InputError(f"{path} was written by a newer hetcl (layout {state['hetcl']}); upgrade hetcl")
    return state


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable of ``last.ckpt`` and ``previous.ckpt`` in ``folder``, or None when there is neither.

    Raises:
        InputError: there are some, and none can be read.
    """
    failure: InputError | None = None
    for name in ("last.ckpt", "previous.ckpt"):
        path = folder / name
        if path.exists():
            try:
                return path, load(path)
            except InputError as e:
                failure = failure or e
    if failure:
        raise InputError(f"{failure}, and there is no other to go on from; start a new folder")
    return None


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
)
"""What a damaged file may raise while it is read."""


def why_unreadable(path: Path, error: BaseException) -> str:
    """The reason in plain words: torch's own speak of its defaults and of miniz."""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR):
        return str(error.strerror)
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
        return "it holds more than tensors, and hetcl runs no code from files; save its state_dict alone"
    return "it is damaged, cut short or of another kind"
