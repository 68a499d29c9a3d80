"""The product's training steps on made-up batches: what ``steps``, ``loader`` and ``correct`` drive.

Shapes: V views, B images, H W pixels (``hetcl/types.py``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from hetcl.contrast.queue import KeyQueue
from hetcl.model.build import build_embedding
from hetcl.model.momentum import MomentumPair
from hetcl.pretrain.stages import Contrast, Supervised
from hetcl.training.devices import make_fabric
from hetcl.types import ViewBatch, ViewPolicy
from hetcl.views.photometric import Photometric, draw
from hetcl.views.policies import POLICIES

KINDS = {
    "stage 1": "moco-v2",
    "stage 2": "hcl",
    "stage 2, vanilla": "hcl",
    "supervised": "supervised",
}
"""What is trained, and the product's method for it."""
NO_COLOUR = POLICIES["crop"]
DTYPES = {"fp64": torch.float64}
CLASSES = 1000


def policy_of(kind: str) -> ViewPolicy:
    """How the views of a kind of training are drawn."""
    return POLICIES[KINDS[kind]]


def fabric_on(device: torch.device, precision: str) -> Fabric:
    """One device, as the product sets it up."""
    return make_fabric(device=device.type, devices=1, precision=precision, threads=0)


def batch_of(
    kind: str, *, batch: int, size: int, seed: int = 0, pictures: int = 0, plain: bool = False
) -> ViewBatch:
    """Random pixels with colour draws as the kind's own, or with none (``plain``).

    Args:
        pictures: how many pictures they are of, so that some come again; 0: each is one of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    views = 1 if kind == "supervised" else 2
    rng = np.random.default_rng(seed)
    policy = NO_COLOUR if plain else policy_of(kind)
    colour = np.stack([[draw(policy, rng) for _ in range(batch)] for _ in range(views)])
    index = torch.randint(pictures, (batch,), generator=generator) if pictures else torch.arange(batch)
    return ViewBatch(
        images=torch.randint(0, 256, (views, batch, 3, size, size), generator=generator, dtype=torch.uint8),
        boxes=torch.zeros(views, batch, 4),
        sizes=torch.full((batch, 2), float(size)),
        colour=torch.from_numpy(colour),
        index=index,
        label=torch.randint(CLASSES, (batch,), generator=generator) if kind == "supervised" else None,
    )


class NoLoader:
    """In place of a loader where the batches are given to the step by hand."""

    steps_per_epoch = 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ViewBatch]:
        yield from ()

    def close(self) -> None: ...


@contextmanager
def deterministic(on: bool = True) -> Iterator[list[str]]:
    """Inside, operations are deterministic where PyTorch can; gives the names of those where it cannot.

    CUBLAS_WORKSPACE_CONFIG must be set before the first product of matrices. Memory is not filled for it.
    """
    objections: list[str] = []
    if not on:
        yield objections
        return
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield objections
            said = (re.match(r"(\S+) does not have a deterministic", str(w.message)) for w in caught)
            objections += sorted({found[1] for found in said if found})
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


def stage_of(
    kind: str,
    *,
    fabric: Fabric,
    backbone: str,
    size: int,
    batch: int,
    groups: int,
    queue: int,
    precision: str = "fp32",
    accumulate: int = 1,
    channels_last: bool = True,
    compiler: str | None = None,
    loader: Any = None,
    width: int = 256,
    lr: float = 0.03,
    key_momentum: float = 0.999,
) -> Contrast | Supervised:
    """A stage as a run builds it (``hetcl/pretrain/run.py``), with the published numbers unless said otherwise.

    Args:
        kind: one of ``KINDS``.
        compiler: backend of ``torch.compile`` for the encoders; None leaves them eager.
        loader: where batches come from; None: they are given to ``step`` by hand.
    """
    method, dtype = KINDS[kind], DTYPES.get(precision, torch.float32)
    fused = kind != "stage 2, vanilla"
    model = build_embedding(
        method, backbone, seed=0, side=max(1, size // 16), width=width, fused=fused, classes=CLASSES
    )
    common: dict[str, Any] = {
        "fabric": fabric,
        "loader": loader or NoLoader(),
        "photometric": Photometric(policy_of(kind), dtype=dtype),
        "evaluate": lambda _: {},
        "on_bad": lambda _: None,
        "epochs": 1,
        "batch": batch,
        "seed": 0,
        "accumulate": accumulate,
        "channels_last": channels_last,
        "knn_every": 0,
        "lr": lr,
        "sgd_momentum": 0.9,
        "weight_decay": 1e-4,
    }
    pair = None if method == "supervised" else MomentumPair(model, momentum=key_momentum, groups=groups)
    placed = (pair or model).to(fabric.device, dtype)
    if channels_last:
        placed = placed.to(memory_format=torch.channels_last)
    if compiler:
        for encoder in (pair.query, pair.key) if pair else (model,):
            encoder.compile(backend=compiler)
    if pair is None:
        return Supervised(kind, model=placed, groups=groups, **common)
    keys = KeyQueue(queue, model.dims, seed=0).to(fabric.device, dtype)
    return Contrast(kind, pair=placed, queue=keys, temperature=0.2, mask_own=True, **common)
