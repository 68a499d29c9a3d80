"""Which labelled images a probe is trained on, and which it is tested on; n of a part."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from hetcl.draws import permute
from hetcl.errors import InputError
from hetcl.images.sources import open_held_out, open_source
from hetcl.images.subset import Subset, labels_of, why_none
from hetcl.types import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledParts:
    """What to train on and what to test on."""

    train: Subset
    test: Subset
    held_out: bool
    """Whether the test images were held out of the training ones, for want of a validation or test part with
    labels."""
    unlabelled: int
    """Images without a label, which are left out."""
    untrained: int
    """Classes that are tested and have no training image."""
    untested: int
    """Classes that are trained and have no test image."""


def open_parts(
    data: str,
    *,
    folder_classes: bool,
    window: int,
    holdout: float,
    images: int,
    seed: int,
    data_split: str = "train",
    test_split: str = "auto",
) -> LabelledParts:
    """The labelled images of ``data``; the classes are those that have a training image, numbered in their order.

    Args:
        data_split: train on that split; ``all``: on everything, splits put aside.
        test_split: test on that split; ``auto``: ``val``, or ``test`` where that has no labels.
        holdout: share of the images to test on, where there is no validation part with labels.
        images: train on that many, drawn at random; 0: all.

    Raises:
        InputError: no labels, one class, class folders that look like splits, domains or folds, or too few images.
    """
    source = open_source(data, split=data_split, folder_classes=folder_classes, window=window, strict=True)
    if source.classes is None:
        raise InputError(
            f"{data} has no labels, which a probe needs{why_none(source)}: in shards each KEY.jpg has a KEY.cls with "
            "the number of its class; in a folder each class has a sub-folder. --ask where needs no labels"
        )
    index, label = labels_of(source)
    unlabelled = len(source) - len(index)
    beside = None
    if data_split == "train":
        beside = _to_test_on(data, test_split, folder_classes=folder_classes, window=window)
    if beside is not None:
        test_from, (test_index, test_label) = beside, labels_of(beside)
        unlabelled += len(beside) - len(test_index)
    else:
        test_from, n = source, len(index)
        held = round(holdout * n)
        if not 0 < held < n:
            raise InputError(
                f"{data} has {n} labelled images, and of these a share of {holdout:g} to test on leaves "
                f"{n - held} to train and {held} to test; give more images, or set holdout"
            )
        aside = np.zeros(n, np.bool_)
        aside[permute(np.arange(held), n, seed, "probe", "holdout")] = True
        test_index, test_label = index[aside], label[aside]
        index, label = index[~aside], label[~aside]
    if images and images < len(index):
        rows = np.sort(permute(np.arange(images), len(index), seed, "probe", "images"))
        index, label = index[rows], label[rows]
    names, (trained, tested) = source.classes, (np.unique(label), np.unique(test_label))
    if len(trained) < 2 or not len(test_index):
        one = f"one class only ({names[int(trained[0])]})" if len(trained) else "no class"
        what = f"the images to train on are of {one}" if len(trained) < 2 else "there is nothing to test on"
        raise InputError(f"{data}: {what}; a probe needs labelled images of at least two classes")
    compact = np.full(int(max(trained.max(), test_label.max())) + 1, -1, np.int64)
    compact[trained] = np.arange(len(trained))
    classes = tuple(names[c] for c in trained.tolist())
    return LabelledParts(
        Subset(source, index, compact[label], classes),
        Subset(test_from, test_index, compact[test_label], classes),
        test_from is source,
        unlabelled,
        len(np.setdiff1d(tested, trained)),
        len(np.setdiff1d(trained, tested)),
    )


def _to_test_on(data: str, split: str, **options: Any) -> Source | None:
    """The held-out images with labels that ``split`` asks for; None for ``auto`` where there are none.

    Raises:
        InputError: the split that is asked for is not there, or has no labels.
    """
    found = open_held_out(data, splits=("val", "test") if split == "auto" else (split,), **options)
    for name, source in found.items():
        if source.classes is not None:
            return source
        log.warning("the images for %s have no labels%s: not tested on", name, why_none(source))
    if split == "auto":
        return None
    raise InputError(
        f"test_split {split}: {data} has no labelled images in a folder or shards of that name; leave it out"
    )
