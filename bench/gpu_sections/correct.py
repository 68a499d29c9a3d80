"""Is it right on this device? Everything against the CPU in float64, with random inputs.

Each row has ``ok``, the ``worst`` difference found and the ``limit`` it must stay under. Runs that are killed and
resumed, and a small detector that is trained and evaluated, go on in processes of their own meanwhile.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpu_sections.runs import Evaluated, Resumed
from gpu_sections.section import Section
from gpu_sections.stages import batch_of, deterministic, fabric_on, stage_of
from hetcl.analysis.contrast.retrieval import first_in_first_out
from hetcl.downstream.models import detector, segmenter
from hetcl.images.scenes import ScenesSource
from hetcl.model.build import build_embedding
from hetcl.views.pairs import Pairs
from hetcl.views.photometric import Photometric, draw
from hetcl.views.policies import POLICIES

EXACT = 1e-9
"""Between two devices in float64: a few steps magnify rounding to about 1e-12."""
SINGLE_VIEWS = 1e-4
"""Of views in fp32, in standard deviations of a channel."""
LOSSES = {"fp32": (2e-3, 0.1), "fp32, TF32 products": (0.02, 0.2), "bf16": (0.05, 0.3)}
"""Of the loss: in the first step, and in any of 20 (where it is 6: rounding grows tenfold a step until two runs are two
samples of one). On a CPU they were 9e-7 and 0.020 in fp32, 0.003 and 0.085 in bf16."""


@dataclass(frozen=True)
class Scale:
    """Sizes of the checks."""

    backbone: str
    size: int
    batch: int
    groups: int
    """More than one."""
    queue: int
    steps: int
    drift: int
    """Steps over which precisions are compared."""
    views: int
    """Side of the views that are coloured."""
    image: tuple[int, int]
    """Of detectors: height and width."""
    regions: int
    """Of detectors: how many their heads look at."""
    scenes: int
    compiler: str

    @property
    def splits(self) -> list[tuple[int, int]]:
        """Batch-norm groups and micro-batches."""
        return [(1, 1), (self.groups, 1), (self.groups, 2)]


FULL = Scale("torchvision:resnet18", 64, 16, 8, 512, 2, 20, 224, (192, 256), 32, 512, "inductor")
TOY = Scale("timm:test_resnet", 32, 16, 4, 64, 2, 2, 48, (64, 64), 4, 64, "aot_eager")


def run(section: Section) -> None:
    """All checks; what runs beside is waited for at the end, and what is slow to compile comes last."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic products
    scale = TOY if section.toy else FULL
    kinds = [True] if section.toy else [False, True]
    beside = [*(Resumed(section, deterministic=d) for d in kinds), Evaluated(section)]
    cases = [
        (k, g, a, last) for k in ("stage 1", "stage 2") for g, a in scale.splits for last in (False, True)
    ]
    for kind, groups, accumulate, last in cases[:: 5 if section.toy else 1]:
        how = {"groups": groups, "accumulate": accumulate}
        name = f"{kind}, groups {groups}, accumulate {accumulate}, {'channels last' if last else 'NCHW'}"
        section.attempt(name, lambda k=kind, h=how, c=last: steps(section, scale, k, h, c), cap=30)
    for policy in ("moco-v1", "moco-v2", "hcl"):
        section.attempt(f"views of {policy}", lambda p=policy: views(section, scale, p), cap=20)
    for precision in LOSSES:
        section.attempt(f"losses in {precision}", lambda p=precision: drift(section, scale, p), cap=30)
    section.attempt("operations", lambda: operations(section, scale), cap=20)
    for neck in ("fpn", "c4"):
        section.attempt(f"Mask R-CNN {neck}", lambda n=neck: detectors(section, scale, n), cap=30)
    section.attempt("FCN", lambda: segmenters(section, scale), cap=20)
    section.attempt("contrastive test, ranks", lambda: ranks(section, scale), cap=20)
    for one in beside:
        section.attempt(one.name, one.result, cap=60 if one.thread.is_alive() else 3)
    for accumulate in (2,) if section.toy else (1, 2):
        name = f"compiled, accumulate {accumulate}"
        section.attempt(name, lambda a=accumulate: compiled(section, scale, a), cap=60)


