"""What was found for every image that was tested, as figures with intervals over images.

n images     K classes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hetcl.analysis.statistics import Estimate, mean_of, paired_difference, proportion
from hetcl.analysis.where.cells import mean_iou, paired_mean_iou


@dataclass(frozen=True)
class Answer:
    """One measure of one question, of every image that was tested."""

    question: str
    measure: str
    level: str
    values: np.ndarray
    """Float64 ``[n]`` in 0..1, whose mean is the figure; bool ``[n]``, a share; or int64 ``[n, 3, K]``: counts of mean
    IoU."""
    index: np.ndarray
    """int64 ``[n]``: which images."""
    more: Mapping[str, Any]
    """What else the JSON file says of it."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.question, self.measure, self.level

    def estimate(self) -> Estimate:
        """The figure with its interval over images."""
        if self.values.dtype == bool:
            return proportion(int(self.values.sum()), len(self.values))
        return mean_iou(self.values) if self.values.ndim == 3 else mean(self.values)

    def comparable(self, other: Answer) -> bool:
        """Whether both say the same of the same images: a map of other cells answers an easier or harder question."""
        return self.more.get("side") == other.more.get("side") and np.array_equal(self.index, other.index)

    def minus(self, other: Answer) -> Estimate:
        """The difference on the same images, of answers that are comparable."""
        a, b = self.values, other.values
        if a.dtype == bool:
            return paired_difference(int((a & ~b).sum()), int((b & ~a).sum()), len(a))
        if a.ndim == 3:
            return paired_mean_iou(a, b)
        return mean(a - b, least=-1.0)


Answers = Mapping[str, Mapping[tuple[str, str, str], Answer]]
"""By model, then by :attr:`Answer.key`."""


def mean(values: np.ndarray, least: float = 0.0) -> Estimate:
    """Of float64 ``[n]``, none below ``least`` or above 1."""
    return mean_of(float(values.sum()), float((values**2).sum()), len(values), least=least)
