"""The ``DATA`` argument: a folder of pictures, tar shards or the built-in scenes, as a ``types.Source``.

::

    photos/                     a folder at any depth; with train/ and val/ inside, those are the splits
    shards-{0000..0004}.tar     shard files: one, a brace pattern, a glob, or several joined by commas
    shards/                     a folder that holds only shards; train-*.tar and val-*.tar are the splits
    s3://bucket/x-{00..99}.tar  remote shards, copied to local disk: all of them, or as many as fit, in turn
    scenes:1000                 generated pictures (``scenes.py``)
"""

from __future__ import annotations

import difflib
import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hetcl.errors import InputError
from hetcl.images import remote, scenes
from hetcl.images.folder import folder_source, is_picture, walk
from hetcl.images.labels import class_names
from hetcl.images.shards import ShardSource, prepare
from hetcl.images.tables import cache_folder
from hetcl.types import Source

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "all")
_VAL_FOLDERS = ("val", "valid", "validation")
_TRAIN = re.compile(r"(^|[^a-z])(train|training)([^a-z]|$)")
_VAL = re.compile(r"(^|[^a-z])(val|valid|validation|dev)([^a-z]|$)")
_TEST = re.compile(r"(^|[^a-z])(test|testing)([^a-z]|$)")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_HELP = "DATA is a folder of pictures, tar shards (x-{0000..0004}.tar or their folder) or scenes:N"


def open_source(
    data: str,
    *,
    split: str = "train",
    folder_classes: bool = False,
    cache: Path | None = None,
    cache_bytes: int | None = None,
    window: int = 0,
) -> Source:
    """Open the pictures that ``data`` names.

    Args:
        data: see the module's docstring.
        split: ``train``; ``val`` for the held-out pictures; ``all`` for everything, splits put aside.
        folder_classes: take the sub-folders of a folder of pictures for classes.
        cache: folder for listings, indexes and copies of remote shards; None for the usual one.
        cache_bytes: bytes that copies of remote shards may take; None for what is free there, less a margin.
        window: within how many pictures they will be mixed, where not all remote shards fit; 0 leaves it to the
            source (``Source.prefers_window``).

    Raises:
        InputError: nothing usable there; the message says what was found and what to do.
    """
    data = os.fspath(data)
    if split not in SPLITS:
        raise InputError(f"split {split!r}: it is one of {', '.join(SPLITS)}")
    if split == "val":
        held = open_validation(
            data, folder_classes=folder_classes, cache=cache, cache_bytes=cache_bytes, window=window
        )
        if held is None:
            raise InputError(
                f"{data} has no held-out pictures: a folder has them in val/, a folder of shards in val-*.tar"
            )
        return held
    if data.startswith("scenes:"):
        return scenes.scenes_source(data)
    cache = cache_folder(cache)
    place = _find(data)
    if isinstance(place, str):
        root = place if split == "all" else _split_folder(place)[0]
        if root != place:
            return open_source(root, split="all", folder_classes=folder_classes, cache=cache)
        return folder_source(root, cache, folder_classes=folder_classes)
    train = place.train or place.files
    return place.open(place.files if split == "all" else train, cache, cache_bytes, window)


def open_validation(
    data: str,
    *,
    folder_classes: bool = False,
    cache: Path | None = None,
    cache_bytes: int | None = None,
    window: int = 0,
) -> Source | None:
    """The held-out pictures of ``data``, or None when it has none.

    They are ``val/`` beside ``train/``, ``val-*.tar`` beside ``train-*.tar``, or scenes of another key.
    Classes have the training pictures' numbers.

    Raises:
        InputError: as ``open_source``.
    """
    data = os.fspath(data)
    if data.startswith("scenes:"):
        return scenes.scenes_source(data, validation=True)
    cache = cache_folder(cache)
    place = _find(data)
    if isinstance(place, str):
        train, held = _split_folder(place)
        if held is None:
            return None
        inner = _find(held)
        if isinstance(inner, str):
            classes = None
            if folder_classes:
                classes = open_source(data, folder_classes=True, cache=cache).classes
            return folder_source(held, cache, folder_classes=folder_classes, classes=classes)
        return inner.open(inner.files, cache, train=open_source(train, split="all", cache=cache).classes)
    if not place.train or not place.held:
        return None
    train_classes = place.open(place.train, cache, cache_bytes, window).classes
    return place.open(place.held, cache, cache_bytes, window, train=train_classes)


class _Shards:
    """Shard files found for a ``DATA``: paths or addresses, and which of them are for training."""

    def __init__(self, name: str, files: Sequence[str], *, splits: bool) -> None:
        self.name = name
        self.files = list(files)
        self.train: list[str] = []
        self.held: list[str] = []
        if splits:
            self.train, self.held = _split_shards(self.files)

    def open(
        self,
        files: Sequence[str],
        cache: Path,
        cache_bytes: int | None = None,
        window: int = 0,
        *,
        train: tuple[str, ...] | None = None,
    ) -> Source:
        """The source over ``files``; ``train``: classes to fall back on when no classes.json names them."""
        table, copies, window = prepare(files, cache, cache_bytes=cache_bytes, window=window)
        names = self._names(files[0])
        if names is None and train is not None and len(train) >= (table.meta["classes"] or 0):
            names = train
        return ShardSource(table, name=self.name, classes=names, copies=copies, window=window)

    def _names(self, first: str) -> tuple[str, ...] | None:
        beside = first.rpartition("/")[0] + "/classes.json" if "/" in first else "classes.json"
        if "://" in first:
            text = remote.fetch_text(beside)
        else:
            try:
                text = Path(beside).read_bytes()
            except OSError:
                return None
        return None if text is None else class_names(text, beside)


