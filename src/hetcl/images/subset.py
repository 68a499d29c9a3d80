"""Some images of a source, with their labels; n of them."""

from __future__ import annotations

import hashlib

import numpy as np

from hetcl.types import Sample, Source


class Subset:
    """Some images of a source, itself a source (``types.Source``); they keep the order they have there.

    Args:
        index: int64 ``[n]``, ascending: which images.
        labels: int64 ``[n]``, of each; -1: of a class that is not to be learned.
        classes: names of the classes.
    """

    def __init__(
        self, source: Source, index: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
    ) -> None:
        self.source, self.index, self.labels = source, index, labels
        self.classes: tuple[str, ...] | None = classes
        self.prefers_window, self.unlabelled = source.prefers_window, 0
        self.hash = f"{source.fingerprint}-{_hash(index)}"
        """Hash of which images these are."""
        self.fingerprint = f"{self.hash}-{_hash(labels)}"
        self.description = f"{len(index):,} of {source.description}"

    def __len__(self) -> int:
        return len(self.index)

    def sample(self, index: int) -> Sample:
        """The image at ``index``, with its label here."""
        sample = self.source.sample(int(self.index[index]))
        return Sample(sample.data, self.label(index), sample.name)

    def name(self, index: int) -> str:
        """What the source calls the image."""
        return self.source.name(int(self.index[index]))

    def label(self, index: int) -> int | None:
        """The label alone."""
        return int(self.labels[index])

    def blocks(self) -> np.ndarray | None:
        """Where the blocks of the source begin here."""
        starts = self.source.blocks()
        return None if starts is None else np.unique(np.searchsorted(self.index, starts))

    def only(self, rows: np.ndarray) -> Subset:
        """The images at ``rows`` (ascending) of this subset."""
        assert self.classes is not None
        return Subset(self.source, self.index[rows], self.labels[rows], self.classes)


def _hash(array: np.ndarray) -> str:
    return hashlib.blake2b(array.tobytes(), digest_size=6).hexdigest()


def labels_of(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Images of a source that have a label, and their labels: int64 ``[n]`` each."""
    labels = (source.label(i) for i in range(len(source)))
    label = np.fromiter((-1 if y is None else y for y in labels), np.int64, len(source))
    index = np.flatnonzero(label >= 0)
    return index, label[index]


def with_labels(source: Source) -> Source:
    """The images of a labelled source that have a label, as a source; the same one where all have."""
    if source.classes is None or not source.unlabelled:
        return source
    return Subset(source, *labels_of(source), source.classes)


def why_none(source: Source) -> str:
    """Why a source has no labels, in brackets, where it knows."""
    why = getattr(source, "why_no_labels", "")
    return f" ({why})" if why else ""
