"""A folder of images: which of its images a split has, and what their classes are.

A class is a folder: the sub-folders of a split, or of the whole where there are no splits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from hetcl.errors import InputError
from hetcl.images.alike import Alike, alike
from hetcl.images.folder_source import FolderSource, Span
from hetcl.images.formats import Aside, images, left_aside
from hetcl.images.listing import Branch, listing
from hetcl.images.split_words import UNLABELLED, besides, fold, split_of
from hetcl.images.splits import Layout, inner, layout_of, look

log = logging.getLogger(__name__)

OVERRIDE = "--data_split all reads everything as one set"
_SHOWN = 4
"""Names in a message."""


class Folder:
    """A folder of images with its splits and classes.

    Args:
        root: an existing folder.
        cache: folder for the listing.
        whole: put splits aside: every image is of one set, and folders named like splits are folders like others.
        folder_classes: take folders for classes.
        strict: refuse folders that cannot well be classes, instead of warning.

    Raises:
        InputError: no images.
    """

    def __init__(
        self,
        root: str,
        cache: Path,
        *,
        whole: bool = False,
        folder_classes: bool = False,
        strict: bool = False,
    ) -> None:
        self.strict = strict and folder_classes
        self.root, self.table, self.folder_classes = root, listing(root, cache), folder_classes
        top = Branch.root(self.table)
        self.layout = Layout(top, {}, []) if whole else layout_of(top)
        self.whole = whole
        self._maps: dict[bytes, Branch] = {}

    @property
    def splits(self) -> dict[str, int]:
        """Names of the splits that there are, and how many images each has."""
        return {split: sum(b.images for b in branches) for split, branches in self.layout.splits.items()}

    def open(self, split: str) -> FolderSource | None:
        """The images of ``train`` (all, where there are no splits), ``val`` or ``test``; None where there are none.

        Classes have the training images' numbers in every split.

        Raises:
            InputError: the classes are needed, and the folders are splits, domains or folds.
        """
        layout = self.layout
        if self.strict and self._alike and self._alike.sure and not layout.splits:
            raise InputError(self._words_on_alike())
        if not layout.splits:
            return self._source([layout.base]) if split in ("train", "all") else None
        branches = layout.splits.get(split, [])
        more = layout.splits.get(UNLABELLED, []) if split == "train" else []
        return self._source(branches, more) if branches else None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders of the training images, in the order of their bytes."""
        if self._worded:
            found = {besides(branch.name) for branch in self.layout.splits["train"]}
        elif self.layout.inside:
            found = {child.name for child in self.layout.base.children()}
        else:
            found = set()
            for branch in self.layout.splits.get("train", [self.layout.base]):
                below, beside = inner(branch)
                maps = {b.path for b in beside if not self.whole}
                found |= {child.name for child in below.children() if child.path not in maps}
        return tuple(sorted(found, key=os.fsencode))

    @cached_property
    def _worded(self) -> bool:
        """Whether the classes stand in the names of the splits' folders: ``cat_train/``, ``dog_train/``."""
        branches = self.layout.splits.get("train", [])
        names = {besides(branch.name) for branch in branches}
        flat = not any(next(inner(branch)[0].children(), None) for branch in branches)
        return len(names) > 1 and "" not in names and flat and not self.layout.inside

    @cached_property
    def _alike(self) -> Alike | None:
        """The folders that would be classes, where they hold the same folders again."""
        if self.whole or self.layout.inside:
            return None
        branches = self.layout.splits.get("train", []) if self.layout.splits else [self.layout.base]
        found = (alike(inner(branch)[0]) for branch in branches)
        return next((one for one in found if one), None)

    @cached_property
    def _spoken(self) -> dict[str, int]:
        """What the names of classes say besides splits, to their numbers, -1 where that is unclear."""
        found: dict[str, int] = {}
        for i, name in enumerate(self.classes):
            found[besides(name)] = -1 if besides(name) in found else i
        return found

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        """Class name to number: as it is, and as another system may write it, -1 where that is unclear."""
        exact = {name: i for i, name in enumerate(self.classes)}
        folded: dict[str, int] = {}
        for name, i in exact.items():
            folded[fold(name)] = -1 if fold(name) in folded else i
        twice = [name for name in self.classes if folded[fold(name)] < 0]
        if twice:
            log.warning(
                "%s: the folders %s differ in capitals or accents only, and are classes of their own",
                self.root,
                " and ".join(twice[:_SHOWN]),
            )
        return exact, folded

    def _source(self, branches: Sequence[Branch], more: Sequence[Branch] = ()) -> FolderSource:
        """The images of some branches, and ``more`` without labels."""
        wanted = self.classes if self.folder_classes else ()
        strange: dict[str, int] = {}
        runs = [run for branch in branches for run in self._runs(branch, bool(wanted), strange)]
        loose = sum(run.stop - run.start for run in runs if run.label < 0)
        count = sum(run.stop - run.start for run in runs)
        classes: tuple[str, ...] | None = wanted
        why = self._unasked(branches)
        if not wanted or 2 * loose > count:
            runs = [run for branch in branches for run in self._runs(branch, False, {})]
            classes = None
            if wanted:
                why = f"{loose:,} of {images(count)} do not lie in the folder of a class ({_some(wanted)})"
        elif strange:
            log.warning(
                "%s: %s: no training images lie in folders of that name, so these images have no label",
                self._shown(*branches),
                _some([f"{name}/ ({images(n)})" for name, n in strange.items()]),
            )
        runs += [run for branch in more for run in self._runs(branch, False, {})]
        shown = self._shown(*branches, *more) if self.layout.splits else self.root
        return FolderSource(self.root, self.table, runs=runs, classes=classes, why=why, shown=shown)

    def _unasked(self, branches: Sequence[Branch]) -> str:
        """Why there are no labels where nobody asked for class folders, or there are none."""
        places = [self.layout.base] if self.layout.inside else [inner(branch)[0] for branch in branches]
        aside = {b.path for branch in branches for b in ([] if self.layout.inside else inner(branch)[1])}
        some = [b.name for place in places for b in islice(place.children(), _SHOWN) if b.path not in aside][
            :_SHOWN
        ]
        if some:
            return f"its sub-folders ({', '.join(some)} ...) are not taken for classes, since folder_classes is false"
        if len(places) == 1:
            return f"all its images lie in one folder, {self._shown(places[0])}"
        return f"its images lie right in {_some([b.shown for b in places])}, not in the folders of classes"

    def _runs(self, branch: Branch, labelled: bool, strange: dict[str, int]) -> Iterator[Span]:
        """The images of a branch with their labels, without label maps; images of unknown classes are counted."""
        if labelled and self.layout.inside:
            name = os.fsdecode(branch.path.split(b"/")[-2])
            yield Span(branch.start, branch.stop, self._label(name))
            return
        below, beside = inner(branch, self.classes if labelled else ())
        own = self._label(besides(branch.name)) if labelled and below.loose == branch.images else -1
        if own >= 0:  # cat_train/
            yield Span(branch.start, branch.stop, own)
            return
        maps = {b.path: b for b in beside if not self.whole}
        self._maps |= maps
        if not labelled and not maps:
            yield from self._images(below)
            return
        yield Span(below.start, below.start + below.loose)
        for child in below.children():
            if child.path in maps:
                continue
            label = self._label(child.name) if labelled else -1
            if labelled and label < 0:
                strange[child.name] = child.images
            yield from self._images(child, label)

    def _images(self, branch: Branch, label: int = -1, depth: int = 2) -> Iterator[Span]:
        """The images of a folder; without the label maps in its few sub-folders (``VOC2007/``, ``VOC2012/``)."""
        few = list(islice(branch.children(), _SHOWN + 1)) if depth and not self.whole else []
        if not 0 < len(few) <= _SHOWN:
            yield Span(branch.start, branch.stop, label)
            return
        maps = {b.path: b for b in look(branch).maps}
        self._maps |= maps
        yield Span(branch.start, branch.start + branch.loose, label)
        for child in few:
            if child.path not in maps:
                yield from self._images(child, label, depth - 1)

    def _label(self, name: str) -> int:
        exact, folded = self._numbers
        number = exact.get(name, folded.get(fold(name), -1))
        if number < 0 and (word := besides(name)):  # test/test_cat for train/train_cat
            other = self._spoken.get(word, -1)
            spoken = other >= 0 and (split_of(name)[0] or split_of(self.classes[other])[0])
            number = other if spoken else -1
        return number

    # ---- words -----------------------------------------------------------------------------------------------------

    def _shown(self, *branches: Branch) -> str:
        """The folders for a message: ``photos/train``, or ``photos/{train_1,train_2}`` for several."""
        if self.layout.inside and len(branches) > 1:
            name = os.fsdecode(branches[0].path.rpartition(b"/")[2])
            return os.path.join(self.root, os.fsdecode(self.layout.base.path), "*", name)
        shown = [os.fsdecode(b.path) for b in branches]
        return os.path.join(self.root, shown[0] if len(shown) == 1 else "{" + ",".join(shown[:_SHOWN]) + "}")

    def words(self, split: str) -> list[tuple[int, str]]:
        """What was taken for what, a line each with its level of ``logging``; ``split`` is read."""
        layout, lines = self.layout, []
        if layout.splits:
            what = "; ".join(
                f"{name} is {self._folders(branches)} ({images(sum(b.images for b in branches))})"
                for name, branches in layout.splits.items()
            )
            read = " and ".join(
                [split, UNLABELLED] if split == "train" and UNLABELLED in layout.splits else [split]
            )
            lines.append((logging.INFO, f"{self.root} has splits: {what}. Read here: {read} ({OVERRIDE})"))
        if self._worded and self.folder_classes:
            shown = [f"{besides(b.name)} ({b.shown})" for b in layout.splits["train"]]
            lines.append(
                (logging.INFO, f"{self.root}: the classes stand in the folders' names: {_some(shown)}")
            )
        if self._alike and (self.folder_classes or (self._alike.sure and not layout.splits)):
            lines.append((logging.WARNING, self._words_on_alike()))
        elif layout.doubtful:
            first = layout.doubtful[0]
            others = [f"{b.name}/" for b in layout.doubtful[1:]]
            lines.append(
                (
                    logging.INFO,
                    f"{self.root}: {first.name}/ is taken for a folder like its neighbours ({_some(others)}), not for "
                    f"a split; --data {self._shown(first)} reads it alone",
                )
            )
        left = [f"{b.shown} ({images(b.images)})" for b in [*layout.aside, *self._maps.values()]]
        if layout.splits and layout.base.loose:
            left.append(f"{images(layout.base.loose)} beside the splits")
        if left:
            lines.append((logging.INFO, f"left aside in {self.root}: {_some(left)} ({OVERRIDE})"))
        if self.table.meta["twice"]:
            link = self.table.meta["link"]
            lines.append(
                (
                    logging.WARNING,
                    f"links in {self.root} lead to what lies there too ({self.table.meta['twice']:,}, e.g. {link}): "
                    "it is read twice, maybe to train and to test on; name one of the folders",
                )
            )
        if self.table.meta["out"]:
            link = self.table.meta["out_link"]
            lines.append(
                (
                    logging.INFO,
                    f"links in {self.root} lead out of it ({self.table.meta['out']:,}, e.g. {link}) and are followed",
                )
            )
        if aside := left_aside(self.root, Aside(self.table.meta["aside"])):
            lines.append(aside)
        return lines

    def _words_on_alike(self) -> str:
        """That folders look like splits, domains or folds, and what to do."""
        assert self._alike is not None
        folders = self._alike.folders
        shown = f"{_some([b.shown for b in folders])} hold folders of the same names"
        shown = f"{self.root}: {shown} ({_some(self._alike.names)}), as "
        fix = f"name one of them (--data {self._shown(folders[0])})"
        if not self.layout.splits:
            fix += ", or call one train/ and another test/ (or val/)"
        if not self._alike.sure:
            return f"{shown}splits, domains or folds do, too: if they are no classes, {fix}"
        if not self.folder_classes:
            return f"{shown}splits, domains or folds do; all of them are read: to keep one apart, {fix}"
        way = "" if self.layout.splits else "; --data_split all takes them for classes all the same"
        return f"{shown}splits, domains or folds do and classes do not: {fix}{way}"

    def _folders(self, branches: Sequence[Branch]) -> str:
        """The folders of a split, relative to the data."""
        if self.layout.inside:
            return f"{os.fsdecode(self.layout.base.path) or '.'}/*/{branches[0].name}/"
        return _some([b.shown for b in branches])


def _some(words: Sequence[str]) -> str:
    """The first few of some words, and how many more there are."""
    more = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
