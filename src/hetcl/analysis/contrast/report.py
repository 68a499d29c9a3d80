"""Search results to the rows of ``contrast.json``: accuracies with intervals, bins of overlap, parts, differences.

Everything is counted in chunks, so memory does not grow with the number of queries. docs/contrast.md describes the
result. n queries, P parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hetcl.analysis.contrast.search_results import SearchResults
from hetcl.analysis.contrast.vectors import Features
from hetcl.analysis.statistics import Bins, Estimate, PairedTally, Tally, proportion
from hetcl.analysis.yardstick import Entry
from hetcl.boxes import box_iou
from hetcl.types import ViewPolicy

SCHEMA = 1
"""Version of contrast.json: raised when a name changes its meaning or goes away."""

CHUNK = 1 << 18
"""Queries counted at a time."""


@dataclass(frozen=True)
class Tested:
    """One model, one kind of features, one kind of views, searched."""

    name: str
    views: str
    features: Features
    searched: dict[str, SearchResults]
    """By vector, ``full`` first."""
    geometry: dict[str, dict[str, float]]
    """Uniformity and effective rank of each part."""
    gallery: int


def chunks(n: int) -> Iterator[slice]:
    """``range(n)`` in slices of :data:`CHUNK`."""
    yield from (slice(start, min(n, start + CHUNK)) for start in range(0, n, CHUNK))


def overlap_of(features: Features, rows: slice) -> np.ndarray:
    """IoU of the two crops of each image, float64 ``[rows]``."""
    boxes = np.asarray(features.boxes[rows])
    return box_iou(boxes[:, 0], boxes[:, 1])


def estimate(e: Estimate) -> dict[str, float]:
    """An estimate as it stands in the JSON."""
    return {"value": float(e.value), "low": float(e.low), "high": float(e.high)}


def models_of(entries: Sequence[Entry], dims: Mapping[str, dict[str, int]]) -> list[dict[str, Any]]:
    """The rows of ``models``; ``dims`` of each by name."""
    return [
        {
            "name": e.name,
            "model": e.encoder.model,
            "arch": e.encoder.pyramid.arch,
            "features": e.features,
            "size": e.size,
            "dims": dims[e.name],
            "weights": e.digest,
            "role": e.role,
            "of": e.of,
        }
        for e in entries
    ]


def overview(
    tested: Sequence[Tested], policies: Mapping[str, ViewPolicy], *, confidence: float
) -> dict[str, Any]:
    """The policy of each kind of views, the share of pairs without overlap, the mean IoU."""
    out = {}
    for views, policy in policies.items():
        features = next(t.features for t in tested if t.views == views)
        n, none, total = len(features), 0, 0.0
        for rows in chunks(n):
            iou = overlap_of(features, rows)
            none, total = none + int((iou == 0).sum()), total + float(iou.sum())
        out[views] = {
            "policy": asdict(policy),
            "no_overlap": estimate(proportion(none, n, confidence)),
            "mean_iou": total / n,
        }
    return out


def results_of(tested: Tested, *, bins: int, confidence: float) -> Iterator[dict[str, Any]]:
    """A row for each vector."""
    for name, searched in tested.searched.items():
        tally, ties, held = Tally(Bins(bins)), 0, searched.read()
        for rows in chunks(len(held)):
            some = held[rows]
            tally.add(some["rank"], overlap_of(tested.features, rows))
            ties += int(((some["right"] == some["wrong"]) & (some["rank"] > 1)).sum())
        overall = tally.overall(confidence)
        yield {
            "model": tested.name,
            "views": tested.views,
            "vector": name,
            "dims": searched.vector.dims,
            "total": sum(searched.vector.dims.values()),
            "variance_kept": searched.vector.variance_kept,
            **{k: estimate(v) for k, v in overall.items()},
            "ties": ties / len(held),
            "bins": tally.by_bin(confidence),
        }


def parts_of(tested: Tested) -> Iterator[dict[str, Any]]:
    """A row for each part of the full vector: geometry, and what it contributes to right and wrong matches."""
    held = tested.searched["full"].read()
    names = list(tested.features.dims)
    sums = np.zeros((len(names), 2))
    for rows in chunks(len(held)):
        sums += np.asarray(held[rows]["parts"], np.float64).sum(axis=0)
    right, wrong = (sums / len(held)).T
    for i, name in enumerate(names):
        yield {
            "model": tested.name,
            "views": tested.views,
            "part": name,
            "alignment": 2 - 2 * float(right[i]),
            **tested.geometry[name],
            "right": float(right[i]),
            "wrong": float(wrong[i]),
            "share_right": _share(right, i),
            "share_wrong": _share(wrong, i),
            "margin": float(right[i] - wrong[i]),
        }


def _share(values: np.ndarray, i: int) -> float | None:
    """What part ``i`` contributes to the sum; None where the sum says nothing."""
    total = float(values.sum())
    return float(values[i]) / total if abs(total) > 1e-6 else None


def compare(
    tested: Sequence[Tested], *, pairs: Collection[frozenset[str]], confidence: float
) -> list[dict[str, Any]]:
    """Paired differences of two models under the same views, for every vector that both have.

    Args:
        pairs: names of the models that are compared.
    """
    out = []
    for a, b in combinations(tested, 2):
        if frozenset((a.name, b.name)) not in pairs:
            continue
        if a.views != b.views or len(a.features) != len(b.features):
            continue
        if not all(np.array_equal(a.features.index[r], b.features.index[r]) for r in chunks(len(a.features))):
            continue
        for name in a.searched.keys() & b.searched.keys():
            left, right, tally = a.searched[name].read(), b.searched[name].read(), PairedTally()
            for rows in chunks(len(left)):
                tally.add(left[rows]["rank"], right[rows]["rank"])
            differences = {k: estimate(v) for k, v in tally.differences(confidence).items()}
            out.append({"views": a.views, "vector": name, "models": [a.name, b.name], **differences})
    order = {name: i for i, name in enumerate(dict.fromkeys(v for t in tested for v in t.searched))}
    return sorted(out, key=lambda row: (row["views"], row["models"], order[row["vector"]]))