def verdict(worst: Mapping[str, float], limit: float) -> dict[str, Any]:
    """A row's values: what differs most, and whether that is little enough (NaN is not)."""
    name = max(worst, key=lambda k: worst[k] if worst[k] == worst[k] else float("inf"))
    return {"ok": worst[name] < limit, "worst": worst[name], "where": name, "limit": limit}


def apart(one: Any, other: Any) -> float:
    """The largest difference between two tensors, wherever they are; minus infinity equals itself."""
    a, b = (torch.as_tensor(x).detach().cpu().double() for x in (one, other))
    if a.shape != b.shape:
        return float("inf")
    return float(torch.where(a == b, 0.0, (a - b).abs()).max()) if a.numel() else 0.0


# ---- pre-training ------------------------------------------------------------------------------------------------


class Logits(TorchFunctionMode):
    """Inside, ``seen`` collects what cross-entropy is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.cross_entropy:
            self.seen.append(args[0].detach().cpu())
        return func(*args, **(kwargs or {}))


def trajectory(
    device: torch.device, scale: Scale, kind: str, *, precision: str, steps: int, **how: Any
) -> list[dict[str, Tensor]]:
    """What there is after each step: logits, loss, queue, both encoders with their statistics."""
    stage = stage_of(
        kind, fabric=fabric_on(device, precision), precision=precision, backbone=scale.backbone, size=scale.size,
        batch=scale.batch, queue=scale.queue, spatial={"side": scale.size // 16, "width": 32}, **how,
    )  # fmt: skip
    out = []
    for t in range(steps):
        batch = batch_of(kind, batch=scale.batch, size=scale.size, seed=t, images=3 * scale.batch)
        with Logits() as logits:
            figures = stage.step(batch.to(device), t)
        states = {"query": stage.pair.query, "key": stage.pair.key, "queue": stage.queue}
        out.append(
            {
                "logits": torch.cat(logits.seen),
                "loss": figures["loss"].detach().cpu(),
                **{
                    f"{name} {key}": value.detach().cpu().clone()
                    for name, module in states.items()
                    for key, value in module.state_dict().items()
                    if isinstance(value, Tensor)
                },
            }
        )
    return out


def steps(section: Section, scale: Scale, kind: str, how: dict[str, Any], last: bool) -> dict[str, Any]:
    """Some steps here and on the CPU, in float64."""
    ours = trajectory(
        section.device, scale, kind, precision="fp64", steps=scale.steps, channels_last=last, **how
    )
    theirs = on_the_cpu(scale, kind, **how)
    worst: dict[str, float] = {}
    for mine, cpu in zip(ours, theirs, strict=True):
        for name in cpu:
            worst[name] = max(worst.get(name, 0.0), apart(mine[name], cpu[name]))
    return verdict(worst, EXACT)


@functools.cache
def on_the_cpu(scale: Scale, kind: str, groups: int, accumulate: int) -> list[dict[str, Tensor]]:
    """What the steps of every layout are compared with."""
    how: dict[str, Any] = {"groups": groups, "accumulate": accumulate, "channels_last": False}
    return trajectory(torch.device("cpu"), scale, kind, precision="fp64", steps=scale.steps, **how)


def views(section: Section, scale: Scale, policy: str) -> dict[str, Any]:
    """Colour, blur and flip here against the CPU in float64; in fp32 with a limit of its own."""
    rng = np.random.default_rng(1)
    count, side = 16, scale.views
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    color = torch.from_numpy(np.stack([draw(POLICIES[policy], rng) for _ in range(count)]))
    expected = Photometric(POLICIES[policy], dtype=torch.float64)(images, color)
    found = {
        dtype: Photometric(POLICIES[policy], dtype=dtype)(images.to(section.device), color)
        for dtype in (torch.float64, torch.float32)
    }
    single = apart(found[torch.float32], expected)
    row = verdict({"float64": apart(found[torch.float64], expected)}, EXACT)
    return {**row, "ok": row["ok"] and single < SINGLE_VIEWS, "fp32": single, "fp32_limit": SINGLE_VIEWS}


def drift(section: Section, scale: Scale, precision: str) -> dict[str, Any]:
    """Losses of some steps in a precision against float64."""
    made = {"groups": scale.groups, "steps": scale.drift}
    name, tf32 = precision.removesuffix(", TF32 products"), torch.backends.cudnn.allow_tf32
    losses = []
    try:
        torch.backends.cudnn.allow_tf32 = precision != "fp32"  # PyTorch has it on, so a run does, too
        for p in (name, "fp64"):
            found = trajectory(section.device, scale, "stage 2", precision=p, **made)
            losses.append(torch.stack([t["loss"] for t in found]))
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    first, any_of = apart(losses[0][:1], losses[1][:1]), apart(*losses)
    row = verdict({"loss": any_of}, LOSSES[precision][1])
    return {
        **row,
        "ok": row["ok"] and first < LOSSES[precision][0],
        "first": first,
        "first_limit": LOSSES[precision][0],
    }


def operations(section: Section, scale: Scale) -> dict[str, Any]:
    """Which operations of a step have no deterministic kernel here, if any."""
    with deterministic() as objections:
        trajectory(section.device, scale, "stage 2", precision="fp32", groups=scale.groups, steps=1)
    return {"ok": not objections, "objections": objections}


def compiled(section: Section, scale: Scale, accumulate: int) -> dict[str, Any]:
    """Three steps with compiled encoders against eager ones, in float64; each encoder is compiled once."""
    made = {"precision": "fp64", "groups": 2, "steps": 3, "accumulate": accumulate}
    torch.compiler.reset()
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    ours = trajectory(section.device, scale, "stage 2", compiler=scale.compiler, **made)
    graphs = counted["unique_graphs"] - before
    eager = trajectory(section.device, scale, "stage 2", **made)
    worst = {name: apart(ours[-1][name], value) for name, value in eager[-1].items()}
    row = verdict(worst, EXACT)
    return {**row, "ok": row["ok"] and graphs == 2, "graphs": graphs}


# ---- what comes after ---------------------------------------------------------------------------------------------


class SameDraws(TorchFunctionMode):
    """Inside, random permutations are the CPU's on every device (torchvision samples regions with them)."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randperm:
            return torch.randperm(args[0], generator=self.generator).to(kwargs.get("device", "cpu"))
        return func(*args, **kwargs)


