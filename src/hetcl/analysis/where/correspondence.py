"""Correspondence: does a cell of one crop find its place in another crop of the same image?

    B  images     C  channels     S  side of the grid of cells     L = S * S

Two crops have known boxes, so for the centre of each cell of the first the true place in the second is known. The
cell's feature is held against all cells of the second; the nearest one is right when its centre lies within so many
cells of the true place, in either direction (PCK, the percentage of correct keypoints): 0.5 is the very cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WITHIN = (0.5, 1.0, 2.0)
"""Distances in cells that count as right."""
SLACK = 1e-6
"""How much of a distance is forgiven: a place on the line between two cells belongs to both."""


@dataclass(frozen=True)
class Matches:
    """What was found for each image: float64 shares ``[B, len(WITHIN)]`` of the cells whose place both crops hold."""

    features: Tensor
    """By the nearest feature."""
    position: Tensor
    """By the same cell of the other crop, whatever is in it."""
    chance: Tensor
    """By any cell at random."""
    cells: Tensor
    """int64 ``[B]``: how many cells of the first crop lie in the second; where there are none, the shares are 0."""


def places(boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where the cells of the first crop lie in the second.

    Args:
        boxes: ``[2, B, 4]``: left, top, right, bottom of both crops in pixels of the image.
        side: S.

    Returns:
        float64 ``[B, L, 2]``: column and row in cells of the second crop (0 is its edge, S the other), of the centres
        of the first crop's cells, row by row; and bool ``[B, L]``: which lie inside.
    """
    first, second = boxes.double()
    step = (torch.arange(side, dtype=torch.float64, device=boxes.device) + 0.5) / side
    row, column = torch.meshgrid(step, step, indexing="ij")
    grid = torch.stack([column, row], dim=-1).view(1, -1, 2)
    place = first[:, None, :2] + grid * (first[:, None, 2:] - first[:, None, :2])
    place = (place - second[:, None, :2]) / (second[:, None, 2:] - second[:, None, :2]) * side
    return place, ((place > 0) & (place < side)).all(dim=-1)


def match(first: Tensor, second: Tensor, boxes: Tensor) -> Matches:
    """Find each cell of the first crops in the second ones.

    Cosine similarity; of a map of one channel, whose cells have no direction, the difference of their values. Where two
    cells are exactly as near, neither is found.

    Args:
        first, second: maps ``[B, C, S, S]`` of both crops, not flipped.
        boxes: ``[2, B, 4]``, see :func:`places`.
    """
    _b, channels, side, _ = first.shape
    place, inside = places(boxes, side)
    x, y = first.flatten(2).transpose(1, 2).float(), second.flatten(2).transpose(1, 2).float()
    if channels == 1:
        similarity = -torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        similarity = F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).transpose(1, 2)
    best, nearest = similarity.max(dim=-1)
    unique = (similarity == best[..., None]).sum(dim=-1) == 1
    cells = torch.arange(side * side, device=first.device)
    cell = torch.stack([cells % side, cells // side], dim=-1).double() + 0.5  # [L, 2]
    distance = (place[:, :, None] - cell).abs().amax(dim=-1)  # [B, L, L]: of every cell from the true place
    near = distance.gather(2, nearest[..., None])[..., 0]
    same = distance.diagonal(dim1=1, dim2=2)
    counted = inside.double()
    many = counted.sum(dim=1).clamp(min=1)

    def share(right: Tensor) -> Tensor:
        return (right.double() * counted).sum(dim=1) / many

    shares = [
        (
            share((near <= t + SLACK) & unique),
            share(same <= t + SLACK),
            share((distance <= t + SLACK).double().mean(2)),
        )
        for t in WITHIN
    ]
    found, position, chance = (torch.stack(columns, dim=1) for columns in zip(*shares, strict=True))
    return Matches(found, position, chance, inside.sum(dim=1))
