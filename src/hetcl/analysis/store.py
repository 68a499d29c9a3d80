"""Features on disk: written once, a step at a time in any order, then read memory-mapped as often as one likes.

A folder for each (weights, features, views, size, data, seed): ``query.npy`` and ``key.npy`` float32 ``[n, D]`` with
the parts side by side, ``index.npy`` int64 ``[n]``, ``boxes.npy`` float32 ``[n, 2, 4]``; ``steps.npy`` says which steps
have been written, with the CRC-32 of each; ``facts.json`` what it is and, at the end, that it is whole, with the CRC-32
of each file. A process killed at any moment loses the steps since the last :meth:`Folder.flush`, no more. Whoever goes
on with a folder compares it with its checksums once (3 GB a second of one core), and computes again what is damaged.
n images in the keyed random order, D dimensions, B a step's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hetcl.errors import WorkFailed
from hetcl.paths import create
from hetcl.runs.files import crc_of, disk_problem, seal, unseal, write_atomic
from hetcl.trees import TreeError

log = logging.getLogger(__name__)

CHUNK = 8192
"""Rows copied at a time when rows of unusable images are taken out."""
ROWS = ("query", "key", "index", "boxes")
"""The files that have a row for each image."""
UNREADABLE = (OSError, ValueError, TypeError, EOFError, SyntaxError, OverflowError)
"""What a damaged ``.npy`` file may raise."""
WRITTEN = 1 << 32
"""Marks a step that was written; the bits below are the CRC-32 of its rows."""


@dataclass(frozen=True)
class Features:
    """Finished features of ``n`` images, memory-mapped: reading them costs no memory of the process."""

    query: np.ndarray
    """float32 ``[n, D]``: of view 1."""
    key: np.ndarray
    """float32 ``[n, D]``: of view 2."""
    index: np.ndarray
    """int64 ``[n]``: which image of the source."""
    boxes: np.ndarray
    """float32 ``[n, 2, 4]``: crop rectangles of both views in pixels of the original."""
    dims: dict[str, int]
    """Dimensions of each part, in order."""

    def __len__(self) -> int:
        return len(self.index)


def plain(name: str) -> str:
    """``name`` as part of a file's name on any system."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")[:80]


