"""What a training step costs: images a second, memory, share of the memory roof, and what each switch is worth.

Images lie on the device already; views, both encoders, loss, figures, backward pass, optimiser and queue are all in
the step. An image is one image with both of its views. The rows come in order of importance, each with a most of
seconds; what does not fit into the section's time is a row that says so.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu_sections import roof
from gpu_sections.section import Section, free
from gpu_sections.stages import batch_of, deterministic, fabric_on, precision_for, stage_of
from gpu_sections.table import KERNELS
from hetcl.views.photometric import Photometric

CLASSES = {
    "copy": "memcpy memset copy catarray nchwtonhwc nhwctonchw transpose aten::cat aten::clone index_select "
    "indexselect index_elementwise gather_kernel".split(),
    "batch norm": "batch_norm batchnorm bn_fw bn_bw bnorm welford".split(),
    "conv, gemm": "conv gemm xmma wgrad dgrad fprop cutlass nvjet sm80_ sm90_ cudnn aten::mm addmm".split(),
    "pointwise": "elementwise vectorized triton_poi multi_tensor foreach relu threshold aten::add aten::mul".split(),
}
"""Words of kernels' names, by class of kernel; the first class that has one of them. What is left is "other"."""


@dataclass(frozen=True)
class Variant:
    """A way to run a step, but for what the row's name says as the product does it."""

    kind: str = "stage 1"
    batch: int = 256
    groups: int = 8
    channels_last: bool = True
    compiler: str | None = None
    benchmark: bool = True
    """Of cuDNN: whether it times its kernels for each shape, as a run does."""
    sgd: str | None = None
    """``fused``, ``foreach`` or ``loop``; None: PyTorch's choice."""
    deterministic: bool = False
    graphs: bool = False
    """Both encoders as CUDA graphs."""


