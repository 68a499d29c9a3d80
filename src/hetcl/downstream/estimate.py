"""What fine-tuning will take, known before anything is written: one image trained on the CPU, and forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hetcl.downstream.loader import first_usable
from hetcl.quantities import count, duration
from hetcl.training.dry_run import DryRun, dry_run
from hetcl.training.memory import Need, outlook
from hetcl.views.photometric import in_unit
from hetcl.views.workers import room

EVALUATING = 1 / 3
"""The time for an image that is evaluated over that of one that is trained on (docs/decisions.md)."""


@dataclass(frozen=True)
class Estimate:
    """What one image has shown."""

    dry: DryRun
    example: int
    """Bytes of an image and its targets."""

    def memory(
        self, device: torch.device, *, batch: int, devices: int, ranks: int, half: bool, workers: int
    ) -> tuple[str, str]:
        """What training will hold, in words, and what to be warned of (``training/memory.py``).

        Args:
            batch: of all ranks.
            devices: processes that share the memory where they compute on the CPU.
            half: whether activations are kept in bf16.

        Raises:
            InputError: there is no hope.
        """
        here = 1 if device.type == "cuda" else max(1, devices)
        each = batch // ranks
        step = 3 * self.dry.weights + round((0.6 if half else 1.0) * each * self.dry.activations)
        need = Need(here * step, here * room(workers, each * self.example))
        return outlook(need, device, "lower batch, workers or the sizes of images")

    def seconds(self, images: int, tested: int) -> float:
        """On one CPU like this: ``images`` to train on and ``tested`` to evaluate."""
        return self.dry.seconds * (images + EVALUATING * tested)

    def time(self, s: Any, device: torch.device, *, ranks: int, tested: int) -> tuple[str, float]:
        """What it will take, in words and in seconds; 0 where it is not known.

        Args:
            s: has ``steps``, ``batch`` and ``evaluations``.
            tested: images of an evaluation.
        """
        if device.type != "cpu":
            return "not estimated on a GPU; the first rows say it", 0.0
        seconds = self.seconds(s.steps * s.batch, s.evaluations * tested) / ranks
        what = f"{count(s.steps, 'step')} of {count(s.batch, 'image')}, {count(s.evaluations, 'evaluation')}"
        return f"about {duration(seconds)} for {what}", seconds


def estimate(examples: Any, seed: int, model: Callable[[], nn.Module]) -> Estimate:
    """Train a model on one image, on the CPU, and forget it.

    Args:
        examples: the images to learn from.
        seed: of the image that is taken and of the weights.
        model: makes the model.

    Raises:
        InputError: it does not train on such an image.
    """
    image, target = first_usable(examples, seed)
    size = sum(t.numel() * t.element_size() for t in (image, *target.values()))
    images: Any = [in_unit(image)]
    targets: Any = [target]
    if "boxes" not in target:
        images, targets = torch.stack(images * 2), torch.stack([target["labels"]] * 2)

    def build() -> nn.Module:
        torch.manual_seed(seed)
        return model()

    dry = dry_run(
        build,
        lambda model: model(images, targets),
        lambda losses: torch.stack([loss.float() for loss in losses.values()]).sum(),
        images=len(images),
        failure=f"the model does not train on an image of {examples.description}",
        advice="change the sizes, neck, model or backbone",
    )
    return Estimate(dry, size)
