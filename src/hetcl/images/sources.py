"""The ``DATA`` argument: a folder of images, tar shards or the built-in scenes, as a ``types.Source``.

::

    photos/                     a folder at any depth; with train/, val/, test/ inside, those are the splits
    shards-{0000..0004}.tar     shard files: one, a brace pattern, a glob, or several joined by commas
    shards/                     a folder that holds only shards; train-*.tar, val-*.tar (or folders) are the splits
    s3://bucket/x-{00..99}.tar  remote shards, copied to local disk: all of them, or as many as fit, in turn
    scenes:1000                 generated images (``scenes.py``)
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from braceexpand import braceexpand

from hetcl.errors import InputError
from hetcl.images import remote, scenes
from hetcl.images.folder import Folder
from hetcl.images.formats import EXTENSIONS, SYSTEM_FOLDERS, Aside, ending, is_image
from hetcl.images.listing import is_predicted, walk
from hetcl.images.shard_splits import Shards
from hetcl.images.splits import SPLITS
from hetcl.images.tables import cache_folder
from hetcl.paths import expand, spellings
from hetcl.types import Source

log = logging.getLogger(__name__)

_ARCHIVES = (".zip", ".rar", ".7z", ".gz", ".tgz", ".bz2", ".tbz", ".xz", ".txz", ".zst")
_PACKED_TARS = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4", ".tbz", ".txz")
_DEPTH = 3
"""Levels of folders in which shards are looked for."""
_HELP = "DATA is a folder of images, tar shards (x-{0000..0004}.tar or their folder) or scenes:N"


def open_source(
    data: str,
    *,
    split: str = "train",
    folder_classes: bool = False,
    cache: Path | None = None,
    cache_bytes: int | None = None,
    window: int = 0,
    strict: bool = False,
) -> Source:
    """Open the images that ``data`` names. What was taken for what is logged.

    Args:
        data: see the module's docstring.
        split: ``train``; ``val`` or ``test`` for the held-out images; ``all`` for everything, splits put aside.
        folder_classes: take the sub-folders of a folder of images for classes.
        cache: folder for listings, indexes and copies of remote shards; None for the usual one.
        cache_bytes: bytes that copies of remote shards may take; None for what is free there, less a margin.
        window: within how many images they will be mixed, where not all remote shards fit; 0 leaves it to the
            source (``Source.prefers_window``).
        strict: refuse class folders that look like splits, domains or folds, instead of warning.

    Raises:
        InputError: nothing usable there; the message says what was found and what to do.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}: it is one of {', '.join(SPLITS)}")
    place = _find(
        os.fspath(data),
        cache,
        split=split,
        folder_classes=folder_classes,
        room=(cache_bytes, window),
        strict=strict,
    )
    source = place.open(split)
    for level, line in place.words(split):
        log.log(level, "%s", line)
    if source is None:
        there = ", ".join(place.splits) or "none"
        raise InputError(
            f"{data} has no split {split} (it has: {there}): a folder has it in {split}/, a folder of shards in "
            f"{split}-*.tar; name the folder or shards to read, or set data_split to all"
        )
    return source


def open_held_out(
    data: str,
    *,
    splits: Sequence[str] = ("val",),
    folder_classes: bool = False,
    cache: Path | None = None,
    cache_bytes: int | None = None,
    window: int = 0,
) -> dict[str, Source]:
    """The held-out images of ``data``: those of ``splits`` (``val``, ``test``) that it has, by name.

    They are ``val/`` beside ``train/``, ``val-*.tar`` beside ``train-*.tar``, or scenes of another key (``val``).
    Classes have the training images' numbers.

    Raises:
        InputError: as ``open_source``.
    """
    place = _find(os.fspath(data), cache, folder_classes=folder_classes, room=(cache_bytes, window))
    there = [split for split in splits if split in place.splits]
    return {split: source for split in there if (source := place.open(split)) is not None}


def open_validation(data: str, **options: Any) -> Source | None:
    """The validation images of ``data``, or None when it has none; options and faults as ``open_held_out``."""
    return open_held_out(data, **options).get("val")


