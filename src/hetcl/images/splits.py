"""Which folders and shards are for training, validation and testing, by their names.

A name is taken apart into words (``Train-Images_2017`` -> train, images); a split is a word of ``_WORDS`` among words
that say nothing (``_NEUTRAL``). One folder called ``train`` may be a class, so folders are splits only together: a
training folder beside one for validation, testing or without labels, of the same name otherwise.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice, pairwise
from typing import TypeVar

from hetcl.images.listing import Branch

T = TypeVar("T")
SPLITS = ("train", "val", "test", "all")
"""What may be asked for; ``all`` is everything, splits put aside."""
UNLABELLED = "unlabelled"
"""A fourth split that data may have: read for training, without labels."""

_WORDS: Mapping[str, str] = {
    word: split
    for split, words in {
        "train": "train training trn trainset trainingset trainval trainvalid trainvalidation traindata",
        "val": "val valid validation validate valset validset validationset dev devel devset eval evaluation "
        "evalset heldout holdout",
        "test": "test testing tst testset testingset testdata tests",
        UNLABELLED: "unlabelled unlabeled unlabel unlab unsup unsupervised unannotated",
    }.items()
    for word in words.split()
}
_NEUTRAL = frozenset(
    "image images img imgs picture pictures photo photos jpg jpeg jpegs png data dataset datasets set sets split "
    "splits folder folders dir dirs file files seg stg stage labelled labeled class classes imagenet ilsvrc coco "
    "voc".split()
)
_IMAGES = frozenset(
    "image images img imgs jpegimages leftimgbit rightimgbit picture pictures photo photos rgb jpegs frames".split()
)
_MAPS = frozenset(
    "mask masks annotation annotations annots label labels labelmap labelmaps labelids gt gtfine gtcoarse groundtruth "
    "segmentation segmentations segmentationclass segmentationobject segmentationclassaug depth disparity "
    "semantic semantics instance instances disp flow".split()
)
_ASIDE = frozenset(
    "doc docs readme sample samples example examples figure figures asset assets preview previews thumbnail thumbnails "
    "demo predict prediction predictions pred preds submission submissions result results output outputs".split()
)
"""Beside a single training folder, what is no class."""
_SPEAKS = re.compile("|".join(sorted({*_WORDS, *_IMAGES, *_MAPS, "held", "hold", "label", "ground", "gt"})))
"""A name without any of these is neither that of a split nor of images nor of maps: most names are judged at once."""
_LOOKED_AT = 8
"""Of the folders that are neither, so many are held."""


def words_of(name: str) -> list[str]:
    """The words of a name in lower case: at signs, digits and changes from small to capital letters."""
    return [word.lower() for word in re.findall(r"[^\W\d_]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])|[A-Z]", name)]


def split_of(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The split that a name speaks of, if any, and its other words that say something."""
    words = words_of(name)
    pairs = {
        "held out": "heldout",
        "hold out": "holdout",
        "un labelled": "unlabelled",
        "un labeled": "unlabeled",
    }
    for at, two in enumerate(pairwise(words)):
        if joined := pairs.get(" ".join(two)):
            words[at : at + 2] = [joined]
            break
    found = {_WORDS[word] for word in words if word in _WORDS}
    if found == {"train", "val"}:
        found = {"train"}  # train_val
    rest = tuple(w for w in words if w not in _WORDS and w not in _NEUTRAL and len(w) > 1)
    return (found.pop() if len(found) == 1 else None), rest


def is_map(name: str) -> bool:
    """Whether a name is one of label maps, which look like images and are none."""
    return "".join(words_of(name)) in _MAPS or any(word in _MAPS for word in words_of(name))


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
    count, images = 0, False
    for child in branch.children():
        name = child.name
        speaks = _SPEAKS.search(name.lower()) is not None
        split, others = split_of(name) if speaks else (None, ())
        if speaks and is_map(name):
            maps.append(child)
        elif split is not None:
            groups.setdefault(others, {}).setdefault(split, []).append(child)
        else:
            images |= speaks and "".join(words_of(name)) in _IMAGES
            count += 1
            plain += [child] if count <= _LOOKED_AT else []
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
        if "train" in bare and all(_says_only(b.name, _ASIDE) for b in others):
            whole = [bare]
        elif len(groups) == 1 and plain and _alike(next(iter(groups)), plain):  # data_large, val_large
            whole = [{**next(iter(groups.values())), "train": plain}]
        elif bare.keys() >= {"val", "test"} and not others:
            whole = [bare]
    found: dict[str, list[Branch]] = {}
    for group in whole:
        for split, branches in group.items():
            found.setdefault(split, []).extend(branches)
    return _settled(found, lambda b: b.name)


def _says_only(name: str, words: frozenset[str]) -> bool:
    """Whether a name has words, and none but these and those of splits."""
    return bool(words_of(name)) and set(words_of(name)) - _WORDS.keys() <= words


def _alike(others: tuple[str, ...], plain: list[Branch]) -> bool:
    """Whether folders that are of no split say nothing but what those of splits say besides."""
    said = {word for word in others if len(word) > 1}
    return all(words_of(b.name) and set(words_of(b.name)) - _NEUTRAL == said for b in plain)


def _settled(found: dict[str, list[T]], name: Callable[[T], str]) -> dict[str, list[T]]:
    """Splits in their order, each picture in one: of train, trainval and val the first and the last; of dev and eval
    (without test) the first for validation, the second for testing."""
    train, val = found.get("train", []), found.get("val", [])
    if val:
        apart = [t for t in train if not any("val" in word for word in words_of(name(t)))]
        found |= {"train": apart} if apart else {}
    last = [v for v in val if any("eval" in word for word in words_of(name(v)))]
    if 0 < len(last) < len(val) and "test" not in found:
        found |= {"val": [v for v in val if v not in last], "test": last}
    return {split: found[split] for split in ("train", "val", "test", UNLABELLED, "") if split in found}


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
    main = [b for b in level.some if not _says_only(b.name, _ASIDE)]
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


def fold(name: str) -> str:
    """A name as two systems that differ in capitals and in the form of accents both have it."""
    return unicodedata.normalize("NFC", name).casefold()


# ---- shards ------------------------------------------------------------------------------------------------------


def split_shards(names: Sequence[str]) -> dict[str, list[str]]:
    """Shards by split, where their names (or else the folders they lie in) speak of any; ``""``: of none.

    Args:
        names: paths relative to the folder of all shards.

    Returns:
        split to shards in their order. Without a split for training, shards of no split are the training ones.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        parts = [split_of(part)[0] for part in reversed(name.split("/"))]
        found.setdefault(next((part for part in parts if part), ""), []).append(name)
    if not found.keys() - {""} or found.keys() == {"", "train"}:  # train may be a class
        return {}
    if "train" not in found and "" in found:
        found["train"] = found.pop("")
    return _settled(found, lambda name: name)
