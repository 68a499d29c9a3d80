"""The frame in which a part of the embedding is compared: its own view's, or the image's.

Cell (i, j) of a spatial map lies at another place of the image for every crop. The crop's box is known, so the map can
be laid back to where the crop was cut (the open problem of the paper, section 3.5): :func:`lay_back`. It stays one
vector a view, a function of that view and of its own box alone, so queue, loss and retrieval stay as they are.

Shapes: B images, C channels of a map, S its side (``hetcl/types.py``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetcl.types import Crops, Parts

FAINT = 1e-6
"""Length below which a map that was laid back is rounding: the map did not vary, or fell into one cell of the frame. It
stays that faint and becomes no vector of unit length, whose direction would tell where the crop was."""


def sides_of(embedding: nn.Module | None) -> dict[str, int]:
    """The side of each spatial map of an embedding, by part; none where there is no embedding."""
    branches = getattr(embedding, "branches", {})
    return {name: int(branch.side) for name, branch in branches.items() if hasattr(branch, "side")}


def in_image(parts: Parts, crops: Crops, sides: Mapping[str, int]) -> Parts:
    """Parts ``[B, D]`` of unit length with some of them laid back, and of unit length again where anything is left.

    Args:
        crops: where the views were cut.
        sides: of the maps of the parts that are laid back; the others stay as they are.
    """
    return {
        name: F.normalize(lay_back(part, crops, sides[name]), dim=1, eps=FAINT) if name in sides else part
        for name, part in parts.items()
    }


def lay_back(part: Tensor, crops: Crops, side: int) -> Tensor:
    """Maps in the plane of the frame: ``[B, C * S * S]`` -> ``[B, C * S * S]``, not normalised.

    A map is a function of its view that is constant on each cell, of mean zero over the view (the map's mean is taken
    off, so that it says nothing where it does not vary); it is zero outside the crop. A cell of the frame gets the mean
    of that function over its area. So a crop of everything gives the map less its mean, a small crop is averaged, a
    large one is spread, and a crop of a single pixel still leaves its trace.

    Args:
        part: maps, row by row, channel after channel.
        side: S of the map, and of the frame's grid.
    """
    with torch.autocast(part.device.type, enabled=False):
        maps = part.to(torch.promote_types(part.dtype, torch.float32)).unflatten(1, (-1, side, side))
        maps = maps - maps.mean(dim=(2, 3), keepdim=True)
        maps = torch.where(crops.flipped[:, None, None, None], maps.flip(3), maps)
        left, top, right, bottom = crops.boxes.to(maps.dtype).unbind(1)
        rows, columns = shares(top, bottom, side), shares(left, right, side)
        return (rows[:, None] @ maps @ columns[:, None].mT).flatten(1)


def shares(low: Tensor, high: Tensor, side: int) -> Tensor:
    """Along one axis, the share of each cell of the frame that each cell of a crop covers: ``[B, S, S]``.

    Args:
        low, high: where crops begin and end, ``[B]``, 0 to 1.
    """
    frame = torch.arange(side + 1, dtype=low.dtype, device=low.device) / side
    crop = low[:, None] + (high - low)[:, None] * frame
    begin = torch.maximum(frame[:-1, None], crop[:, None, :-1])
    end = torch.minimum(frame[1:, None], crop[:, None, 1:])
    return (end - begin).clamp(min=0) * side
