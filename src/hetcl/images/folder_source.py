"""Images of a folder, read one by one: a source over runs of the folder's listing."""

from __future__ import annotations

import bisect
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from hetcl.images.decode import MAX_BYTES, too_large
from hetcl.images.tables import TableFile
from hetcl.types import BadImage, Sample


@dataclass(frozen=True)
class Span:
    """Images that lie side by side in a listing and have one label."""

    start: int
    stop: int
    label: int = -1
    """-1: none."""


class FolderSource:
    """Images of a folder (``types.Source``).

    Args:
        root: the folder.
        table: its listing.
        runs: which images, in order; None for all of them.
        classes: names of the classes; None for no labels.
        why: what to say when there are no labels.
        shown: the folder for the description.
    """

    prefers_window = 0

    def __init__(
        self,
        root: str,
        table: TableFile,
        *,
        runs: Sequence[Span] | None = None,
        classes: tuple[str, ...] | None = None,
        why: str = "",
        shown: str = "",
    ) -> None:
        self.root = os.path.realpath(root)
        self.table = table
        self.classes = classes
        self.why_no_labels = why
        self._runs = _merged(runs if runs is not None else [Span(0, table.length("path"))])
        self._ends = list(accumulate(run.stop - run.start for run in self._runs))
        self.unlabelled = sum(run.stop - run.start for run in self._runs if run.label < 0) if classes else 0
        self.fingerprint = _fingerprint(table, self._runs)
        self._root = os.fsencode(self.root)
        what = f" in {len(classes)} classes" if classes else ""
        without = f" ({self.unlabelled:,} without a label)" if self.unlabelled else ""
        count = f"{len(self):,} image{'s'[: len(self) != 1]}"
        self.description = f"{count}{what}{without} in the folder {shown or root}"

    def __len__(self) -> int:
        return self._ends[-1]

    def _place(self, index: int) -> tuple[int, int]:
        """The row of the listing of an image, and its label."""
        at = bisect.bisect_right(self._ends, index)
        run = self._runs[at]
        return run.stop - self._ends[at] + index, run.label

    def path(self, index: int) -> bytes:
        """Path of the image, relative to the folder."""
        return self.table.string("path", self._place(index)[0])

    def name(self, index: int) -> str:
        """Path of the image, relative to the folder."""
        return os.fsdecode(self.path(index))

    def sample(self, index: int) -> Sample:
        """The file at ``index``. Raises BadImage when it cannot be read."""
        row, label = self._place(index)
        inside = self.table.string("path", row)
        data = read_file(os.path.join(self._root, inside))
        return Sample(
            data=data, label=label if self.classes and label >= 0 else None, name=os.fsdecode(inside)
        )

    def label(self, index: int) -> int | None:
        """The class of the image, None where it has none."""
        label = self._place(index)[1]
        return label if self.classes and label >= 0 else None

    def blocks(self) -> np.ndarray | None:
        """None: files are read one by one."""
        return None


def read_file(path: str | bytes) -> bytes:
    """An image file. Raises ``BadImage`` when it cannot be read, is no plain file or larger than any image."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadImage("no longer a plain file")
            if (size := os.fstat(descriptor).st_size) > MAX_BYTES:
                raise BadImage(too_large(size))
            return file.read()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from error


def _merged(runs: Sequence[Span]) -> list[Span]:
    """Neighbours of one label as one run, without empty ones."""
    out: list[Span] = []
    for run in runs:
        if out and out[-1].stop == run.start and out[-1].label == run.label:
            out[-1] = Span(out[-1].start, run.stop, run.label)
        elif run.stop > run.start:
            out.append(run)
    return out


def _fingerprint(table: TableFile, runs: Sequence[Span]) -> str:
    """The fingerprint of the paths in their order; runs consist of whole folders."""
    at = 0
    for run in runs:
        if run.start != at:
            break
        at = run.stop
    if at == table.length("path"):
        return str(table.meta["fingerprint"])
    digest = hashlib.blake2b(digest_size=8)
    first = table["first"]
    for run in runs:
        for row in range(*np.searchsorted(first, (run.start, run.stop)).tolist()):
            digest.update(table.string("folder", row) + b"\0" + table["digest"][row].tobytes())
    return digest.hexdigest()