class _Place(Protocol):
    """What a ``DATA`` names."""

    @property
    def splits(self) -> Mapping[str, int]:
        """The splits that there are, and how many images or shards each has; empty where there are none."""
        ...

    def open(self, split: str) -> Source | None:
        """The images of a split, None where there are none; ``train`` is everything where there are no splits."""
        ...

    def words(self, split: str) -> list[tuple[int, str]]:
        """What was taken for what, once ``split`` is open: lines with their levels of ``logging``."""
        ...


class _Scenes:
    """The built-in scenes."""

    def __init__(self, data: str) -> None:
        self.data = data
        self.splits = {"train": 0, "val": 0}

    def open(self, split: str) -> Source | None:
        if split == "test":
            return None
        return scenes.scenes_source(self.data, validation=split == "val")

    def words(self, split: str) -> list[tuple[int, str]]:
        return []


def _find(
    data: str,
    cache: Path | None,
    *,
    split: str = "",
    folder_classes: bool = False,
    room: tuple[int | None, int] = (None, 0),
    strict: bool = False,
) -> _Place:
    """What ``data`` names."""
    if not data.strip():
        raise InputError(f"DATA is empty: {_HELP}")
    if data.startswith("scenes:"):
        return _Scenes(data)
    data = _local(data)
    cache, whole = cache_folder(cache), split == "all"
    if "://" in data:
        files = [url for part in re.split(r",(?=\w+://)", data) for url in braces(part)]
        root, kind = None, ending(files[0].split("?", 1)[0])
        if kind in _ARCHIVES:
            raise InputError(
                f"{files[0]} is packed, which is not read from afar: fetch and unpack it, name the folder"
            )
        if len(files) == 1 and kind != ".tar":
            root, files = files[0], remote.list_shards(files[0])
        return Shards(data, files, root, cache, room, whole=whole)
    path = _existing(data) or _existing(data.strip())
    if path is not None and os.path.isdir(path):
        shards = _shards_below(path)
        if not shards:
            return Folder(path, cache, whole=whole, folder_classes=folder_classes, strict=strict)
        return Shards(path, shards, path, cache, room, whole=whole)
    if path is not None:
        return Shards(path, [_one_file(path)], None, cache, room)
    files = [_one_file(file) for file in _patterns(data)]
    # A glob names what is there, as a folder does; braces and lists name what is wanted.
    there = glob.has_magic(data) and len(_parts(data)) == 1 and next(braces(data)) == data
    root = os.path.dirname(expand(data).split("*")[0].split("?")[0].split("[")[0]) if there else None
    return Shards(data, files, root, cache, room, whole=whole)


def _one_file(path: str) -> str:
    """The path of a file that may be a shard. Raises ``InputError`` when its name says that it is something else."""
    here = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise InputError(
            f"{path} is one of several, and a folder: name it alone, or a folder with links to all"
        )
    if is_image(path):
        raise InputError(f"{path} is a single image: name the folder that holds it ({here})")
    if ending(path) in (".txt", ".csv", ".tsv", ".json", ".jsonl", ".lst", ".xml", ".yaml", ".yml"):
        raise InputError(
            f"{path} is a list, which is not read: {_HELP}. Name the folder of its images (a folder of links, "
            "if it names some of them only)"
        )
    advice = Aside({ending(path): (1, path)}).advice()
    if advice and ending(path) not in _ARCHIVES:  # those are looked into: the content says what unpacks it
        raise InputError(f"{path} is no folder and no tar shard; {advice}")
    return path


def _shards_below(path: str) -> list[str]:
    """The tars of a folder of shards: of one that holds tars, itself or in folders below, and no images."""
    tars: list[str] = []
    seen: set[tuple[int, int]] = set()
    level = [path]
    for _ in range(_DEPTH):
        below: list[str] = []
        for folder in level:
            images = _look(folder, seen, tars, below)
            if images and not tars:
                return []
        level = below
    if tars and next(walk(path), None) is not None:
        log.warning(
            "%s holds images and tars: the tars are left aside (name them with a pattern to use them)", path
        )
        return []
    return sorted(tars, key=os.fsencode)


