"""The questions of where, each answered for every image that is tested; from features on disk.

n  images     S  side of a grid     L = S * S     D  dimensions of a cell, over all levels     K  classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from hetcl.analysis.probe.knn import knn_labels
from hetcl.analysis.where.cells import VOID, counts_of
from hetcl.analysis.where.correspondence import WITHIN, match
from hetcl.analysis.where.localization import overlap
from hetcl.analysis.where.ridge import folds_of, ridge
from hetcl.boxes import box_iou
from hetcl.draws import permute
from hetcl.types import ViewBatch

MATCHED = {"found": len(WITHIN), "position": len(WITHIN), "chance": len(WITHIN)}
"""Columns of correspondence for each image, and how many numbers each has; besides ``cells`` and ``iou``."""
TOGETHER = 8
"""Images whose cells are compared at a time."""


def matches(views: Sequence[Tensor], batch: ViewBatch, side: int) -> dict[str, np.ndarray]:
    """Correspondence of two views: features ``[B, C * S * S]`` of each, to rows of ``MATCHED``."""
    out: dict[str, list[np.ndarray]] = {name: [] for name in (*MATCHED, "cells")}
    maps = [v.unflatten(1, (-1, side, side)) for v in views]
    boxes = batch.boxes.to(maps[0].device)
    for start in range(0, len(boxes[0]), TOGETHER):
        rows = slice(start, start + TOGETHER)
        found = match(maps[0][rows], maps[1][rows], boxes[:, rows])
        columns = (found.features, found.position, found.chance, found.cells)
        for name, values in zip(out, columns, strict=True):
            out[name].append(values.cpu().numpy())
    a, b = batch.boxes.double().numpy()
    return {name: np.concatenate(values) for name, values in out.items()} | {"iou": box_iou(a, b)}


def localize(
    train: np.ndarray, boxes: np.ndarray, test: np.ndarray, truth: np.ndarray, *, seed: int
) -> tuple[np.ndarray, float]:
    """Boxes by ridge regression on a frozen map: the overlap with the true box of each test image, and the penalty.

    Args:
        train, test: ``[n, D]``.
        boxes, truth: ``[n, 4]`` in shares of the image.
    """
    found = ridge(train, boxes, test, fold=folds_of(len(train), seed=seed))
    return overlap(found.predictions, truth), found.share


class Cells:
    """Cells of some images as rows ``[cells, D]``, read when they are asked for: levels side by side.

    Args:
        levels: ``[n, C_i * L]`` of each level, channel by channel.
        labels: int16 ``[n, L]``, -1 void.
        most: so many cells, drawn at random; 0: all. Void cells are left out.
        unit: each level of a cell of unit length; else each level is divided by one number, its spread.
    """

    def __init__(
        self, levels: Sequence[np.ndarray], labels: np.ndarray, *, unit: bool, most: int = 0, seed: int = 0,
        spread: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        self.levels, self.unit, self.per_image = levels, unit, labels.shape[1]
        self.kept = np.flatnonzero(labels.ravel() != VOID)
        if most and most < len(self.kept):
            self.kept = self.kept[np.sort(permute(np.arange(most), len(self.kept), seed, "cells"))]
        self.labels = labels.ravel()[self.kept].astype(np.int64)
        self.images = self.kept // self.per_image
        channels = [level.shape[1] // self.per_image for level in levels]
        self.shape = (len(self.kept), sum(channels))
        self.spread = [1.0] * len(levels)
        if not unit:
            self.spread = (
                list(spread) if spread is not None else [self._spread(i) for i in range(len(levels))]
            )

    def _spread(self, level: int) -> float:
        some = self._level(level, self.kept[:: max(1, len(self.kept) // 4096)])
        return (float(some.std(axis=0).mean()) if len(some) else 0.0) or 1.0

    def _level(self, level: int, cells: np.ndarray) -> np.ndarray:
        """``[len(cells), C]`` of one level."""
        images, where = np.divmod(cells, self.per_image)
        first, last = (int(images[0]), int(images[-1]) + 1) if len(images) else (0, 0)
        rows = np.asarray(self.levels[level][first:last], np.float32)
        block = rows.reshape(last - first, self.levels[level].shape[1] // self.per_image, self.per_image)
        return block.transpose(0, 2, 1)[images - first, where]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, rows: slice) -> np.ndarray:
        cells, out = self.kept[rows], []
        for i in range(len(self.levels)):
            x = self._level(i, cells) / self.spread[i]
            if self.unit:
                x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
            out.append(x)
        return np.concatenate(out, axis=1)

    def blocks(self, size: int = 16384) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows with their labels, some at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size], self.labels[start : start + size]

    def counts(self, predicted: np.ndarray, images: int, classes: int) -> np.ndarray:
        """Right, true and predicted cells of each image and class: int64 ``[n, 3, K]``."""
        out = np.zeros((images, 3, classes), np.int64)
        edges = np.searchsorted(self.images, np.arange(images + 1))
        for i, (start, stop) in enumerate(pairwise(edges.tolist())):
            out[i] = counts_of(predicted[start:stop], self.labels[start:stop], classes)
        return out


def dense_linear(train: Cells, test: Cells, *, classes: int, seed: int) -> tuple[np.ndarray, float]:
    """The class of each test cell by ridge regression on classes: int64, and the penalty; of equals the smaller."""
    fold = folds_of(int(train.images.max()) + 1, seed=seed)[train.images]
    found = ridge(train, np.eye(classes)[train.labels], test, fold=fold)
    return found.predictions.argmax(axis=1), found.share


def dense_knn(train: Cells, test: Cells, *, k: int, device: Any, interrupt: Callable[[], None]) -> np.ndarray:
    """The class of each test cell by a vote of its k nearest training cells: int64."""

    def watched() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for block in train.blocks():
            interrupt()
            yield block

    return knn_labels(watched(), list(test.blocks()), ks=[k], device=device)[k].numpy()


def by_chance(train: np.ndarray, test: np.ndarray, classes: int) -> dict[str, float]:
    """Mean IoU of always naming the commonest class of the training cells, and of naming each as often as it occurs.

    Args:
        train, test: classes of cells, void left out.
    """
    often, true = (np.bincount(x, minlength=classes) / max(1, len(x)) for x in (train, test))
    common = np.zeros(classes)
    common[often.argmax()] = 1

    def miou(called: np.ndarray) -> float:
        whole = true + called - true * called
        return float(np.mean((true * called)[whole > 0] / whole[whole > 0]))

    return {"majority": miou(common), "chance": miou(often)}
