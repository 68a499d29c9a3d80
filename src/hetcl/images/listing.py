"""What images a folder holds, at any depth: the listing, kept in a memory-mapped table, and the tree of its folders.

Order: the images of a folder by name, then its sub-folders by name, each the same way (names compared as
bytes, so that no locale or file system changes it). Hidden files and folders are left out, and so are folders that
``hetcl predict`` wrote; links are followed, loops are not. What is no image is counted by kind (``formats.py``).
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hetcl.errors import InputError
from hetcl.images.formats import (
    BROKEN,
    EXTENSIONS,
    HEAD,
    NOTES,
    OTHERS,
    PREDICTED,
    SPECIAL,
    SYSTEM,
    SYSTEM_FOLDERS,
    Aside,
    looks_like_image,
)
from hetcl.images.tables import TableError, TableFile, TableWriter, strings

log = logging.getLogger(__name__)

_SETTLED_S = 2.0
"""A folder that changed so few seconds before it was listed may change again within its clock's tick."""
_OLD_S = 7 * 24 * 3600
_TRIED = 16
"""Files of one unknown ending in one folder whose content is looked at; if they differ, all are."""
_VERSION = 6
"""Version of the listing; it rises when other files are taken for images, or other things are noted of them."""


@dataclass
class Walk:
    """What was met on a walk besides the images themselves."""

    aside: Aside = field(default_factory=Aside)
    """Files that are no images."""
    hidden: int = 0
    """Hidden files and folders."""
    twice: int = 0
    """Links that lead to something else below the root: it is met twice."""
    example: str = ""
    """One of them, and what it leads to."""
    out: int = 0
    """Links that lead out of the root."""
    out_example: str = ""
    """One of them, and what it leads to."""
    folder: Callable[[bytes, int], None] = lambda path, mtime: None
    """Called with each folder's path and its mtime (ns), as it was before the folder was read."""


