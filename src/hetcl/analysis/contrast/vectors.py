"""The vectors that are searched for: all parts, each part alone, and PCA to so many dimensions (Figure 4).

n images, g keys in the gallery, D dimensions of all parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hetcl.analysis.contrast import pca
from hetcl.analysis.contrast.pca import CannotProject, Projection
from hetcl.analysis.vector_spread import effective_rank, uniformity

CHUNK = 4096
"""Rows read at a time."""

SAMPLE = 4096
"""Queries over whose pairs uniformity is taken; rows are in random order, so these are drawn at random."""


@dataclass(frozen=True)
class Features:
    """Finished features of ``n`` images, memory-mapped out of ``analysis/store.py``."""

    query: np.ndarray
    """float32 ``[n, D]``: of view 1, the parts side by side."""
    key: np.ndarray
    """float32 ``[n, D]``: of view 2."""
    index: np.ndarray
    """int64 ``[n]``: which image of the source."""
    boxes: np.ndarray
    """float32 ``[n, 2, 4]``: crop rectangles of both views in pixels of the original."""
    dims: dict[str, int]
    """Dimensions of each part, in order."""

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Vector:
    """One way of making a vector of the parts."""

    name: str
    """``full``, a part alone, ``pca-64``, ``pca-64@0.25`` (the last part's share where it is not half)."""
    projection: Projection
    """Parts side by side to the vector."""

    @property
    def dims(self) -> dict[str, int]:
        """Dimensions of each part in the vector."""
        return self.projection.dims

    @property
    def variance_kept(self) -> dict[str, float] | None:
        """Share of each part's variance that PCA keeps; None where there was no PCA."""
        return self.projection.variance_kept if self.name.startswith("pca-") else None


@dataclass(frozen=True)
class Vectors:
    """What to search for, and what was found on the way."""

    vectors: list[Vector]
    geometry: dict[str, dict[str, float]]
    """Uniformity of the queries and effective rank of the gallery's keys, for each part."""
    refused: list[str]
    """Why some PCA was not done, a line each."""


def vectors_of(features: Features, *, gallery: int, dims: Sequence[int], splits: Sequence[float]) -> Vectors:
    """The vectors of some features.

    Args:
        gallery: g; PCA is fitted on the keys that the gallery begins with: those of the last g rows, or of all rows
            when the gallery is the whole data set.
        dims: total dimensions after PCA.
        splits: shares of them for the last part; the others share the rest evenly.
    """
    n = len(features)
    start = 0 if gallery >= n - 1 else n - gallery
    fitted = pca.fit(_rows(features.key, start, n), features.dims)
    vectors = [Vector("full", pca.full(features.dims))]
    if len(features.dims) > 1:
        vectors += [Vector(part, pca.alone(features.dims, part)) for part in features.dims]
    refused = []
    shares = list(splits) if len(features.dims) > 1 else [0.5]
    for total in dims:
        for share in shares:
            name = f"pca-{total}" if share == 0.5 else f"pca-{total}@{share:g}"
            try:
                vectors.append(Vector(name, fitted.projection(total, split=share)))
            except CannotProject as e:
                refused.append(f"{name} left out: {e}")
    sample = torch.from_numpy(np.array(features.query[: min(n, SAMPLE)]))
    parts = dict(zip(features.dims, sample.split(list(features.dims.values()), dim=1), strict=True))
    geometry = {
        part: {"uniformity": float(uniformity(x)), "effective_rank": effective_rank(fitted.variances[part])}
        for part, x in parts.items()
    }
    return Vectors(vectors, geometry, refused)


def _rows(array: np.ndarray, start: int, stop: int) -> Iterator[np.ndarray]:
    for first in range(start, stop, CHUNK):
        yield np.asarray(array[first : min(stop, first + CHUNK)])
