"""Tables on disk, memory-mapped: what keeps listings and shard indexes out of memory.

A table is one file: columns one after the other (each aligned to 64 bytes), then a JSON footer with each
column's type, place and length, some facts about the whole and the columns' CRC-32, then the footer's length and
CRC-32 and a mark. It is written under a temporary name and renamed, so a reader sees a whole table or none, and two
writers at once do no harm; it is compared with its checksums when it is opened, about 3 GB a second of one core.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from platformdirs import user_cache_path

from hetcl.errors import InputError
from hetcl.paths import expand, home, spare_folder, unwritable

log = logging.getLogger(__name__)

MARK = b"hetcl-table-2\n\0\0"
_TAIL = struct.Struct("<QI4x16s")
_ALIGN = 64
_BUFFER = 1 << 20


class TableError(InputError):
    """A file that is not a whole table of this version: the caller makes it again."""


class TableWriter:
    """Columns that grow by appending, one file in the end.

    The first column is written in place, the others beside it and appended at the end; put the largest first.

    Args:
        path: where the table is to stand.
        columns: name to numpy dtype, in order.
    """

    def __init__(self, path: Path, columns: dict[str, np.dtype | str]) -> None:
        self.path = path
        self.meta: dict[str, Any] = {}
        self._types = {name: np.dtype(kind) for name, kind in columns.items()}
        self._files: dict[str, IO[bytes]] = {}
        self._names: dict[str, str] = {}
        self._ends: dict[str, int] = {}
        for name in columns:
            handle, temporary = tempfile.mkstemp(
                dir=path.parent, prefix=f".{path.name[:40]}-", suffix=".part"
            )
            self._files[name] = os.fdopen(handle, "w+b", buffering=_BUFFER)
            self._names[name] = temporary

    def append(self, column: str, data: bytes) -> None:
        """Append raw little-endian items to ``column``."""
        self._files[column].write(data)

    def string(self, column: str, text: bytes) -> None:
        """Append one byte string to a column declared with ``strings(column)``."""
        self._files[column].write(text)
        end = self._ends[column] = self._ends.get(column, 0) + len(text)
        self._files[f"{column}.ends"].write(struct.pack("<Q", end))

    def finish(self, path: Path | None = None) -> Path:
        """Write the footer and rename into place (``path``, or the path given at first)."""
        path = path or self.path
        first, *others = self._files
        out = self._files[first]
        places: dict[str, dict[str, Any]] = {}
        for name in (first, *others):
            source = self._files[name]
            size = source.tell()
            start = 0
            if name != first:
                out.write(b"\0" * (-out.tell() % _ALIGN))
                start = out.tell()
                source.seek(0)
                shutil.copyfileobj(source, out, _BUFFER)
            places[name] = _place(self._types[name], start, size)
        end = out.tell()
        out.seek(0)
        crc = _crc(out, end)
        out.seek(end)
        out.write(_footer(self.meta, places, crc))
        out.flush()
        os.fsync(out.fileno())
        out.close()
        os.replace(self._names[first], path)
        del self._names[first]
        self.discard()
        return path

    def discard(self) -> None:
        """Remove whatever has not been renamed into place."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk, again
                file.close()
        for name in self._names.values():
            Path(name).unlink(missing_ok=True)
        self._names.clear()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.discard()


def strings(column: str) -> dict[str, np.dtype | str]:
    """The two columns that hold byte strings: the bytes, and where each string ends."""
    return {column: "u1", f"{column}.ends": "<u8"}


