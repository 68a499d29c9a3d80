"""How fast a step could be: bytes that it must move, operations that it must do, and what the card allows.

The bytes are counted, not estimated: one real step (views, both encoders, loss, backward pass, optimiser, queue) runs
under a dispatch mode that sees every operation with its tensors. Two batch sizes give what each pair costs and what a
step costs whatever its batch (weights, optimiser, the queue).

Two counts come from one record. *Eager*: each operation reads its inputs and writes its outputs. Batch norm reads its
input twice (statistics, then normalisation), its backward pass likewise, and the backward pass of a convolution reads
the gradient twice (for weights and for inputs). *Fused*: pointwise operations, and the pointwise half of batch norm,
hold nothing in memory that only such operations read; what they need is read again where it is used.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

CARDS = {
    "H200": (4.80e12, 989e12),
    "H100 80GB HBM3": (3.35e12, 989e12),
    "H100 NVL": (3.94e12, 835e12),
    "H100 PCIe": (2.04e12, 756e12),
    "H100": (3.35e12, 989e12),
    "A100-SXM4-80GB": (2.04e12, 312e12),
    "A100 80GB": (1.94e12, 312e12),
    "A100": (1.56e12, 312e12),
    "L40S": (0.864e12, 362e12),
    "RTX 4090": (1.01e12, 165e12),
    "RTX 3090": (0.936e12, 71e12),
    "V100": (0.90e12, 125e12),
    "T4": (0.32e12, 65e12),
}
"""Bytes a second and dense 16-bit operations a second, by a word of the card's name; the makers' data sheets."""

SHARE = 0.9
"""Of the bandwidth of the data sheet that the best kernels reach; the roof is drawn there (docs/facts.md)."""

POINTWISE = set(
    "_to_copy copy_ clone fill_ zero_ relu relu_ threshold_backward add add_ sub mul mul_ div div_ addcmul addcmul_ "
    "clamp clamp_ masked_fill where neg exp log sigmoid".split()
)
NORM = set(
    "native_batch_norm _native_batch_norm_legit cudnn_batch_norm miopen_batch_norm _batch_norm_with_update".split()
)
NORM_BACKWARD = set(
    "native_batch_norm_backward cudnn_batch_norm_backward miopen_batch_norm_backward batch_norm_backward".split()
)
MOST_LEAVES = 4
"""Large inputs of a fused operation beyond which a value is written out (as torch's inductor has it)."""


@dataclass
class Op:
    """One operation: what it reads and writes, as (value, bytes), and which reads it makes a second time."""

    name: str
    reads: list[tuple[int, int]]
    writes: list[tuple[int, int]]
    again: list[tuple[int, int]]
    pointwise: bool


Values = dict[int, int]
"""Bytes by value."""


def size_of(t: torch.Tensor) -> int:
    """Bytes that a pass over a tensor touches (an expanded dimension once)."""
    count = t.element_size()
    for side, stride in zip(t.shape, t.stride(), strict=True):
        count *= side if stride or side == 0 else 1
    return count


class Record(TorchDispatchMode):
    """Inside, every operation that moves memory is noted in ``ops``, in order.

    A value is what a piece of memory holds between two writes: memory is known by its storage, so views and what
    autograd saves are the value they look at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self._value: dict[int, int] = {}
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view:
            self._note(func, args, kwargs, out)
        return out

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func.overloadpacket.__name__
        if "empty" in name:
            return
        given = list(zip(func._schema.arguments, args, strict=False))
        given += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
        inputs, changed = [], []
        for argument, value in given:
            tensors = [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]
            written = argument.alias_info is not None and argument.alias_info.is_write
            changed += tensors if written else []
            if not (written and (argument.is_out or name in ("copy_", "fill_", "zero_", "normal_"))):
                inputs += tensors
        known = {t.untyped_storage()._cdata for t in [*inputs, *changed]}
        fresh = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        written_to = [t for t in fresh if t.untyped_storage()._cdata not in known] + changed
        if not written_to:
            return
        reads = [(self._of(t), size_of(t)) for t in inputs]
        again = [reads[i] for i in self._twice(name, args) if i < len(reads)]
        writes = [(self._new(t), size_of(t)) for t in written_to]
        tagged = torch.Tag.pointwise in func.tags or name in POINTWISE or name.startswith("_foreach")
        self.ops.append(Op(name, reads, writes, again, tagged))

    @staticmethod
    def _twice(name: str, args: Any) -> tuple[int, ...]:
        """Which of an operation's inputs it goes over a second time."""
        if name in NORM:
            return (0,)
        if name in NORM_BACKWARD:
            return (0, 1)
        both = name == "convolution_backward" and args[-1][0] and args[-1][1]
        return (0,) if both else ()

    def _of(self, t: torch.Tensor) -> int:
        place = t.untyped_storage()._cdata
        return self._value[place] if place in self._value else self._new(t)

    def _new(self, t: torch.Tensor) -> int:
        self._count += 1
        self._value[t.untyped_storage()._cdata] = self._count
        return self._count

    # ---- the two counts --------------------------------------------------------------------------------------

    def eager(self) -> int:
        """Bytes when every operation is a kernel of its own."""
        return sum(n for op in self.ops for _, n in (*op.reads, *op.again, *op.writes))

    def by_kind(self) -> dict[str, int]:
        """The eager bytes by operation, the largest first."""
        out: dict[str, int] = defaultdict(int)
        for op in self.ops:
            out[op.name] += sum(n for _, n in (*op.reads, *op.again, *op.writes))
        return dict(sorted(out.items(), key=lambda item: -item[1]))

    def fused(self) -> int:
        """Bytes when pointwise operations keep what only they need out of memory."""
        needed = {v for op in self.ops if not self._fusible(op) for v, _ in op.reads}
        read = {v for op in self.ops for v, _ in op.reads}
        behind: dict[int, Values] = {}  # what a fused value is computed from, large and small
        unwritten: set[int] = set()
        total = 0

        def sources(reads: list[tuple[int, int]]) -> Values:
            """What a kernel has to read: values in memory, but for those it can compute from others it reads."""
            out: Values = {}
            for value, n in reads:
                out |= behind[value] if value in unwritten else {value: n}
            for value, n in list(out.items()):
                origin = behind.get(value)
                if origin is not None and all(v in out or size * 8 <= n for v, size in origin.items()):
                    del out[value]
            return out

        for op in self.ops:
            if not self._fusible(op):
                total += sum(n for _, n in (*op.reads, *op.again, *op.writes))
                continue
            inputs, results = sources(op.reads), op.writes
            if not op.pointwise:  # batch norm: a pass for the statistics, whose results are small
                total += sum(sources(op.again).values()) + sum(n for _, n in op.writes[1:])
                results = op.writes[:1]
            kept = 0
            for value, n in results:
                behind[value] = inputs
                large = sum(size * 8 > n for size in inputs.values())
                if value in needed or value not in read or large > MOST_LEAVES:
                    kept += n
                else:
                    unwritten.add(value)
            total += kept + (sum(inputs.values()) if kept else 0)
        return total

    @staticmethod
    def _fusible(op: Op) -> bool:
        return op.pointwise or op.name in NORM or op.name in NORM_BACKWARD


@dataclass(frozen=True)
class Work:
    """What a step costs: so much for each pair, and so much whatever the batch. Bytes, and operations of products."""

    eager: tuple[float, float]
    fused: tuple[float, float]
    flops: tuple[float, float]
    kinds: Mapping[str, float] = field(default_factory=dict)
    """The eager bytes of each pair by operation."""

    def of(self, name: str, batch: int) -> float:
        """Bytes or operations of one pair in a step of ``batch``."""
        each, fixed = getattr(self, name)
        return each + fixed / batch


def work_of(step_of: Callable[[int], Callable[[], Any]], batches: tuple[int, int]) -> Work:
    """Count a step at two batch sizes.

    Args:
        step_of: a batch size to a step that can be called repeatedly.
        batches: two sizes; the difference of their counts is what the pairs cost.
    """
    records = []
    for batch in batches:
        step = step_of(batch)
        step()  # what only the first step does (the optimiser's buffers) does not count
        with Record() as record:
            step()
        records.append(record)
    with FlopCounterMode(display=False) as flops:
        step()
    one, two = records
    a, b = batches

    def line(low: float, high: float) -> tuple[float, float]:
        each = (high - low) / (b - a)
        return each, low - a * each

    k1, k2 = one.by_kind(), two.by_kind()
    kinds = {name: (k2[name] - k1.get(name, 0)) / (b - a) for name in k2}
    kinds = {name: n for name, n in sorted(kinds.items(), key=lambda item: -item[1]) if n > 0}
    each = flops.get_total_flops() / b
    return Work(line(one.eager(), two.eager()), line(one.fused(), two.fused()), (each, 0.0), kinds)


# ---- the card --------------------------------------------------------------------------------------------------------


def card_of(name: str) -> tuple[float, float] | None:
    """Bytes and operations a second of a known card; None of any other."""
    if "MIG" in name:  # a part of a card
        return None
    return next((rates for word, rates in CARDS.items() if re.search(rf"\b{word}\b", name)), None)


def ceilings(device: torch.device) -> tuple[float, float, str]:
    """Bytes and operations a second that the device has by its data sheet, or as measured; and which it is."""
    known = card_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if known is not None:
        return *known, "data sheet"
    gpu = device.type == "cuda"
    copied = copy_bandwidth(device, 2**30 if gpu else 2**24)
    return copied / SHARE, product_rate(device, 8192 if gpu else 256), "measured"


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_of(work: Callable[[], Any], device: torch.device, *, rounds: int) -> float:
    """Seconds of the fastest of some rounds, after one that warms up."""
    work()
    times = []
    for _ in range(rounds):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return min(times)


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes read and written a second by copying ``size`` bytes."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_of(lambda: target.copy_(source), device, rounds=10)


def product_rate(device: torch.device, side: int) -> float:
    """Operations a second of a product of two square bf16 matrices of random numbers."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / best_of(lambda: a @ b, device, rounds=10)
