"""Labelled images and their frozen features: what is taken for training and for testing, and where it is kept.

n images of a part, D dimensions, b of a block.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hetcl.analysis.store import UNREADABLE
from hetcl.draws import permute
from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.images.sources import open_held_out, open_source
from hetcl.printable import csv_row
from hetcl.runs.files import crc_of, disk_problem, seal, unseal, write_atomic
from hetcl.signals import StopSignal
from hetcl.training.progress import Reporter, duration
from hetcl.types import Sample, Source, ViewBatch
from hetcl.views.loader import name_of, ordered

log = logging.getLogger(__name__)

log = logging.getLogger(__name__)

SMALLEST, LARGEST, BLOCKS = 1024, 16384, 64
"""Images of a block, at least and at most, and how many blocks there are in between."""
BYTES, LEAST = 256 << 20, 64
"""Of a block, at most, and the images that it has all the same."""


class Part:
    """Some images of a source, itself a source (``types.Source``); they keep the order they have there.

    Args:
        name: ``train`` or ``test``.
        index: int64 ``[n]``, ascending: which images.
        label: int64 ``[n]``, of each; -1: of a class that is not to be learned.
        classes: names of the classes.
    """

    def __init__(
        self, name: str, source: Source, index: np.ndarray, label: np.ndarray, classes: tuple[str, ...]
    ) -> None:
        self.name, self.source, self.index, self.labels = name, source, index, label
        self.classes: tuple[str, ...] | None = classes
        self.prefers_window, self.unlabelled = source.prefers_window, 0
        self.hash = f"{source.fingerprint}-{_hash(index.tobytes())}"
        """Hash of which images these are."""
        self.fingerprint = f"{self.hash}-{_hash(label.tobytes())}"
        self.description = f"{len(index):,} of {source.description}"

    def __len__(self) -> int:
        return len(self.index)

    def sample(self, index: int) -> Sample:
        """The image at ``index``, with its label here."""
        sample = self.source.sample(int(self.index[index]))
        return Sample(sample.data, self.label(index), sample.name)

    def label(self, index: int) -> int | None:
        """The label alone."""
        return int(self.labels[index])

    def blocks(self) -> np.ndarray | None:
        """Where the blocks of the source begin here."""
        starts = self.source.blocks()
        return None if starts is None else np.unique(np.searchsorted(self.index, starts))

    def only(self, rows: np.ndarray) -> Part:
        """The images at ``rows`` (ascending) of this part."""
        assert self.classes is not None
        return Part(self.name, self.source, self.index[rows], self.labels[rows], self.classes)


@dataclass(frozen=True)
class Parts:
    """What to train on and what to test on."""

    train: Part
    test: Part
    held_out: bool
    """Whether the test images were held out of the training ones, for want of a validation or test part with
    labels."""
    unlabelled: int
    """Images without a label, which are left out."""
    untrained: int
    """Classes that are tested and have no training image."""
    untested: int
    """Classes that are trained and have no test image."""


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=6).hexdigest()


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
) -> Parts:
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
            "the number of its class; in a folder each class has a sub-folder"
        )
    index, label, unlabelled = _labelled(source)
    beside = None
    if data_split == "train":
        beside = _to_test_on(data, test_split, folder_classes=folder_classes, window=window)
    if beside is not None:
        test_from, (test_index, test_label, more) = beside, _labelled(beside)
        unlabelled += more
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
        (test_index, test_label), (index, label) = (
            (index[aside], label[aside]),
            (index[~aside], label[~aside]),
        )
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
    return Parts(
        Part("train", source, index, compact[label], classes),
        Part("test", test_from, test_index, compact[test_label], classes),
        test_from is source,
        unlabelled,
        len(np.setdiff1d(tested, trained)),
        len(np.setdiff1d(trained, tested)),
    )


def why_none(source: Source) -> str:
    """Why a source has no labels, in brackets, where it knows."""
    why = getattr(source, "why_no_labels", "")
    return f" ({why})" if why else ""


def with_labels(source: Source) -> Source:
    """The images of a labelled source that have a label, as a source; the same one where all have."""
    if source.classes is None or not source.unlabelled:
        return source
    index, label, _ = _labelled(source)
    return Part("train", source, index, label, source.classes)


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


def _labelled(source: Source) -> tuple[np.ndarray, np.ndarray, int]:
    """Images with a label, their labels, and how many have none."""
    labels = (source.label(i) for i in range(len(source)))
    label = np.fromiter((-1 if y is None else y for y in labels), np.int64, len(source))
    index = np.flatnonzero(label >= 0)
    return index, label[index], len(label) - len(index)


class Bank:
    """The features of a part on disk, in blocks that are each written wholly or not at all.

    ``train-0003.npy`` float32 ``[b, D]`` are the features of the fourth block's usable images; ``train-0003.json``
    lists the unusable ones and holds the CRC-32 of the features. A block is compared with it once, when it is first
    read; what is damaged is computed again.

    Args:
        root: the folder of all features.
        part: the images.
        key: what else the features are a function of.
        dim: D.
    """

    def __init__(self, root: Path, part: Part, key: Mapping[str, Any], *, dim: int) -> None:
        self.part, self.dim = part, dim
        self.key = json.dumps({**key, "images": part.hash}, sort_keys=True)
        self.path = root / f"{part.name}-{_hash(self.key.encode())}"
        length = min(LARGEST, max(SMALLEST, -(-len(part) // BLOCKS)))
        self.length = max(LEAST, min(length, BYTES // (4 * dim)))
        self.count = -(-len(part) // self.length)
        self._sound: set[int] = set()
        """Blocks that were compared with their checksum."""

    def rows_of(self, block: int) -> np.ndarray:
        """The rows of the part that a block is of."""
        return np.arange(block * self.length, min(len(self.part), (block + 1) * self.length))

    def file(self, block: int, kind: str = "npy") -> Path:
        """A file of a block."""
        return self.path / f"{self.part.name}-{block:04}.{kind}"

    def todo(self) -> list[int]:
        """Blocks that are not there, or damaged."""
        return [b for b in range(self.count) if self._read(b) is None]

    def write(self, block: int, features: np.ndarray, bad: Sequence[tuple[int, str, str]]) -> None:
        """A block: features of usable images in order, and (index here, name, reason) of the others."""
        stream = io.BytesIO()
        np.save(stream, np.ascontiguousarray(features, np.float32).reshape(-1, self.dim))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise disk_problem(self.path, e) from None
        data = stream.getvalue()
        write_atomic(
            self.file(block, "json"), seal({"bad": [list(r) for r in bad], "features": zlib.crc32(data)})
        )
        write_atomic(self.file(block), data)

    def _read(self, block: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str, str]]] | None:
        """Features (memory-mapped), rows of the part, unusable ones of a block; None: it is not there, or damaged."""
        rows = self.rows_of(block)
        try:
            tree = unseal(self.file(block, "json").read_bytes())
            bad = [(int(i), str(n), str(r)) for i, n, r in tree["bad"]]
            if block not in self._sound and crc_of(self.file(block)) != tree["features"]:
                raise ValueError("the features do not match their checksum")
            rows = np.setdiff1d(rows, [i for i, _, _ in bad])
            features = np.load(self.file(block), mmap_mode="r" if len(rows) else None)
            if features.shape != (len(rows), self.dim) or features.dtype != np.float32:
                raise ValueError("the features are of another shape")
        except FileNotFoundError:
            return None
        except (*UNREADABLE, LookupError) as e:
            log.warning("%s cannot be used and is computed again: %s", self.file(block), e)
            return None
        self._sound.add(block)
        return features, rows, bad

    def _all(self) -> Iterator[tuple[np.ndarray, np.ndarray, list[tuple[int, str, str]]]]:
        for block in range(self.count):
            found = self._read(block)
            if found is None:
                raise WorkFailed(f"{self.file(block)} is gone or damaged; go on with --resume")
            yield found

    def blocks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Features ``[b, D]`` (memory-mapped) and labels ``[b]`` of usable images. Raises ``WorkFailed``."""
        return [(x, self.part.labels[rows]) for x, rows, _ in self._all() if len(rows)]

    def rows(self) -> np.ndarray:
        """The usable images, as rows of the part."""
        return np.concatenate([rows for _, rows, _ in self._all()])

    def bad(self) -> list[tuple[int, str, str]]:
        """(index in the source, name, reason) of the unusable ones."""
        return [(int(self.part.index[i]), name, why) for _, _, bad in self._all() for i, name, why in bad]