class Folder:
    """Where the features of one model under one kind of views are kept.

    Args:
        root: the folder of all of them.
        name: for people; the folder's name begins with it.
        key: everything that the features are a function of; its hash ends the folder's name.
        dims: dimensions of each part.
        images: n, before unusable ones are taken out.
        batch: B, images in a step.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        key: Mapping[str, Any],
        *,
        dims: Mapping[str, int],
        images: int,
        batch: int,
    ) -> None:
        text = json.dumps(dict(key), sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        self.path = root / f"{plain(name)}-{digest}"
        self.key, self.dims, self.images, self.batch = json.loads(text), dict(dims), images, batch
        width = sum(self.dims.values())
        self._shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "query": ((images, width), np.float32),
            "key": ((images, width), np.float32),
            "index": ((images,), np.int64),
            "boxes": ((images, 2, 4), np.float32),
            "steps": ((-(-images // batch),), np.uint64),
        }
        self._sound: bool | None = None
        self._files: dict[str, tuple[int, int, int]] = {}
        self._unmarked: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """What the finished folder takes on disk."""
        return sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in self._shapes.values())

    @property
    def finished(self) -> bool:
        """Whether the features are whole and undamaged. Reads all of them when it is first asked."""
        facts = self._facts()
        if facts.get("finished") is not True:
            return False
        if self._sound is None:
            self._sound = self._in_place(facts.get("files"))
            if not self._sound:
                log.warning("the features in %s are damaged and are computed again", self.path)
        return self._sound

    def _in_place(self, sums: Any) -> bool:
        """Whether the files have the CRC-32 that ``sums`` says; whoever was stopped between their renames is helped."""
        with contextlib.suppress(OSError, TypeError, KeyError):
            for name in ROWS:
                file = self.path / f"{name}.npy"
                part = file.with_name(f"{name}.npy.part")
                with contextlib.suppress(FileNotFoundError):  # mostly; or another process was first
                    if crc_of(part) == sums[name]:
                        os.replace(part, file)
                if crc_of(file) != sums[name]:
                    return False
            return True
        return False

    def _facts(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, TreeError):
            facts = unseal((self.path / "facts.json").read_bytes())
            return facts if facts.get("key") == self.key else {}
        return {}

    def _write_facts(self, **more: Any) -> None:
        facts = {"key": self.key, "dims": self.dims, "batch": self.batch, "images": self.images, **more}
        write_atomic(self.path / "facts.json", seal(facts))

    # ---- writing -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the files, or keep those of a pass that was stopped. One process calls it. Raises ``WorkFailed``."""
        facts = self._facts()
        if facts.get("batch") == self.batch and facts.get("kept") in (None, self.images) and self._whole():
            if damaged := self._damaged():
                log.warning(
                    "%d steps of the features in %s are damaged and are computed again", damaged, self.path
                )
            self._write_facts(finished=False)
            return
        try:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
            for name, (shape, kind) in self._shapes.items():
                with create(self.path / f"{name}.npy") as f:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(np.dtype(kind)),
                        "fortran_order": False,
                        "shape": shape,
                    }
                    np.lib.format.write_array_header_1_0(f, header)
                    f.truncate(f.tell() + int(np.prod(shape)) * np.dtype(kind).itemsize)
        except OSError as e:
            raise disk_problem(self.path, e) from None
        self._write_facts(finished=False)

    def _whole(self) -> bool:
        """Whether all files are there with the shapes of an unfinished pass."""
        try:
            return all(
                (array := np.load(self.path / f"{name}.npy", mmap_mode="r")).shape == shape
                and array.dtype == kind
                and (self.path / f"{name}.npy").stat().st_size == array.offset + array.nbytes
                for name, (shape, kind) in self._shapes.items()
            )
        except UNREADABLE:
            return False

    def _damaged(self) -> int:
        """Unmark the steps whose rows are no longer as they were written, and say how many. Raises ``WorkFailed``."""
        marks = np.load(self.path / "steps.npy")
        files = {name: np.load(self.path / f"{name}.npy", mmap_mode="r") for name in ROWS}
        wrong = 0
        for step in np.flatnonzero(marks):
            place = slice(int(step) * self.batch, (int(step) + 1) * self.batch)
            usable = int(np.count_nonzero(files["index"][place] >= 0))
            rows = {name: files[name][place] for name in ROWS}
            if int(marks[step]) != WRITTEN | _crc(
                {**{n: rows[n][:usable] for n in ROWS}, "index": rows["index"]}
            ):
                self._put("steps", int(step), np.zeros(1, np.uint64))
                wrong += 1
        self.close()
        return wrong

    def todo(self) -> np.ndarray:
        """Steps that have not been written: int64."""
        return np.flatnonzero(np.load(self.path / "steps.npy") == 0)

    def write(
        self, step: int, query: np.ndarray, key: np.ndarray, index: np.ndarray, boxes: np.ndarray
    ) -> None:
        """The rows of a step: ``query, key [b, D]``, ``index [b]`` of the usable images, ``boxes [b, 2, 4]``; b <= B.

        Raises:
            WorkFailed: the disk refuses.
        """
        start = step * self.batch
        full = min(self.batch, self.images - start)
        padded = np.full(full, -1, np.int64)
        padded[: len(index)] = index
        rows = {"query": query, "key": key, "index": padded, "boxes": boxes}
        arrays = {name: np.ascontiguousarray(rows[name], self._shapes[name][1]) for name in ROWS}
        for name, array in arrays.items():
            self._put(name, start, array)
        self._unmarked[step] = WRITTEN | _crc(arrays)

    def _put(self, name: str, row: int, values: np.ndarray) -> None:
        """Write rows by plain file writes: on a full disk these fail, where a memory map would kill the process."""
        try:
            if name not in self._files:
                descriptor = os.open(self.path / f"{name}.npy", os.O_RDWR)
                offset = np.load(self.path / f"{name}.npy", mmap_mode="r").offset
                shape, kind = self._shapes[name]
                self._files[name] = (
                    descriptor,
                    offset,
                    int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(kind).itemsize,
                )
            descriptor, offset, size = self._files[name]
            data = memoryview(np.ascontiguousarray(values, self._shapes[name][1]).tobytes())
            place = offset + row * size
            while len(data):
                done = os.pwrite(descriptor, data, place)
                data, place = data[done:], place + done
        except OSError as e:
            raise disk_problem(self.path / f"{name}.npy", e) from None

    def flush(self) -> None:
        """Have what was written on disk, and only then mark its steps as done. Raises ``WorkFailed``."""
        try:
            for descriptor, _, _ in self._files.values():
                os.fsync(descriptor)
        except OSError as e:
            raise disk_problem(self.path, e) from None
        for step, mark in self._unmarked.items():
            self._put("steps", step, np.array([mark], np.uint64))
        self._unmarked = {}

    def close(self) -> None:
        """Flush, and let go of the files."""
        self.flush()
        for descriptor, _, _ in self._files.values():
            os.close(descriptor)
        self._files = {}

    def finish(self) -> None:
        """Take out the rows of unusable images, and say that the features are whole. One process calls it."""
        if self.finished:
            return
        self.close()
        if self._damaged() or len(self.todo()):
            raise WorkFailed(f"{self.path} is not whole; go on with --resume")
        kept = int(np.count_nonzero(np.load(self.path / "index.npy", mmap_mode="r") >= 0))
        ending = "npy"
        if kept < self.images:
            self._compact(kept)
            ending = "npy.part"
        try:
            sums = {name: crc_of(self.path / f"{name}.{ending}") for name in ROWS}
        except OSError as e:
            raise disk_problem(self.path, e) from None
        self._write_facts(finished=True, kept=kept, files=sums)
        if not self._in_place(sums):
            raise WorkFailed(f"{self.path}: what was written is not what is there; go on with --resume")
        self._sound = True

    def _compact(self, kept: int) -> None:
        """Copies of the files without the rows of unusable images, beside them."""
        index = np.load(self.path / "index.npy", mmap_mode="r")
        try:
            for name in ROWS:
                old = np.load(self.path / f"{name}.npy", mmap_mode="r")
                with create(self.path / f"{name}.npy.part") as f:
                    descr = np.lib.format.dtype_to_descr(old.dtype)
                    header = {"descr": descr, "fortran_order": False, "shape": (kept, *old.shape[1:])}
                    np.lib.format.write_array_header_1_0(f, header)
                    for start in range(0, self.images, CHUNK):
                        chosen = np.asarray(index[start : start + CHUNK]) >= 0
                        f.write(np.ascontiguousarray(old[start : start + CHUNK][chosen]).tobytes())
        except OSError as e:
            raise disk_problem(self.path, e) from None

    # ---- reading -----------------------------------------------------------------------------------------------

    def read(self) -> Features:
        """The finished features. Raises ``WorkFailed`` when files were damaged."""
        kept = self._facts().get("kept")
        try:
            if not self.finished:
                raise ValueError("they are not whole, or damaged")
            arrays = {name: np.load(self.path / f"{name}.npy", mmap_mode="r") for name in ROWS}
            if any(len(a) != kept for a in arrays.values()):
                raise ValueError("rows are missing")
        except UNREADABLE as e:
            raise WorkFailed(
                f"cannot read the features in {self.path}: {e}; remove that folder and go on with --resume"
            ) from None
        return Features(**arrays, dims=self.dims)


def _crc(rows: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of a step's rows."""
    crc = 0
    for name in ROWS:
        crc = zlib.crc32(np.ascontiguousarray(rows[name]).tobytes(), crc)
    return crc
