"""Local copies of remote shards: all of them where the disk has room, else as many as fit, in turn.

Lasting copies lie in ``CACHE/remote`` and are never removed. Where the disk is too small for all shards, passing
copies come and go in ``CACHE/rolling``: a shard is fetched when one of its images is asked for, and the one
that was used least recently makes room. Any number of processes and runs may share the folder: a lock for each
shard lets one of them fetch it, another for the folder lets one at a time make room. A file that is open when it is
removed can be read to the end (POSIX), so a reader is never cut off.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hetcl.errors import InputError
from hetcl.images.locks import locked
from hetcl.images.remote import Shard, TransferError, download
from hetcl.paths import create

log = logging.getLogger(__name__)

SPARE = 256 << 20
"""Bytes of the disk that lasting copies leave free."""
SPARE_ROLLING = 1 << 30
"""The same for passing copies, which would fill any disk: checkpoints need room too."""
WINDOW_SHARDS, WINDOW_BYTES = 16, 8 << 30
"""The window of a data set larger than the disk: at most that many shards, that many bytes, a quarter of all."""
_GB = 1e9
_BUSY = 0.05
"""Seconds between looks at a folder whose files are all in use."""


class Copies:
    """Remote shards as local files. Cheap to send to worker processes, thread-safe.

    Args:
        cache: the folder for all copies.
        limit: bytes that passing copies may take; None for what the disk has, less a margin.
    """

    def __init__(self, cache: Path, limit: int | None = None) -> None:
        self.cache, self.limit = cache, limit
        self.rolling = cache / "rolling"
        self._room_lock = self.rolling / "room.lock"
        self.rolling.mkdir(parents=True, exist_ok=True)

    def open(self, shard: Shard) -> IO[bytes]:
        """The copy of a remote shard, opened for reading; fetched first when it is not there.

        Raises:
            TransferError: it cannot be fetched, or there is no room for it.
        """
        try:
            file = self._open(shard)
        except FileNotFoundError:
            with self.held(shard):
                file = self._open(shard)
        return file

    def _open(self, shard: Shard) -> IO[bytes]:
        try:
            return open(shard.path, "rb", buffering=0)
        except FileNotFoundError:
            return _touched(open(self._place(shard), "rb", buffering=0))

    @contextlib.contextmanager
    def held(self, shard: Shard) -> Iterator[Path]:
        """The place of a shard's copy, which stays there as long as the context lasts; fetched when it is missing.

        Raises:
            TransferError: as ``open``.
        """
        if not shard.url:
            yield Path(shard.path)
            return
        with locked(self._lock(shard)):
            place = next((p for p in (Path(shard.path), self._place(shard)) if p.exists()), None)
            if place is None:
                place = self._place(shard)
                self._fetch(shard, place)
            yield place

    def fetch_all(self, missing: Sequence[Shard]) -> None:
        """Make lasting copies of remote shards.

        Raises:
            TransferError: one cannot be fetched.
        """
        if missing:
            need = sum(shard.size for shard in missing) / _GB
            log.info("fetching %d shards, %.2f GB, to %s", len(missing), need, self.cache / "remote")
        for number, shard in enumerate(missing):
            place = Path(shard.path)
            with locked(self._lock(shard)):
                if place.exists():  # another process was first
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                part = self.rolling / f"{shard.name}.{shard.size}.part"
                try:
                    if self._place(shard).exists():
                        os.replace(self._place(shard), place)
                        continue
                    create(part).close()
                    download(shard, part)
                    os.replace(part, place)
                finally:
                    part.unlink(missing_ok=True)
            if (number + 1) % 20 == 0:
                log.info("%d of %d shards fetched", number + 1, len(missing))

    def passing(self, shards: Sequence[Shard]) -> int:
        """Bytes of the passing copies of ``shards``."""
        places = (self._place(shard) for shard in shards)
        return sum(os.path.getsize(place) for place in places if place.exists())

    @staticmethod
    def missing(shards: Sequence[Shard]) -> list[Shard]:
        """The remote shards without a lasting copy."""
        return [shard for shard in shards if shard.url and not os.path.exists(shard.path)]

    def room(self) -> int:
        """Bytes that passing copies may take in all, as things stand."""
        if self.limit is not None:
            return self.limit
        return free_bytes(self.cache) - SPARE_ROLLING + sum(f.written for f in self._scan())

    # ---- passing copies --------------------------------------------------------------------------------------

    def _place(self, shard: Shard) -> Path:
        return self.rolling / f"{shard.name}.tar"

    def _lock(self, shard: Shard) -> Path:
        return self.rolling / f"{shard.name}.lock"

    def _fetch(self, shard: Shard, place: Path) -> None:
        """Fetch a shard whose lock is held."""
        part = self.rolling / f"{shard.name}.{shard.size}.part"
        try:
            part.unlink(missing_ok=True)  # of a process that was killed
            self._reserve(shard, part)
            download(shard, part)
            with locked(self._room_lock):  # or whoever looks for room meanwhile might see neither of the two
                os.replace(part, place)
        except OSError as error:
            raise TransferError(
                f"cannot keep a copy of {shard.url} in {self.rolling} ({error.strerror or error})"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, shard: Shard, part: Path) -> None:
        """Make room for a shard, and a file whose name says how much of it is spoken for."""
        while True:
            with locked(self._room_lock):
                lack, busy = self._make_room(shard.size)
                if lack <= 0:
                    create(part).close()
                    return
            if not busy:
                raise TransferError(
                    f"no room for {shard.url} ({shard.size / _GB:.2f} GB) in {self.rolling}: "
                    f"{lack / _GB:.2f} GB more are needed"
                )
            time.sleep(_BUSY)

    def _make_room(self, size: int) -> tuple[int, bool]:
        """Remove copies, the least recently used first, until ``size`` bytes fit.

        Returns:
            the bytes that still lack, and whether files are in use that may go later.
        """
        files = sorted(self._scan(), key=lambda file: file.used)
        if self.limit is not None:
            lack = size - self.limit + sum(max(file.written, file.size) for file in files)
        else:
            coming = sum(max(0, file.size - file.written) for file in files)
            lack = size - (free_bytes(self.cache) - SPARE_ROLLING - coming)
        busy = False
        for file in files:
            if lack <= 0:
                break
            with locked(self.rolling / f"{file.name}.lock", wait=False) as mine:
                if not mine:
                    busy = True
                    continue
                # A part whose lock is free was left by a process that was killed.
                file.path.unlink(missing_ok=True)
                lack -= max(file.written, file.size)
        return lack, busy

    def _scan(self) -> list[_File]:
        """The passing copies, whole and coming."""
        found = []
        with os.scandir(self.rolling) as entries:
            for entry in entries:
                name, *size, kind = entry.name.split(".")
                if kind not in ("tar", "part"):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    whole = int(size[0]) if size else status.st_size
                    found.append(_File(Path(entry.path), name, status.st_mtime, whole, status.st_size))
        return found


@dataclass(frozen=True)
class _File:
    """A file of the rolling folder."""

    path: Path
    name: str
    used: float
    """When it was last used, in seconds."""
    size: int
    """Bytes when it is whole."""
    written: int
    """Bytes now."""


def _touched(file: IO[bytes]) -> IO[bytes]:
    """Note that a copy is in use; once a second is enough."""
    with contextlib.suppress(OSError):
        if time.time() - os.fstat(file.fileno()).st_mtime > 1:
            os.utime(file.fileno())
    return file


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk of ``folder``."""
    return shutil.disk_usage(folder).free


