"""Features on disk: written once, a step at a time in any order, then read memory-mapped as often as one likes.

A folder for each thing that features are a function of (weights, features, views, size, data, seed). Each column is a
file ``NAME.npy`` with a row for each image; the column ``index`` (int64) says which image of the source it is.
``steps.npy`` says which steps have been written, with the CRC-32 of each; ``facts.json`` what it is and, at the end,
that it is whole, with the CRC-32 of each file. A process killed at any moment loses the steps since the last
:meth:`Store.flush`, no more. Whoever goes on with a folder compares it with its checksums once (3 GB a second of one
core), and computes again what is damaged. n images, B images of a step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from hetcl.errors import WorkFailed
from hetcl.paths import create
from hetcl.runs.files import crc_of, disk_problem, seal, unseal, write_atomic
from hetcl.trees import TreeError

log = logging.getLogger(__name__)

CHUNK = 8192
"""Rows copied at a time when rows of unusable images are taken out."""
UNREADABLE = (OSError, ValueError, TypeError, EOFError, SyntaxError, OverflowError)
"""What a damaged ``.npy`` file may raise."""
WRITTEN = 1 << 32
"""Marks a step that was written; the bits below are the CRC-32 of its rows."""


def plain(name: str) -> str:
    """``name`` as part of a file's name on any system."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")[:80]