def _place(kind: np.dtype, start: int, size: int) -> dict[str, Any]:
    described = np.lib.format.dtype_to_descr(kind)
    return {"type": described, "start": start, "length": size // kind.itemsize}


def _footer(meta: dict[str, Any], places: dict[str, dict[str, Any]], crc: int | None) -> bytes:
    footer = json.dumps({"meta": meta, "columns": places, "crc32": crc}).encode()
    return footer + _TAIL.pack(len(footer), zlib.crc32(footer), MARK)


def _crc(file: IO[bytes], size: int) -> int:
    """CRC-32 of the next ``size`` bytes."""
    crc, buffer = 0, memoryview(bytearray(_ALIGN << 12))
    while size and (count := file.readinto(buffer[:size])):  # type: ignore[attr-defined]
        crc, size = zlib.crc32(buffer[:count], crc), size - count
    return crc


class TableFile:
    """A table opened for reading: columns are memory maps, made when first asked for.

    Pickles as its path alone, so it costs nothing to send to a worker process.

    Args:
        path: the file.
        check: compare the columns with their checksum.

    Raises:
        TableError: no such file, not a whole table of this version, or a damaged one.
    """

    def __init__(self, path: Path | str, check: bool = True) -> None:
        self.path = str(path)
        try:
            with open(self.path, "rb") as file:
                file.seek(-_TAIL.size, os.SEEK_END)
                end = file.tell()
                length, crc, mark = _TAIL.unpack(file.read(_TAIL.size))
                if mark != MARK or length > end:
                    raise ValueError("not a whole table")
                file.seek(end - length)
                text = file.read(length)
                if zlib.crc32(text) != crc:
                    raise ValueError("its footer does not match its checksum")
                footer = json.loads(text)
                file.seek(0)
                stated = footer["crc32"] if check else None
                if stated is not None and stated != _crc(file, end - length):
                    raise ValueError("its columns do not match their checksum")
        except (OSError, ValueError) as error:
            raise TableError(
                f"the listing {self.path} is damaged or gone ({error}): run the command again, it will be made anew"
            ) from error
        self.meta: dict[str, Any] = footer["meta"]
        self._places: dict[str, dict[str, Any]] = footer["columns"]
        self._maps: dict[str, np.ndarray] = {}

    def __reduce__(self) -> tuple[type[TableFile], tuple[str, bool]]:
        return TableFile, (self.path, False)

    def __getitem__(self, column: str) -> np.ndarray:
        found = self._maps.get(column)
        if found is None:
            place = self._places[column]
            kind = np.dtype(
                [tuple(f) for f in place["type"]] if isinstance(place["type"], list) else place["type"]
            )
            shape = (place["length"],)
            found = (
                # A plain view of the map: indexing a memmap object itself is several times slower.
                np.memmap(self.path, dtype=kind, mode="r", offset=place["start"], shape=shape).view(
                    np.ndarray
                )
                if place["length"]
                else np.empty(shape, kind)
            )
            self._maps[column] = found
        return found

    def length(self, column: str) -> int:
        """Number of items in ``column``, or of strings where it holds strings."""
        return self._places.get(f"{column}.ends", self._places[column])["length"]

    def string(self, column: str, index: int) -> bytes:
        """The byte string at ``index``."""
        ends = self[f"{column}.ends"]
        start = int(ends[index - 1]) if index else 0
        return self[column][start : int(ends[index])].tobytes()

    def strings(self, column: str) -> Iterator[bytes]:
        """All byte strings of ``column``, one after the other."""
        return (self.string(column, i) for i in range(self.length(column)))


def cache_folder(cache: Path | None = None) -> Path:
    """A writable folder: ``cache``, ``$HETCL_CACHE``, or the system's for caches (``$XDG_CACHE_HOME/hetcl`` or
    ``~/.cache/hetcl`` on Linux, ``~/Library/Caches/hetcl`` on macOS).

    Where that cannot be written, or there is no home folder, one in the system's temporary folder, and a warning says
    so.

    Raises:
        InputError: that cannot be written either.
    """
    named = cache or os.environ.get("HETCL_CACHE")
    folder, reason = Path(expand(named)) if named else _usual(), "this user has no home folder"
    if folder is not None:
        fault = unwritable(folder)
        if fault is None:
            return folder
        reason = f"cannot write the cache {folder} ({fault})"
    try:
        spare = spare_folder()
    except OSError as error:
        raise InputError(
            f"no folder for the list of images: {reason}, and the temporary folder cannot be written "
            f"({error.strerror}); set HETCL_CACHE to a folder with room"
        ) from error
    log.warning("%s: listings go to %s; set HETCL_CACHE to keep them", reason, spare)
    return spare


def _usual() -> Path | None:
    """Where this system keeps caches; None without a home folder."""
    known = home() is not None or os.environ.get("XDG_CACHE_HOME")
    return user_cache_path("hetcl", appauthor=False) if known else None
