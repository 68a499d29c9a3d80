"""Stages with a stub for a loader, so that a test says which views and images each step sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from hetcl.methods import METHODS
from hetcl.model.build import build_embedding
from hetcl.model.momentum import MomentumPair
from hetcl.model.queue import KeyQueue
from hetcl.pretraining.stages import Contrast, StageConfig
from hetcl.training.devices import PRECISIONS
from hetcl.types import ViewBatch, ViewPolicy
from hetcl.views.photometric import COLUMNS, IMAGENET_MEAN, IMAGENET_STD, NOTHING, Photometric


class Given:
    """In place of a ``ViewLoader``: batches that a test made."""

    def __init__(self, batches: Sequence[ViewBatch]) -> None:
        self.made, self.steps_per_epoch = list(batches), len(batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ViewBatch]:
        yield from self.made[start:]

    def close(self) -> None: ...


def batch_of(*, views: int, count: int, pixels: int, images: int) -> ViewBatch:
    """A batch of random pixels that no colour change touches; images come up repeatedly."""
    color = torch.tensor(NOTHING, dtype=torch.float32).expand(views, count, len(COLUMNS)).clone()
    return ViewBatch(
        images=torch.randint(0, 256, (views, count, 3, pixels, pixels), dtype=torch.uint8),
        boxes=torch.zeros(views, count, 4),
        frames=torch.tensor([0.0, 0.0, pixels, pixels]).expand(count, 4),
        color=color,
        index=torch.randint(images, (count,)),
        label=torch.randint(5, (count,)),
    )


def normalized(images: Tensor) -> Tensor:
    """What the encoder must be given for uint8 ``[B, 3, H, W]``, in float64."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=torch.float64).view(3, 1, 1)
    return (images.double() / 255 - mean) / std


def fabric(precision: str = "fp64") -> Fabric:
    made = Fabric(accelerator="cpu", devices=1, precision=PRECISIONS[precision])  # type: ignore[arg-type]
    made.launch()
    return made


def common(batches: Sequence[ViewBatch], *, seed: int = 3, accumulate: int = 1, **sgd: Any) -> dict[str, Any]:
    """Keywords that every stage takes."""
    return {
        "fabric": fabric(),
        "loader": Given(batches),
        "photometric": Photometric(ViewPolicy(), dtype=torch.float64),
        "evaluate": lambda pyramid: {},
        "on_bad": lambda batch: None,
        "config": StageConfig(
            epochs=1, batch=len(batches[0].index), seed=seed, accumulate=accumulate, channels_last=True, **sgd
        ),
    }


def contrast_stage(
    method: str,
    batches: Sequence[ViewBatch],
    *,
    side: int,
    groups: int,
    queue: int,
    key_momentum: float = 0.9,
    seed: int = 3,
    accumulate: int = 1,
    backbone: str = "resnet18",
    **settings: Any,
) -> Contrast:
    """The stage that a run would build, in float64, on a small model."""
    model = build_embedding(
        method, backbone, seed=seed, words={"semantic": {"dim": 16}, "spatial": {"side": side, "width": 12}}
    )
    pair = MomentumPair(model, momentum=key_momentum, groups=groups).double()
    pair = pair.to(memory_format=torch.channels_last)
    store = KeyQueue(queue, model.dims, seed=seed).double()  # type: ignore[arg-type]
    sgd = {name: settings.pop(name) for name in ("lr", "sgd_momentum", "weight_decay")}
    kept = common(batches, seed=seed, accumulate=accumulate, **sgd)
    laid_back = METHODS[method].laid_back
    return Contrast("stage1", pair=pair, queue=store, laid_back=laid_back, **kept, **settings)