class Store:
    """Columns of features, kept in a folder.

    Args:
        root: the folder of all of them.
        name: for people; the folder's name begins with it.
        key: everything that the features are a function of; its hash ends the folder's name.
        columns: type of a row of each, as ``numpy.dtype`` takes it: ``("float32", (2, 4))``. ``index`` is added.
        images: n, before unusable ones are taken out.
        batch: B.
    """

    def __init__(
        self, root: Path, name: str, key: Mapping[str, Any], columns: Mapping[str, Any], *, images: int, batch: int
    ) -> None:  # fmt: skip
        text = json.dumps(dict(key), sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        self.path = root / f"{plain(name)}-{digest}"
        self.key, self.images, self.batch = json.loads(text), images, batch
        self.columns = {name: np.dtype(kind) for name, kind in {**columns, "index": np.int64}.items()}
        self._files = self.columns | {"steps": np.dtype(np.uint64)}
        self._rows = dict.fromkeys(self.columns, images) | {"steps": -(-images // batch)}
        self._sound: bool | None = None
        self._open: dict[str, tuple[int, int]] = {}
        self._unmarked: dict[int, int] = {}

    @property
    def size(self) -> int:
        """Bytes that the finished folder takes on disk."""
        return sum(self._rows[name] * kind.itemsize for name, kind in self._files.items())

    @property
    def lost(self) -> int:
        """Images that could not be used, once the features are whole."""
        return self.images - int(self._facts().get("kept", self.images))

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
            for name in self.columns:
                file, part = self._file(name), self._file(name, "npy.part")
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
        facts = {"key": self.key, "batch": self.batch, "images": self.images, **more}
        write_atomic(self.path / "facts.json", seal(facts))

    def _file(self, name: str, ending: str = "npy") -> Path:
        return self.path / f"{name}.{ending}"

    def _array(self, name: str) -> np.ndarray:
        return np.load(self._file(name), mmap_mode="r")

    # ---- writing -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the files, or keep those of a pass that was stopped. One process calls it. Raises ``WorkFailed``."""
        facts = self._facts()
        if facts.get("batch") == self.batch and facts.get("kept") in (None, self.images) and self._whole():
            if n := self._damaged():
                log.warning("%d steps of the features in %s are damaged and are computed again", n, self.path)
            self._write_facts(finished=False)
            return
        if self.path.exists() and self._sound is None:
            log.warning(
                "what is in %s is of another batch, of another hetcl or damaged, and is computed again",
                self.path,
            )
        try:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
            for name, kind in self._files.items():
                with self._new(name, self._rows[name]) as f:
                    f.truncate(f.tell() + self._rows[name] * kind.itemsize)
        except OSError as e:
            raise disk_problem(self.path, e) from None
        self._write_facts(finished=False)

    @contextlib.contextmanager
    def _new(self, name: str, rows: int, ending: str = "npy") -> Iterator[IO[bytes]]:
        """A new file with the header of so many rows of a column. Raises ``OSError``."""
        kind = self._files[name]
        descr = np.lib.format.dtype_to_descr(kind.base)
        with create(self._file(name, ending)) as f:
            shape = (rows, *kind.shape)
            np.lib.format.write_array_header_1_0(f, {"descr": descr, "fortran_order": False, "shape": shape})
            yield f

    def _whole(self) -> bool:
        """Whether all files are there with the shapes of an unfinished pass."""
        try:
            return all(
                (array := self._array(name)).shape == (self._rows[name], *kind.shape)
                and array.dtype == kind.base
                and self._file(name).stat().st_size == array.offset + array.nbytes  # type: ignore[attr-defined]
                for name, kind in self._files.items()
            )
        except UNREADABLE:
            return False

    def _damaged(self) -> int:
        """Unmark the steps whose rows are no longer as they were written, and say how many. Raises ``WorkFailed``."""
        marks = np.load(self._file("steps"))
        arrays = {name: self._array(name) for name in self.columns}
        wrong = 0
        for step in np.flatnonzero(marks).tolist():
            rows = {n: a[step * self.batch : (step + 1) * self.batch] for n, a in arrays.items()}
            usable = int(np.count_nonzero(rows["index"] >= 0))
            rows = {n: r if n == "index" else r[:usable] for n, r in rows.items()}
            if int(marks[step]) != WRITTEN | _crc(rows):
                self._put("steps", step, np.zeros(1, np.uint64))
                wrong += 1
        self.close()
        return wrong

    def todo(self) -> np.ndarray:
        """Steps that have not been written: int64."""
        return np.flatnonzero(np.load(self._file("steps")) == 0)

    def write(self, step: int, **rows: np.ndarray) -> None:
        """The rows of a step: ``[b, ...]`` of each column, of the b <= B images that can be used.

        Raises:
            WorkFailed: the disk refuses.
        """
        start = step * self.batch
        padded = np.full(min(self.batch, self.images - start), -1, np.int64)
        padded[: len(rows["index"])] = rows["index"]
        whole = {**rows, "index": padded}
        arrays = {n: np.ascontiguousarray(whole[n], kind.base) for n, kind in self.columns.items()}
        for name, array in arrays.items():
            self._put(name, start, array)
        self._unmarked[step] = WRITTEN | _crc(arrays)

    def _put(self, name: str, row: int, values: np.ndarray) -> None:
        """Write rows by plain file writes: on a full disk these fail, where a memory map would kill the process."""
        try:
            if name not in self._open:
                offset = self._array(name).offset  # type: ignore[attr-defined]
                self._open[name] = os.open(self._file(name), os.O_RDWR), offset
            descriptor, offset = self._open[name]
            data, place = memoryview(values.tobytes()), offset + row * self._files[name].itemsize
            while len(data):
                done = os.pwrite(descriptor, data, place)
                data, place = data[done:], place + done
        except OSError as e:
            raise disk_problem(self._file(name), e) from None

    def flush(self) -> None:
        """Have what was written on disk, and only then mark its steps as done. Raises ``WorkFailed``."""
        try:
            for descriptor, _ in self._open.values():
                os.fsync(descriptor)
        except OSError as e:
            raise disk_problem(self.path, e) from None
        for step, mark in self._unmarked.items():
            self._put("steps", step, np.array([mark], np.uint64))
        self._unmarked = {}

    def close(self) -> None:
        """Flush, and let go of the files."""
        self.flush()
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open = {}

    def finish(self) -> None:
        """Take out the rows of unusable images, and say that the features are whole. One process calls it."""
        if self.finished:
            return
        self.close()
        if self._damaged() or len(self.todo()):
            raise WorkFailed(f"{self.path} is not whole; go on with --resume")
        kept = int(np.count_nonzero(self._array("index") >= 0))
        ending = "npy" if kept == self.images else "npy.part"
        try:
            if kept < self.images:
                self._compact(kept)
            sums = {name: crc_of(self._file(name, ending)) for name in self.columns}
        except OSError as e:
            raise disk_problem(self.path, e) from None
        self._write_facts(finished=True, kept=kept, files=sums)
        if not self._in_place(sums):
            raise WorkFailed(f"{self.path}: what was written is not what is there; go on with --resume")
        self._sound = True

    def _compact(self, kept: int) -> None:
        """Copies of the files without the rows of unusable images, beside them. Raises ``OSError``."""
        index = self._array("index")
        for name in self.columns:
            old = self._array(name)
            with self._new(name, kept, "npy.part") as f:
                for start in range(0, self.images, CHUNK):
                    chosen = np.asarray(index[start : start + CHUNK]) >= 0
                    f.write(np.ascontiguousarray(old[start : start + CHUNK][chosen]).tobytes())

    # ---- reading -----------------------------------------------------------------------------------------------

    def read(self) -> dict[str, np.ndarray]:
        """The finished columns, memory-mapped: reading them costs no memory of the process.

        Raises:
            WorkFailed: they are damaged.
        """
        kept = self._facts().get("kept")
        try:
            if not self.finished:
                raise ValueError("they are not whole, or damaged")
            arrays = {name: self._array(name) for name in self.columns}
            if any(len(a) != kept for a in arrays.values()):
                raise ValueError("rows are missing")
        except UNREADABLE as e:
            raise WorkFailed(
                f"cannot read the features in {self.path}: {e}; remove that folder and go on with --resume"
            ) from None
        return arrays


def _crc(rows: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of a step's rows."""
    crc = 0
    for name in rows:
        crc = zlib.crc32(np.ascontiguousarray(rows[name]).tobytes(), crc)
    return crc
