"""Which keys are more similar to a query than its own? Float64's answer for the price of a lower precision.

Shapes: B queries, D dimensions, K keys in the gallery, r queries screened at once (``hetcl/types.py``).

Every pair is first *screened* by a matrix product in a low precision, whose distance from the truth has a proven bound.
Only where the bound cannot tell are pairs recomputed in float64. A query with too many such pairs is screened again in
the next precision:

    bfloat16 (CPUs that multiply it natively)  ->  float32  ->  float64

What even float64 cannot tell apart (duplicate pictures, constant features) is a tie and counts against the query.
Subtracting one vector from all keys changes no query's ranking, so keys are screened around the gallery's mean: the
bounds shrink with the spread of the features, and nearly collapsed ones stay cheap to tell apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64
"""Keys whose screened similarities are first looked at through their maximum alone."""
BUDGET = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Bytes of the largest temporary by type of device: similarities of as many queries as fit, at least of eight."""
UNSURE = 64
"""A query with more undecided pairs than this, or than K / 256, goes on to the next precision."""
SAMPLE = 512
"""Keys that are looked at to guess how many pairs bfloat16 would leave undecided."""
LEAST = 1 << 14
"""Elements of a gallery below which bfloat16 is not worth it."""
RANGE = (1e-25, 1e25)
"""Sizes of similarities that screening below float64 is used for; beyond, its products may vanish or overflow."""
INF = float("inf")
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner products ``[B]`` in float64; the order of the sums depends on D alone.

    Products of float32 are exact in float64. The sum is folded in halves by element-wise operations, so equal rows
    give equal sums whatever the number of rows, threads and the device.
    """
    x = a.double() * b.double()
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        tail = x[:, 2 * half :]
        x = x[:, :half] + x[:, half : 2 * half]
        if tail.shape[1]:
            x[:, :1] += tail
    return x[:, 0] if x.shape[1] else x.sum(dim=1)


def pairs(query: Tensor, rows: Tensor, keys: Tensor, places: Tensor, centre: Tensor | None = None) -> Tensor:
    """``dot(query[rows], keys[places] - centre)``, a bounded number of pairs at a time."""
    step = max(1, BUDGET[query.device.type] // (32 * max(1, query.shape[1])))
    out = torch.empty(len(rows), dtype=torch.float64, device=query.device)
    for a in range(0, len(rows), step):
        other = keys[places[a : a + step]]
        if centre is not None:
            other = other.double() - centre.double()
        out[a : a + step] = dot(query[rows[a : a + step]], other)
    return out


def _norm(x: Tensor) -> Tensor:
    """Lengths of the rows ``[B]``, float64, a little too long rather than too short."""
    length = torch.linalg.vector_norm(x, dim=1)
    if bool(((length > 1e-12) & (length < 1e18)).all()):  # no square was flushed to zero or overflowed
        return length.double() * (1 + x.shape[1] * 2.0**-22)
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64) * (1 + x.shape[1] * 2.0**-51)


def _native_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 and sum in float32 (AVX512-BF16, AMX)."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    checks = [
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return any(check is not None and check() for check in checks)


def _block(device: torch.device) -> int:
    """Bytes of a block that is worked on piece by piece: it stays in the cache of one thread; several threads meet

    after each operation, which costs more than memory does, above all beside other programs.
    """
    return BUDGET[device.type] // (64 if torch.get_num_threads() == 1 else 4)


class Screen:
    """The gallery's keys as the screening needs them; ``update`` after some of them were overwritten."""

    def __init__(self, keys: Tensor) -> None:
        self.keys, (count, dims) = keys, keys.shape
        device = keys.device
        self.padded = -(-max(1, count) // GROUP) * GROUP
        self.centre = keys.mean(dim=0) if count else torch.zeros(dims, device=device)
        """float32 ``[D]``: about the mean. Any vector is right; the nearer the mean, the narrower the bounds."""
        self.spread = torch.zeros((), dtype=torch.float64, device=device)
        """Longest centred key, at least."""
        self.rounding = torch.zeros((), dtype=torch.float64, device=device)
        """Longest difference between a centred key and its row of ``low``, at least."""
        self.low: Tensor | None = None
        """bfloat16 ``[padded, D]``, centred, where the device multiplies it natively."""
        if _native_bfloat16(device) and count * dims >= LEAST:
            self.low = torch.zeros(self.padded, dims, dtype=torch.bfloat16, device=device)
        self.scratch = torch.empty(0, dtype=torch.uint8, device=device)
        for block in torch.arange(count, device=device).split(self.block):
            self.update(block)

    @property
    def block(self) -> int:
        """Keys centred at a time."""
        return max(GROUP, _block(self.keys.device) // 4 // max(1, self.keys.shape[1]))

    def update(self, places: Tensor) -> None:
        """Read the keys at ``places`` anew."""
        if not len(places):
            return
        centred = self.keys[places] - self.centre
        lengths = _norm(centred)
        self.spread = torch.maximum(self.spread, lengths.amax() * (1 + 2**-23))
        if self.low is not None:
            low = centred.bfloat16()
            self.low[places] = low
            lost = _norm(centred - low.float()) + 2**-23 * lengths  # what the centring itself rounded
            self.rounding = torch.maximum(self.rounding, lost.amax())

    def buffer(self, dtype: torch.dtype, queries: int) -> Tensor:
        """Room for ``[padded, queries]`` similarities, the same memory each time."""
        size = self.padded * queries * dtype.itemsize
        if len(self.scratch) < size:
            self.scratch = torch.empty(size, dtype=torch.uint8, device=self.keys.device)
        return self.scratch[:size].view(dtype).view(self.padded, queries)

    def margin(self, query: Tensor, dtype: torch.dtype) -> Tensor:
        """float64 ``[B]``: how far at most a screened similarity is from the true one (before it is stored).

        ``q.g - q'.g' = (q - q').g + q'.(g - g')``, and a sum of D products is off by at most
        ``D u / (1 - D u) |q'| |g'|`` in any order (Higham, Accuracy and Stability, section 3.1). Here it is twice
        that for bfloat16, whose instructions round twice a step, and for float64, where it tells ties.
        """
        length, dims = _norm(query), query.shape[1]
        unit = {torch.float64: 2.0**-52, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-23}[dtype]
        error = 1.1 * (dims + 4) * unit * length * self.spread
        if dtype == torch.bfloat16:
            error += _norm(query - query.bfloat16().float()) * self.spread + length * 1.01 * self.rounding
        elif dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
            error += 2.1 * 2.0**-7 * length * self.spread  # TF32 or bfloat16 inside: the user allowed it
        if dtype != torch.float64:
            error += dims * 2.0**-120 * (length + self.spread + 1)  # flushed to zero
        return error

    def similarities(
        self, query: Tensor, dtype: torch.dtype, *, signed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Centred keys times queries, ``[padded, B]``, and the largest of each group, ``[padded / GROUP, B]``.

        Rows beyond the gallery are minus infinity. Keys are taken in blocks that stay in the cache while their groups
        are looked at: reading the products back from memory would cost as much as making them.

        The largest are found among the bits read as integers, many times faster than as bfloat16: the order of positive
        numbers is the same, and every negative number is below them. So where a group holds no positive number, what
        stands for it is *some* negative number of it, unless ``signed``.
        """
        out, count = self.buffer(dtype, len(query)), len(self.keys)
        top = torch.empty(self.padded // GROUP, len(query), dtype=dtype, device=out.device)
        right, centre = query.to(dtype).t(), self.centre.to(dtype)
        step = max(1, 2 * _block(out.device) // (GROUP * len(query) * dtype.itemsize)) * GROUP
        if dtype != torch.bfloat16:
            step = min(step, max(1, self.block // GROUP) * GROUP)
        for a in range(0, self.padded, step):
            block, b = out[a : a + step], min(a + step, count)
            if dtype == torch.bfloat16:
                assert self.low is not None
                torch.mm(self.low[a : a + step], right, out=block)
            else:
                torch.mm(self.keys[a:b].to(dtype) - centre, right, out=block[: b - a])
            block[b - a :] = -INF
            kind = dtype if signed else _BITS[dtype]
            bits, largest = (x.view(kind) for x in (block, top[a // GROUP : (a + step) // GROUP]))
            torch.amax(bits.view(-1, GROUP, len(query)), dim=1, out=largest)
        return out, top


class Search:
    """One batch of queries against one gallery: state that the precisions hand to each other."""

    def __init__(
        self, query: Tensor, key: Tensor, screen: Screen, index: Tensor, gallery_index: Tensor
    ) -> None:
        self.query, self.screen = query, screen
        everyone = torch.arange(len(query), device=query.device)
        self.own = pairs(query, everyone, key, everyone, screen.centre)
        """float64 ``[B]``: similarity with the own key, centred."""
        self.exact = pairs(query, everyone, key, everyone)
        """float64 ``[B]``: the same as the double loop has it, not centred."""
        lengths = screen.spread + _norm(screen.centre[None]) + _norm(key)
        self.slack = (query.shape[1] + 4) * 2.0**-52 * _norm(query) * lengths
        """float64 ``[B]``: what the sums of ``own`` and of the double loop may have rounded."""
        self.same = _same_picture(index, gallery_index)
        self.rank = torch.ones_like(everyone)
        self.place = torch.full_like(everyone, -1)

    def run(self) -> None:
        """Fill ``rank`` and ``place``."""
        count = len(self.screen.keys)
        if not count or not len(self.query):
            return
        rows = torch.arange(len(self.query), device=self.query.device)
        longest = _norm(self.query).amax()
        size = float(longest * self.screen.spread)
        if RANGE[0] < size < RANGE[1] and float(longest + self.screen.spread) < 1e30:
            if self.screen.low is not None:
                parts = rows.split(max(1, BUDGET[rows.device.type] // (8 * SAMPLE)))
                rough = torch.cat([self.promising(part, torch.bfloat16) for part in parts])
                rows = torch.cat([rows[~rough], self.level(rows[rough], torch.bfloat16)])
            rows = self.level(rows, torch.float32)
        self.level(rows, torch.float64)

    @property
    def unsure(self) -> int:
        return max(UNSURE, len(self.screen.keys) // 256)

    def promising(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """bool for each of ``rows``: ``dtype`` will probably leave few pairs undecided. Only speed hangs on it."""
        keys, query, own = self.screen.keys, self.query[rows], self.own[rows]
        sample = keys[:: -(-len(keys) // SAMPLE)] - self.screen.centre
        distance = (sample @ query.t() - own.float()).abs_()
        near = distance <= (self.screen.margin(query, dtype) + own.abs() * 2**-8).float()
        return near.sum(dim=0) * len(keys) <= self.unsure * len(sample)

    def level(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Decide queries ``rows`` in one precision; returns those that need a higher one."""
        per_query = self.screen.padded * dtype.itemsize
        step = max(8, BUDGET[rows.device.type] // per_query // 8 * 8)
        left = [self.chunk(part, dtype) for part in rows.split(step)] if len(rows) else []
        return torch.cat(left) if left else rows

    def chunk(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """As :meth:`level`, for as many queries as are screened at once (r of them, padded to a multiple of 8)."""
        padding = -len(rows) % 8
        query = torch.nn.functional.pad(self.query[rows], (0, 0, 0, padding))
        # A query less similar to its own key than to the average one has limits below zero.
        signed = int((self.own[rows] <= self.screen.margin(self.query[rows], dtype)).sum()) * 16 > len(rows)
        near_own, top = self.screen.similarities(query, dtype, signed=signed)  # [K, r] and [K / GROUP, r]
        groups = near_own.view(-1, GROUP, len(query))
        i, j = self.similar_pictures(rows)
        near_own[j, i] = -INF
        top[j // GROUP, i] = groups[j // GROUP, :, i].amax(dim=1)
        best = top.amax(dim=0)[: len(rows)]
        limits = self.limits(rows, best.double(), dtype)
        below = ((best <= 0) | (torch.minimum(limits[0], limits[2]) <= 0)).nonzero()[:, 0]
        if len(below) and not signed:  # negative similarities matter: the largest of each group as numbers
            top[:, below] = groups[:, :, below].amax(dim=1)
            limits = self.limits(rows, top.amax(dim=0)[: len(rows)].double(), dtype)
        low, high, near = (torch.nn.functional.pad(x, (0, padding), value=INF) for x in limits)
        open_groups = top >= torch.minimum(low, near)
        certain = torch.zeros(len(query), dtype=torch.int64, device=rows.device)
        unsure = torch.zeros_like(certain)
        dense = int(open_groups.sum()) * 16 > open_groups.numel()
        if dense:
            least, most = _count(groups, high, strict=True), _count(groups, low, strict=False)
            certain += least.sum(dim=0, dtype=torch.int64)
            unsure += (most - least).sum(dim=0, dtype=torch.int64)
            open_groups = ((most != least) | (top >= near)) & (unsure <= self.unsure)
        group, row = open_groups.nonzero(as_tuple=True)
        found = []
        for g, i in zip(group.split(1 << 14), row.split(1 << 14), strict=True):
            values = groups[g, :, i]  # [open groups, GROUP]
            sure = values > high[i, None]
            undecided = (values >= low[i, None]) & ~sure
            if not dense:
                certain.index_add_(0, i, sure.sum(dim=1))
            which, where = (undecided | (values >= near[i, None])).nonzero(as_tuple=True)
            found.append((i[which], g[which] * GROUP + where, undecided[which, where]))
        i, j, undecided = (torch.cat(x) for x in zip(*found, strict=True))
        unsure = torch.maximum(unsure, torch.bincount(i, minlength=len(query)))
        done = unsure <= self.unsure
        keep = done[i]
        self.exactly(rows, i[keep], j[keep], undecided[keep])
        done, certain = done[: len(rows)], certain[: len(rows)]
        self.rank[rows] += torch.where(done, certain, 0)
        if dtype == torch.float64 and not bool(done.all()):
            self.ties(rows, ~done, groups, top, low, near)
        return rows[~done]

    def similar_pictures(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(position in ``rows``, place in the gallery) of all keys of a query's own picture."""
        position = torch.full_like(self.rank, -1)
        position[rows] = torch.arange(len(rows), device=rows.device)
        mine = position[self.same[0]]
        return mine[mine >= 0], self.same[1][mine >= 0]

    def limits(self, rows: Tensor, best: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Per query, in ``dtype``: below the first a key is surely less similar than the own one, above the second

        surely more; the most similar key is not below the third. Storing a sum rounds it, and rounding keeps the
        order, so the limits are rounded the same way, from the next float32 outwards.
        """
        margin = self.screen.margin(self.query[rows], dtype) + self.slack[rows]
        own = self.own[rows]
        stored = best.abs() * 2.0**-7 if dtype == torch.bfloat16 else 0.0
        near = torch.where(best.isinf(), INF, best - stored - 2 * margin)
        if dtype == torch.float64:
            return own - margin, own + margin, near
        down, up = torch.tensor(-INF, device=own.device), torch.tensor(INF, device=own.device)
        low, high, near = (
            torch.nextafter(x.float(), to).to(dtype)
            for x, to in ((own - margin, down), (own + margin, up), (near, down))
        )
        return low, high, near

    def exactly(self, rows: Tensor, i: Tensor, j: Tensor, undecided: Tensor) -> None:
        """Settle pairs (query ``rows[i]``, key j) in float64: undecided ones count, the most similar one is kept."""
        value = pairs(self.query, rows[i], self.screen.keys, j)
        self.rank.index_add_(0, rows[i], (undecided & (value >= self.exact[rows[i]])).long())
        best = torch.full((len(rows),), -INF, dtype=torch.float64, device=value.device)
        best.scatter_reduce_(0, i, value, "amax")
        winners = value == best[i]
        first = torch.full_like(rows, len(self.screen.keys))
        first.scatter_reduce_(0, i[winners], j[winners], "amin")
        found = first < len(self.screen.keys)
        self.place[rows[found]] = first[found]

    def ties(
        self, rows: Tensor, which: Tensor, groups: Tensor, top: Tensor, low: Tensor, near: Tensor
    ) -> None:
        """Decide queries ``rows[which]``: masses of keys that float64 cannot tell from the own one count against it,

        and the first of those it cannot tell from the most similar one is taken.
        """
        count = _count(groups, low, strict=False).sum(dim=0, dtype=torch.int64)[: len(rows)]
        self.rank[rows] += torch.where(which, count, 0)
        group, each = (top >= near).int().argmax(dim=0), torch.arange(len(near), device=rows.device)
        inside = groups[group, :, each] >= near[:, None]
        place = (group * GROUP + inside.int().argmax(dim=1))[: len(rows)]
        self.place[rows] = torch.where(which & inside.any(dim=1)[: len(rows)], place, self.place[rows])


def _same_picture(index: Tensor, gallery_index: Tensor) -> tuple[Tensor, Tensor]:
    """All (query, place) whose pictures are the same, without comparing each with each."""
    ordered, order = index.sort()
    first = torch.searchsorted(ordered, gallery_index)
    count = torch.searchsorted(ordered, gallery_index, right=True) - first
    places = count.nonzero()[:, 0]
    first, count = first[places], count[places]
    before = count.cumsum(0) - count
    within = torch.arange(int(count.sum()), device=index.device) - before.repeat_interleave(count)
    return order[first.repeat_interleave(count) + within], places.repeat_interleave(count)


def _count(groups: Tensor, limit: Tensor, *, strict: bool) -> Tensor:
    """uint8 ``[K / GROUP, r]``: how many of each group's keys reach (or, strictly, pass) each query's limit.

    Bytes are added eight at a time, as lanes of an int64: a group has fewer than 256 keys, so no lane overflows.
    """
    out = []
    for block in groups.split(max(1, _block(groups.device) // (GROUP * groups.shape[2]))):
        flags = block > limit if strict else block >= limit  # [groups, GROUP, r]
        out.append(flags.view(torch.int64).sum(dim=1).view(torch.uint8))
    return torch.cat(out)
