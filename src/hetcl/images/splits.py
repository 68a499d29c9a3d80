"""Which folders and shards are for training, validation and testing, by their names (``split_words.py``).

One folder called ``train`` may be a class, so folders are splits only together: a training folder beside one for
validation, testing or without labels, of the same name otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import TypeVar

from hetcl.images.listing import Branch
from hetcl.images.split_words import (
    ASIDE,
    IMAGES,
    NEUTRAL,
    UNLABELLED,
    fold,
    is_map,
    says_only,
    speaks,
    split_of,
    words_of,
)

T = TypeVar("T")
SPLITS = ("train", "val", "test", "all")
"""What may be asked for; ``all`` is everything, splits put aside."""
_LOOKED_AT = 8
"""So many of the folders that are neither are held."""


@dataclass(frozen=True)
class Level:
    """The sub-folders of a folder that hold images, by what their names say."""

    splits: Mapping[str, list[Branch]]
    """The splits; empty where there are none."""
    maps: list[Branch]
    """Label maps beside images."""
    some: list[Branch]
    """A few of the others, those first that are named like a split but have no other split beside them."""
    named: int
    """How many are named so."""
    only: Branch | None
    """The one sub-folder, where the folder holds nothing else but maps."""


@lru_cache(maxsize=64)
def look(branch: Branch) -> Level:
    """Judge the sub-folders of a folder. Holds those that are named like splits or maps, and a few others."""
    groups: dict[tuple[str, ...], dict[str, list[Branch]]] = {}
    maps: list[Branch] = []
    plain: list[Branch] = []
    unsure: list[Branch] = []
    count, images = 0, False
    for child in branch.children():
        name = child.name
        spoken = speaks(name)
        split, others = split_of(name, weak=False) if spoken else (None, ())
        if spoken and is_map(name):
            maps.append(child)
        elif split is not None:
            groups.setdefault(others, {}).setdefault(split, []).append(child)
        elif spoken and split_of(name)[0]:
            unsure.append(child)
        else:
            images |= spoken and "".join(words_of(name)) in IMAGES
            count += 1
            plain += [child] if count <= _LOOKED_AT else []
    if count <= _LOOKED_AT and all(says_only(b.name, ASIDE) for b in plain):
        for child in unsure:
            split, others = split_of(child.name)
            groups.setdefault(others, {}).setdefault(str(split), []).append(child)
    else:
        count, plain = count + len(unsure), [*plain, *unsure][:_LOOKED_AT]
    found = _splits(groups, plain if count <= _LOOKED_AT else None)
    if not found and not images:
        count, plain, maps = count + len(maps), plain + maps, []
    taken = {id(b) for branches in found.values() for b in branches}
    named = [b for group in groups.values() for bs in group.values() for b in bs if id(b) not in taken]
    some = (named + [b for b in plain if id(b) not in taken])[:_LOOKED_AT]
    alone = len(taken) + len(named) + count == 1 and not branch.loose
    if alone:
        return Level({}, maps, some, len(named), [*some, *(b for bs in found.values() for b in bs)][0])
    return Level(found, maps, some, len(named), None)


def _splits(
    groups: Mapping[tuple[str, ...], dict[str, list[Branch]]], plain: list[Branch] | None
) -> dict[str, list[Branch]]:
    """The folders that are splits together; ``groups`` by what their names say besides, ``plain``: all others."""
    bare = groups.get((), {})
    whole = [group for group in groups.values() if "train" in group and len(group) > 1]
    if bare in whole:
        whole = [bare]
    elif not whole and plain is not None:
        others = plain + [b for key, group in groups.items() if key for bs in group.values() for b in bs]
        if "train" in bare and all(says_only(b.name, ASIDE) for b in others):
            whole = [bare]
        elif len(groups) == 1 and plain and _alike(next(iter(groups)), plain):  # data_large, val_large
            whole = [{**next(iter(groups.values())), "train": plain}]
        elif bare.keys() >= {"val", "test"} and not others:
            whole = [bare]
        elif not plain and _of_classes(groups):
            whole = list(groups.values())
    found: dict[str, list[Branch]] = {}
    for group in whole:
        for split, branches in group.items():
            found.setdefault(split, []).extend(branches)
    return _settled(found, lambda b: b.name)


def _of_classes(groups: Mapping[tuple[str, ...], dict[str, list[Branch]]]) -> bool:
    """Whether one split has folders of several names and another has a folder of none: cat_train, dog_train, test."""
    bare = groups.get((), {}).keys()
    named = {split for key, group in groups.items() if key for split in group}
    return len(groups) > 2 and len(named) == 1 and not named & bare and "train" in named | bare


def _alike(others: tuple[str, ...], plain: list[Branch]) -> bool:
    """Whether folders that are of no split say nothing but what those of splits say besides."""
    rest = {word for word in others if len(word) > 1}
    return all(words_of(b.name) and set(words_of(b.name)) - NEUTRAL == rest for b in plain)


def _settled(found: dict[str, list[T]], name: Callable[[T], str]) -> dict[str, list[T]]:
    """Splits in their order, each image in one: of train, trainval and val the first and the last; of dev and eval
    (without test) the first for validation, the second for testing."""
    train, val = found.get("train", []), found.get("val", [])
    if val:
        apart = [t for t in train if not _speaks_of("val", name(t))]
        found |= {"train": apart} if apart else {}
    last = [v for v in val if _speaks_of("eval", name(v))]
    if 0 < len(last) < len(val) and "test" not in found:
        found |= {"val": [v for v in val if v not in last], "test": last}
    return {split: found[split] for split in ("train", "val", "test", UNLABELLED, "") if split in found}


def _speaks_of(part: str, name: str) -> bool:
    """Whether a word of a split in a name has a part: ``val`` in ``trainval``, not in ``carnival``."""
    return any(part in word and split_of(word)[0] for word in words_of(name))


@dataclass(frozen=True)
class Layout:
    """Where the images of a folder lie."""

    base: Branch
    """The folder whose sub-folders are splits or classes."""
    splits: Mapping[str, list[Branch]]
    """The folders of each split; empty where there are none."""
    aside: list[Branch]
    """Folders that are not read: label maps, and what lies beside the splits."""
    inside: bool = False
    """The splits lie in the folders of the classes: ``CLASS/train``."""
    doubtful: list[Branch] = field(default_factory=list)
    """Folders that are named like splits and read like any other, and some of their neighbours."""


def layout_of(root: Branch) -> Layout:
    """Find the splits of a folder: right in it, below folders that hold nothing else, or in each class folder."""
    branch, aside = root, list[Branch]()
    while True:
        level = look(branch)
        aside += level.maps
        if level.only is None:
            break
        branch = level.only
    if level.splits:
        return Layout(branch, level.splits, aside + level.some)
    main = [b for b in level.some if not says_only(b.name, ASIDE)]
    if len(main) == 1 and len(level.some) < _LOOKED_AT and not branch.loose:
        below = layout_of(main[0])
        if below.splits:  # images/train beside docs/
            return replace(below, aside=[*aside, *(b for b in level.some if b is not main[0]), *below.aside])
    found = _inside(branch)
    if found and all(len(list(islice(inner(b)[0].children(), 2))) > 1 for b in found["train"]):
        return Layout(branch, found, aside)  # several sets side by side, each with splits and classes
    return Layout(
        branch, found, aside, inside=bool(found), doubtful=level.some if level.named and not found else []
    )


def _inside(branch: Branch) -> dict[str, list[Branch]]:
    """The splits in each of the sub-folders, where all of them have no other sub-folders (but maps) than splits."""
    found: dict[str, list[Branch]] = {}
    for child in branch.children():
        if child.loose:
            return {}
        for inner in islice(child.children(), _LOOKED_AT):
            split, others = split_of(inner.name)
            if split is None or others:
                if is_map(inner.name):
                    continue
                return {}
            found.setdefault(split, []).append(inner)
    return found if "train" in found and len(found) > 1 else {}


def inner(branch: Branch, classes: Iterable[str] = ()) -> tuple[Branch, list[Branch]]:
    """The folder whose sub-folders are the classes: below folders that hold nothing but one other.

    Args:
        branch: the folder of a split, or all of the data.
        classes: names that are known to be classes: a folder of such a name is one.

    Returns:
        the folder, and the label maps in it and beside it.
    """
    known = {fold(name) for name in classes}
    level = look(branch)
    maps = level.maps
    while level.only is not None and fold(level.only.name) not in known:
        branch, level = level.only, look(level.only)
        maps = maps + level.maps
    return branch, maps


# ---- shards ------------------------------------------------------------------------------------------------------


def split_shards(names: Sequence[str]) -> dict[str, list[str]]:
    """Shards by split, where their names (or else the folders they lie in) speak of any; ``""``: of none.

    Args:
        names: paths relative to the folder of all shards.

    Returns:
        split to shards in their order. Without a split for training, shards of no split are the training ones.
    """
    found: dict[str, list[str]] = {}
    for weak in (True, False):
        found = {}
        for name in names:
            parts = [split_of(part, weak=weak)[0] for part in reversed(name.split("/"))]
            found.setdefault(next((part for part in parts if part), ""), []).append(name)
        if "" not in found:
            break
    if not found.keys() - {""} or found.keys() == {"", "train"}:  # train may be a class
        return {}
    if "train" not in found and "" in found:
        found["train"] = found.pop("")
    return _settled(found, lambda name: name)
