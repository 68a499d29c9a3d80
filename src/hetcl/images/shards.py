"""Tar shards in the webdataset convention (``KEY.jpg``, ``KEY.cls``, ``KEY.json``), read at random by their index."""

from __future__ import annotations

import functools
import logging
import os
from typing import IO, Any

import numpy as np

from hetcl.errors import InputError, WorkFailed
from hetcl.images.copies import Copies
from hetcl.images.decode import MAX_BYTES, too_large
from hetcl.images.labels import plausible
from hetcl.images.remote import Shard, TransferError
from hetcl.images.tables import TableFile
from hetcl.images.tars import BLOCK
from hetcl.types import BadImage, Sample

log = logging.getLogger(__name__)


class ShardSource:
    """Images of tar shards (``types.Source``).

    Args:
        table: the index of the shards.
        name: what to call them in the description.
        classes: names of the classes; ``None`` names them by number where the images have labels.
        copies: where remote shards are read; None when there are none.
        window: mix images within windows of that many, since not all shards fit on the disk; 0 when they do.

    Raises:
        InputError: a label beyond the given names.
    """

    def __init__(
        self,
        table: TableFile,
        *,
        name: str,
        classes: tuple[str, ...] | None = None,
        copies: Copies | None = None,
        window: int = 0,
    ) -> None:
        self.table = table
        self.copies = copies
        self.prefers_window = window
        self.fingerprint: str = table.meta["fingerprint"]
        count = table.meta["classes"]
        strange = bool(count) and classes is None and not plausible(count, len(self))
        if count is None or strange:
            self.classes: tuple[str, ...] | None = None
        elif classes is None:
            self.classes = tuple(str(i) for i in range(count))
        elif len(classes) < count:
            raise InputError(
                f"{name}: an image has the label {count - 1}, but there are only {len(classes)} class names "
                "(labels count from 0)"
            )
        else:
            self.classes = classes
        self.why_no_labels = "no image has a label beside it that can be read" + (
            f"; there is the label {count - 1:,} among {len(self):,} images, which is no class number (from 0 on)"
            if strange
            else f"; folders in a tar, such as {table.meta['folder']}/, are no classes: unpack it for that"
            if table.meta.get("folder")
            else ""
        )
        self.unlabelled: int = table.meta.get("unlabelled", 0)
        what = f" in {table.meta.get('present', count)} classes" if self.classes else ""
        what += f" ({self.unlabelled:,} without a label)" if self.unlabelled else ""
        shards, images = table.length("shard"), f"{len(self):,} image{'s'[: len(self) != 1]}"
        self.description = f"{images}{what} in {shards:,} shard{'s'[: shards != 1]} of {name}"
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
        return self.table.length("image")

    def sample(self, index: int) -> Sample:
        """The image at ``index``, whose shard is fetched when it is remote and not here.

        Raises:
            BadImage: it cannot be read.
            WorkFailed: its shard cannot be fetched.
        """
        offset, size, shard, label = self.table["image"][index].item()
        if size > MAX_BYTES:
            raise BadImage(too_large(size))
        # The header before the data carries the name: one read for both.
        block = self._block(shard, size + BLOCK, offset - BLOCK)
        known = self.classes is not None and label >= 0
        return Sample(block[BLOCK:], label if known else None, self._named(shard, block))

    def name(self, index: int) -> str:
        """Shard and member, read from the header alone (of a remote shard that is not here it is fetched). Raises as
        ``sample``."""
        offset, _, shard, _ = self.table["image"][index].item()
        return self._named(shard, self._block(shard, BLOCK, offset - BLOCK))

    def _named(self, shard: int, header: bytes) -> str:
        member = header[:100].split(b"\0", 1)[0].decode("utf-8", "replace")
        return f"{os.path.basename(os.fsdecode(self.table.string('shard', shard)))}/{member}"

    def _block(self, shard: int, size: int, offset: int) -> bytes:
        """So many bytes of a shard. Raises as ``sample``."""
        try:
            block = self._read(shard, size, offset)
        except OSError as error:
            raise BadImage(f"the shard cannot be read: {error.strerror}") from error
        except TransferError as error:
            raise WorkFailed(
                f"{error}. What was saved is kept; --resume goes on from it once the shards can be had again"
            ) from error
        if len(block) < size:
            raise BadImage("the shard has become shorter since it was indexed")
        return block

    def _read(self, shard: int, size: int, offset: int) -> bytes:
        try:
            # Kept until the read is over: another thread may make room for another file.
            file = self._file(shard)
        except FileNotFoundError:
            if self.copies is None:
                raise
            # Not kept open: a removed copy takes up the disk as long as it is.
            with self.copies.open(self._shard(shard)) as passing:
                return _pread(passing.fileno(), size, offset)
        return _pread(file.fileno(), size, offset)

    def _shard(self, shard: int) -> Shard:
        path, url = (os.fsdecode(self.table.string(column, shard)) for column in ("shard", "url"))
        return Shard(path, url, int(self.table["bytes"][shard]))

    def label(self, index: int) -> int | None:
        """The label alone, from the index."""
        label = int(self.table["image"][index]["label"]) if self.classes else -1
        return label if label >= 0 else None

    def blocks(self) -> np.ndarray | None:
        """First image of each shard, int64 ``[shards]``."""
        return np.array(self.table["start"], np.int64)


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
