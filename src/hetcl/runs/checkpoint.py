"""Checkpoints: saved wholly or not at all, tested and loaded without running code, refused when they do not fit."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hetcl.errors import InputError
from hetcl.runs import archive
from hetcl.runs.files import disk_problem, replacing
from hetcl.runs.folder import RunFolder
from hetcl.runs.table import Table

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


class Found(NamedTuple):
    """What a run can go on from."""

    path: Path
    state: dict[str, Any]
    notes: str | None
    """What a person should know: that it is not the newest."""
    damaged: tuple[Path, ...]
    """Newer ones that cannot be read."""

    def set_damaged_aside(self) -> None:
        """Move newer ones that cannot be read out of the way, or the next save would keep one for the spare."""
        for path in self.damaged:
            try:
                os.replace(path, path.with_name(f"{path.name}.damaged"))
            except OSError as e:
                raise disk_problem(path, e) from None


def latest(folder: Path, others: Sequence[str] = ()) -> Found | None:
    """The newest sound one of ``last.ckpt``, ``previous.ckpt`` and ``others`` in ``folder``; None when there is none.

    Raises:
        InputError: there are some, and none can be read; or the newest is of a newer hetcl.
    """
    passed: list[str] = []
    damaged: dict[Path, str] = {}
    for name in ("last.ckpt", "previous.ckpt", *others):
        path = folder / name
        try:
            state = load(path)
        except Damaged as e:
            if os.path.lexists(path):
                damaged[path] = str(e)
            passed.append(f"{name} {'cannot be read' if path in damaged else 'is gone'}")
            continue
        why = "".join(f" ({text.rpartition(': it is ')[2]})" for text in damaged.values())
        notes = f"{', '.join(passed)}; {path} takes its place{why}" if passed else None
        return Found(path, state, notes, tuple(damaged))
    if damaged:
        raise InputError(
            f"{next(iter(damaged.values()))}, and there is no other to go on from; put back a sound one, or start a "
            "new folder"
        )
    return None


def resume(run: RunFolder, stages: Sequence[str], others: Sequence[str] = ()) -> Found | None:
    """What training goes on from, or None when it has to begin at its beginning.

    Args:
        stages: names of the stages that the run has.
        others: further checkpoints that hold a whole state, the newest first.

    Raises:
        InputError: the checkpoints cannot be read, are none of a training, or are gone though the run got further.
    """
    found = latest(run.checkpoints, others)
    if found is None:
        run.check_nothing_lost()
        return None
    s = found.state
    numbers = [s.get(name) for name in ("epoch", "step", "metrics_bytes")]
    whole = all(isinstance(n, int) and n >= 0 for n in numbers) and isinstance(s.get("task"), dict)
    if not whole or s.get("stage") not in stages:
        raise InputError(
            f"{found.path} is of another run; put back the run's own checkpoint or start a new folder"
        )
    return found


def settle(found: Found | None, metrics: Table, timing: Table) -> list[str]:
    """Have the tables be as they were when a checkpoint was saved, and damaged checkpoints out of the way.

    Args:
        found: what training goes on from; None: it begins.

    Returns:
        what a person should know.

    Raises:
        WorkFailed: the disk refused.
    """
    if found is None:
        begun = "no checkpoint was saved yet: the run begins again" if metrics.read() else None
        notes = [begun, metrics.cut(0), timing.cut(0)]
    else:
        held = found.state.get("metrics")
        plain = isinstance(held, torch.Tensor) and held.dtype == torch.uint8 and held.is_contiguous()
        saved = held.numpy().tobytes() if plain else None  # type: ignore[union-attr]
        found.set_damaged_aside()
        notes = [found.notes, metrics.cut(found.state["metrics_bytes"], saved), timing.cut(None)]
    return [line for line in notes if line]


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
