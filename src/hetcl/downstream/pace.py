"""How fast fine-tuning goes on a device, from real steps on noise, before anything is begun."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from hetcl.downstream.build import build_model, model_words
from hetcl.downstream.loader import Batch
from hetcl.downstream.task import Finetune, FinetuneConfig
from hetcl.settings import FinetuneSettings, to_dict
from hetcl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from hetcl.weights.facts import InputFacts

OBJECTS = 7
"""Objects in an image of noise; COCO has 7.3 on average."""
CLASSES = 20


class _OneBatch:
    """A loader that gives one batch for ever, so that the step alone is timed."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        for _ in range(start, stop):
            yield self.batch

    def close(self) -> None:
        pass


def measure_step(settings: FinetuneSettings, arch: str, *, fabric: Fabric) -> float:
    """Images a second of training steps on noise of the recipe's middle size.

    A GPU takes the recipe's batch, or as much of it as 16 images; a CPU, where an image may take seconds, two. The
    first step warms up and is not counted.

    Args:
        arch: of the backbone.
    """
    cuda = fabric.device.type == "cuda"
    s = replace(settings, batch=min(settings.batch, 16 if cuda else 2), precise_bn=0)
    facts = InputFacts(IMAGENET_MEAN, IMAGENET_STD, None, "RGB", "assumed")
    model = build_model(**model_words(to_dict(s)), arch=arch, classes=CLASSES, facts=facts).to(fabric.device)
    counted = 5 if cuda else 1
    config = FinetuneConfig(**{f.name: getattr(s, f.name) for f in fields(FinetuneConfig)})
    config = replace(config, steps=1 + counted, evaluations=1)
    loader: Any = _OneBatch(_noise(s))
    task = Finetune(model, config, fabric=fabric, loader=loader, evaluate=_never, on_bad=lambda _: None)
    began = time.monotonic()
    for step, batch in enumerate(task.batches(0, 0)):
        if step == 1:
            began = time.monotonic()
        task.step(batch, step)
        if cuda:
            torch.cuda.synchronize(fabric.device)
    return s.batch * counted / (time.monotonic() - began)


def _never(_: object) -> Any:
    raise AssertionError("nothing is evaluated here")


def _noise(s: FinetuneSettings) -> Batch:
    """Images of noise with boxes and masks, or with a class for each pixel."""
    draw = torch.Generator().manual_seed(0)
    pixels = s.model == "fcn"
    short = s.crop if pixels else s.min_size[len(s.min_size) // 2]
    height, width = short, short if pixels else min(s.max_size, short * 4 // 3)
    images = tuple(
        torch.randint(256, (3, height, width), generator=draw, dtype=torch.uint8) for _ in range(s.batch)
    )
    targets = tuple(_target(s, height, width, draw) for _ in range(s.batch))
    return Batch(images, targets)


def _target(s: FinetuneSettings, height: int, width: int, draw: torch.Generator) -> dict[str, Tensor]:
    if s.model == "fcn":
        return {"labels": torch.randint(CLASSES, (height, width), generator=draw)}
    corner = torch.rand(OBJECTS, 2, generator=draw) * torch.tensor([width, height]) * 0.6
    boxes = torch.cat([corner, corner + torch.tensor([width, height]) * 0.3], dim=1)
    target = {"boxes": boxes, "labels": torch.randint(1, CLASSES + 1, (OBJECTS,), generator=draw)}
    if s.model == "mask-rcnn":
        masks = torch.zeros(OBJECTS, height, width, dtype=torch.uint8)
        for mask, box in zip(masks, boxes.int().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        target["masks"] = masks
    return target
