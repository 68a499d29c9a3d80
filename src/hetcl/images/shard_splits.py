"""Several tar shards with their splits and classes: which of them a split has, and how they are opened."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from hetcl.images import remote
from hetcl.images.folder import OVERRIDE
from hetcl.images.labels import class_names
from hetcl.images.shard_index import prepare
from hetcl.images.shards import ShardSource
from hetcl.images.split_words import UNLABELLED
from hetcl.images.splits import split_shards
from hetcl.images.tables import TableFile
from hetcl.types import Source


class Shards:
    """Shard files found for a ``DATA``: paths or addresses, and which of them are of which split.

    Args:
        name: what to call them.
        files: their paths or addresses, below ``root`` where that is given.
        root: the folder or address of all of them, whose splits count; None: they were named one by one.
        cache: folder for the index and for copies.
        room: bytes for copies, and the window (``open_source``).
        whole: put splits aside.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[str],
        root: str | None,
        cache: Path,
        room: tuple[int | None, int],
        *,
        whole: bool = False,
    ) -> None:
        self.name, self.root, self.cache, self.room = name, root, cache, room
        self.files, again = _once(files)
        relative = [self._below(file) for file in self.files]
        parts = {} if whole or root is None else split_shards(relative)
        place = dict(zip(relative, self.files, strict=True))
        self.parts = {split: [place[name] for name in names] for split, names in parts.items()}
        self.splits = {split: len(files) for split, files in self.parts.items() if split}
        if len(self.splits) < 2:  # all shards are of one split
            self.parts, self.splits = {}, {}
        self._said: list[tuple[int, str]] = [(logging.WARNING, f"{name}: {line}") for line in again]

    def open(self, split: str) -> Source | None:
        if not self.parts:
            return self._source(self.files) if split in ("train", "all") else None
        if split not in self.parts:
            return None
        if split == "train":
            wanted = {*self.parts["train"], *self.parts.get(UNLABELLED, [])}
            return self._source([file for file in self.files if file in wanted])
        like = None
        if "train" in self.parts:
            like = prepare(self.parts["train"], self.cache, cache_bytes=self.room[0], window=self.room[1])[0]
        return self._source(self.parts[split], like)

    def _source(self, files: Sequence[str], like: TableFile | None = None) -> Source:
        """The source over ``files``; ``like``: the training images, whose classes it has."""
        table, copies, window = prepare(files, self.cache, cache_bytes=self.room[0], window=self.room[1])
        self._said += [(level, line) for level, line in table.meta["stated"]]
        names = self._names(files[0])
        if names is None and like is not None and (like.meta["classes"] or 0) >= (table.meta["classes"] or 0):
            names = tuple(str(i) for i in range(like.meta["classes"] or 0)) or None
        return ShardSource(table, name=self.name, classes=names, copies=copies, window=window)

    def _below(self, file: str) -> str:
        """The path or address of a shard below the folder of all."""
        tail = (self.root or "").rpartition("://")[2].strip("/")
        return (file.partition(tail)[2] if tail and tail in file else file).lstrip("/")

    def _names(self, first: str) -> tuple[str, ...] | None:
        """Class names out of ``classes.json`` or ``classes.txt`` beside the shards, or in their common folder."""
        folders = dict.fromkeys([first.rpartition("/")[0], (self.root or "").rstrip("/")])
        for folder in folders if self.root else [first.rpartition("/")[0]]:
            for name in ("classes.json", "classes.txt"):
                beside = f"{folder}/{name}" if folder else name
                text = remote.fetch_text(beside) if "://" in first else _bytes(beside)
                if text is not None:
                    return class_names(text, beside)
        return None

    def words(self, split: str) -> list[tuple[int, str]]:
        lines = list(self._said)
        if self.parts:
            what = "; ".join(f"{name} is {self._shown(files)}" for name, files in self.parts.items() if name)
            read = " and ".join(
                [split, UNLABELLED] if split == "train" and UNLABELLED in self.parts else [split]
            )
            aside = self.parts.get("")
            rest = f"; of no split and left aside: {self._shown(aside)}" if aside else ""
            lines.insert(
                0, (logging.INFO, f"{self.name} has splits: {what}{rest}. Read here: {read} ({OVERRIDE})")
            )
        elif split == "train" and len(spoken := split_shards(self.files)) > 1:
            what = ", ".join(f"{len(files)} of {name or 'no split'}" for name, files in spoken.items())
            lines.insert(
                0, (logging.INFO, f"{self.name}: shards {what} were named, and all of them are read")
            )
        return lines

    def _shown(self, files: Sequence[str]) -> str:
        first = self._below(files[0])
        return first if len(files) == 1 else f"{first} ... ({len(files)} shards)"


def _once(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Shards without those that are another one by a link or were named twice, and a line on these."""
    found: dict[object, str] = {}
    again: list[tuple[str, str]] = []
    for file in files:
        key: object = file
        if "://" not in file:
            with contextlib.suppress(OSError):  # said where it is read
                status = os.stat(file)
                key = status.st_dev, status.st_ino
        if key in found:
            again.append((file, found[key]))
        else:
            found[key] = file
    lines = [f"{file} is the same file as {first}" for file, first in again[:1]]
    more = f" (and {len(again) - 1:,} more are)" if len(again) > 1 else ""
    return list(found.values()), [f"{line}{more}: each is read once" for line in lines]


def _bytes(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None
