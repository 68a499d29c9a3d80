"""The pace of a real step of pre-training on this device, by which a run says how long it will take."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from lightning_fabric import Fabric

from hetcl.methods import METHODS
from hetcl.pretraining.build import build_model, build_task
from hetcl.settings import PretrainSettings, StageSettings
from hetcl.types import PixelFormat, ViewBatch, ViewPolicy
from hetcl.views import photometric


@dataclass(frozen=True)
class Pace:
    """What a real step took on this device."""

    images_per_second: float
    """Over all ranks; 0 where the step does not fit into the memory."""
    memory: int
    """Bytes that PyTorch held at most, on a GPU; 0 elsewhere."""

    def seconds(self, images: int) -> float:
        """How long that many images take."""
        return images / self.images_per_second if self.images_per_second else float("inf")


class _OneBatch:
    """A loader that gives one batch of noise for ever, so that the step alone is timed."""

    steps_per_epoch = 1

    def __init__(
        self, policy: ViewPolicy, *, images: int, size: int, views: int, pixels: PixelFormat
    ) -> None:
        noise, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
        color = np.stack([photometric.draw(policy, rng) for _ in range(views * images)])
        shape = views, images, pixels.channels, size, size
        drawn = torch.randint(256, shape, generator=noise, dtype=torch.uint8)
        self.batch = ViewBatch(
            images=drawn if pixels.rgb else drawn / 255,
            boxes=torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(views, images, 4),
            frames=torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(images, 4),
            color=torch.from_numpy(color).reshape(views, images, -1),
            index=torch.arange(images),
            label=torch.zeros(images, dtype=torch.int64),
        )
        if torch.cuda.is_available():
            self.batch = self.batch.pin_memory()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ViewBatch]:
        while True:
            yield self.batch

    def close(self) -> None:
        pass


def measure_step(
    settings: PretrainSettings, stage: StageSettings, *, fabric: Fabric, classes: int | None = None
) -> Pace:
    """Time a stage's real step: views, both encoders, loss, queue and optimiser, on noise. Called on every rank.

    A GPU takes the recipe's batch; a CPU, where a batch may take minutes, 16 images at most. The first steps warm up
    and are not counted.
    """
    cuda, ranks, s = fabric.device.type == "cuda", fabric.world_size, settings
    if not cuda:
        group = min(16, s.batch // s.groups)
        groups = ranks * min(max(1, 16 // group), max(1, s.groups // ranks))
        s = replace(s, batch=group * groups, groups=groups, accumulate=1)
    views = METHODS[stage.method].views_per_image
    loader = _OneBatch(stage.views, images=s.batch // ranks, size=s.size, views=views, pixels=s.pixels)
    warm, counted = (3, 5) if cuda else (1, 1)
    wait = (lambda: torch.cuda.synchronize(fabric.device)) if cuda else (lambda: None)
    try:
        if cuda:  # what was measured before may not be gone yet
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(fabric.device)
        model = build_model(s, stage, classes)
        task = build_task(s, "trial", stage, model, fabric=fabric, loader=loader)  # type: ignore[arg-type]
        batches = task.batches(0, 0)
        for step in range(warm + counted):
            if step == warm:
                wait()
                if cuda:  # not what cuDNN tried its kernels with
                    torch.cuda.reset_peak_memory_stats(fabric.device)
                began = time.monotonic()
            task.step(next(batches), step)
        wait()
        seconds = time.monotonic() - began
    except torch.OutOfMemoryError:
        if ranks > 1:  # the others wait for this one
            raise
        return Pace(0, torch.cuda.max_memory_allocated(fabric.device))
    memory = torch.cuda.max_memory_allocated(fabric.device) if cuda else 0
    return Pace(s.batch * counted / seconds, memory)
