"""Anchors of the proposal network: how they are laid, and which sizes and strides an FPN and C4 have.

A  anchors of an image
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

SIZES = (32, 64, 128, 256, 512)
"""Square roots of the anchors' areas, in pixels of the scaled image."""
RATIOS = (0.5, 1.0, 2.0)
"""Height over width."""


class Anchors(AnchorGenerator):
    """Anchors as detectron2 lays them: not rounded, size by size, from the corner of each cell.

    torchvision takes strides for ``image // grid``, which is wrong for the coarsest level of the FPN
    whenever its grid was rounded up; here they are given.

    Args:
        sizes: per level, the square roots of areas in pixels.
        strides: per level, in pixels.
    """

    def __init__(self, sizes: tuple[tuple[float, ...], ...], strides: tuple[int, ...]) -> None:
        super().__init__(sizes, (RATIOS,) * len(sizes))
        self.strides = strides

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (torchvision's signature)
    ) -> Tensor:
        """Around the origin: float ``[sizes * ratios, 4]``."""
        boxes = []
        for size in scales:
            for ratio in aspect_ratios:
                width = math.sqrt(size**2 / ratio)
                height = ratio * width
                boxes.append([-width / 2, -height / 2, width / 2, height / 2])
        return torch.tensor(boxes, dtype=dtype, device=device)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """One float ``[A, 4]`` an image, level by level, row by row, cell by cell."""
        first = feature_maps[0]
        self.set_cell_anchors(torch.promote_types(first.dtype, torch.float32), first.device)
        grids = [list(level.shape[-2:]) for level in feature_maps]
        strides = [[s, s] for s in self.strides]
        laid = torch.cat(self.grid_anchors(grids, strides))
        return [laid] * len(image_list.image_sizes)


def fpn_anchors(scale: float = 1.0) -> Anchors:
    """Anchors of an FPN: one size each on its five levels, P2 to P6. ``scale`` multiplies the sizes."""
    return Anchors(tuple((size * scale,) for size in SIZES), (4, 8, 16, 32, 64))


def c4_anchors(scale: float = 1.0) -> Anchors:
    """Anchors of C4: all five sizes on its one level."""
    return Anchors((tuple(size * scale for size in SIZES),), (16,))
