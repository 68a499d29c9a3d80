"""``hetcl doctor``: this machine, this data, this recipe: what would go wrong, and how long it would take.

Also the estimate by which a run that would take days says so before it starts. Nothing is written.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from hetcl.errors import InputError
from hetcl.images.decode import open_image
from hetcl.images.sources import open_source
from hetcl.images.subset import why_none
from hetcl.machine import cores
from hetcl.methods import METHODS
from hetcl.pretraining.build import build_model, build_task
from hetcl.pretraining.monitors import some_images
from hetcl.pretraining.plan import held_out_of
from hetcl.printable import say
from hetcl.quantities import count, duration
from hetcl.runs.folder import machine
from hetcl.settings import PretrainSettings, StageSettings, resolve, stages_of
from hetcl.training.devices import chosen_kernels, device_name, make_fabric, precision_on, workers_of
from hetcl.types import BadImage, Source, ViewBatch, ViewPolicy
from hetcl.views import photometric
from hetcl.views.loader import name_of

SAMPLES = 64
"""Images that are opened to judge the data."""
VIEWS_OVER_DECODING = 1.3
"""A worker's time for an image, cropped twice, over that of decoding it whole (docs/results.md)."""


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

    def __init__(self, policy: ViewPolicy, *, images: int, size: int, views: int) -> None:
        noise, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
        color = np.stack([photometric.draw(policy, rng) for _ in range(views * images)])
        self.batch = ViewBatch(
            images=torch.randint(256, (views, images, 3, size, size), generator=noise, dtype=torch.uint8),
            boxes=torch.zeros(views, images, 4),
            sizes=torch.ones(images, 2),
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
    loader = _OneBatch(stage.views, images=s.batch // ranks, size=s.size, views=views)
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


def doctor(
    *, data: str | None, recipe: str | None, overrides: Mapping[str, Any] | Sequence[str] = ()
) -> list[str]:
    """Look at machine, data and recipe; print what was found.

    Args:
        data: DATA or None to leave the data out.
        recipe, overrides: as for ``pretrain``.

    Returns:
        the warnings, which were printed too.

    Raises:
        InputError: the data or the settings cannot be used at all.
    """
    warnings: list[str] = []
    settings = resolve(recipe, overrides)
    _machine(warnings)
    source, reading = None, 0.0
    notes: list[str] = []
    if data is not None:
        with _aloud() as notes:
            source = open_source(
                data,
                split=settings.data_split,
                folder_classes=settings.folder_classes,
                window=settings.window,
            )
            held_out = held_out_of(data, settings, settings.window)
        reading = _data(source, held_out, settings, warnings)
    _recipe(settings, recipe or "hcl-r50", source, reading, warnings)
    say()
    for line in warnings:
        say(f"! {line}")
    if not warnings:
        say("nothing else to object to" if notes else "nothing to object to")
    return warnings


@contextlib.contextmanager
def _aloud() -> Iterator[list[str]]:
    """Print what the rooms say through ``logging`` meanwhile, among what was found here instead of beside it.

    Yields the warnings among it, as they come.
    """
    notes: list[str] = []

    class Here(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            mark = "! " if record.levelno >= logging.WARNING else ""
            notes.extend([record.getMessage()] if mark else [])
            say(f"data      {mark}{record.getMessage()}")

    rooms = logging.getLogger("hetcl")
    before = rooms.handlers, rooms.level, rooms.propagate
    rooms.handlers, rooms.propagate = [Here()], False
    rooms.setLevel(logging.INFO)
    try:
        yield notes
    finally:
        rooms.handlers, rooms.propagate = before[0], before[2]
        rooms.setLevel(before[1])


def _machine(warnings: list[str]) -> None:
    facts = machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    free = shutil.disk_usage(".").free / 2**30
    say(
        f"machine   {facts['system']}, {facts['cores']} cores, {memory:.0f} GiB memory, {free:.0f} GiB free here"
    )
    say(
        f"software  hetcl {facts['hetcl']}, Python {facts['python']}, "
        f"torch {facts['torch']}, torchvision {facts['torchvision']}"
    )
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        say(f"GPUs      {torch.cuda.device_count()} x {', '.join(sorted(names))}")
    else:
        say("GPUs      none that PyTorch can use; the CPU trains, slowly")
    if free < 2:
        warnings.append(f"only {free:.1f} GiB of disk are free here: checkpoints may not fit")


def _data(source: Source, held_out: Source | None, settings: PretrainSettings, warnings: list[str]) -> float:
    """Open some images, spread over the data, and say what training will make of it; seconds for each."""
    say(f"data      {source.description}")
    sizes, bad = [], []
    began = time.monotonic()
    near = source.prefers_window > 0
    for index in np.sort(some_images(source, min(SAMPLES, len(source)), "doctor", near=near)).tolist():
        try:
            image = open_image(source.sample(index))
            image.pixels()
            sizes.append((image.width, image.height))
        except BadImage as e:
            bad.append(f"{name_of(source, index)}: {e}".replace("\n", "\\n"))
    seconds = (time.monotonic() - began) / max(1, len(sizes) + len(bad))
    if not sizes:
        raise InputError(f"none of {len(bad)} images can be read; the first, {bad[0]}")
    width, height = (int(x) for x in np.median(np.array(sizes), axis=0))
    smallest = min(map(min, sizes))
    say(
        f"          of {len(sizes) + len(bad)} opened: {len(bad)} unusable, "
        f"median {width} x {height}, {1000 * seconds:.1f} ms to decode"
    )
    say(f"kNN check {_knn_words(source, held_out, settings)}")
    if source.prefers_window:
        warnings.append(
            "the disk is too small for all shards: they are fetched again in each epoch, and images are mixed within "
            f"windows of {source.prefers_window:,} only"
        )
    if bad:
        warnings.append(f"{len(bad)} of {len(sizes) + len(bad)} images cannot be used, e.g. {bad[0]}")
    if len(bad) > settings.max_bad * (len(sizes) + len(bad)):
        warnings.append(f"that is more than max_bad = {settings.max_bad:.0%}: training will stop")
    if min(width, height) < settings.size * 0.6:
        warnings.append(
            f"half of the images are smaller than {width} x {height}, and views are {settings.size} pixels: "
            "they will be enlarged; a smaller size (and spatial.side = size / 16) is cheaper and loses nothing"
        )
    if smallest < 32:
        warnings.append(f"some images have a side of {smallest} pixels")
    _labels(source, settings, warnings)
    return seconds


def _knn_words(source: Source, held_out: Source | None, settings: PretrainSettings) -> str:
    """What the kNN check while training will ask about."""
    if not settings.knn.every:
        return "none: knn.every is 0"
    if source.classes is None:
        return f"none: no labels{why_none(source)}"
    if held_out is not None and held_out.classes is not None:
        return f"asks about {min(settings.knn.queries, len(held_out)):,} of {held_out.description}"
    beside = "" if held_out is None else f"; the validation images have no labels{why_none(held_out)}"
    return f"asks about a part of the training images, which lies apart{beside}"


def _labels(source: Source, settings: PretrainSettings, warnings: list[str]) -> None:
    """What labels, or their lack, and the number of images mean for the recipe."""
    if source.classes is None:
        warnings.append("no labels: no kNN check while training (none are needed to train)")
    elif source.unlabelled:
        warnings.append(
            f"{source.unlabelled:,} of {len(source):,} images have no label: they are left out of the kNN check and "
            "of supervised training"
        )
    usable = len(source)
    for name, stage in stages_of(settings).items():
        if METHODS[stage.method].labels and source.classes is None:
            warnings.append(f"{name} is supervised and the data has no labels: it will be refused")
        elif METHODS[stage.method].labels:
            usable = len(source) - source.unlabelled
        elif stage.queue > len(source):
            warnings.append(
                f"{name}.queue of {stage.queue} is longer than the data; it will be {len(source)}"
            )
    if usable < settings.batch:
        warnings.append(f"fewer images than a batch of {settings.batch}: the batch will shrink")


def _recipe(
    settings: PretrainSettings, recipe: str, source: Source | None, reading: float, warnings: list[str]
) -> None:
    """What a recipe costs here, from real steps, and whether the images are read as fast (seconds for each)."""
    from hetcl.model.embedding import cost_of

    fabric = make_fabric(
        device=settings.device, devices=1, precision=settings.precision, threads=settings.threads
    )
    devices = settings.devices if fabric.device.type == "cuda" else 1
    if settings.batch % devices or settings.groups % devices:
        raise InputError(
            f"batch ({settings.batch}) and groups ({settings.groups}) must be multiples of the {devices} devices"
        )
    share = replace(settings, batch=settings.batch // devices, groups=settings.groups // devices)
    images = len(source) if source else 1_281_167
    classes = len(source.classes or ("",)) if source else 1000
    say(
        f"recipe    {recipe}: {settings.backbone} at {settings.size} pixels, "
        f"batch {settings.batch} in {settings.groups} groups"
    )
    say(
        f"device    {device_name(fabric.device)}, {precision_on(settings.precision, fabric.device.type)}: "
        f"timing a step of each stage{', compiled first (minutes)' * settings.compile} ..."
    )
    total = fastest = 0.0
    for name, stage in stages_of(settings).items():
        model = build_model(settings, stage, classes)
        cost = cost_of(model, 1, 3, settings.size, settings.size)
        with chosen_kernels(deterministic=settings.deterministic):
            pace = measure_step(share, stage, fabric=fabric, classes=classes)
        pace = replace(pace, images_per_second=devices * pace.images_per_second)
        total += pace.seconds(images * stage.epochs)
        fastest = max(fastest, pace.images_per_second)
        say(
            f"          {name}: {stage.method}, {count(stage.epochs, 'epoch')}, {cost.parameters / 1e6:.1f} M weights, "
            f"{cost.multiply_adds / 1e9:.2f} G multiply-adds a view"
        )
        if not pace.images_per_second:
            warnings.append(
                f"{name}: a batch of {share.batch} does not fit into this GPU's memory; try --accumulate 2 "
                "(the same numbers in two pieces) or a smaller batch"
            )
            continue
        memory = f", {pace.memory / 2**30:.1f} GiB of GPU memory" if pace.memory else ""
        say(
            f"          {pace.images_per_second:{'.0f' if pace.images_per_second >= 10 else '.2g'}} images/s{memory}: "
            f"about {duration(pace.seconds(images * stage.epochs))}"
        )
    if total == float("inf"):
        return
    of = "this data" if source else "ImageNet's 1.28 million images (give --data for yours)"
    alone = " and the devices do not wait for each other" if devices > 1 else ""
    say(
        f"          in all about {duration(total)} on {count(devices, 'such device')} for {of}, if the images are read "
        f"as fast{alone}"
    )
    workers, needed = workers_of(settings.workers), VIEWS_OVER_DECODING * reading * fastest
    if reading and fabric.device.type == "cuda":
        say(
            f"          reading as fast takes about {needed:.1f} workers; it has {workers}, on {cores()} cores"
        )
        if needed > min(workers, cores()):
            warnings.append(
                f"the GPU would wait for images: {fastest:.0f} a second need about {needed:.0f} workers, and there are "
                f"{workers} on {cores()} cores; raise --workers up to the cores, or store the images smaller"
            )
    if total > 86400:
        warnings.append(
            f"this recipe would take about {duration(total)} here; `--recipe small` is made for one small machine"
        )
