"""The same training fed from JPEG photographs with all cores: images a second, waiting, and how many cores it takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from gpu_sections import roof
from gpu_sections.section import Section
from gpu_sections.stages import batch_of, fabric_on, precision_for, settings_of, stage_of
from hetcl.images.scenes import scene
from hetcl.images.sources import open_source
from hetcl.machine import cores as machine_cores
from hetcl.training.devices import chosen_kernels
from hetcl.types import Sample, Source
from hetcl.views.loader import ViewLoader

KIND = "stage 1"
DRAWN = 32
"""Built-in scenes that stand in for photographs, as large as those of ImageNet mostly are."""


@dataclass(frozen=True)
class Scale:
    """Sizes of the measurement."""

    backbone: str
    size: int
    batch: int
    groups: int
    queue: int
    seconds: float
    """Of each measurement."""
    side: int
    """Of drawn photographs in pixels."""


FULL = Scale("torchvision:resnet50", 224, 256, 8, 65536, 8.0, 448)
TOY = Scale("timm:test_resnet", 32, 16, 2, 64, 0.5, 64)


class Repeated:
    """A few images as a large data set (``types.Source``): decoding costs the same each time."""

    classes: tuple[str, ...] | None = None
    prefers_window = 0

    def __init__(self, source: Source, length: int) -> None:
        self.source, self.length = source, length
        self.fingerprint, self.description = source.fingerprint, f"{source.description}, repeated"

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int) -> Sample:
        """The image, without its label."""
        sample = self.source.sample(index % len(self.source))
        return Sample(sample.data, None, sample.name)

    def label(self, index: int) -> int | None:
        return None

    def blocks(self) -> np.ndarray | None:
        return None


def photographs(section: Section, side: int) -> Source:
    """The photographs given, or drawn scenes as JPEG files."""
    if section.photos:
        return open_source(section.photos, split="all")
    folder = section.work / "photos"
    folder.mkdir()
    for i in range(DRAWN):
        Image.fromarray(scene(i, seed=0, size=side).pixels).save(folder / f"{i}.jpg", quality=90)
    return open_source(str(folder), split="all")


def run(section: Section) -> None:
    """Decoding alone, all workers alone, training from memory, training from files."""
    scale = TOY if section.toy else FULL
    cores = machine_cores()
    source = Repeated(photographs(section, scale.side), 10_000_000)
    each: dict[str, float] = {}

    def loader(workers: int, batch: int, pin: bool = section.device.type == "cuda") -> ViewLoader:
        how = {"policy": settings_of(KIND)[1].views, "size": scale.size, "seed": 0, "stage": KIND}
        return ViewLoader(source, batch=batch, workers=workers, pin=pin, **how)  # type: ignore[arg-type]

    def one_core() -> dict[str, Any]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker
        batches = loader(0, 16, False).epoch(0)
        next(batches)
        began, images = time.process_time(), 0
        while time.process_time() - began < scale.seconds / 4:
            images += len(next(batches).index)
        torch.set_num_threads(threads)
        each["ms"] = 1000 * (time.process_time() - began) / images
        return {"ms_per_image": each["ms"], "images": source.description}

    def alone() -> dict[str, Any]:
        with contextlib.closing(loader(cores, scale.batch)) as made:
            found = paced(made.epoch(0), lambda _: None, section.device, scale.seconds)
        return {"workers": cores, "images_per_second": found["images_per_second"]}

    def training(from_files: bool) -> dict[str, Any]:
        made = loader(cores, scale.batch) if from_files else None
        fabric = fabric_on(section.device, precision_for(section.device))
        stage = stage_of(
            KIND, fabric=fabric, backbone=scale.backbone, size=scale.size, batch=scale.batch, groups=scale.groups,
            queue=scale.queue, loader=made,
        )  # fmt: skip
        numbers = iter(range(10**9))
        ready = batch_of(KIND, batch=scale.batch, size=scale.size).to(section.device)
        batches = stage.batches(0, 0) if from_files else iter(lambda: ready, None)
        with contextlib.closing(stage), chosen_kernels(deterministic=False):
            found = paced(
                batches, lambda batch: stage.step(batch, next(numbers)), section.device, scale.seconds
            )
        if from_files:
            return {"workers": cores, **found}
        each["rate"] = found["images_per_second"]
        needed = {"cores_needed": each["rate"] * each["ms"] / 1000} if "ms" in each else {}
        return {"images_per_second": each["rate"], **needed}

    section.attempt("decoding and cropping, one core", one_core, cap=10)
    section.attempt("loader alone, all cores", alone, cap=20)
    section.attempt("training from memory", lambda: training(False), cap=25)
    section.attempt("training from files", lambda: training(True), cap=30)


def paced(batches: Any, step: Callable[[Any], Any], device: torch.device, seconds: float) -> dict[str, float]:
    """Images a second and the share of time spent waiting for batches, after some that warm up.

    The device is waited for only now and then, as in a run.
    """
    for _ in range(4):
        step(next(batches))
    roof.wait(device)
    began, waited, images, steps = time.perf_counter(), 0.0, 0, 0
    while time.perf_counter() - began < seconds:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
        images, steps = images + len(batch.index), steps + 1
        if steps % 8 == 0:
            roof.wait(device)
    roof.wait(device)
    spent = time.perf_counter() - began
    return {"images_per_second": images / spent, "waiting": waited / spent, "steps": steps}
