"""Counts to figures with intervals; all tallies take chunks and hold a few numbers.

Images are taken as independent. Shares have Wilson's score interval; the difference of two shares on the same
images has that of Agresti and Min (2005), which adds half a pair to each kind of outcome and so holds up where the
two never disagree; means have the normal interval. n queries, b of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

TOP = (1, 5)


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that holds the true one with the confidence asked for."""

    value: float
    low: float
    high: float


def z_of(confidence: float) -> float:
    """Two-sided quantile of the normal distribution."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def proportion(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """A share with Wilson's score interval. Raises ``ValueError`` when there is nothing to count."""
    if n <= 0:
        raise ValueError("a share of nothing")
    p, z = successes / n, z_of(confidence)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return Estimate(p, low, high)


def mean_of(
    total: float, squares: float, n: int, confidence: float = 0.95, *, least: float = 0.0
) -> Estimate:
    """A mean of values between ``least`` and 1 with the normal interval, from their sum and sum of squares."""
    mean = total / n
    variance = max(0.0, squares / n - mean * mean) * n / max(1, n - 1)
    half = z_of(confidence) * math.sqrt(variance / n)
    return Estimate(mean, max(least, mean - half), min(1.0, mean + half))


def paired_difference(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> Estimate:
    """Share of a minus share of b on the same ``n`` images.

    At 95% it covers the true difference in 93% to 96% of cases, with two or three disagreements in all in 87%
    (tests/analysis/test_statistics.py).

    Args:
        only_a, only_b: images on which a alone, b alone succeeded.
    """
    value, m = (only_a - only_b) / n, n + 2
    middle = (only_a - only_b) / m
    b, c = (only_a + 0.5) / m, (only_b + 0.5) / m
    half = z_of(confidence) * math.sqrt(max(0.0, b + c - (b - c) ** 2) / m)
    return Estimate(value, max(-1.0, min(value, middle - half)), min(1.0, max(value, middle + half)))


class Bins:
    """Bins of overlap: one for none at all (IoU 0), then equal ones, or between given edges, half-open from below.

    Args:
        bins: how many between 0 and 1, or their edges.
    """

    def __init__(self, bins: int | Sequence[float]) -> None:
        edges = [k / bins for k in range(bins + 1)] if isinstance(bins, int) else list(bins)
        self.edges = np.array(edges, np.float64)

    def __len__(self) -> int:
        return len(self.edges)

    def assign(self, iou: np.ndarray) -> np.ndarray:
        """The bin of each IoU in [0, 1]: int64 of the same shape; 0 is the bin of no overlap."""
        inner = np.searchsorted(self.edges, np.asarray(iou, np.float64), side="left").clip(
            1, len(self.edges) - 1
        )
        return np.where(np.asarray(iou) <= 0, 0, inner)

    def bounds(self, place: int) -> tuple[float, float]:
        """Lower and upper edge of a bin; both 0 for the bin of no overlap."""
        return (0.0, 0.0) if place == 0 else (float(self.edges[place - 1]), float(self.edges[place]))

    def label(self, place: int) -> str:
        """What to call a bin."""
        low, high = self.bounds(place)
        return "no overlap" if place == 0 else f"IoU {low:.2g} to {high:.2g}"


class Tally:
    """Top-1, top-5 and mean reciprocal rank, overall and by bin."""

    def __init__(self, bins: Bins) -> None:
        self.bins = bins
        self.n = np.zeros(len(bins), np.int64)
        self.hits = np.zeros((len(TOP), len(bins)), np.int64)
        self.sums = np.zeros(2)

    def add(self, rank: np.ndarray, iou: np.ndarray) -> None:
        """A chunk: ranks from 1 and IoU, each ``[b]``."""
        place, rank = self.bins.assign(iou), np.asarray(rank)
        self.n += np.bincount(place, minlength=len(self.bins))
        for row, top in zip(self.hits, TOP, strict=True):
            row += np.bincount(place[rank <= top], minlength=len(self.bins))
        reciprocal = 1 / rank.astype(np.float64)
        self.sums += reciprocal.sum(), (reciprocal**2).sum()

    def overall(self, confidence: float = 0.95) -> dict[str, Estimate]:
        """``top1``, ``top5`` and ``mrr``."""
        n = int(self.n.sum())
        out = {
            f"top{k}": proportion(int(h.sum()), n, confidence) for k, h in zip(TOP, self.hits, strict=True)
        }
        return out | {"mrr": mean_of(float(self.sums[0]), float(self.sums[1]), n, confidence)}

    def by_bin(self, confidence: float = 0.95) -> list[dict[str, Any]]:
        """``{low, high, count, top1}`` of every bin; ``top1`` is None where it is empty."""
        out = []
        for place in range(len(self.bins)):
            low, high = self.bins.bounds(place)
            n, top1 = int(self.n[place]), None
            if n:
                e = proportion(int(self.hits[0, place]), n, confidence)
                top1 = {"value": e.value, "low": e.low, "high": e.high}
            out.append({"low": low, "high": high, "count": n, "top1": top1})
        return out


class PairedTally:
    """The difference of two models on the same queries: first minus second."""

    def __init__(self) -> None:
        self.n = self.only_a = self.only_b = 0
        self.sums = np.zeros(2)

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """A chunk of ranks of both, each ``[b]``."""
        self.n += len(a)
        self.only_a += int(((a == 1) & (b != 1)).sum())
        self.only_b += int(((b == 1) & (a != 1)).sum())
        d = 1 / a.astype(np.float64) - 1 / b.astype(np.float64)
        self.sums += d.sum(), (d**2).sum()

    def differences(self, confidence: float = 0.95) -> dict[str, Estimate]:
        """``top1`` and ``mrr``."""
        return {
            "top1": paired_difference(self.only_a, self.only_b, self.n, confidence),
            "mrr": mean_of(float(self.sums[0]), float(self.sums[1]), self.n, confidence, least=-1.0),
        }