# ---- how much fits -----------------------------------------------------------------------------------------------


def settle(shards: Sequence[Shard], copies: Copies, window: int) -> bool:
    """Fetch all remote shards, or find that the disk is too small for them and they have to take turns.

    Args:
        shards: local and remote ones.
        copies: where the remote ones are to be read.
        window: within how many images they will be mixed if they take turns; 0 for ``window_of``.

    Returns:
        whether they take turns.

    Raises:
        InputError: there is no room for the shards of a window.
        TransferError: one cannot be fetched.
    """
    missing = copies.missing(shards)
    need = sum(shard.size for shard in missing)
    if copies.limit is not None:
        fit = need <= copies.limit
    else:
        fit = need - copies.passing(missing) + SPARE <= free_bytes(copies.cache)
    if fit:
        copies.fetch_all(missing)
        return False
    # Now, since reading all of them for the index may take hours.
    _check_room(copies, shards, 1 if window else _window_shards(shards))
    return True


def window_of(shards: Sequence[Shard], images: int) -> int:
    """The window for shards that take turns: a function of the data alone, so that the order is one too.

    Up to ``WINDOW_SHARDS`` of the average size, no more than ``WINDOW_BYTES`` and a quarter of all, in images.
    """
    return -(-images * _window_shards(shards) // len(shards))


def _window_shards(shards: Sequence[Shard]) -> int:
    mean = max(1, sum(shard.size for shard in shards) // len(shards))
    return max(1, min(WINDOW_SHARDS, WINDOW_BYTES // mean, len(shards) // 4))


def announce(copies: Copies, shards: Sequence[Shard], images: int, window: int) -> None:
    """Say that shards take turns, and what that means.

    Raises:
        InputError: there is no room for the shards of ``window`` images.
    """
    each = images / len(shards)
    _check_room(copies, shards, math.ceil(window / each), each)
    total = max(1, sum(shard.size for shard in shards))
    log.warning(
        "%s: about %d of them are kept at a time and fetched again in each epoch. Images are mixed within windows "
        "of %s (%.1f shards) only, with the shards in any order; HETCL_CACHE may name a larger disk",
        _needs(copies, shards),
        copies.room() * len(shards) // total,
        f"{window:,}",
        window / each,
    )


def _check_room(copies: Copies, shards: Sequence[Shard], some: int, each: float = 0) -> None:
    """Raise InputError when the largest ``some`` shards do not fit; ``each``: images in a shard, where known."""
    sizes = sorted((shard.size for shard in shards), reverse=True)
    room = copies.room()
    # A window that begins inside a shard reaches into one more; and one arrives before another can go.
    need = sum(sizes[: some + 2])
    if need <= room:
        return
    fitting = next(k for k in range(some + 1) if sum(sizes[: k + 3]) > room)
    smaller = f"set window to {int(fitting * each)} or less, " if fitting and each else ""
    raise InputError(
        f"{_needs(copies, shards)}, too little for the {some + 2} that are read at a time ({need / _GB:.2f} GB): "
        f"{smaller}set HETCL_CACHE to a larger disk, or name fewer shards"
    )


def _needs(copies: Copies, shards: Sequence[Shard]) -> str:
    total, room = sum(shard.size for shard in shards) / _GB, max(0, copies.room()) / _GB
    return f"{len(shards)} shards need {total:.2f} GB, {copies.cache} has room for {room:.2f} GB"
