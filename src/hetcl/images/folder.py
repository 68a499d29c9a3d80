"""A folder of pictures at any depth: the listing, kept in a memory-mapped table, and the source on top of it.

Order: the pictures of a folder by name, then its sub-folders by name, each the same way (names compared as
bytes, so that no locale or file system changes it). Hidden files and folders are left out; links are
followed, loops are not.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hetcl.errors import InputError
from hetcl.images.tables import Table, TableError, TableWriter, strings
from hetcl.types import BadPicture, Sample

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "avif", "tga"),
    )
)
"""Names that end so (in any case) are taken for pictures."""

_SETTLED_S = 2.0
"""A folder that changed so few seconds before it was listed may change again within its clock's tick."""
_OLD_S = 7 * 24 * 3600
_KINDS_SHOWN = 5


def is_picture(name: str) -> bool:
    """Whether a file's name ends like a picture's."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


@dataclass
class Walk:
    """What was met on a walk besides the pictures themselves."""

    others: Counter[str] = field(default_factory=Counter)
    """Extensions of files that are no pictures, and how many."""
    folder: Callable[[bytes, int], None] = lambda path, mtime: None
    """Called with each folder's path and its mtime (ns), as it was before the folder was read."""


def walk(root: str, found: Walk | None = None) -> Iterator[bytes]:
    """Paths of the pictures below ``root``, relative to it, in the order of the module's docstring.

    Holds the names of one folder (and the sub-folders still to come) at a time.

    Raises:
        InputError: a folder cannot be read.
    """
    found = found or Walk()
    yield from _walk(os.fsencode(root), b"", frozenset(), found)


def _walk(root: bytes, inside: bytes, above: frozenset[tuple[int, int]], found: Walk) -> Iterator[bytes]:
    path = os.path.join(root, inside) if inside else root
    try:
        status = os.stat(path)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        found.folder(inside, status.st_mtime_ns)
        pictures, folders = _entries(path, found)
    except OSError as error:
        raise InputError(
            f"cannot read the folder {os.fsdecode(path)} ({error.strerror}): make it readable, "
            "or move it out of the data"
        ) from error
    prefix = inside + b"/" if inside else b""
    for name in pictures:
        yield prefix + name
    del pictures
    for name in folders:
        yield from _walk(root, prefix + name, above | {here}, found)


def _entries(path: bytes, found: Walk) -> tuple[list[bytes], list[bytes]]:
    """Names of the pictures and of the sub-folders of one folder, each sorted."""
    pictures: list[bytes] = []
    folders: list[bytes] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            try:
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file():
                    kind = os.path.splitext(entry.name)[1].lower().decode("ascii", "replace")
                    if kind in EXTENSIONS:
                        pictures.append(entry.name)
                    elif kind in found.others or len(found.others) < 1000:
                        found.others[kind] += 1
            except OSError:  # a link that leads in a circle
                continue
    return sorted(pictures), sorted(folders)


def kinds(others: Counter[str]) -> str:
    """A few words on what was found instead of pictures."""
    if not others:
        return "it holds no files"
    ordered = sorted(others.items(), key=lambda item: (-item[1], item[0] == "", item[0]))
    shown = [f"{count} x {kind or 'no extension'}" for kind, count in ordered[:_KINDS_SHOWN]]
    return "found " + ", ".join(shown) + (" ..." if len(others) > _KINDS_SHOWN else "")


def listing(root: str, cache: Path) -> Table:
    """The table of the pictures below ``root``: from the cache, or listed anew when a folder has changed.

    Two files: ``folder-KEY-FINGERPRINT.table`` holds the paths; ``folder-KEY.seen`` every folder with its
    time of change. A file added, removed or renamed changes its folder's time, so looking at the folders is
    enough (a file overwritten under its own name keeps its place in the listing). Raises InputError when
    there are no pictures.
    """
    root = os.path.realpath(root)
    key = hashlib.blake2b(os.fsencode(root), digest_size=12).hexdigest()
    seen = cache / f"folder-{key}.seen"
    kept = _still_valid(root, seen)
    if kept is not None:
        return kept
    try:
        return _list(root, cache, key, seen)
    except OSError as error:
        raise InputError(
            f"cannot write the list of the pictures in {root} to {cache} ({error.strerror}): "
            "set HETCL_CACHE to a folder with room"
        ) from error


def _still_valid(root: str, seen: Path) -> Table | None:
    try:
        folders = Table(seen)
        table = Table(seen.parent / folders.meta["table"])
        times = folders["mtime"]
        for i, inside in enumerate(folders.strings("path")):
            mtime = os.stat(os.path.join(os.fsencode(root), inside)).st_mtime_ns
            if mtime != times[i] or folders.meta["listed_ns"] - mtime < _SETTLED_S * 1e9:
                return None
        return table
    except (TableError, OSError, KeyError):
        return None