@contextmanager
def on(model: torch.nn.Module, device: torch.device) -> Iterator[torch.nn.Module]:
    """A copy of a model in float64 on a device, with the CPU's random numbers."""
    with SameDraws():
        yield copy.deepcopy(model).double().to(device)


def detectors(section: Section, scale: Scale, neck: str) -> dict[str, Any]:
    """Losses, some gradients and detections of a Mask R-CNN."""
    height, width = scale.image
    model = detector(
        scale.backbone, neck=neck, masks=True, classes=5, norm="tuned", min_size=(height,), max_size=2 * width,
        test_size=height, score_threshold=0.0, anchor_scale=height / 800, regions=scale.regions,
        test_proposals=scale.regions, detections=scale.regions, seed=0,
    )  # fmt: skip
    images, targets = objects(2, height, width)

    def all_of(device: torch.device) -> dict[str, Tensor]:
        with on(model, device) as here:
            given = [image.double().to(device) for image in images]
            wanted = [{k: v.to(device) for k, v in t.items()} for t in targets]
            losses = here.train()(given, wanted)
            torch.stack(list(losses.values())).sum().backward()
            out = {name: loss.detach() for name, loss in losses.items()}
            out |= {
                f"gradient of {n}": p.grad
                for n, p in here.named_parameters()
                if p.grad is not None and p.ndim == 4
            }
            with torch.no_grad():
                for i, found in enumerate(here.eval()(given)):
                    out |= {f"{name} of image {i}": value.to(torch.float64) for name, value in found.items()}
            return out

    return compared(all_of, section.device)