def walk(root: str, found: Walk | None = None) -> Iterator[bytes]:
    """Paths of the images below ``root``, relative to it, in the order of the module's docstring.

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
        if inside and is_predicted(path):
            found.aside.add(PREDICTED, os.fsdecode(inside))
            return
        images, folders = _entries(root, inside, found)
    except OSError as error:
        raise InputError(
            f"cannot read the folder {os.fsdecode(path)} ({error.strerror}): make it readable, "
            "or move it out of the data"
        ) from error
    prefix = inside + b"/" if inside else b""
    for name in images:
        yield prefix + name
    del images
    for name in folders:
        yield from _walk(root, prefix + name, above | {here}, found)


def is_predicted(folder: str | bytes | os.PathLike[str]) -> bool:
    """Whether ``hetcl predict`` wrote a folder: its drawings and label maps are no photographs."""
    path = os.fsencode(folder)
    return os.path.isfile(os.path.join(path, b"predictions.json")) and any(
        os.path.isdir(os.path.join(path, name)) for name in (b"drawn", b"label_maps")
    )


def _entries(root: bytes, inside: bytes, found: Walk) -> tuple[list[bytes], list[bytes]]:
    """Names of the images and of the sub-folders of one folder, each sorted."""
    path = os.path.join(root, inside) if inside else root
    images: list[bytes] = []
    folders: list[bytes] = []
    unsure: dict[str, list[bytes]] = {}

    def aside(kind: str, name: bytes, count: int = 1) -> None:
        found.aside.add(kind, os.fsdecode(os.path.join(inside, name)), count)

    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                found.hidden += 1
                continue
            try:
                if entry.is_symlink():
                    _note_link(root, inside, name, found)
                if entry.is_dir():
                    if name.lower().decode("ascii", "replace") not in SYSTEM_FOLDERS:
                        folders.append(name)
                elif not entry.is_file():
                    aside(BROKEN if entry.is_symlink() else SPECIAL, name)
                else:
                    kind = os.path.splitext(name)[1].lower().decode("ascii", "replace")
                    if kind in EXTENSIONS:
                        images.append(name)
                    elif kind not in OTHERS and name.lower().decode("ascii", "replace") not in NOTES:
                        unsure.setdefault(kind, []).append(name)
                    elif name.lower().decode("ascii", "replace") not in SYSTEM:
                        aside(kind, name)
            except OSError:  # a link that leads in a circle
                aside(BROKEN, name)
    for kind, names in unsure.items():
        good = _images_among(path, sorted(names))
        images += good
        if len(good) < len(names):
            aside(kind, min(set(names) - set(good)), len(names) - len(good))
    return sorted(images), sorted(folders)


def _note_link(root: bytes, inside: bytes, name: bytes, found: Walk) -> None:
    """Count a link that leads out of the root, or to something that lies below the root by itself, and not above the
    link, where it makes a circle."""
    place = os.path.join(root, inside)
    target = os.path.normpath(os.path.join(place, os.readlink(os.path.join(place, name))))
    if (place + b"/").startswith(target + b"/") or not os.path.exists(target):
        return
    link = os.fsdecode(os.path.relpath(os.path.join(place, name), root))
    if not target.startswith(root + b"/"):
        found.out += 1
        found.out_example = found.out_example or f"{link} -> {os.fsdecode(target)}"
    else:
        found.twice += 1
        found.example = found.example or f"{link} -> {os.fsdecode(os.path.relpath(target, root))}"


def _images_among(path: bytes, names: list[bytes]) -> list[bytes]:
    """Those of the files whose content is an image's; where some of them are alike, the others are taken to be so."""

    def is_one(name: bytes) -> bool:
        try:
            with open(os.path.join(path, name), "rb", buffering=0) as file:
                return looks_like_image(file.read(HEAD))
        except OSError:
            return False

    tried = [is_one(name) for name in names[:: -(-len(names) // _TRIED)]]
    if len(names) > _TRIED and (all(tried) or not any(tried)):
        return names if tried[0] else []
    return [name for name in names if is_one(name)]


def listing(root: str, cache: Path) -> TableFile:
    """The table of the images below ``root``: from the cache, or listed anew when a folder has changed.

    Two files: ``folder-KEY-FINGERPRINT.table`` holds the paths (``path``) and, of every folder with images in itself,
    its path (``folder``), its first image (``first``) and a hash of their names (``digest``);
    ``folder-KEY.seen`` holds every folder with its time of change. A file added, removed or renamed changes its
    folder's time, so looking at the folders is enough (a file overwritten under its own name keeps its place in the
    listing).

    Raises:
        InputError: there are no images, or the table cannot be written.
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
            f"cannot write the list of the images in {root} to {cache} ({error.strerror}): "
            "set HETCL_CACHE to a folder with room"
        ) from error


def _rules() -> str:
    """Which files are taken for images: a listing made by other rules is made again."""
    return f"{_VERSION} {' '.join(sorted(EXTENSIONS))}"


def _still_valid(root: str, seen: Path) -> TableFile | None:
    try:
        folders = TableFile(seen)
        table = TableFile(seen.parent / folders.meta["table"])
        times = folders["mtime"]
        # What a link points to may have come since, which changes no folder here.
        if folders.meta.get("rules") != _rules() or BROKEN in table.meta["aside"]:
            return None
        for i, inside in enumerate(folders.strings("path")):
            mtime = os.stat(os.path.join(os.fsencode(root), inside)).st_mtime_ns
            if mtime != times[i] or folders.meta["listed_ns"] - mtime < _SETTLED_S * 1e9:
                return None
        return table
    except (TableError, OSError, KeyError):
        return None


def _list(root: str, cache: Path, key: str, seen: Path) -> TableFile:
    listed = time.time_ns()
    digest = hashlib.blake2b(digest_size=8)
    columns = {**strings("path"), **strings("folder"), "first": "<i8", "digest": "<u8"}
    with (
        TableWriter(cache / f"folder-{key}.table", columns) as table,
        TableWriter(seen, {**strings("path"), "mtime": "<i8"}) as folders,
    ):

        def note(path: bytes, mtime: int) -> None:
            folders.string("path", path)
            folders.append("mtime", struct.pack("<q", mtime))

        found = Walk(folder=note)
        count, here, names = 0, None, hashlib.blake2b(digest_size=8)
        for count, path in enumerate(walk(root, found), 1):
            table.string("path", path)
            digest.update(path + b"\0")
            parent, _, name = path.rpartition(b"/")
            if parent != here:
                if here is not None:
                    table.append("digest", names.digest())
                here, names = parent, hashlib.blake2b(digest_size=8)
                table.string("folder", parent)
                table.append("first", struct.pack("<q", count - 1))
            names.update(name + b"\0")
            if count % 1_000_000 == 0:
                log.info("%s: %d million images listed so far", root, count // 1_000_000)
        if not count:
            raise InputError(_nothing(root, found))
        table.append("digest", names.digest())
        table.meta.update(fingerprint=digest.hexdigest(), aside=found.aside.found)
        table.meta.update(twice=found.twice, link=found.example, out=found.out, out_link=found.out_example)
        written = table.finish(cache / f"folder-{key}-{digest.hexdigest()}.table")
        folders.meta.update(table=written.name, listed_ns=listed, rules=_rules())
        folders.finish()
    _forget_old(cache, f"folder-{key}-*.table", keep=written)
    return TableFile(written)


def _nothing(root: str, found: Walk) -> str:
    """What to say of a folder without images."""
    hidden = f" and {found.hidden} hidden, which are not read" if found.hidden else ""
    what = f"found {found.aside.words()}{hidden}" if found.aside.found else f"it holds no files{hidden}"
    advice = found.aside.advice() or (
        "an image's name ends in .jpg, .png, .webp, .bmp, .gif, .tif or .ppm, and shards in .tar"
    )
    return f"no images in {root}: {what}; {advice}"


def _forget_old(cache: Path, pattern: str, keep: Path) -> None:
    """Remove listings of earlier states of the same folder, a week after they were made."""
    for path in cache.glob(pattern):
        try:
            if path != keep and time.time() - path.stat().st_mtime > _OLD_S:
                path.unlink()
        except OSError:
            continue


@dataclass(frozen=True)
class Branch:
    """A folder of a listing with all below it: its images and those folders lie side by side in the table."""

    table: TableFile = field(repr=False)
    path: bytes
    """Relative to the root of the listing; empty for the root itself."""
    low: int
    high: int
    """Rows ``[low, high)`` of ``folder``: itself, where it has images of its own, and the folders below."""

    @classmethod
    def root(cls, table: TableFile) -> Branch:
        """The whole listing."""
        return cls(table, b"", 0, table.length("folder"))

    @property
    def name(self) -> str:
        """The folder's own name."""
        return os.fsdecode(self.path.rpartition(b"/")[2])

    @property
    def shown(self) -> str:
        """The folder's path for messages, with a slash at its end."""
        return os.fsdecode(self.path) + "/"

    @property
    def start(self) -> int:
        """The first of its images, as a row of the listing."""
        return self._first(self.low)

    @property
    def stop(self) -> int:
        """Behind the last of its images."""
        return self._first(self.high)

    @property
    def images(self) -> int:
        """How many images it holds at any depth."""
        return self.stop - self.start

    @property
    def loose(self) -> int:
        """How many images lie in the folder itself."""
        own = self.low < self.high and self.table.string("folder", self.low) == self.path
        return self._first(self.low + 1) - self.start if own else 0

    def children(self) -> Iterator[Branch]:
        """Its sub-folders that hold images, in order."""
        row = self.low + (self.loose > 0)
        prefix = self.path + b"/" if self.path else b""
        while row < self.high:
            name = self.table.string("folder", row)[len(prefix) :].partition(b"/")[0]
            child = Branch(self.table, prefix + name, row, self._end(row, prefix + name))
            yield child
            row = child.high

    def _end(self, row: int, path: bytes) -> int:
        """The row behind the last folder of ``path``, which begins at ``row``: in steps that double, then by halves."""

        def inside(at: int) -> bool:
            folder = self.table.string("folder", at)
            return folder == path or folder.startswith(path + b"/")

        low, step = row, 1
        while low + step < self.high and inside(low + step):
            low, step = low + step, 2 * step
        high = min(low + step, self.high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if inside(middle) else (low, middle)
        return high

    def _first(self, row: int) -> int:
        first = self.table["first"]
        return int(first[row]) if row < len(first) else self.table.length("path")
