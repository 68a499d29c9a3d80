"""Retrieval: how high does each query rank its own key among the keys of other images? Exact, fast, in fixed memory.

Shapes: B queries, D dimensions, K keys in the gallery, N rows of the features (``hetcl/types.py``).

Decisions are those of float64 (``search.py``). What float64 cannot tell apart (duplicate images, constant features)
is a tie, and ties count against the query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hetcl.analysis.search import dot, search
from hetcl.model.queue import KeyQueue

INF = float("inf")


@dataclass(frozen=True)
class Ranked:
    """What each query of a batch found."""

    rank: Tensor
    """int64 ``[B]``: 1 + the number of gallery keys at least as similar to the query as its own key."""
    place: Tensor
    """int64 ``[B]``: where in the gallery the most similar key lies (the first of equals), or -1 if there is none."""
    image: Tensor
    """int64 ``[B]``: the image that key belongs to, or -1."""
    right: Tensor
    """float32 ``[B]``: similarity with the own key."""
    wrong: Tensor
    """float32 ``[B]``: similarity with the most similar gallery key, or minus infinity."""


@dataclass(frozen=True)
class Contribution:
    """What each part adds to the two similarities of :class:`Ranked`; over the parts they sum to them."""

    right: dict[str, Tensor]
    """float32 ``[B]`` for each part: similarity with the own key."""
    wrong: dict[str, Tensor]
    """float32 ``[B]`` for each part: similarity with the most similar gallery key, or minus infinity."""


class Projector(Protocol):
    """A map of features that retrieval applies to queries and keys alike, such as PCA."""

    @property
    def dims(self) -> dict[str, int]:
        """The parts of what comes out, in order."""
        ...

    def __call__(self, features: Tensor) -> Tensor:
        """``[B, D]`` float32 to ``[B, sum of dims]``, on the same device."""
        ...


def gallery_length(n: int, gallery: int, batch: int) -> int:
    """How many keys of other images each query is compared with; chance is 1 / (1 + this).

    ``gallery`` of them while a gallery and a batch fit into the ``n`` rows side by side, otherwise all ``n - 1``.
    """
    if n < 0 or gallery < 1 or batch < 1:
        raise ValueError(f"need n >= 0, gallery >= 1, batch >= 1, not {n}, {gallery}, {batch}")
    return gallery if gallery + batch <= n else max(0, n - 1)


def first_in_first_out(
    query: np.ndarray,
    key: np.ndarray,
    index: np.ndarray,
    *,
    dims: dict[str, int],
    gallery: int,
    batch: int,
    project: Projector | None = None,
    device: torch.device | str = "cpu",
    rows: tuple[int, int] | None = None,
) -> Iterator[tuple[slice, Ranked, Contribution]]:
    """Retrieval over a whole data set with a gallery that is first in, first out, batch by batch as in training.

    The batch that starts at row s is compared with the keys of the :func:`gallery_length` rows before it, cyclic; where
    that is the whole data set, with all other rows. Memory does not depend on the number of rows.

    Args:
        query, key: float32 ``[N, D]``, usually memory-mapped: read one batch at a time.
        index: int64 ``[N]``, the image of each row, all different.
        dims: dimensions of the parts, side by side in D.
        gallery: keys of other images that are asked for.
        batch: rows per batch.
        project: applied to queries and keys before anything; its ``dims`` take the place of ``dims``.
        device: where to compute.
        rows: only these (start, stop), for one of several ranks; start is a multiple of ``batch``, and stop too
            unless it is N. The ranks together give exactly what one gives alone.

    Yields:
        (the batch's rows, what its queries found, what each part contributed), tensors on the host. ``place`` is the
        row modulo the length of the gallery, ``image`` says which image that was.

    Raises:
        ValueError: a feature is not finite (names the first row), or arguments do not fit.
    """
    n = len(query)
    start, stop = rows or (0, n)
    if len(key) != n or len(index) != n or query.shape != key.shape or query.shape[1] != sum(dims.values()):
        raise ValueError(f"shapes do not fit: {query.shape}, {key.shape}, {index.shape}, {dims}")
    if not 0 <= start <= stop <= n or start % batch or (stop % batch and stop != n):
        raise ValueError(f"rows {start} to {stop} of {n} are not whole batches of {batch}")
    length = gallery_length(n, gallery, batch)
    if start == stop:
        return
    everything = length == n - 1
    kept = dims if project is None else project.dims

    def read(features: np.ndarray, name: str, first: int, last: int) -> Tensor:
        rows = torch.from_numpy(np.array(features[first:last], dtype=np.float32)).to(device)
        _check_finite(rows, name, offset=first)
        return rows if project is None else project(rows).float()

    def images(first: int, last: int) -> Tensor:
        return torch.from_numpy(np.array(index[first:last], dtype=np.int64)).to(device)

    queue = KeyQueue(n if everything else length, kept).to(device)
    begin = 0 if everything else (start - length) % n
    # Row r lies at place r modulo the length (rows before row 0 count backwards), so that all ranks break ties alike.
    queue.pointer = 0 if everything else start % length
    for first, last in _cyclic(begin, queue.length, n, batch):
        queue.push(read(key, "key", first, last), images(first, last))
    for first in range(start, stop, batch):
        last = min(first + batch, stop)
        q, k, own = read(query, "query", first, last), read(key, "key", first, last), images(first, last)
        found = retrieve(q, k, queue.keys, own, queue.index)
        part = _contribution(q, k, queue.keys, found.place, kept)
        yield slice(first, last), _host(found), part
        if not everything:
            queue.push(k, own)


def _cyclic(begin: int, count: int, n: int, step: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most ``step`` rows that together are ``count`` rows from ``begin`` on, modulo ``n``."""
    while count > 0:
        last = min(begin + min(step, count), n)
        yield begin, last
        count, begin = count - (last - begin), last % n


def _host(found: Ranked) -> Ranked:
    return Ranked(*(getattr(found, f.name).cpu() for f in fields(found)))


def _contribution(
    query: Tensor, key: Tensor, gallery: Tensor, place: Tensor, dims: dict[str, int]
) -> Contribution:
    """Similarity part by part with the own key and with the gallery's key at ``place``, on the host."""
    other = gallery[place.clamp(min=0)]
    right, wrong, first = {}, {}, 0
    for name, d in dims.items():
        part = slice(first, first + d)
        right[name] = dot(query[:, part], key[:, part]).float().cpu()
        with_other = dot(query[:, part], other[:, part]).masked_fill(place < 0, -INF)
        wrong[name], first = with_other.float().cpu(), first + d
    return Contribution(right, wrong)


def _check_finite(features: Tensor, name: str, *, offset: int) -> None:
    """Raise ``ValueError`` with the first row that holds NaN or infinity."""
    if not features.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(features))).all()):
        return  # one pass without a temporary; NaN spreads
    row = int((~torch.isfinite(features).all(dim=1)).nonzero()[0, 0])
    raise ValueError(f"{name} features of row {row + offset} are not finite (NaN or infinity)")


@torch.no_grad()
def retrieve(query: Tensor, key: Tensor, gallery: Tensor, index: Tensor, gallery_index: Tensor) -> Ranked:
    """See :func:`hetcl.analysis.search.search`."""
    rank, place = search(query, key, gallery, index, gallery_index)
    wrong, image = torch.full_like(rank, -INF, dtype=torch.float32), place
    if len(gallery):
        nearest, none = place.clamp(min=0), place < 0
        wrong = dot(query, gallery[nearest]).float().masked_fill(none, -INF)
        image = gallery_index[nearest].masked_fill(none, -1)
    return Ranked(rank, place, image, dot(query, key).float(), wrong)
