"""Data sets made up in memory, and the command of a fine-tuning run that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hetcl.downstream.masks import encode
from hetcl.downstream.objects import Category, Skipped, Truth
from hetcl.types import BadPicture

FINETUNE = (
    "--batch 2 --base_batch 2 --steps 4 --milestones 3 --warmup 1 --lr 0.01 --min_size 48,64 --test_size 64 "
    "--max_size 96 --anchor_scale 0.25 --regions 16 --test_proposals 20 --detections 10 --evaluations 2 --log_every 1 "
    "--checkpoint_every 1 --precise_bn 0 --norm tuned --crop 48 --workers 0 --threads 1 --device cpu"
).split()


def command(out: Path, data: str, *more: str, init: str = "torchvision:resnet18:random") -> list[str]:
    return ["finetune", "--init", init, "--data", data, "--out", str(out), *FINETUNE, *more]


class Boxes:
    """A detection set of noise with random boxes, whose masks are their left halves."""

    kind, has_masks, fingerprint, description = "coco", True, "made up", "made up"

    def __init__(self, count: int, *, seed: int = 0, bad: tuple[int, ...] = (), crowd: bool = False) -> None:
        self.classes = (Category(7, "a"), Category(9, "b"))
        self.skipped, self.count, self.seed, self.bad, self.crowd = Skipped(), count, seed, bad, crowd
        self.opened: list[int] = []

    def __len__(self) -> int:
        return self.count

    def size(self, index: int) -> tuple[int, int]:
        return 40 + index % 3, 50 + index % 5

    def picture(self, index: int) -> np.ndarray:
        self.opened.append(index)
        if index in self.bad:
            raise BadPicture("is broken")
        height, width = self.size(index)
        rng = np.random.default_rng([self.seed, index])
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    def truth(self, index: int) -> Truth:
        rng = np.random.default_rng([self.seed, index, 1])
        height, width = self.size(index)
        n = 1 + index % 3
        corners = np.sort(rng.integers(0, (width, height), (n, 2, 2)), axis=1)
        boxes = np.concatenate([corners[:, 0], corners[:, 1] + 2], axis=1).astype(np.float64)
        segments: list[Any] = []
        for left, top, right, bottom in boxes.astype(int):
            half = np.zeros((height, width), np.uint8)
            half[top:bottom, left : (left + right) // 2] = 1
            segments.append(encode(half))
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        flags = np.zeros(n, bool)
        crowd = flags.copy()
        crowd[0] = self.crowd
        ids = tuple(range(10 * index + 1, 10 * index + 1 + n))
        labels = rng.integers(0, 2, n)
        return Truth(
            index, f"{index}.jpg", (height, width), boxes, labels, crowd, flags, areas, ids, tuple(segments)
        )
