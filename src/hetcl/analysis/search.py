"""Exact search: the rank of each query's own key among a gallery's keys, and the most similar key of the gallery.

Shapes: B queries, D dimensions, K keys in the gallery, r queries searched for at once (``hetcl/types.py``).

Similarities are computed in blocks in float32. A sum of D products is off by at most ``D u / (1 - D u) |q| |g|`` in any
order (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Pairs that this margin cannot tell from the
own key, or from the most similar one, are recomputed in float64; a query with many of them is searched for in float64
altogether. What float64 cannot tell apart (duplicate images, constant features) is a tie, and counts against the query.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = {"cpu": 8 << 20, "cuda": 1 << 28}
"""Bytes of similarities that are computed at once, by type of device: on a CPU they stay in its cache."""
GROUP = 128
"""Keys that are looked at through their largest similarity first: few groups hold anything of interest."""
UNSURE = 64
"""A query with more pairs to recompute than this, or than K / 256, is searched for in float64."""
LARGEST = 1e30
"""Product of lengths from which on sums in float32 might overflow."""
INF = float("inf")


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner products ``[B]`` in float64, a bounded number of rows at a time."""
    step = max(1, BLOCK[a.device.type] // (16 * max(1, a.shape[1])))
    parts = zip(a.split(step), b.split(step), strict=True)
    return torch.cat([torch.linalg.vecdot(x.double(), y.double()) for x, y in parts])


def search(
    query: Tensor, key: Tensor, gallery: Tensor, index: Tensor, gallery_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the own key ranks, and which key of the gallery is the most similar.

    Args:
        query, key: float32 ``[B, D]``; row i of both comes from image ``index[i]``.
        gallery: float32 ``[K, D]``.
        index: int64 ``[B]``.
        gallery_index: int64 ``[K]``; keys of a query's own image never count for it.

    Returns:
        rank, int64 ``[B]``: 1 + the number of keys at least as similar as the own one; place, int64 ``[B]``: of the
        most similar key (the first of equals), -1 if there is none.
    """
    rank, place = torch.ones_like(index), torch.full_like(index, -1)
    if not len(gallery) or not len(query):
        return rank, place
    own = dot(query, key)
    size = (query.shape[1] + 4) * _lengths(query) * torch.maximum(_lengths(key), _lengths(gallery).amax())
    loose = torch.get_float32_matmul_precision() != "highest"  # the user allowed TF32 or bfloat16 inside
    coarse = (
        size * (2.0**-7 if loose else 1.1 * 2.0**-24) + query.shape[1] * 2.0**-120
    )  # what was flushed to zero
    fine = size * 2.0**-51
    same = _same_image(index, gallery_index)
    rows = torch.arange(len(query), device=query.device)
    for dtype in (torch.float32, torch.float64):
        if not len(rows) or (dtype == torch.float32 and float(size.amax()) > LARGEST):
            continue
        left = [rows[:0]]
        for some in rows.split(max(8, math.isqrt(BLOCK[query.device.type] // dtype.itemsize))):
            at = query[some], own[some], fine[some]
            blocks = _blocks(at[0], gallery, some, same, dtype)
            if dtype == torch.float64:
                rank[some], place[some] = _in_float64(*at, blocks)
            else:
                rank[some], place[some], decided = _in_float32(*at, coarse[some], gallery, blocks)
                left.append(some[~decided])
        rows = torch.cat(left)
    return rank, place


def _lengths(x: Tensor) -> Tensor:
    """Lengths of the rows ``[B]``, float64."""
    lengths = torch.linalg.vector_norm(x, dim=1)
    if bool(((lengths > 1e-12) & (lengths < 1e18)).all()):  # no square was flushed to zero or overflowed
        return lengths.double()
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)


def _blocks(
    query: Tensor, gallery: Tensor, rows: Tensor, same: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Iterator[tuple[int, Tensor]]:
    """(first key, similarities ``[r, groups, GROUP]``); minus infinity beyond the gallery and for the own image."""
    room = BLOCK[query.device.type] // (dtype.itemsize * GROUP * len(query))
    out = torch.empty(len(query), max(1, room) * GROUP, dtype=dtype, device=query.device)
    who, where = same
    row = torch.searchsorted(rows, who).clamp(max=len(rows) - 1)
    mine = rows[row] == who
    row, where = row[mine], where[mine]
    for first in range(0, len(gallery), out.shape[1]):
        keys = gallery[first : first + out.shape[1]].to(dtype)
        block = out[:, : -(-len(keys) // GROUP) * GROUP]
        torch.mm(query.to(dtype), keys.t(), out=block[:, : len(keys)])
        block[:, len(keys) :] = -INF
        inside = (where >= first) & (where < first + len(keys))
        block[row[inside], where[inside] - first] = -INF
        yield first, block.unflatten(1, (-1, GROUP))


def _in_float64(
    query: Tensor, own: Tensor, fine: Tensor, blocks: Iterator[tuple[int, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Ranks and places; what lies within ``fine`` is equal."""
    rank, place = torch.ones_like(own, dtype=torch.int64), torch.full_like(own, -1, dtype=torch.int64)
    best = torch.full_like(own, -INF)
    for first, block in blocks:
        values = block.flatten(1)
        rank += (values >= (own - fine)[:, None]).sum(dim=1, dtype=torch.int32)
        most = values.amax(dim=1)
        more = most > best + 2 * fine
        earliest = (values >= (most - 2 * fine)[:, None]).int().argmax(dim=1)
        best, place = torch.where(more, most, best), torch.where(more, first + earliest, place)
    return rank, place


def _in_float32(
    query: Tensor,
    own: Tensor,
    fine: Tensor,
    coarse: Tensor,
    gallery: Tensor,
    blocks: Iterator[tuple[int, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks, places, and which of them are right: the other queries have too many pairs within ``coarse``."""
    limit, pieces = max(UNSURE, len(gallery) // 256), BLOCK[query.device.type] // (8 * GROUP)
    low, high = _below(own - coarse), -_below(-own - coarse)
    best = torch.full_like(low, -INF)
    rank, pairs = torch.ones_like(own, dtype=torch.int64), torch.zeros_like(own, dtype=torch.int64)
    found = []
    for first, block in blocks:
        top = block.amax(dim=2)
        best = torch.maximum(best, top.amax(dim=1))
        near = _below(best.double() - 2 * coarse).masked_fill(best.isinf(), INF)
        wanted = (top >= torch.minimum(low, near)[:, None]) & (pairs <= limit)[:, None]
        for i, group in zip(*(x.split(pieces) for x in wanted.nonzero(as_tuple=True)), strict=True):
            values = block[i, group]
            more = values > high[i, None]
            unsure = (values >= low[i, None]) & ~more
            kept = unsure | (values >= near[i, None])
            rank.index_add_(0, i, _count(more))
            count = _count(kept)
            pairs.index_add_(0, i, count)
            some = ((count > 0) & (pairs[i] <= limit)).nonzero()[:, 0]
            row, column = kept[some].nonzero(as_tuple=True)
            row = some[row]
            found.append((i[row], first + group[row] * GROUP + column, unsure[row, column]))
    decided, place = pairs <= limit, torch.full_like(rank, len(gallery))
    if found:
        i, j, unsure = (torch.cat(x) for x in zip(*found, strict=True))
        exact = dot(query[i], gallery[j])
        rank.index_add_(0, i, (unsure & (exact >= (own - fine)[i])).long())
        most = torch.full_like(own, -INF).scatter_reduce_(0, i, exact, "amax")
        winner = exact >= (most - 2 * fine)[i]
        place.scatter_reduce_(0, i[winner], j[winner], "amin")
    return rank, place.masked_fill(place == len(gallery), -1), decided


def _count(flags: Tensor) -> Tensor:
    """How many of each row, int64: as bytes, since a group has fewer than 256 keys."""
    return flags.view(torch.uint8).sum(dim=1, dtype=torch.uint8).long()


def _below(limit: Tensor) -> Tensor:
    """A float32 that is not above a float64."""
    return torch.nextafter(limit.float(), limit.new_tensor(-INF).float())


def _same_image(index: Tensor, gallery_index: Tensor) -> tuple[Tensor, Tensor]:
    """All (query, place) whose images are the same, without comparing each with each."""
    ordered, order = index.sort()
    first = torch.searchsorted(ordered, gallery_index)
    count = torch.searchsorted(ordered, gallery_index, right=True) - first
    places = count.nonzero()[:, 0]
    first, count = first[places], count[places]
    before = count.cumsum(0) - count
    within = torch.arange(int(count.sum()), device=index.device) - before.repeat_interleave(count)
    return order[first.repeat_interleave(count) + within], places.repeat_interleave(count)
