"""Pixels counted by class.

K  classes     H W  height and width in pixels
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetcl.datasets.annotations import Metrics
from hetcl.errors import InputError

IGNORED = 255


class Confusion:
    """How many pixels of each class were called what. Counts add up: over images, workers and ranks."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), dtype=np.int64)
        """int64 ``[K, K]``: true class by predicted class."""

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """One image.

        Args:
            prediction: Integers ``[H, W]``, 0..K-1; of no matter where the truth is 255.
            truth: Integers ``[H, W]``, 0..K-1, or 255 where a pixel does not count.

        Raises:
            InputError: the shapes differ, or a class is out of range.
        """
        if prediction.shape != truth.shape:
            raise InputError(
                f"a prediction of {prediction.shape} pixels for a truth of {truth.shape} (height, width)"
            )
        k, counted = len(self.counts), truth != IGNORED
        rows, columns = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
        for name, values in (("truth", rows), ("prediction", columns)):
            if values.size and not (values.min() >= 0 and values.max() < k):
                raise InputError(
                    f"classes of the {name} must be 0 to {k - 1}, not {values.min()} to {values.max()}"
                )
        self.counts += np.bincount(rows * k + columns, minlength=k * k).reshape(k, k)

    def merge(self, counts: np.ndarray) -> None:
        """Add what another one counted, int64 ``[K, K]``. Raises ``InputError`` for another number of classes."""
        if counts.shape != self.counts.shape:
            raise InputError(f"counts of {counts.shape} classes cannot be added to {self.counts.shape}")
        self.counts += counts

    def metrics(self, names: Sequence[str]) -> Metrics:
        """``miou``, ``pixel_accuracy``, ``mean_accuracy``; per class ``iou`` and ``accuracy``.

        IoU is NaN for a class that is neither in truth nor in prediction, accuracy for one that is not in the truth;
        they are left out of the means.

        Args:
            names: Of the K classes.
        """
        right = self.counts.diagonal()
        true, predicted = self.counts.sum(axis=1), self.counts.sum(axis=0)
        iou = _percent(right, true + predicted - right)
        accuracy = _percent(right, true)
        figures = {
            "miou": _mean(iou),
            "pixel_accuracy": float(_percent(right.sum(keepdims=True), true.sum(keepdims=True))[0]),
            "mean_accuracy": _mean(accuracy),
        }
        per_class = {
            name: {"iou": float(iou[label]), "accuracy": float(accuracy[label])}
            for label, name in zip(range(len(right)), names, strict=True)
        }
        return Metrics(figures, per_class)


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where the whole is 0."""
    return 100 * np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
