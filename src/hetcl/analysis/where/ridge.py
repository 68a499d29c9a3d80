"""Ridge regression in closed form, of features of any width, with a penalty chosen by cross-validation.

    n  rows to fit     m  rows to predict     D  dimensions     T  targets     F  folds

Minimises ``|Y - X W - b|^2 + penalty |W|^2``; the intercept ``b`` is not penalised. The smaller of two systems is
solved, D x D or n x n (the same function), in float64. Penalties are given as shares of the mean eigenvalue of the
centred features' Gram matrix, so that they mean the same at any scale and number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

SHARES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties that are tried."""
BYTES = 64 << 20
"""Bytes of features that are held at a time in float64."""


class Rows(Protocol):
    """Features ``[n, D]``: an array, a memory map, or rows that are made when they are asked for."""

    @property
    def shape(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Fitted:
    """What a regression gives for the rows to predict."""

    predictions: np.ndarray
    """float64 ``[m, T]``."""
    share: float
    """The penalty that was taken, as a share of the mean eigenvalue."""
    tried: dict[float, float]
    """Share -> squared error a row and target, on folds that were held out."""


def ridge(
    features: Rows,
    targets: np.ndarray,
    test: Rows,
    *,
    fold: np.ndarray,
    shares: Sequence[float] = SHARES,
) -> Fitted:
    """Fit ``features`` to ``targets`` and predict ``test``.

    Args:
        features: ``[n, D]``, any float type; read in pieces, so it may be a memory map.
        targets: ``[n, T]``.
        test: ``[m, D]``.
        fold: Integers ``[n]``: rows of one number are held out together, to choose the penalty. One number alone
            chooses nothing: the middle penalty is taken.
        shares: The penalties to try.

    Raises:
        ValueError: fewer than two rows, or a feature that is not finite.
    """
    n, d = features.shape
    if n < 2:
        raise ValueError(f"a regression needs at least two rows, not {n}")
    y = torch.from_numpy(np.ascontiguousarray(targets, np.float64))
    system: _Primal | _Dual = (_Primal if d <= n else _Dual)(features, y, fold)
    names = np.unique(fold)
    if len(names) < 2:
        share, tried = sorted(shares)[len(shares) // 2], {}
    else:
        errors = np.sum([system.errors(name, shares) for name in names], axis=0) / y.numel()
        tried = {float(s): float(e) for s, e in zip(shares, errors, strict=True)}
        share = min(tried, key=lambda s: (tried[s], -s))
    return Fitted(system.predict(test, share).numpy(), share, tried)


def pieces(rows: Rows) -> Iterator[tuple[slice, Tensor]]:
    """``[n, D]`` in float64, some rows at a time. Raises ``ValueError`` where they are not finite."""
    step = max(1, BYTES // (8 * max(1, rows.shape[1])))
    for start in range(0, len(rows), step):
        x = torch.from_numpy(np.array(rows[start : start + step], np.float64))
        if not bool(x.isfinite().all()):
            raise ValueError("features are not finite")
        yield slice(start, start + len(x)), x


class _Primal:
    """By the ``D x D`` Gram matrix, kept for each fold, so that any fold can be taken out."""

    def __init__(self, features: Rows, targets: Tensor, fold: np.ndarray) -> None:
        self.sums = {name: _Sums(features.shape[1], targets.shape[1]) for name in np.unique(fold).tolist()}
        for place, x in pieces(features):
            for name in np.unique(fold[place]).tolist():
                rows = torch.from_numpy(fold[place] == name)
                self.sums[name].add(x[rows], targets[place][rows])

    def _fit(self, sums: _Sums, shares: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights ``[D, T]`` and intercept ``[T]`` for each share."""
        gram = sums.gram - torch.outer(sums.x, sums.x) / sums.n
        moments = sums.moments - torch.outer(sums.x, sums.y) / sums.n
        scale = float(gram.trace()) / min(sums.n, len(gram))
        for share in shares:
            w = _solve(gram, share * scale, moments)
            yield w, (sums.y - sums.x @ w) / sums.n

    def errors(self, held: int, shares: Sequence[float]) -> np.ndarray:
        """Squared error on a fold of fits to the others, summed over rows and targets, for each share."""
        out, h = [], self.sums[held]
        rest = _Sums(len(h.x), len(h.y))
        for name, sums in self.sums.items():
            rest.merge(sums) if name != held else None
        for w, b in self._fit(rest, shares):
            cross = 2 * ((w * h.moments).sum() + (b * h.y).sum() - (h.x @ w * b).sum())
            out.append(float(h.squares - cross + (w * (h.gram @ w)).sum() + h.n * (b * b).sum()))
        return np.array(out)

    def predict(self, test: Rows, share: float) -> Tensor:
        whole = _Sums(*next(iter(self.sums.values())).moments.shape)
        for sums in self.sums.values():
            whole.merge(sums)
        w, b = next(self._fit(whole, [share]))
        return torch.cat([x @ w + b for _, x in pieces(test)] or [torch.zeros(0, len(b), dtype=w.dtype)])


class _Sums:
    """What a fit in primal form needs to know of some rows."""

    def __init__(self, d: int, t: int) -> None:
        self.n, self.squares = 0, torch.zeros((), dtype=torch.float64)
        self.x, self.y = torch.zeros(d, dtype=torch.float64), torch.zeros(t, dtype=torch.float64)
        self.gram = torch.zeros(d, d, dtype=torch.float64)
        self.moments = torch.zeros(d, t, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows ``[b, D]`` and their targets ``[b, T]``."""
        self.n += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.squares += (y * y).sum()
        self.gram.addmm_(x.t(), x)
        self.moments.addmm_(x.t(), y)

    def merge(self, other: _Sums) -> None:
        self.n += other.n
        for name in ("x", "y", "squares", "gram", "moments"):
            getattr(self, name).add_(getattr(other, name))


class _Dual:
    """By the ``n x n`` matrix of inner products."""

    def __init__(self, features: Rows, targets: Tensor, fold: np.ndarray) -> None:
        self.features, self.y, self.fold = features, targets, torch.from_numpy(np.asarray(fold))
        self.kernel = self._products(features)

    def _products(self, rows: Rows) -> Tensor:
        """Inner products with the rows of the fit: float64 ``[len(rows), n]``."""
        out = torch.zeros(len(rows), len(self.features), dtype=torch.float64)
        for place, x in pieces(rows):
            for other, y in pieces(self.features):
                out[place, other] = x @ y.t()
        return out

    def _fit(self, fit: Tensor, products: Tensor, shares: Sequence[float]) -> Iterator[Tensor]:
        """Predictions of rows from their products with all rows ``[r, n]``, by the rows ``fit`` alone."""
        k, p, y = self.kernel[fit][:, fit], products[:, fit], self.y[fit]
        mean = k.mean(0)
        p = p - p.mean(1, keepdim=True) - mean + mean.mean()
        k = k - mean - mean[:, None] + mean.mean()
        scale = float(k.trace()) / min(len(k), self.features.shape[1])
        for share in shares:
            yield p @ _solve(k, share * scale, y - y.mean(0)) + y.mean(0)

    def errors(self, held: int, shares: Sequence[float]) -> np.ndarray:
        """As :meth:`_Primal.errors`."""
        rows = self.fold == held
        found = self._fit((~rows).nonzero()[:, 0], self.kernel[rows], shares)
        return np.array([float((self.y[rows] - p).square().sum()) for p in found])

    def predict(self, test: Rows, share: float) -> Tensor:
        return next(self._fit(torch.arange(len(self.y)), self._products(test), [share]))


def _solve(matrix: Tensor, penalty: float, right: Tensor) -> Tensor:
    """``(matrix + penalty I)^-1 right``; zeros where the features are all equal."""
    if not penalty > 0:
        return torch.zeros_like(right)
    damped = matrix.clone()
    damped.diagonal().add_(penalty)
    return torch.cholesky_solve(right, torch.linalg.cholesky(damped))


def folds_of(groups: int, *, seed: int, folds: int = 4) -> np.ndarray:
    """A fold for each of ``groups`` images, equal in size to within one: int64 ``[groups]``."""
    from hetcl.draws import generator

    order = generator(seed, "folds").permutation(groups)
    out = np.empty(groups, np.int64)
    out[order] = np.arange(groups) % min(folds, max(1, groups))
    return out
