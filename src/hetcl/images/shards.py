"""Tar shards in the webdataset convention (``KEY.jpg``, ``KEY.cls``, ``KEY.json``), read at random.

Each shard's headers are read once (``tars.py``); a table keeps 20 bytes a picture: where it lies, its size,
its shard and its label.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from hetcl.errors import InputError
from hetcl.images.labels import LabelReader
from hetcl.images.tables import Table, TableError, TableWriter, strings
from hetcl.images.tars import BLOCK, entries
from hetcl.types import BadPicture, Sample

log = logging.getLogger(__name__)

RECORD = np.dtype([("offset", "<u8"), ("size", "<u4"), ("shard", "<u4"), ("label", "<i4")])
"""One picture in the index: 20 bytes. ``label`` is -1 where there is none."""


def index(paths: Sequence[str], cache: Path) -> Table:
    """The table of the pictures in ``paths``: from the cache, or made.

    The cache is keyed by the shards' paths, sizes and times of change.

    Raises:
        InputError: a shard is missing or unusable, or there are no pictures in any of them.
    """
    key = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise InputError(
                f"cannot read the shard {path} ({error.strerror}): check the path and rights"
            ) from error
        key.update(
            f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(
                "utf-8", "surrogateescape"
            )
        )
    place = cache / f"shards-{key.hexdigest()}.table"
    try:
        return Table(place)
    except TableError:
        pass
    try:
        return _index(paths, place)
    except OSError as error:
        raise InputError(
            f"cannot write the index of {len(paths)} shards to {cache} ({error.strerror}): "
            "set HETCL_CACHE to a folder with room"
        ) from error


def _index(paths: Sequence[str], place: Path) -> Table:
    digest = hashlib.blake2b(digest_size=8)
    label = LabelReader()
    columns = {"picture": RECORD, "start": np.dtype("<i8"), **strings("shard")}
    count, unlabelled, largest = 0, 0, -1
    record = np.zeros(1, RECORD)
    with TableWriter(place, columns) as table:
        for number, path in enumerate(paths):
            start = count
            for entry in entries(path, label):
                if entry.size >= 1 << 32:
                    raise InputError(
                        f"{entry.key} in {path} has {entry.size:,} bytes; a picture has less than 4 GiB"
                    )
                record[0] = (entry.offset, entry.size, number, entry.label)
                table.append("picture", record.tobytes())
                digest.update(f"{entry.key}\0{entry.size}\0".encode("utf-8", "surrogateescape"))
                unlabelled += entry.label < 0
                largest = max(largest, entry.label)
                count += 1
            table.string("shard", os.fsencode(os.path.abspath(path)))
            if count > start:
                table.append("start", np.int64(start).tobytes())
            else:
                log.warning("%s holds no pictures", path)
            if (number + 1) % 100 == 0:
                log.info("%d of %d shards indexed, %s pictures", number + 1, len(paths), f"{count:,}")
        if not count:
            raise InputError(
                f"no pictures in {paths[0]} (of {len(paths)} shards): name the members KEY.jpg "
                "(or .png, .webp ...) and KEY.cls"
            )
        if label.complaint or 0 < unlabelled < count:
            why = label.complaint or f"{unlabelled:,} of {count:,} pictures have none"
            log.warning("the labels of %s are left aside: %s", os.path.dirname(paths[0]) or ".", why)
        labelled = not unlabelled
        table.meta.update(fingerprint=digest.hexdigest(), classes=largest + 1 if labelled else None)
        return Table(table.finish())


class ShardSource:
    """Pictures of tar shards (``types.Source``).

    Args:
        table: the index of the shards.
        name: what to call them in the description.
        classes: names of the classes; ``None`` names them by number where the pictures have labels.

    Raises:
        InputError: a label beyond the given names.
    """

    def __init__(self, table: Table, *, name: str, classes: tuple[str, ...] | None = None) -> None:
        self.table = table
        self.name = name
        self.fingerprint: str = table.meta["fingerprint"]
        count = table.meta["classes"]
        if count is None:
            self.classes: tuple[str, ...] | None = None
        elif classes is None:
            self.classes = tuple(str(i) for i in range(count))
        elif len(classes) < count:
            raise InputError(
                f"{name}: a picture has the label {count - 1}, but there are only {len(classes)} class names"
            )
        else:
            self.classes = classes
        what = f" in {len(self.classes)} classes" if self.classes else ""
        shards, pictures = table.length("shard"), f"{len(self):,} picture{'s'[: len(self) != 1]}"
        self.description = f"{pictures}{what} in {shards:,} shard{'s'[: shards != 1]} of {name}"
        self._prepare()

    def _prepare(self) -> None:
        # Files are let go by dropping the last reference, so that a read in another thread is never cut off.
        self._file = functools.lru_cache(maxsize=64)(self._open_shard)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def _open_shard(self, shard: int) -> IO[bytes]:
        return open(self.table.string("shard", shard), "rb", buffering=0)

    def __len__(self) -> int:
        return self.table.length("picture")

    def sample(self, index: int) -> Sample:
        """The picture at ``index``. Raises BadPicture when it cannot be read."""
        offset, size, shard, label = self.table["picture"][index].item()
        try:
            file = self._file(
                shard
            )  # kept until the read is over: another thread may make room for another file
            # The header before the data carries the name: one read for both.
            block = _pread(file.fileno(), size + BLOCK, offset - BLOCK)
        except OSError as error:
            raise BadPicture(f"the shard cannot be read: {error.strerror}") from error
        if len(block) < size + BLOCK:
            raise BadPicture("the shard has become shorter since it was indexed")
        member = block[:100].split(b"\0", 1)[0].decode("utf-8", "replace")
        shard_name = os.path.basename(os.fsdecode(self.table.string("shard", shard)))
        return Sample(block[BLOCK:], label if self.classes else None, f"{shard_name}/{member}")

    def label(self, index: int) -> int | None:
        """The label alone, from the index."""
        return int(self.table["picture"][index]["label"]) if self.classes else None

    def blocks(self) -> np.ndarray | None:
        """First picture of each shard, int64 ``[shards]``."""
        return np.array(self.table["start"], np.int64)


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
