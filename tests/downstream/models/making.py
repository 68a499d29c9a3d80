"""Small detectors, and images with targets, for the tests beside this file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hetcl.downstream.models import detector
from hetcl.images import scenes

SIDE = 128


def small(neck: str = "fpn", arch: Any = "resnet18", **other: Any) -> Any:
    """A detector that two cores can run; 10 classes, as the scenes have."""
    settings: dict[str, Any] = {
        "neck": neck,
        "masks": True,
        "classes": len(scenes.CLASSES),
        "norm": "tuned",
        "min_size": (SIDE,),
        "max_size": 2 * SIDE,
        "test_size": SIDE,
        "anchor_scale": 0.25,
        "regions": 8,
        "test_proposals": 8,
        "seed": 0,
    }
    return detector(arch, **{**settings, **other})


def batch(count: int = 1, *, size: int = SIDE) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Scenes and their targets, labels from 1."""
    images, targets = [], []
    for i in range(count):
        scene = scenes.scene(i, seed=3, size=size)
        images.append(torch.from_numpy(scene.pixels).permute(2, 0, 1).float() / 255)
        targets.append(
            {
                "boxes": torch.from_numpy(scene.boxes),
                "labels": torch.from_numpy(scene.labels) + 1,
                "masks": torch.from_numpy(scene.masks),
            }
        )
    return images, targets


def bare(size: tuple[int, int] = (SIDE, SIDE)) -> tuple[Tensor, dict[str, Tensor]]:
    """An image without objects."""
    generator = torch.Generator().manual_seed(5)
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, *size, dtype=torch.uint8),
    }
    return torch.rand(3, *size, generator=generator), target


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
