"""``hetcl doctor``: this machine, this data, this recipe: what would go wrong, and how long it would take.

Also the estimate by which a run that would take days says so before it starts. Nothing is written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hetcl.analysis.labelled import why_none
from hetcl.errors import InputError
from hetcl.images.decode import open_picture
from hetcl.images.sources import open_source
from hetcl.pretrain.monitors import some_pictures
from hetcl.pretrain.plan import held_out_of
from hetcl.runs.folder import machine
from hetcl.settings import Settings, StageSettings, resolve, stages_of
from hetcl.training.progress import count, duration
from hetcl.types import BadPicture, Source
from hetcl.views.loader import name_of

SAMPLES = 64
"""Pictures that are opened to judge the data."""


def step_seconds(
    model: nn.Module, *, images: int, size: int, device: torch.device, bf16: bool = False
) -> float:
    """Seconds for ``images`` pictures through a training step: query forward and backward, key forward.

    The second of two tries counts; the first one warms up. The model's statistics move: give one made for this.
    """
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.zeros(images, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    seconds = 0.0
    for _ in range(2):
        _wait(device)
        began = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = model(x)
            parts = list(out.values()) if isinstance(out, dict) else [out]
            torch.stack([p.float().mean() for p in parts]).sum().backward()
            with torch.no_grad():
                model(x)
        _wait(device)
        seconds = time.monotonic() - began
    model.zero_grad()
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def expected_seconds(
    model: nn.Module,
    stage: StageSettings,
    *,
    settings: Settings,
    pictures: int,
    device: torch.device,
    bf16: bool,
    ranks: int = 1,
) -> float:
    """About how long a stage takes on ``ranks`` devices like this one, by timing a few pictures."""
    some = max(2, min(settings.batch // settings.groups, 16 if device.type == "cpu" else 256))
    each = step_seconds(model, images=some, size=settings.size, device=device, bf16=bf16) / some
    return each * pictures * stage.epochs / ranks


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
    source = None
    if data is not None:
        with _aloud():
            source = open_source(
                data,
                split=settings.data_split,
                folder_classes=settings.folder_classes,
                window=settings.window,
            )
            held_out = held_out_of(data, settings, settings.window)
        _data(source, held_out, settings, warnings)
    _recipe(settings, recipe or "hcl-r50", source, warnings)
    print()
    for line in warnings:
        print(f"! {line}")
    if not warnings:
        print("nothing to object to")
    return warnings


@contextlib.contextmanager
def _aloud() -> Iterator[None]:
    """Print what the rooms say through ``logging`` meanwhile, among what was found here instead of beside it."""

    class Here(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            mark = "! " if record.levelno >= logging.WARNING else ""
            print(f"data      {mark}{record.getMessage()}")

    rooms = logging.getLogger("hetcl")
    before = rooms.handlers, rooms.level, rooms.propagate
    rooms.handlers, rooms.propagate = [Here()], False
    rooms.setLevel(logging.INFO)
    try:
        yield
    finally:
        rooms.handlers, rooms.propagate = before[0], before[2]
        rooms.setLevel(before[1])


def _machine(warnings: list[str]) -> None:
    facts = machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    free = shutil.disk_usage(".").free / 2**30
    print(
        f"machine   {facts['system']}, {facts['cores']} cores, {memory:.0f} GiB memory, {free:.0f} GiB free here"
    )
    print(
        f"software  hetcl {facts['hetcl']}, Python {facts['python']}, "
        f"torch {facts['torch']}, torchvision {facts['torchvision']}"
    )
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        print(f"GPUs      {torch.cuda.device_count()} x {', '.join(sorted(names))}")
    else:
        print("GPUs      none that PyTorch can use; the CPU trains, slowly")
    if free < 2:
        warnings.append(f"only {free:.1f} GiB of disk are free here: checkpoints may not fit")


def _data(source: Source, held_out: Source | None, settings: Settings, warnings: list[str]) -> None:
    """Open some pictures, spread over the data, and say what training will make of it."""
    print(f"data      {source.description}")
    sizes, bad = [], []
    began = time.monotonic()
    near = source.prefers_window > 0
    for index in np.sort(some_pictures(source, min(SAMPLES, len(source)), "doctor", near=near)).tolist():
        try:
            picture = open_picture(source.sample(index))
            picture.pixels()
            sizes.append((picture.width, picture.height))
        except BadPicture as e:
            bad.append(f"{name_of(source, index)}: {e}".replace("\n", "\\n"))
    seconds = (time.monotonic() - began) / max(1, len(sizes) + len(bad))
    if not sizes:
        raise InputError(f"none of {len(bad)} pictures can be read; the first, {bad[0]}")
    width, height = (int(x) for x in np.median(np.array(sizes), axis=0))
    smallest = min(map(min, sizes))
    print(
        f"          of {len(sizes) + len(bad)} opened: {len(bad)} unusable, "
        f"median {width} x {height}, {1000 * seconds:.1f} ms to decode"
    )
    print(f"kNN check {_knn_words(source, held_out, settings)}")
    if source.prefers_window:
        warnings.append(
            "the disk is too small for all shards: they are fetched again in each epoch, and pictures are mixed within "
            f"windows of {source.prefers_window:,} only"
        )
    if bad:
        warnings.append(f"{len(bad)} of {len(sizes) + len(bad)} pictures cannot be used, e.g. {bad[0]}")
    if len(bad) > settings.max_bad * (len(sizes) + len(bad)):
        warnings.append(f"that is more than max_bad = {settings.max_bad:.0%}: training will stop")
    if min(width, height) < settings.size * 0.6:
        warnings.append(
            f"half of the pictures are smaller than {width} x {height}, and views are {settings.size} pixels: "
            "they will be enlarged; a smaller size (and spatial.side = size / 16) is cheaper and loses nothing"
        )
    if smallest < 32:
        warnings.append(f"some pictures have a side of {smallest} pixels")
    _labels(source, settings, warnings)


def _knn_words(source: Source, held_out: Source | None, settings: Settings) -> str:
    """What the kNN check while training will ask about."""
    if not settings.knn.every:
        return "none: knn.every is 0"
    if source.classes is None:
        return f"none: no labels{why_none(source)}"
    if held_out is not None and held_out.classes is not None:
        return f"asks about {min(settings.knn.queries, len(held_out)):,} of {held_out.description}"
    beside = "" if held_out is None else f"; the validation pictures have no labels{why_none(held_out)}"
    return f"asks about a part of the training pictures, which lies apart{beside}"


def _labels(source: Source, settings: Settings, warnings: list[str]) -> None:
    """What labels, or their lack, and the number of pictures mean for the recipe."""
    if source.classes is None:
        warnings.append("no labels: no kNN check while training (none are needed to train)")
    elif source.unlabelled:
        warnings.append(
            f"{source.unlabelled:,} of {len(source):,} pictures have no label: they are left out of the kNN check and "
            "of supervised training"
        )
    usable = len(source)
    for name, stage in stages_of(settings).items():
        if stage.method == "supervised" and source.classes is None:
            warnings.append(f"{name} is supervised and the data has no labels: it will be refused")
        elif stage.method == "supervised":
            usable = len(source) - source.unlabelled
        elif stage.queue > len(source):
            warnings.append(
                f"{name}.queue of {stage.queue} is longer than the data; it will be {len(source)}"
            )
    if usable < settings.batch:
        warnings.append(f"fewer pictures than a batch of {settings.batch}: the batch will shrink")


def _recipe(settings: Settings, recipe: str, source: Source | None, warnings: list[str]) -> None:
    """What a recipe costs here."""
    from hetcl.model.build import build_embedding
    from hetcl.model.embedding import cost_of

    device = torch.device(
        "cuda" if settings.device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"
    )
    bf16 = device.type == "cuda" and settings.precision in ("auto", "bf16")
    pictures = len(source) if source else 1_281_167
    print(
        f"recipe    {recipe}: {settings.backbone} at {settings.size} pixels, "
        f"batch {settings.batch} in {settings.groups} groups"
    )
    total = 0.0
    for name, stage in stages_of(settings).items():
        model = build_embedding(
            stage.method, settings.backbone, seed=0, semantic_dim=settings.semantic.dim, side=settings.spatial.side,
            width=settings.spatial.width, fused=settings.spatial.fused,
            classes=len(source.classes or ("",)) if source else 1000,
        )  # fmt: skip
        cost = cost_of(model, 1, 3, settings.size, settings.size)
        seconds = expected_seconds(
            model, stage, settings=settings, pictures=pictures, device=device, bf16=bf16
        )
        total += seconds
        print(
            f"          {name}: {stage.method}, {count(stage.epochs, 'epoch')}, {cost.parameters / 1e6:.1f} M weights, "
            f"{cost.multiply_adds / 1e9:.2f} G multiply-adds a view: about {duration(seconds)}"
        )
    of = "this data" if source else "ImageNet's 1.28 million pictures (give --data for yours)"
    print(f"          in all about {duration(total)} on one such device for {of}")
    if total > 86400:
        warnings.append(
            f"this recipe would take about {duration(total)} here; `--recipe small` is made for one small machine"
        )