def _list(root: str, cache: Path, key: str, seen: Path) -> Table:
    listed = time.time_ns()
    digest = hashlib.blake2b(digest_size=8)
    top: list[str] = []
    loose = 0
    with (
        TableWriter(cache / f"folder-{key}.table", strings("path")) as table,
        TableWriter(seen, {**strings("path"), "mtime": "<i8"}) as folders,
    ):

        def note(path: bytes, mtime: int) -> None:
            folders.string("path", path)
            folders.append("mtime", struct.pack("<q", mtime))

        found = Walk(folder=note)
        count = 0
        for count, path in enumerate(walk(root, found), 1):
            table.string("path", path)
            digest.update(path + b"\0")
            parent, slash, _ = path.partition(b"/")
            if not slash:
                loose += 1
            elif not top or top[-1] != os.fsdecode(parent):
                top.append(os.fsdecode(parent))
            if count % 1_000_000 == 0:
                log.info("%s: %d million pictures listed so far", root, count // 1_000_000)
        if not count:
            raise InputError(
                f"no pictures in {root}: {kinds(found.others)}; a picture's name ends in .jpg, .png, .webp, "
                ".bmp, .gif, .tif or .ppm, and shards in .tar"
            )
        table.meta.update(fingerprint=digest.hexdigest(), top=top, loose=loose)
        written = table.finish(cache / f"folder-{key}-{digest.hexdigest()}.table")
        folders.meta.update(table=written.name, listed_ns=listed)
        folders.finish()
    _forget_old(cache, f"folder-{key}-*.table", keep=written)
    return Table(written)


def _forget_old(cache: Path, pattern: str, keep: Path) -> None:
    """Remove listings of earlier states of the same folder, a week after they were made."""
    for path in cache.glob(pattern):
        try:
            if path != keep and time.time() - path.stat().st_mtime > _OLD_S:
                path.unlink()
        except OSError:
            continue


class FolderSource:
    """Pictures of a folder (``types.Source``).

    Args:
        root: the folder.
        table: its listing.
        classes: names of the classes, which are the folder's own sub-folders; None for no labels.
    """

    prefers_window = 0

    def __init__(self, root: str, table: Table, *, classes: tuple[str, ...] | None = None) -> None:
        self.root = os.path.realpath(root)
        self.table = table
        self.classes = classes
        self.fingerprint: str = table.meta["fingerprint"]
        self._number = {os.fsencode(name): i for i, name in enumerate(classes)} if classes else {}
        self._root = os.fsencode(self.root)
        what = f" in {len(classes)} classes" if classes else ""
        self.description = f"{len(self):,} picture{'s'[: len(self) != 1]}{what} in the folder {root}"

    def __len__(self) -> int:
        return self.table.length("path")

    def path(self, index: int) -> bytes:
        """Path of the picture, relative to the folder."""
        return self.table.string("path", index)

    def sample(self, index: int) -> Sample:
        """The file at ``index``. Raises BadPicture when it cannot be read."""
        inside = self.path(index)
        try:
            descriptor = os.open(os.path.join(self._root, inside), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            with open(descriptor, "rb", buffering=0) as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise BadPicture("no longer a plain file")
                data = file.read()
        except OSError as error:
            raise BadPicture(f"cannot be read: {error.strerror}") from error
        return Sample(data=data, label=self._label(inside), name=os.fsdecode(inside))

    def label(self, index: int) -> int | None:
        """The class of the picture: the number of the sub-folder it lies in."""
        return self._label(self.path(index)) if self.classes else None

    def _label(self, inside: bytes) -> int | None:
        return self._number.get(inside.partition(b"/")[0]) if self.classes else None

    def blocks(self) -> np.ndarray | None:
        """None: files are read one by one."""
        return None


def folder_source(
    root: str, cache: Path, *, folder_classes: bool = False, classes: tuple[str, ...] | None = None
) -> FolderSource:
    """Open a folder of pictures.

    Args:
        root: an existing folder.
        cache: folder for the listing.
        folder_classes: take the sub-folders for classes.
        classes: the classes of another split, whose numbers are to be used.

    Raises:
        InputError: no pictures; or classes asked for and pictures lie outside of class folders.
    """
    table = listing(root, cache)
    if not folder_classes:
        return FolderSource(root, table)
    top, loose = table.meta["top"], table.meta["loose"]
    if loose:
        raise InputError(
            f"classes from sub-folders were asked for, but {loose:,} pictures lie in {root} itself: "
            "move each into the folder of its class, or do not ask for folder classes"
        )
    unknown = sorted(set(top) - set(classes)) if classes is not None else []
    if unknown:
        raise InputError(
            f"{root} has the class folder {unknown[0]!r}, which the training pictures do not have"
        )
    return FolderSource(root, table, classes=tuple(top) if classes is None else classes)