def _look(folder: str, seen: set[tuple[int, int]], tars: list[str], below: list[str]) -> bool:
    """Whether a folder holds images; its tars and its folders are added to the lists. Each folder is read once."""
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return False
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS:
                    continue
                kind = ending(entry.name)
                if kind in (".tar", ".tgz") or entry.name.lower().endswith(_PACKED_TARS):
                    tars.append(entry.path)
                elif kind in EXTENSIONS:
                    if not tars:
                        return True
                else:
                    with contextlib.suppress(OSError):  # a link that leads in a circle
                        below += [entry.path] if entry.is_dir() else []
    except OSError as error:
        raise InputError(f"cannot read the folder {folder} ({error.strerror}): make it readable") from error
    return False


def absolute_data(data: str) -> str:
    """``data`` as someone in another folder would have to name it."""
    data = _local(data)
    if "://" in data or data.startswith("scenes:"):
        return data
    path = _existing(data)
    if path is not None:
        return os.path.abspath(path)
    return ",".join(os.path.abspath(expand(part)) for part in _parts(data))


def _local(data: str) -> str:
    """A ``file:`` address as a path (``%20`` is a space); anything else as it is."""
    path = data.removeprefix("file://")
    return path if path == data or os.path.exists(path) else unquote(path)


def _existing(data: str) -> str | None:
    """The file or folder that ``data`` names, maybe as another system spells it; None for patterns."""
    return next((path for path in spellings(expand(data)) if os.path.exists(path)), None)


def braces(pattern: str) -> Iterator[str]:
    """Expand ``{0000..0004}``, ``{a,b}`` and their combinations, as a shell does."""
    try:
        yield from braceexpand(pattern, escape=False)
    except ValueError:  # a brace without its partner
        yield pattern


def _parts(data: str) -> list[str]:
    """``a.tar,b.tar`` taken apart at commas outside of braces."""
    return [part.strip() for part in re.split(r",(?![^{}]*\})", data) if part.strip()]


def _patterns(data: str) -> Iterator[str]:
    """Existing files for a brace pattern, a glob or a list of them. Raises InputError when one is missing."""
    for part in map(expand, _parts(data)):
        names = list(braces(part))
        there = [name for name in names if os.path.exists(name)]
        if len(there) == len(names):
            yield from there
        elif len(names) > 1 and there:
            missing = next(name for name in names if not os.path.exists(name))
            raise InputError(
                f"{part}: {len(names) - len(there)} of {len(names)} shards are missing, first {missing}: "
                "correct the range, or fetch them"
            )
        elif len(names) > 1:
            raise InputError(f"{part} matches no file ({names[0]} is not there){near(names[0])}")
        elif glob.has_magic(part):
            found = sorted(glob.glob(part, recursive=True), key=os.fsencode)
            if not found and is_image(part):
                raise InputError(
                    f"{part} matches no file: name the folder of the images, {os.path.dirname(part)}"
                )
            if not found:
                raise InputError(f"{part} matches no file{near(part)}")
            yield from found
        else:
            raise InputError(f"{part} does not exist{near(part)}")


def near(path: str, otherwise: str = f": {_HELP}") -> str:
    """The end of a message: names like the one that is missing; where there are none, what ``DATA`` may be."""
    folder, base = os.path.split(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder, base = os.path.split(folder)
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        names = []
    like = difflib.get_close_matches(base, names, n=3, cutoff=0.6)
    if like:
        return ": did you mean " + " or ".join(os.path.join(folder, name) for name in like) + "?"
    return otherwise


def what_else(path: str) -> str:
    """What lies where a run of hetcl was looked for and not found, and what to do with it; or nothing."""
    folder = Path(expand(path))
    beside = (
        [folder] if folder.suffix == ".npy" else sorted(folder.glob("*.npy"))[:1] if folder.is_dir() else []
    )
    if any(p.with_suffix(".csv").is_file() and p.with_suffix(".json").is_file() for p in beside):
        return (
            f"{path} holds features that hetcl embed wrote, no run: docs/embed.md says what to do with them"
        )
    if is_predicted(folder):
        return (
            f"{path} holds what hetcl predict found, no run: look at {folder / 'drawn'}, or name the run that made it "
            "(`info` in its predictions.json)"
        )
    if folder.suffix == ".tar" or (folder.is_dir() and next(walk(str(folder)), None) is not None):
        return f"{path} is no run; for images of your own: hetcl doctor --data {shlex.quote(path)}"
    return ""
