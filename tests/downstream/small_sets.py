"""Data sets made up in memory, and the command of a fine-tuning run that takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hetcl.datasets.annotations import Category, Skipped
from hetcl.datasets.masks import encode
from hetcl.datasets.packed import PackedDetection, Packer
from hetcl.types import BadImage

FINETUNE = (
    "--batch 2 --base_batch 2 --steps 4 --milestones 3 --warmup 1 --lr 0.01 --min_size 48,64 --test_size 64 "
    "--max_size 96 --anchor_scale 0.25 --regions 16 --test_proposals 20 --detections 10 --evaluations 2 --log_every 1 "
    "--checkpoint_every 1 --precise_bn 0 --norm tuned --crop 48 --workers 0 --threads 1 --device cpu"
).split()


def command(out: Path, data: str, *more: str, init: str = "torchvision:resnet18:random") -> list[str]:
    return ["finetune", "--init", init, "--data", data, "--out", str(out), *FINETUNE, *more]


class Boxes(PackedDetection):
    """Noise with random boxes, whose masks are their left halves: the product's own set, but for the images."""

    def __init__(self, count: int, *, seed: int = 0, bad: tuple[int, ...] = (), crowd: bool = False) -> None:
        self.seed, self.bad = seed, bad
        packer = Packer()
        for index in range(count):
            packer.image(index, f"{index}.jpg", (40 + index % 3, 50 + index % 5))
            for i, (box, label, half) in enumerate(self._objects(index)):
                id = 10 * index + 1 + i
                packer.add(id, box.tolist(), label, crowd=crowd and i == 0, segment=encode(half))
        classes = (Category(7, "a"), Category(9, "b"))
        super().__init__(packer, "coco", classes, Path("nowhere"), "made up", Skipped())

    def _objects(self, index: int) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        rng = np.random.default_rng([self.seed, index, 1])
        height, width = 40 + index % 3, 50 + index % 5
        n = 1 + index % 3
        corners = np.sort(rng.integers(0, (width, height), (n, 2, 2)), axis=1)
        boxes = np.concatenate([corners[:, 0], corners[:, 1] + 2], axis=1)
        for box, label in zip(boxes, rng.integers(0, 2, n).tolist(), strict=True):
            left, top, right, bottom = box
            half = np.zeros((height, width), np.uint8)
            half[top:bottom, left : (left + right) // 2] = 1
            yield box, label, half

    def image(self, index: int) -> np.ndarray:
        if index in self.bad:
            raise BadImage("is broken")
        rng = np.random.default_rng([self.seed, index])
        return rng.integers(0, 256, (*self.annotations(index).size, 3), dtype=np.uint8)
