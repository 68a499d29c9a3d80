"""PCA of features, part by part (paper section 3.4, Figure 4), fitted in one stream.

Sums and products are accumulated in float64 around the first chunk's mean, so the covariance equals that of the centred
matrix to rounding. n keys, D dimensions of all parts, d of one part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hetcl.model.embedding import normalize


class CannotProject(Exception):
    """A projection that cannot be made; the message is the reason in words."""


@dataclass(frozen=True)
class Projection:
    """A map of parts side by side to a vector; each part of the result has unit length."""

    dims: dict[str, int]
    """Dimensions of each part that comes out, in order."""
    slices: dict[str, slice]
    """Where those parts lie in what goes in."""
    means: dict[str, Tensor] | None = None
    """float32 ``[d]`` for each part; None: the parts as they are."""
    axes: dict[str, Tensor] | None = None
    """float32 ``[d, kept]`` for each part."""
    variance_kept: dict[str, float] | None = None
    """Share of each part's variance that is kept."""

    def __call__(self, features: Tensor) -> Tensor:
        """``[B, D]`` -> ``[B, sum of dims]`` in fp32, on the same device."""
        out = []
        for part, place in self.slices.items():
            y = features[:, place].float()
            if self.means is not None and self.axes is not None:
                y = (y - self.means[part].to(y.device)) @ self.axes[part].to(y.device)
                y = normalize(y)
            out.append(y)
        return torch.cat(out, dim=1)


def places_of(dims: Mapping[str, int]) -> dict[str, slice]:
    """Where each part lies side by side."""
    out, start = {}, 0
    for part, d in dims.items():
        out[part] = slice(start, start + d)
        start += d
    return out


def full(dims: Mapping[str, int]) -> Projection:
    """All parts as they are."""
    return Projection(dict(dims), places_of(dims))


def alone(dims: Mapping[str, int], part: str) -> Projection:
    """One part as it is."""
    return Projection({part: dims[part]}, {part: places_of(dims)[part]})


@dataclass(frozen=True)
class PCA:
    """Principal axes of each part."""

    dims: dict[str, int]
    images: int
    """n, the keys it was fitted on."""
    means: dict[str, np.ndarray]
    """float64 ``[d]``."""
    variances: dict[str, np.ndarray]
    """float64 ``[d]``, falling; of the covariance with divisor n."""
    axes: dict[str, np.ndarray]
    """float64 ``[d, d]``, one axis a column, signs such that each axis' largest entry is positive."""

    def projection(self, total: int, *, split: float = 0.5) -> Projection:
        """The first axes of each part, ``total`` in all.

        Args:
            split: the last part's share of them, where there are several; the others share the rest evenly.

        Raises:
            CannotProject: more axes asked of a part than it has, or than the keys span.
        """
        *others, last = self.dims
        n, rest = len(others), total - round(total * split) if others else 0
        wanted = {part: (i + 1) * rest // n - i * rest // n for i, part in enumerate(others)}
        wanted = {part: d for part, d in (wanted | {last: total - rest}).items() if d}
        for part, d in wanted.items():
            if d > self.dims[part]:
                raise CannotProject(f"{d} dimensions asked of the {part} part, which has {self.dims[part]}")
            if float(self.variances[part].max(initial=0)) <= 1e-12:
                raise CannotProject(f"the {part} part has no variance (it is constant)")
            if d > self.images - 1:
                raise CannotProject(
                    f"PCA to {d} dimensions of the {part} part needs more than {d} images, not {self.images}"
                )
        places = places_of(self.dims)
        kept = {
            part: float(self.variances[part][:d].sum() / self.variances[part].sum())
            for part, d in wanted.items()
        }
        return Projection(
            wanted,
            {part: places[part] for part in wanted},
            {part: torch.from_numpy(self.means[part]).float() for part in wanted},
            {
                part: torch.from_numpy(np.ascontiguousarray(self.axes[part][:, :d])).float()
                for part, d in wanted.items()
            },
            kept,
        )


def fit(keys: Iterable[np.ndarray], dims: Mapping[str, int]) -> PCA:
    """Principal axes of each part of ``keys``, chunks ``[b, D]``. Memory: d x d numbers a part."""
    places, n = places_of(dims), 0
    shift: dict[str, np.ndarray] = {}
    sums = {part: np.zeros(d) for part, d in dims.items()}
    products = {part: np.zeros((d, d)) for part, d in dims.items()}
    for chunk in keys:
        n += len(chunk)
        for part, place in places.items():
            x = np.asarray(chunk[:, place], np.float64)
            x = x - shift.setdefault(part, x.mean(axis=0))
            sums[part] += x.sum(axis=0)
            products[part] += x.T @ x
    means, variances, axes = {}, {}, {}
    for part in dims:
        mean = sums[part] / n
        covariance = products[part] / n - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
        largest = np.abs(vectors).argmax(axis=0)
        vectors = vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])
        means[part], variances[part], axes[part] = mean + shift[part], values, vectors
    return PCA(dict(dims), n, means, variances, axes)