def segmenters(section: Section, scale: Scale) -> dict[str, Any]:
    """Loss, gradients and logits of an FCN."""
    model = segmenter(scale.backbone, classes=5, norm="tuned", seed=0)
    images = torch.rand(2, 3, *scale.image, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, *scale.image))

    def all_of(device: torch.device) -> dict[str, Tensor]:
        with on(model, device) as here:
            loss = here.train()(images.to(device), labels.to(device))["loss"]
            loss.backward()
            out = {f"gradient of {n}": p.grad for n, p in here.named_parameters() if p.grad is not None}
            with torch.no_grad():
                return {"loss": loss.detach(), **out, "logits": here.eval()(images.to(device))}

    return compared(all_of, section.device)


def compared(all_of: Callable[[torch.device], dict[str, Tensor]], device: torch.device) -> dict[str, Any]:
    """What a device gives against the CPU, tensor by tensor; gradients relative to their largest value."""
    ours, theirs = all_of(device), all_of(torch.device("cpu"))
    worst = {
        name: apart(ours[name], v) / max(1.0, float(v.abs().max()) if v.numel() else 1.0)
        for name, v in theirs.items()
    }
    return {
        **verdict(worst, EXACT),
        "detections": sum(len(v) for n, v in theirs.items() if n.startswith("scores")),
    }


def objects(
    count: int, height: int, width: int, *, most: int = 6
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of noise with some boxes and their masks, for detectors."""
    rng = np.random.default_rng(0)
    images = [torch.rand(3, height, width) for _ in range(count)]
    targets = []
    for _ in range(count):
        n = int(rng.integers(1, most + 1))
        corner = rng.uniform(0, 0.6, (n, 2))
        ends = corner + rng.uniform(0.2, 0.4, (n, 2))
        boxes = torch.from_numpy(np.hstack([corner, ends]) * [width, height, width, height])
        masks = torch.zeros(n, height, width, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().long().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        targets.append({"boxes": boxes, "labels": torch.from_numpy(rng.integers(1, 6, n)), "masks": masks})
    return images, targets


def ranks(section: Section, scale: Scale) -> dict[str, Any]:
    """Ranks of the contrastive test: of the same features searched here and on the CPU, and of features made here."""
    source, policy = ScenesSource(scale.scenes), POLICIES["crop"]
    pairs = Pairs(source, [policy], size=scale.size, batch=64, seed=0)
    crops = [found[policy, scale.size] for _, found in pairs.run(range(pairs.steps))]
    model = (
        build_embedding(
            "hcl", scale.backbone, seed=0, words={"spatial": {"side": scale.size // 16, "width": 32}}
        )
        .double()
        .train()
    )
    normal = Photometric(policy, dtype=torch.float64)

    @torch.no_grad()
    def features(device: torch.device) -> list[np.ndarray]:
        """Queries and keys (with batch norm over each batch: untrained statistics say nothing)."""
        with on(model, device) as here:
            out = []
            for view in range(2):
                parts = [here(normal(b.images[view].to(device), b.color[view])) for b in crops]
                out.append(torch.cat([here.concat(p) for p in parts]).float().cpu().numpy())
            return out

    def searched(vectors: list[np.ndarray], device: torch.device) -> np.ndarray:
        found = first_in_first_out(
            *vectors,
            np.arange(len(vectors[0])),
            dims=model.dims,
            gallery=len(vectors[0]) // 2,
            batch=64,
            device=device,
        )
        return np.concatenate([f.rank.numpy() for _, f, _ in found])

    cpu = torch.device("cpu")
    theirs = features(cpu)
    ours = features(section.device)
    expected = searched(theirs, cpu)
    same, made = (float((searched(v, section.device) == expected).mean()) for v in (theirs, ours))
    top1 = float((expected == 1).mean())
    return {
        **verdict({"same features": 1 - same, "own features": 1 - made}, 1e-3),
        "same_features": same,
        "own_features": made,
        "top1": top1,
    }
