"""The product's training steps on made-up batches: what ``steps``, ``loader``, ``correct`` and ``train`` drive.

Shapes: V views, B images (``hetcl/types.py``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from hetcl.pretraining.build import build_model, build_task
from hetcl.pretraining.stages import Contrast, Supervised
from hetcl.settings import PretrainSettings, StageSettings, resolve, stages_of
from hetcl.training.devices import make_fabric
from hetcl.types import ViewBatch
from hetcl.views.photometric import draw
from hetcl.views.policies import POLICIES

KINDS = {
    "stage 1": ("hcl-r50", "stage1"),
    "stage 2": ("hcl-r50", "stage2"),
    "stage 2, vanilla": ("hcl-r50-vanilla", "stage2"),
    "supervised": ("supervised-r50", "stage1"),
}
"""What is trained: the recipe, and which of its stages."""
CLASSES = 1000


def settings_of(kind: str, **overrides: Any) -> tuple[PretrainSettings, StageSettings]:
    """Settings of a kind's recipe, and its stage."""
    recipe, stage = KINDS[kind]
    queue = overrides.pop("queue", None)
    settings = resolve(recipe, overrides)
    chosen = stages_of(settings)[stage]
    return settings, replace(chosen, queue=queue) if queue else chosen


def fabric_on(device: torch.device, precision: str) -> Fabric:
    """One device, as the product sets it up."""
    return make_fabric(device=device.type, devices=1, precision=precision, threads=0)


def precision_for(device: torch.device) -> str:
    """What a run takes: bf16 on a GPU."""
    return "bf16" if device.type == "cuda" else "fp32"


def batch_of(
    kind: str, *, batch: int, size: int, seed: int = 0, images: int = 0, plain: bool = False
) -> ViewBatch:
    """Random pixels with colour draws as the kind's own, or with none (``plain``).

    Args:
        images: how many images they are of, so that some come again; 0: each is one of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    views = 1 if kind == "supervised" else 2
    policy = POLICIES["crop"] if plain else settings_of(kind)[1].views
    color = np.stack([[draw(policy, rng) for _ in range(batch)] for _ in range(views)])
    index = torch.randint(images, (batch,), generator=generator) if images else torch.arange(batch)
    return ViewBatch(
        images=torch.randint(0, 256, (views, batch, 3, size, size), generator=generator, dtype=torch.uint8),
        boxes=torch.zeros(views, batch, 4),
        frames=torch.tensor([0.0, 0.0, size, size]).expand(batch, 4),
        color=torch.from_numpy(color),
        index=index,
        label=torch.randint(CLASSES, (batch,), generator=generator),
    )


class NoLoader:
    """In place of a loader where the batches are given to the step by hand."""

    steps_per_epoch = 1

    def close(self) -> None: ...


def stage_of(
    kind: str, *, fabric: Fabric, loader: Any = None, compiler: str | None = None, **overrides: Any
) -> Contrast | Supervised:
    """A stage as a run builds it, with its recipe's numbers unless said otherwise.

    Args:
        kind: one of ``KINDS``.
        loader: where batches come from; None: they are given to ``step`` by hand.
        compiler: backend of ``torch.compile`` for the encoders; None leaves them eager.
        **overrides: of settings; ``queue`` is the stage's.
    """
    settings, stage = settings_of(kind, **overrides)
    model = build_model(settings, stage, CLASSES)
    task = build_task(settings, kind, stage, model, fabric=fabric, loader=loader or NoLoader())
    if compiler:
        encoders = [task.model] if isinstance(task, Supervised) else [task.pair.query, task.pair.key]
        for encoder in encoders:
            encoder.compile(backend=compiler)
    return task


@contextmanager
def deterministic(on: bool = True) -> Iterator[list[str]]:
    """Inside, operations are deterministic where PyTorch can; gives the names of those where it cannot.

    CUBLAS_WORKSPACE_CONFIG must be set before the first product of matrices.
    """
    objections: list[str] = []
    if not on:
        yield objections
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as a run does
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield objections
            stated = (re.match(r"(\S+) does not have a deterministic", str(w.message)) for w in caught)
            objections += sorted({found[1] for found in stated if found})
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
