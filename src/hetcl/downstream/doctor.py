"""``hetcl doctor`` of a data set with boxes, masks or pixels: what fine-tuning would do with it. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from hetcl.datasets import open_segmentation
from hetcl.downstream.build import build_model, model_words
from hetcl.downstream.estimate import estimate
from hetcl.downstream.parts import examples_of, joined, open_part, settle_pixels
from hetcl.downstream.plan import example_words, part_words, scaled
from hetcl.downstream.renamed import names_of
from hetcl.errors import InputError
from hetcl.guidance import random_start
from hetcl.images.look import channel_words
from hetcl.printable import say, warn
from hetcl.quantities import count, duration
from hetcl.settings import FinetuneSettings, resolve_finetune, to_dict
from hetcl.settings.downstream import DEFAULT
from hetcl.training.devices import device_name, make_fabric, precision_on, workers_of
from hetcl.weights.channels import with_channels
from hetcl.weights.sources import no_arch, read_weights

UNNAMED = "torchvision:resnet50:random"
"""The MODEL that is judged where none is named."""
DAY = 86400
"""Seconds of a training from which it is warned of."""


def doctor(
    *,
    data: str | None,
    recipe: str | None,
    init: str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> list[str]:
    """Open both parts of a data set as ``finetune`` does, train on one image, and print what it would say.

    Args:
        data: DATASET.
        recipe, overrides: as for ``finetune``.
        init: likewise; None: a ResNet-50, whatever its weights.

    Returns:
        the warnings, which were printed too.

    Raises:
        InputError: every reason, a line each, for which ``finetune`` would refuse the data; or ``init`` is refused.
    """
    if not data:
        raise InputError("--data is missing: name a data set, e.g. coco:ROOT, voc:ROOT or scenes:N")
    settings = resolve_finetune(recipe, overrides)
    used, warnings = scaled(settings)
    look = _Look(data, used)
    look.open()
    _recipe(recipe or DEFAULT, used, look)
    if not look.refusals and len(look.parts) == 2:
        _cost(init or UNNAMED, used, look)
    say()
    warnings += look.warnings
    for line in warnings:
        warn(line)
    if look.refusals:
        raise InputError(*dict.fromkeys(look.refusals))
    if not warnings:
        say("nothing to object to")
    return warnings


def _cost(init: str, s: FinetuneSettings, look: _Look) -> None:
    """What training would take here, judged by one image."""
    weights = read_weights(init)
    if weights.arch is None:
        raise InputError(no_arch(init))
    weights = with_channels(weights, s.in_chans or weights.in_chans)
    arch, parts = str(weights.arch), (look.parts["train"], look.parts["val"])
    facts = settle_pixels(parts, weights, in_chans=s.in_chans, pixel_max=s.pixel_max, given=(s.mean, s.std))
    if not facts.pixels.rgb:
        say(f"pixels    {channel_words(facts.pixels, facts.mean, facts.std)}")
    fabric = make_fabric(device=s.device, devices=1, precision=s.precision, threads=s.threads)
    device, classes = fabric.device, len(names_of(look.parts["train"]))
    say(f"device    {device_name(device)}, {arch}: training on one image ...")
    found = estimate(
        look.examples, s.seed, lambda: build_model(**model_words(to_dict(s)), arch=arch, classes=classes, facts=facts)
    )  # fmt: skip
    memory, warned = found.memory(
        device, batch=s.batch, devices=s.devices, ranks=max(1, s.devices), workers=workers_of(s.workers),
        half=precision_on(s.precision, device.type) == "bf16",
    )  # fmt: skip
    time, seconds = found.time(s, device, ranks=max(1, s.devices), tested=len(look.parts["val"]))
    say(f"time      {time}")
    say(f"memory    {memory}")
    look.warnings += [line for line in (random_start(init, len(look.examples)), warned) if line]
    if seconds > DAY:
        look.warnings.append(f"this would take about {duration(seconds)}; `hetcl recipes` lists smaller ones")


class _Look:
    """Opens and joins what can be, and keeps the refusals instead of stopping at the first."""

    def __init__(self, spec: str, settings: FinetuneSettings) -> None:
        self.spec, self.settings = spec, settings
        self.parts: dict[str, Any] = {}
        self.examples: Any = None
        self.warnings: list[str] = []
        self.refusals: list[str] = []

    def open(self) -> None:
        s = self.settings
        for split, name in (("train", "train"), ("val", "test")):
            part = self._try(partial(open_part, self.spec, split, s.model, follow_links=s.follow_links))
            if part is not None:
                self.parts[split] = part
                say(f"{name:<9} {part.description}")
                self.warnings += [f"{name}: {line}" for line in part.skipped.lines()]
        if len(self.parts) == 2:
            both = self._try(
                lambda: joined(self.spec, self.parts["train"], self.parts["val"], **part_words(s))
            )
            self.warnings += both.notes if both is not None else []
        if "train" in self.parts:
            made = self._try(lambda: examples_of(self.parts["train"], self.spec, **example_words(s)))
            if made is not None:
                self.examples = made[0]
                self.warnings += made[1]
        if not self.parts and s.model != "fcn" and self._has_pixels():
            self.refusals.append(f"{self.spec} has a class for each pixel: judge it with --model fcn")

    def _try(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except InputError as error:
            self.refusals.append(str(error))
            return None

    def _has_pixels(self) -> bool:
        try:
            open_segmentation(self.spec, "train", follow_links=self.settings.follow_links)
        except InputError:
            return False
        return True


def _recipe(recipe: str, s: FinetuneSettings, look: _Look) -> None:
    """What the recipe does with the data."""
    kind = s.model if s.model == "fcn" else f"{s.model}, neck {s.neck}"
    line = f"recipe    {recipe}: {kind}, {count(s.steps, 'step')} of {count(s.batch, 'image')}"
    if look.examples is not None and len(look.examples):
        passes = s.steps * s.batch / len(look.examples)
        times = f"{passes:.1f}" if passes < 10 else f"{passes:,.0f}"
        line += f"; each of {count(len(look.examples), 'image')} is seen about {times} times"
    say(line)
    if "val" in look.parts:
        say(f"          {count(s.evaluations, 'evaluation')} on {count(len(look.parts['val']), 'image')}")