def fill(
    banks: Sequence[Bank],
    look: Callable[[ViewBatch], Tensor],
    *,
    size: int,
    batch: int,
    workers: int,
    reporter: Reporter,
    signal: StopSignal,
    max_bad: float,
    why: str = "the weights are broken",
    rank: int = 0,
    ranks: int = 1,
    pin: bool = False,
) -> None:
    """Write the blocks that are missing: features of one central view of each image; this rank's share.

    Args:
        look: features ``[B, D]`` of a batch, fp32.
        max_bad: share of unusable images above which the work stops.
        why: what features that are not finite mean.

    Raises:
        WorkFailed: features that are not finite, too many unusable images, or a disk that refuses.
        Stopped: a signal came; whole blocks are kept.
    """
    todo = [(bank, bank.todo()) for bank in banks]
    total = sum(len(bank.part) for bank in banks)
    left = sum(len(bank.rows_of(b)) for bank, blocks in todo for b in blocks)
    began, done, seen, lost = time.monotonic(), 0, 0, 0
    reporter.start("looking at images", total - left, total)
    for bank, blocks in todo:
        if not (mine := blocks[rank::ranks]):
            continue
        writer = _Writer(bank, mine)
        views = ordered(bank.part, writer.rows, size=size, batch=batch, workers=workers, pin=pin)
        with contextlib.closing(views):  # type: ignore[type-var]
            for one in views:
                writer.add(one, _finite(look(one), one, bank.part, why))
                if one.bad and not lost:
                    reporter.warn(f"{one.bad[0].name} cannot be used ({one.bad[0].reason}) and is left out")
                lost, seen = lost + len(one.bad), seen + len(one.index) + len(one.bad)
                if seen >= min(total, 1000) and lost > max_bad * seen:
                    raise WorkFailed(
                        f"{lost} of the first {seen} images cannot be used, more than max_bad = {max_bad:.0%}: "
                        "mend the data, or raise max_bad and go on with --resume"
                    )
                done = min(left, ranks * seen)
                here, pace = total - left + done, done / max(time.monotonic() - began, 1e-9)
                reporter.advance(here)
                reporter.row(
                    f"images  {here:,} of {total:,}  {pace:.0f} a second, {duration((left - done) / pace)} left"
                )
                if signal.number:
                    raise Stopped(
                        signal.number, f"stopped after {here:,} of {total:,} images; go on with --resume"
                    )
        writer.finish()
    reporter.stop()