def _find(data: str) -> str | _Shards:
    """What ``data`` names: an existing folder of pictures (its path), or shards."""
    if not data.strip():
        raise InputError(f"DATA is empty: {_HELP}")
    if data.startswith("file://"):
        data = data.removeprefix("file://")
    if "://" in data:
        files = [url for part in re.split(r",(?=\w+://)", data) for url in braces(part)]
        if len(files) == 1 and not files[0].split("?", 1)[0].endswith(".tar"):
            return _Shards(data, remote.list_shards(files[0]), splits=True)
        return _Shards(data, files, splits=False)
    path = os.path.expanduser(data)
    if os.path.isdir(path):
        return _folder_or_shards(path)
    if os.path.exists(path):
        return _one_file(path)
    return _Shards(data, list(_patterns(path)), splits=False)


def _one_file(path: str) -> _Shards:
    if is_picture(path):
        raise InputError(
            f"{path} is a single picture: name the folder that holds it ({os.path.dirname(path) or '.'})"
        )
    return _Shards(path, [path], splits=False)


def _folder_or_shards(path: str) -> str | _Shards:
    """A folder is one of shards when it holds tars and no pictures, itself or below."""
    tars, packed, other = [], [], False
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(".tar"):
                    tars.append(entry.path)
                elif re.search(r"\.(tgz|tar\.\w+)$", entry.name.lower()):
                    packed.append(entry.path)
                elif not other:
                    other = is_picture(entry.name) or os.path.isdir(entry.path)
    except OSError as error:
        raise InputError(f"cannot read the folder {path} ({error.strerror}): make it readable") from error
    if not (tars or packed):
        return path
    if other and next(walk(path), None) is not None:
        log.warning(
            "%s holds pictures and tars: the tars are left aside (name them with a pattern to use them)", path
        )
        return path
    return _Shards(path, sorted(tars + packed, key=os.fsencode), splits=True)


def _split_folder(root: str) -> tuple[str, str | None]:
    """(folder of the training pictures, folder of the held-out ones or None)."""
    train = os.path.join(root, "train")
    if os.path.isdir(train):
        for name in _VAL_FOLDERS:
            held = os.path.join(root, name)
            if os.path.isdir(held):
                return train, held
    return root, None


def _split_shards(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """(training shards, held-out shards) by their names; no training shards when the names tell nothing."""

    def named(pattern: re.Pattern[str]) -> list[str]:
        return [f for f in files if pattern.search(f.rpartition("/")[2].lower())]

    held = named(_VAL) or named(_TEST)
    aside = {*named(_VAL), *named(_TEST)}
    train = named(_TRAIN) or [f for f in files if f not in aside]
    return (train, held) if aside or named(_TRAIN) else ([], [])


def braces(pattern: str) -> Iterator[str]:
    """Expand ``{0000..0004}`` (padded as written, either direction) and ``{a,b}``, as a shell does."""
    match = re.search(r"\{([^{}]*(?:\.\.|,)[^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    before, inside, after = pattern[: match.start()], match[1], pattern[match.end() :]
    numbers = _RANGE.fullmatch(inside)
    choices: Iterator[str] | list[str]
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = max(len(numbers[1]), len(numbers[2])) if "0" in (numbers[1][:1], numbers[2][:1]) else 0
        step = 1 if last >= first else -1
        choices = (str(i).zfill(width) for i in range(first, last + step, step))
    elif "," in inside:
        choices = inside.split(",")
    else:
        yield pattern
        return
    for choice in choices:
        yield from braces(before + choice + after)


def _parts(data: str) -> list[str]:
    """``a.tar,b.tar`` taken apart at commas outside of braces."""
    return [part.strip() for part in re.split(r",(?![^{}]*\})", data) if part.strip()]


def _patterns(data: str) -> Iterator[str]:
    """Existing files for a brace pattern, a glob or a list of them. Raises InputError when one is missing."""
    for part in _parts(data):
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
            raise InputError(f"{part} matches no file ({names[0]} is not there){_near(names[0])}")
        elif glob.has_magic(part):
            found = sorted(glob.glob(part), key=os.fsencode)
            if not found:
                raise InputError(f"{part} matches no file{_near(part)}")
            yield from found
        else:
            raise InputError(f"{part} does not exist{_near(part)}")


def _near(path: str) -> str:
    """The end of a message: names like the one that is missing, or what ``DATA`` may be."""
    folder, base = os.path.split(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder, base = os.path.split(folder)
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        names = []
    near = difflib.get_close_matches(base, names, n=3, cutoff=0.6)
    if near:
        return ": did you mean " + " or ".join(os.path.join(folder, name) for name in near) + "?"
    return f": {_HELP}"