@dataclass(frozen=True)
class Scale:
    """Sizes of the measurement."""

    backbone: str
    size: int
    batch: int
    groups: int
    queue: int
    compiler: str
    seconds: float
    """Of measuring a variant."""
    profiled: int
    """Steps that the profiler sees."""

    def stage(self, device: torch.device, v: Variant) -> Any:
        """The stage of a variant."""
        side = max(1, self.size // 16)
        return stage_of(
            v.kind, fabric=fabric_on(device, precision_for(device)), compiler=v.compiler, backbone=self.backbone,
            size=self.size, batch=v.batch, groups=v.groups, queue=self.queue, channels_last=v.channels_last,
            spatial={"side": side},
        )  # fmt: skip


FULL = Scale("torchvision:resnet50", 224, 256, 8, 65536, "inductor", 2.0, 3)
TOY = Scale("timm:test_resnet", 32, 16, 2, 64, "eager", 0.1, 1)


def run(section: Section) -> None:
    """The grid, most important first."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the deterministic row
    scale = TOY if section.toy else FULL
    grid = Grid(section, scale)
    first = Variant(batch=scale.batch, groups=scale.groups)
    compiled = replace(first, compiler=scale.compiler)
    second = replace(first, kind="stage 2")
    grid.row("stage 1", first, cap=40)
    grid.row("stage 1, groups 1", replace(first, groups=1), cap=20)
    grid.row("stage 2", second, cap=30)
    grid.row("supervised", replace(first, kind="supervised"), cap=20)
    grid.bytes("bytes as run", first)
    grid.largest("stage 1, largest batch", first)
    grid.row("stage 2, vanilla", replace(first, kind="stage 2, vanilla"), cap=20)
    grid.parts("parts of a step", first)
    grid.row("stage 1, compiled", compiled, cap=80)
    # After the rates: what has once profiled may launch kernels more slowly.
    for name, v in {"stage 1": first, "stage 2": second, "stage 1, compiled": compiled}.items():
        grid.kernels(KERNELS + name, v, cap=40)
    grid.row("stage 1, contiguous", replace(first, channels_last=False), cap=20)
    grid.row("stage 1, fused SGD", replace(first, sgd="fused"), cap=15)
    grid.row("stage 1, deterministic", replace(first, deterministic=True), cap=20)
    if section.toy:
        return
    grid.row("stage 1, cudnn.benchmark off", replace(first, benchmark=False), cap=20)
    grid.row("stage 1, SGD as a loop", replace(first, sgd="loop"), cap=15)
    grid.row("stage 2, compiled", replace(compiled, kind="stage 2"), cap=80)
    grid.row("stage 1, compiled, groups 1", replace(compiled, groups=1), cap=80)
    grid.row("stage 1, CUDA graphs", replace(first, graphs=True), cap=30)


class Grid:
    """Measures variants and writes their rows."""

    def __init__(self, section: Section, scale: Scale) -> None:
        self.section, self.scale, self.device = section, scale, section.device
        self.bandwidth, self.peak, _ = roof.ceilings(self.device)
        self.work: dict[str, roof.Work] = {}
        self.memory: dict[Variant, float] = {}

    def row(self, name: str, v: Variant, *, cap: float) -> bool:
        """A row of one variant."""
        return self.section.attempt(name, lambda: self.measure(v), cap=cap, batch=v.batch)

    def kernels(self, name: str, v: Variant, *, cap: float) -> None:
        """Where the time goes: a row of its own, since a profiler may fail."""

        def look() -> dict[str, Any]:
            with switches(v):
                step = self._step(v)
                for _ in range(3):
                    step()
                return profiled(step, self.device, self.scale.profiled)

        self.section.attempt(name, look, cap=cap)

    def measure(self, v: Variant) -> dict[str, Any]:
        """Rate, memory, shares of roof and peak."""
        work = self._work(v)
        with switches(v) as objections:
            step = self._step(v)
            began = time.perf_counter()
            step()  # compiles, chooses algorithms
            roof.wait(self.device)
            first = time.perf_counter() - began
            if self.device.type == "cuda":  # not what cuDNN tried its kernels with
                torch.cuda.reset_peak_memory_stats(self.device)
            rate, spread = self._rate(step, v.batch)
            self.memory[v] = used = memory(self.device)
        room = roof.SHARE * self.bandwidth
        return {
            "images_per_second": rate,
            "spread": spread,
            "gpu_memory_gib": used / 2**30 if used else None,
            "roof_eager": rate * work.of("eager", v.batch) / room,
            "roof_fused": rate * work.of("fused", v.batch) / room,
            "mfu": rate * work.of("flops", v.batch) / self.peak,
            "mb_eager": work.of("eager", v.batch) / 1e6,
            "mb_fused": work.of("fused", v.batch) / 1e6,
            "gflop": work.of("flops", v.batch) / 1e9,
            "first_step_seconds": first,
            **({"objections": objections} if v.deterministic else {}),
        }

    def bytes(self, name: str, v: Variant) -> None:
        """What the step as the product runs it moves: groups and colour changes cost something, too."""

        def count() -> dict[str, Any]:
            work = self._count(v, plain=False)
            kinds = dict(itertools.islice(work.kinds.items(), 12))
            return {
                "mb_eager": work.of("eager", v.batch) / 1e6,
                "mb_fused": work.of("fused", v.batch) / 1e6,
                "kinds_mb": {k: n / 1e6 for k, n in kinds.items()},
            }

        self.section.attempt(name, count, cap=20)

    def parts(self, name: str, v: Variant) -> None:
        """Milliseconds of the pieces of a step, each alone."""

        def time_them() -> dict[str, Any]:
            stage = self.scale.stage(self.device, v)
            batch = self._batch(v)
            stage.step(batch, 0)
            for p in stage.pair.query.parameters():
                p.grad = torch.zeros_like(p)
            views: Photometric = stage.photometric
            keys = stage.queue.keys[: v.batch].clone()
            pair = stage.pair
            weights = [*pair.key.parameters()], [*pair.query.parameters()]

            @torch.no_grad()
            def lerp() -> None:
                torch._foreach_lerp_(*weights, 1 - pair.momentum)

            pieces: dict[str, Callable[[], Any]] = {
                "views, both": lambda: [views(i, c) for i, c in zip(batch.images, batch.color, strict=True)],
                "key update": pair.update_key,
                "key update as one operation": lerp,
                "optimiser": stage.optimizer.step,
                "enqueue": lambda: stage.queue.push(keys, batch.index),
                "whole step": lambda: stage.step(batch, 1),
            }
            return {"ms": {k: 1000 * roof.best_of(f, self.device, rounds=5) for k, f in pieces.items()}}

        self.section.attempt(name, time_them, cap=15)

    def largest(self, name: str, v: Variant) -> None:
        """The largest batch that fits, from what two batches took; smaller ones when it does not."""
        if self.device.type != "cuda":
            self.row(name, replace(v, batch=2 * v.batch), cap=15)
            return
        if v not in self.memory:
            self.section.row(name, skipped="the memory of the usual batch is not known")
            return
        total = torch.cuda.get_device_properties(self.device).total_memory
        each = self.memory[v] / v.batch  # too much, since weights and queue are in it
        batch = int(0.93 * total / each) // 64 * 64
        while batch > v.batch and self.section.left > 10:
            if self.row(name, replace(v, batch=batch), cap=30):
                return
            batch = int(0.92 * batch) // 64 * 64

    # ---- pieces -------------------------------------------------------------------------------------------------

    def _work(self, v: Variant) -> roof.Work:
        """What such a step must do: batch norm over the whole batch at once, channels last, no colour changes."""
        if v.kind not in self.work:
            self.work[v.kind] = self._count(Variant(kind=v.kind, groups=1), plain=True)
        return self.work[v.kind]

    def _count(self, v: Variant, *, plain: bool) -> roof.Work:
        def step_of(batch: int) -> Callable[[], Any]:
            return self._step(replace(v, batch=batch), plain=plain)

        found = roof.work_of(step_of, (2 * self.scale.groups, 4 * self.scale.groups))
        free(self.device)
        return found

    def _batch(self, v: Variant, *, plain: bool = False) -> Any:
        return batch_of(v.kind, batch=v.batch, size=self.scale.size, plain=plain).to(self.device)

    def _step(self, v: Variant, *, plain: bool = False) -> Callable[[], Any]:
        stage, batch, numbers = (
            self.scale.stage(self.device, v),
            self._batch(v, plain=plain),
            itertools.count(),
        )
        if v.sgd:
            optimizer = getattr(stage.optimizer, "optimizer", stage.optimizer)
            for group in optimizer.param_groups:
                group |= {"fused": v.sgd == "fused", "foreach": v.sgd == "foreach"}
        if v.graphs:
            graph(stage, batch)
        return lambda: stage.step(batch, next(numbers))

    def _rate(self, step: Callable[[], Any], batch: int) -> tuple[float, float]:
        """Images a second, the median of three rounds, and their spread as a share of it."""
        warm = roof.best_of(step, self.device, rounds=2)
        steps = max(1, round(self.scale.seconds / 3 / warm))
        rates: list[float] = []
        for _ in range(3):
            began = time.perf_counter()
            for _ in range(steps):
                step()
            roof.wait(self.device)
            rates.append(steps * batch / (time.perf_counter() - began))
        rate = statistics.median(rates)
        return rate, (max(rates) - min(rates)) / rate


@contextmanager
def switches(v: Variant) -> Iterator[list[str]]:
    """Inside, PyTorch's global switches are as a variant has them; gives what deterministic algorithms object to."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = v.benchmark and not v.deterministic
    with deterministic(v.deterministic) as objections:
        try:
            yield objections
        finally:
            torch.backends.cudnn.benchmark = before
            torch.compiler.reset()


def graph(stage: Any, batch: Any) -> None:
    """Both encoders as CUDA graphs, in place."""
    sample = stage.views(batch)[0]
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        for encoder in (stage.pair.query, stage.pair.key):
            torch.cuda.make_graphed_callables(encoder, (sample,))


def memory(device: torch.device) -> float:
    """Most bytes of tensors on the device since they were last freed; 0 on a CPU."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0


def profiled(step: Callable[[], Any], device: torch.device, steps: int) -> dict[str, Any]:
    """Shares of the device's time by class of kernel, the longest kernels, and the share of time it was idle."""
    if device.type != "cuda":
        events = _profile(step, device, steps, [ProfilerActivity.CPU]).key_averages()
        return {**shares([(e.key, e.self_cpu_time_total) for e in events]), "idle": None}
    kernels: list[Any] = []
    for activities in ([ProfilerActivity.CUDA], [ProfilerActivity.CPU, ProfilerActivity.CUDA]):
        found = _profile(step, device, steps, activities).events() or []
        kernels = [
            e
            for e in found
            if e.device_type == torch.autograd.DeviceType.CUDA and not getattr(e, "is_user_annotation", False)
        ]
        if kernels:
            break
    spans = [(e.time_range.start, e.time_range.end) for e in kernels]
    return {**shares([(e.name, e.time_range.elapsed_us()) for e in kernels]), "idle": idle(spans)}


def _profile(step: Callable[[], Any], device: torch.device, steps: int, activities: list[Any]) -> Any:
    with profile(activities=activities) as prof:
        for _ in range(steps):
            step()
        roof.wait(device)
    return prof


def shares(each: list[tuple[str, float]]) -> dict[str, Any]:
    """Shares of time by class of kernel, and the kernels that take most of it."""
    total = sum(t for _, t in each) or 1.0
    classes, names = dict.fromkeys([*CLASSES, "other"], 0.0), dict[str, float]()
    for name, t in each:
        classes[class_of(name)] += t / total
        names[name[:80]] = names.get(name[:80], 0.0) + t / total
    longest = dict(sorted(names.items(), key=lambda item: -item[1])[:8])
    return {"time": classes, "kernels": longest}


def class_of(kernel: str) -> str:
    """The class of a kernel by its name. The compiler names its own after all they do; of these, the ones that reduce
    are batch norm's nearly all."""
    name = kernel.lower()
    if name.startswith("triton_"):
        return {"poi": "pointwise", "red": "batch norm", "per": "batch norm"}.get(name[7:10], "other")
    return next((kind for kind, words in CLASSES.items() if any(w in name for w in words)), "other")


def idle(spans: list[tuple[float, float]]) -> float | None:
    """Share of the time from the first kernel's start to the last one's end in which no kernel ran."""
    if not spans:
        return None
    spans = sorted(spans)
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1 - busy / max(end - spans[0][0], 1e-9)
