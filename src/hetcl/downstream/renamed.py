"""Classes by name: a data set under the classes of another part, or of a run, however each numbers them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hetcl.datasets.annotations import Annotations, Category, DetectionSet, SegmentationSet
from hetcl.datasets.packed import PackedDetection
from hetcl.errors import InputError
from hetcl.quantities import count

UNNAMED = re.compile(r"class \d+")
"""What a class is called that has no name."""
VOID = 255
_FEW = 4
"""Names that a message lists."""


def names_of(data: DetectionSet | SegmentationSet) -> tuple[str, ...]:
    """Names of the classes of any set."""
    return tuple(c if isinstance(c, str) else c.name for c in data.classes)


def under(data: Any, names: Sequence[str], here: str, there: str) -> tuple[Any, list[str]]:
    """A set under the classes ``names``, which hold every class of it that has objects.

    Names are the same in spite of capitals and spaces where no other fits better.

    Args:
        data: a detection or segmentation set.
        names: the classes of the training part or of a run.
        here, there: what the set and what ``names`` are of, for messages.

    Returns:
        the set, and what a person should know.

    Raises:
        InputError: classes with objects that ``names`` lacks, or none in common; which and where is said.
    """
    theirs = names_of(data)
    if theirs == tuple(names):
        return data, []
    notes, found = [], _matched(theirs, names)
    for own, other in found.items():
        if own != other:
            notes.append(f"class {own!r} of {here} is taken for {other!r} of {there}")
    more = [name for name in theirs if name not in found]
    objects = dict[str, int]()
    if more and not hasattr(data, "label_map"):  # (of maps nothing is known without reading them all)
        objects = dict(zip(theirs, objects_of(data).tolist(), strict=True))
    unused = [name for name in more if objects.get(name) == 0]
    more = [name for name in more if name not in unused]
    lacking = [name for name in names if name not in found.values()]
    if more or not found:
        counted = [f"{name} ({count(objects[name], 'object')})" if name in objects else name for name in more]
        maps = hasattr(data, "label_map")
        why = f"{there} lacks {_listed(counted)}" * bool(more) + "; " * bool(more and lacking)
        why += f"it lacks {_listed(lacking)}" * bool(lacking)
        raise InputError(
            f"{here} has other classes than {there}{', and none in common' * (not found)}: {why}"
            f"{_fix(theirs, names, maps=maps)}"
        )
    if lacking:
        notes.append(f"{here} has no {_listed(lacking)}: there is no figure for that")
    if unused:
        notes.append(
            f"{there} does not know the classes {_listed(unused)} of {here}; nothing is annotated as such"
        )
    labels = np.array([names.index(found[name]) if name in found else -1 for name in theirs], np.int64)
    if hasattr(data, "label_map"):
        return RenamedMaps(data, tuple(names), labels), notes
    ids = {found[c.name]: c for c in data.classes if c.name in found}
    free = max((c.id for c in data.classes), default=0) + 1
    classes = tuple(
        replace(ids[name], name=name) if name in ids else Category(free + i, name)
        for i, name in enumerate(names)
    )
    return Renamed(data, classes, labels), notes


def _matched(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """Name of theirs -> name of ours: the same; else the same but for capitals and spaces, if just one is."""
    found = {name: name for name in theirs if name in ours}
    for name in theirs:
        near = [n for n in ours if _alike(n) == _alike(name) and n not in found.values()]
        rivals = [n for n in theirs if _alike(n) == _alike(name) and n not in found]
        if name not in found and len(near) == len(rivals) == 1:
            found[name] = near[0]
    return found


def _alike(name: str) -> str:
    return " ".join(name.casefold().split())


def objects_of(data: Any) -> np.ndarray:
    """Objects of each class of a detection set, int64 ``[K]``."""
    counts = np.zeros(len(data.classes), np.int64)
    for index in range(len(data)):
        labels = data.labels(index) if isinstance(data, PackedDetection) else data.annotations(index).labels
        np.add.at(counts, labels, 1)
    return counts


def _fix(theirs: Sequence[str], ours: Sequence[str], *, maps: bool) -> str:
    """What makes classes agree."""
    numbers = f" ({len(theirs)} classes, not {len(ours)})" * (len(theirs) != len(ours))
    if maps and any(UNNAMED.fullmatch(name) for name in (*theirs, *ours)):
        lines = count(len(ours), "line")
        return f"{numbers}; name its classes in classes.txt, the first being value 0 (here {lines})"
    return (
        f"{numbers}; give classes that are the same the same name, and leave out what the other does not know"
    )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class Wrapped:
    """A set with something of its own; the rest is that of ``data``."""

    data: Any

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        if name == "data":  # (asked for while a copy is being made)
            raise AttributeError(name)
        return getattr(self.data, name)


@dataclass(frozen=True)
class Renamed(Wrapped):
    """A detection set under other classes, which hold all of its own that have objects."""

    classes: tuple[Category, ...]
    labels: np.ndarray
    """int64: which of ``classes`` each class of the set is; -1 for a class without objects that is none of them."""

    def annotations(self, index: int) -> Annotations:
        """What is in an image, with the new labels."""
        truth = self.data.annotations(index)
        given = {
            k: tuple(int(self.labels[i]) for i in getattr(truth, k) if self.labels[i] >= 0)
            for k in ("negative", "not_exhaustive")
        }
        return replace(truth, labels=self.labels[truth.labels], **given)


@dataclass(frozen=True)
class RenamedMaps(Wrapped):
    """A segmentation set under other classes, which hold all of its own."""

    classes: tuple[str, ...]
    labels: np.ndarray
    """int64: which of ``classes`` each class of the set is."""

    def label_map(self, index: int) -> np.ndarray:
        """uint8 ``[H, W]``: class of each pixel, 255 where it does not count. Raises ``BadImage``."""
        lookup = np.full(256, VOID, np.uint8)
        lookup[: len(self.labels)] = self.labels
        return lookup[self.data.label_map(index)]