class _Writer:
    """Collects what comes of the images of some blocks, in order, and writes each block when it is whole."""

    def __init__(self, bank: Bank, blocks: Sequence[int]) -> None:
        self.bank, self.blocks = bank, blocks
        rows = [bank.rows_of(b) for b in blocks]
        self.rows = np.concatenate(rows)
        """Of the part: what to look at."""
        self.ends = np.array([r[-1] for r in rows])
        self.kept: list[list[np.ndarray]] = [[np.zeros((0, bank.dim), np.float32)] for _ in blocks]
        self.bad: list[list[tuple[int, str, str]]] = [[] for _ in blocks]
        self.written = 0

    def add(self, batch: ViewBatch, values: np.ndarray) -> None:
        """Rows come in order, and unusable ones with the next usable one at the latest, so earlier blocks are whole."""
        place = np.searchsorted(self.ends, batch.index.numpy())
        for at in np.unique(place).tolist():
            self.kept[at].append(values[place == at])
        for r in batch.bad:
            self.bad[int(np.searchsorted(self.ends, r.index))].append((r.index, r.name, r.reason))
        self._write(int(place[-1]))

    def finish(self) -> None:
        """Write what is left."""
        self._write(len(self.blocks))

    def _write(self, stop: int) -> None:
        for at in range(self.written, stop):
            self.bank.write(self.blocks[at], np.concatenate(self.kept[at]), self.bad[at])
            self.kept[at] = []
        self.written = max(self.written, stop)


def _finite(features: Tensor, batch: ViewBatch, part: Part, why: str) -> np.ndarray:
    """To the host. Raises ``WorkFailed`` when a value is not finite."""
    values = features.float().cpu().numpy()
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        which = int(part.index[int(batch.index[int(np.flatnonzero(wrong)[0])])])
        raise WorkFailed(
            f"the features of {int(wrong.sum())} of {len(wrong)} images are not finite (NaN or infinite), e.g. of "
            f"{name_of(part.source, which)}: {why}"
        )
    return values


def list_bad(path: Path, banks: Sequence[Bank]) -> int:
    """Write the unusable images of all banks to a CSV file, where there are any; returns how many."""
    rows = [(bank.part.name, *record) for bank in banks for record in bank.bad()]
    if rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [("part", "index", "name", "reason"), *map(csv_row, rows)]
        )
        write_atomic(path, text.getvalue().encode("utf-8", "backslashreplace"))
    return len(rows)
