"""What this process may use of the machine: cores and memory, by affinity, control groups and limits. Free of torch."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hetcl.errors import InputError, out_of_memory

ROOT = Path("/")
UNLIMITED = 1 << 60
"""Bytes from which a limit is none."""
LIBRARIES = 800_000_000
"""Bytes of memory that torch, torchvision, timm and Fabric take when they are loaded, about."""

log = logging.getLogger(__name__)


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends, however that ends. Linux alone."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# ---- cores ---------------------------------------------------------------------------------------------------------


def cores(root: Path = ROOT) -> int:
    """Cores that this process may use: those of its affinity, and no more than a control group's quota, rounded."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [q for group in _groups("cpu", root) if (q := _quota(group)) is not None]
    return max(1, min([count, *map(round, quotas)]))


def _quota(group: Path) -> float | None:
    """Cores that a control group may use (version 2, then 1), or None."""
    words = _words(group / "cpu.max") or [
        *_words(group / "cpu.cfs_quota_us"),
        *_words(group / "cpu.cfs_period_us"),
    ]
    with contextlib.suppress(ValueError, ZeroDivisionError):
        quota, period = (int(word) for word in words[:2])
        return quota / period if quota > 0 else None
    return None


# ---- memory --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Room:
    """Memory that is left."""

    free: int
    """Bytes."""
    limit: int
    """Bytes that there are in all."""
    of: str
    """Whose, in words: ``this machine``."""

    def __str__(self) -> str:
        return f"{self.free / 1e9:.1f} of {self.limit / 1e9:.1f} GB of {self.of} are free"


def memory(root: Path = ROOT) -> Room | None:
    """The tightest of the machine's memory, its control groups' and the limit on addresses; None where nobody says."""
    rooms = [*_machine(root), *_addresses(root), *grouped_memory(root)]
    return min(rooms, key=lambda room: room.free, default=None)


def grouped_memory(root: Path = ROOT) -> list[Room]:
    """What control groups (a container, a job) leave, where they limit memory."""
    rooms = []
    for group in _groups("memory", root):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most, now = _number(group / limit), _number(group / used)
            if most is not None and now is not None and most < UNLIMITED:
                held = _fields(group / "memory.stat")
                now -= held.get("total_inactive_file", held.get("inactive_file", 0))  # given back when needed
                rooms.append(Room(max(0, most - max(0, now)), most, "this control group (container, job)"))
    return rooms


def _machine(root: Path) -> list[Room]:
    found = _fields(root / "proc/meminfo")
    if "MemAvailable" not in found:
        return []
    free, all_ = (1024 * (found[a] + found.get(b, 0)) for a, b in _MEMINFO)
    return [Room(free, all_, "this machine's memory")]


_MEMINFO = (("MemAvailable", "SwapFree"), ("MemTotal", "SwapTotal"))


def _addresses(root: Path) -> list[Room]:
    """What ``ulimit -v`` leaves."""
    try:
        import resource
    except ImportError:
        return []
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _fields(root / "proc/self/status").get("VmSize")
    if most == resource.RLIM_INFINITY or most < 0 or used is None:
        return []
    return [Room(max(0, most - 1024 * used), most, "the address space (ulimit -v)")]


def check_libraries() -> None:
    """Before torch is loaded, warn where that alone may be too much: a process out of memory is killed without a word.

    Where ``ulimit -v`` limits addresses, it is tried in another process, since some libraries abort instead of raising
    an error; without such a limit this costs next to nothing.

    Raises:
        InputError: they cannot be loaded.
    """
    if "torch" in sys.modules:
        return
    room, rooms = memory(), _addresses(ROOT)
    if room is not None and room.free < LIBRARIES:
        log.warning(
            "PyTorch and its libraries alone take about %.1f GB, and %s: when memory runs out, the system kills this "
            "process without a word (exit status 137)",
            LIBRARIES / 1e9,
            room,
        )
    if not rooms:
        return
    import subprocess

    code = "import torch, torchvision, timm, lightning_fabric"
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode < 0 or out_of_memory(done.stderr):
        raise InputError(f"PyTorch and its libraries do not fit: {rooms[0]}; raise that limit")


# ---- control groups ------------------------------------------------------------------------------------------------


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those around it, as far as they can be seen."""
    mounts = [w[1:4] for line in _lines(root / "proc/self/mounts") if len(w := line.split()) >= 4]
    for line in _lines(root / "proc/self/cgroup"):
        _, names, path = (*line.split(":", 2), "", "")[:3]
        for point, kind, options in mounts:
            second = kind == "cgroup2" and not names
            if not second and not (
                kind == "cgroup" and controller in {*names.split(",")} & {*options.split(",")}
            ):
                continue
            top = root / point.lstrip("/")
            here = top / path.lstrip("/")
            if not here.is_dir():  # seen from inside a container, whose group is at the top
                here = top
            yield here
            yield from (p for p in here.parents if p.is_relative_to(top))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(path: Path) -> int | None:
    """The one number that a file holds; None for ``max``."""
    with contextlib.suppress(ValueError, IndexError):
        return int(_words(path)[0])
    return None


def _fields(path: Path) -> dict[str, int]:
    """``name[:] number ...`` of each line."""
    found = {}
    for line in _lines(path):
        with contextlib.suppress(ValueError, IndexError):
            name, number = line.split()[:2]
            found[name.rstrip(":")] = int(number)
    return found
