"""``hetcl doctor``: this machine, this data, this recipe: what would go wrong, and how long it would take.

Nothing is written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hetcl.errors import InputError
from hetcl.guidance import too_few
from hetcl.images.decode import open_image
from hetcl.images.look import Depth, channel_words, refusal
from hetcl.images.near_duplicates import near_duplicates
from hetcl.images.sources import open_source
from hetcl.images.subset import why_none
from hetcl.machine import cores
from hetcl.methods import METHODS
from hetcl.pretraining.build import build_model
from hetcl.pretraining.monitors import some_images
from hetcl.pretraining.pace import measure_step
from hetcl.pretraining.plan import held_out_of, settle_pixels, stages_to_train
from hetcl.printable import say, warn
from hetcl.quantities import count, duration
from hetcl.runs.folder import machine
from hetcl.settings import PretrainSettings, StageSettings, resolve
from hetcl.training.devices import chosen_kernels, device_name, make_fabric, precision_on, workers_of
from hetcl.types import BadImage, OtherPixels, PixelFormat, Source
from hetcl.views.loader import name_of
from hetcl.weights.channels import with_channels
from hetcl.weights.sources import Weights, read_weights

SAMPLES = 64
"""Images that are opened to judge the data."""
COMPARED, COMPARING = 512, 10.0
"""Images that are compared with each other at most, and the seconds that reading them may take."""
REPEATED = 0.9
"""Share of images that differ from which near-copies are not worth a warning."""
JPEG = b"\xff\xd8\xff"
"""How the files begin that hold no more than 8 bits."""
VIEWS_OVER_DECODING = 1.3
"""A worker's time for an image, cropped twice, over that of decoding it whole (docs/results.md)."""


def doctor(
    *,
    data: str | None,
    recipe: str | None,
    init: str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> list[str]:
    """Look at machine, data and recipe; print what was found.

    Args:
        data: DATA or None to leave the data out.
        recipe, init, overrides: as for ``pretrain``.

    Returns:
        the warnings, which were printed too.

    Raises:
        InputError: the data or the settings cannot be used at all.
    """
    warnings: list[str] = []
    settings = resolve(recipe, overrides)
    todo = stages_to_train(settings, init)
    _machine(warnings)
    weights = None
    if init is not None:
        weights = with_channels(read_weights(init, arch=settings.backbone), settings.in_chans)
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
        settings, reading = _data(source, held_out, settings, weights, warnings)
        _labels(source, settings, todo, warnings)
        if not data.startswith("scenes:"):  # these are for trying things out
            epochs = sum(stage.epochs for stage in todo.values())
            few = too_few(
                _different(source, reading, warnings, settings.pixels),
                epochs,
                settings.backbone,
                init=init,
            )
            warnings += [few] if few else []
            if not few and init is None:
                say("images    enough to begin with random weights, by public advice (docs/facts.md)")
    _recipe(settings, todo, recipe or "hcl-r50", source, reading, warnings)
    say()
    for line in warnings:
        warn(line)
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


def _data(
    source: Source,
    held_out: Source | None,
    settings: PretrainSettings,
    init: Weights | None,
    warnings: list[str],
) -> tuple[PretrainSettings, float]:
    """Open some images, spread over the data, and say what training will make of it.

    Returns:
        the settings with mean and std as they will be used, and the seconds for an image.
    """
    say(f"data      {source.description}")
    sizes, bad = [], []
    began = time.monotonic()
    near, depth = source.prefers_window > 0, Depth()
    pixels = settings.pixels
    for index in np.sort(some_images(source, min(SAMPLES, len(source)), "doctor", near=near)).tolist():
        try:
            sample = source.sample(index)
            if not (isinstance(sample.data, bytes) and sample.data[:3] == JPEG):
                depth.add(sample.data)
            image = open_image(sample, pixels=pixels)
            image.pixels()
            sizes.append((image.width, image.height))
        except OtherPixels as e:
            raise InputError(refusal(name_of(source, index), e, "")) from None
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
    warnings += depth.lines(pixels)
    used = settings if pixels.rgb else settle_pixels(settings, source, init)
    if not pixels.rgb:
        say(f"pixels    {channel_words(pixels, used.mean, used.std)}")
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
    return used, seconds


def _different(source: Source, seconds: float, warnings: list[str], pixels: PixelFormat) -> int:
    """How many images there are, those left out that nearly repeat the one before them. ``seconds``: to read one."""
    if source.prefers_window:  # shards would be fetched for it
        return len(source)
    compared = max(SAMPLES, min(COMPARED, int(COMPARING / max(seconds, 1e-6))))
    found = near_duplicates(source, compared, pixels)
    left = found.different if len(source) <= compared else round(len(source) * (1 - found.share))
    plain = f"; {found.plain} are too plain to compare" if found.plain else ""
    names = f" ({found.example[0]} and {found.example[1]})" if found.example else ""
    say(
        f"repeats   of {count(found.looked, 'image')} compared: {found.repeats} nearly repeat the one before, "
        f"{found.different} differ{names}{plain}"
    )
    if left < REPEATED * len(source):
        warnings.append(
            f"many images nearly repeat others, as bursts, frames of films and cameras that stand still give them: of "
            f"{len(source):,} about {left:,} differ. Near-copies teach little, and as negatives they are pushed away "
            "from what they show too; keep one of each, or add others"
        )
        return left
    return len(source)


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


def _labels(
    source: Source, settings: PretrainSettings, todo: Mapping[str, StageSettings], warnings: list[str]
) -> None:
    """What labels, or their lack, and the number of images mean for the recipe."""
    if source.classes is None:
        warnings.append("no labels: no kNN check while training (none are needed to train)")
    elif source.unlabelled:
        warnings.append(
            f"{source.unlabelled:,} of {len(source):,} images have no label: they are left out of the kNN check and "
            "of supervised training"
        )
    usable = len(source)
    for name, stage in todo.items():
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
    settings: PretrainSettings,
    todo: Mapping[str, StageSettings],
    recipe: str,
    source: Source | None,
    reading: float,
    warnings: list[str],
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
    for name, stage in todo.items():
        model = build_model(settings, stage, classes)
        cost = cost_of(model, 1, settings.in_chans, settings.size, settings.size)
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
