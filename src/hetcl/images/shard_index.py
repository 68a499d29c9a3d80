"""The index of tar shards: each shard's headers are read once (``tars.py``), and a table keeps 20 bytes an image.

Where it lies, its size, its shard and its label. Remote shards are read from local copies (``copies.py``).
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hetcl.errors import InputError
from hetcl.images.copies import Copies, announce, settle, window_of
from hetcl.images.formats import EXTENSIONS, images, left_aside
from hetcl.images.labels import LabelReader
from hetcl.images.locks import locked
from hetcl.images.remote import Shard, TransferError, locate
from hetcl.images.splits import split_shards
from hetcl.images.tables import TableError, TableFile, TableWriter, strings
from hetcl.images.tars import TarEntry, TarRest, entries

log = logging.getLogger(__name__)

RECORD = np.dtype([("offset", "<u8"), ("size", "<u4"), ("shard", "<u4"), ("label", "<i4")])
"""One image in the index: 20 bytes. ``label`` is -1 where there is none."""


_SAY_EVERY = 30
"""Seconds between lines about an index that takes long."""


def prepare(
    files: Sequence[str], cache: Path, *, cache_bytes: int | None = None, window: int = 0
) -> tuple[TableFile, Copies | None, int]:
    """Everything a :class:`ShardSource` needs for local and remote shards.

    Args:
        files: paths and addresses.
        cache: folder for the index and for copies of remote shards.
        cache_bytes: bytes that those may take; None for what is free, less a margin.
        window: within how many images they will be mixed where not all remote shards fit; 0 leaves it to the data.

    Returns:
        the index; the copies, where there are remote shards; the window, 0 where all of them fit.

    Raises:
        InputError: a shard is missing or unusable or cannot be fetched, there are no images in any of them, or the
            disk is too small for the shards of a window.
    """
    shards = locate(files, cache)
    if not any(shard.url for shard in shards):
        return index(shards, cache), None, 0
    copies = Copies(cache, cache_bytes)
    try:
        turns = settle(shards, copies, window)
    except TransferError as error:
        raise InputError(f"{error}: check the network and the disk, run the command again") from error
    table = index(shards, cache, copies)
    if not turns:
        return table, copies, 0
    images = table.length("image")
    window = window or window_of(shards, images)
    announce(copies, shards, images, window)
    return table, copies, window


def index(shards: Sequence[Shard], cache: Path, copies: Copies | None = None) -> TableFile:
    """The table of the images in ``shards``: from the cache, or made by one process while others wait.

    The cache is keyed by the paths, sizes and times of change of local shards, and by the addresses and states of
    remote ones.

    Args:
        shards: local ones, and remote ones.
        cache: where the table is kept.
        copies: where remote shards are read, each once; None when there are none.

    Raises:
        InputError: a shard is missing or unusable, or there are no images in any of them.
    """
    key = hashlib.blake2b(f"4 {sorted(EXTENSIONS)}".encode(), digest_size=16)
    for shard in shards:
        key.update(_stamp(shard).encode("utf-8", "surrogateescape"))
    place = cache / f"shards-{key.hexdigest()}.table"
    try:
        return TableFile(place)
    except TableError:
        pass
    try:
        with locked(place.with_suffix(".lock")):
            try:
                return TableFile(place)  # another process was first
            except TableError:
                return _index(shards, place, copies or Copies(cache))
    except OSError as error:
        raise InputError(
            f"cannot write the index of {len(shards)} shards to {cache} ({error.strerror}): "
            "set HETCL_CACHE to a folder with room"
        ) from error


def _stamp(shard: Shard) -> str:
    """What tells a shard from others and from itself before a change."""
    if shard.url:
        return f"{shard.url}\0{shard.name}\0"
    try:
        status = os.stat(shard.path)
    except OSError as error:
        raise InputError(
            f"cannot read the shard {shard.path} ({error.strerror}): check the path and rights"
        ) from error
    return f"{os.path.realpath(shard.path)}\0{status.st_size}\0{status.st_mtime_ns}\0"


def _index(shards: Sequence[Shard], place: Path, copies: Copies) -> TableFile:
    digest = hashlib.blake2b(digest_size=8)
    label = LabelReader()
    columns = {
        "image": RECORD,
        "start": np.dtype("<i8"),
        "bytes": np.dtype("<u8"),
        **strings("shard"),
        **strings("url"),
    }
    count, labelled, last_said = 0, 0, time.monotonic()
    numbers = np.zeros(0, np.int64)
    found = TarRest()
    with TableWriter(place, columns) as table:
        for number, shard in enumerate(shards):
            start, name = count, shard.url or shard.path
            rows = bytearray()
            for entry in _entries(shard, copies, label, found):
                if entry.size >= 1 << 32:
                    raise InputError(
                        f"{entry.key} in {name} has {entry.size:,} bytes; an image has less than 4 GiB"
                    )
                rows += np.array((entry.offset, entry.size, number, entry.label), RECORD).tobytes()
                digest.update(f"{entry.key}\0{entry.size}\0".encode("utf-8", "surrogateescape"))
            records, again = merged(np.frombuffer(rows, RECORD), found)
            digest.update(b"%d again" % again if again else b"")
            table.append("image", records.tobytes())
            known = records["label"][records["label"] >= 0]
            labelled, count = labelled + len(known), count + len(records)
            numbers = np.union1d(numbers, known)
            table.string("shard", os.fsencode(os.path.abspath(shard.path)))
            table.string("url", os.fsencode(shard.url))
            table.append("bytes", np.uint64(shard.size).tobytes())
            if count > start:
                table.append("start", np.int64(start).tobytes())
            else:
                log.warning("%s holds no images", name)
            if time.monotonic() - last_said > _SAY_EVERY:
                log.info("%d of %d shards indexed, %s images", number + 1, len(shards), f"{count:,}")
                last_said = time.monotonic()
        first = shards[0].url or shards[0].path
        if not count:
            raise InputError(
                f"no images in {first} (of {len(shards)} shards)"
                + "".join(f": {line}" for _, line in _said("them", found, label, 0, 0, numbers)[:1])
                + ": name the members KEY.jpg (or .png, .webp ...) and KEY.cls"
            )
        table.meta.update(
            fingerprint=digest.hexdigest(),
            classes=int(numbers[-1]) + 1 if labelled else None,
            present=len(numbers),
            unlabelled=count - labelled if labelled else 0,
            folder=min(found.folders) if len(found.folders) > 1 else "",
            stated=_said(
                first if len(shards) == 1 else f"the shards of {os.path.dirname(first) or '.'}",
                found,
                label,
                count,
                labelled,
                numbers,
            ),
        )
        return TableFile(table.finish())


def merged(records: np.ndarray, found: TarRest) -> tuple[np.ndarray, int]:
    """The images of one shard with each once, though links repeat it: the first that has a label, else the first.

    Args:
        records: of dtype ``RECORD``, in the order of the shard.
        found: where images that are named again and labels that contradict each other are counted.

    Returns:
        the images, in the order of the names that are kept; how many names are not. An image with several labels
        has none.
    """
    order = np.lexsort((np.arange(len(records)), records["label"] < 0, records["offset"]))
    first = np.ones(len(records), bool)
    first[1:] = np.diff(records["offset"][order].astype(np.int64)) != 0
    if first.all():
        return records, 0
    records = records.copy()
    label = records["label"][order]
    kept = np.flatnonzero(first)[np.cumsum(first) - 1]
    contradicted = np.unique(kept[(label >= 0) & (label != label[kept])])
    records["label"][order[contradicted]] = -1
    again = len(records) - int(first.sum())
    found.again, found.contradicted = found.again + again, found.contradicted + len(contradicted)
    return records[np.sort(order[first])], again


def _said(
    name: str, found: TarRest, label: LabelReader, count: int, labelled: int, numbers: np.ndarray
) -> list[tuple[int, str]]:
    """What a person should know of shards, a line each with its level of ``logging``."""
    lines = []
    bare = count - labelled
    if found.lost.found:
        lines.append(
            (
                logging.WARNING,
                f"{found.lost.words()} in {name} cannot be read: links must lead to files in the same tar; pack the "
                "files themselves (tar --dereference --hard-dereference)",
            )
        )
    if found.again:
        more = f"; labels of {images(found.contradicted)} differ between its names, so it has none" * (
            found.contradicted > 0
        )
        lines.append(
            (
                logging.WARNING,
                f"{found.again:,} link{'s'[: found.again != 1]} in {name} to images that are there under another name "
                f"too: each image is read once, with its label{more}",
            )
        )
    if len(numbers) > 1 and numbers[0] == 1 and numbers[-1] == len(numbers):
        lines.append(
            (
                logging.WARNING,
                f"no image in {name} has the label 0, those there are go from 1 to {numbers[-1]}: if they were counted "
                "from 1, names in classes.json or classes.txt begin with one for class 0",
            )
        )
    if found.astray and bare:
        lines.append(
            (
                logging.WARNING,
                f"{found.astray:,} labels in {name} (e.g. {found.example}) do not stand beside their "
                "images and are not read: pack in the order of names (tar --sort=name -cf x.tar FOLDER)",
            )
        )
    elif bare and found.numbers and not labelled:
        lines.append(
            (
                logging.WARNING,
                f"no labels in {name}, but {found.numbers} holds a number: labels are read from "
                "KEY.cls (and .label, .lbl, .class, or .json with a field label); rename them",
            )
        )
    if label.complaint:
        lines.append(
            (
                logging.WARNING,
                f"labels in {name} that cannot be read: {label.complaint}; a label is a number from 0, and "
                "classes.json beside the shards may name the classes",
            )
        )
    if bare and labelled:
        lines.append(
            (
                logging.WARNING,
                f"without a label: {bare:,} of {count:,} images in {name}; they are trained on, but left out where "
                "labels are used",
            )
        )
    folders = split_shards(sorted(found.folders))
    if len(folders) > 1 and "train" in folders:
        lines.append(
            (
                logging.WARNING,
                f"folders named like splits in {name} ({', '.join(sorted(found.folders)[:4])}) "
                "are read as one set: unpack them, or pack a shard for each, to keep them apart",
            )
        )
    if aside := left_aside(name, found.aside):
        lines.append(aside)
    return lines


def _entries(shard: Shard, copies: Copies, label: LabelReader, found: TarRest) -> Iterator[TarEntry]:
    """The images of a shard; a remote one is fetched when it is not here, and stays as long as this lasts."""
    try:
        with copies.held(shard) as path:
            try:
                yield from entries(str(path), label, found)
            except InputError as error:
                raise InputError(str(error).replace(str(path), shard.url or shard.path)) from error
    except TransferError as error:
        raise InputError(f"{error}: check the network and the disk, run the command again") from error
