"""Images to feature vectors: the embedding, the pooled backbone, or any level of the pyramid.

Shapes: B images, H W pixels, S side of a grid, D dimensions (``hetcl/types.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hetcl.errors import InputError
from hetcl.model.branches import resize_to
from hetcl.model.embedding import normalize
from hetcl.model.frames import in_image, sides_of
from hetcl.types import Crops
from hetcl.views.photometric import Photometric
from hetcl.weights.encoder import Encoder
from hetcl.weights.facts import InputFacts, view_normalization

T = TypeVar("T")
LEVELS = ("c2", "c3", "c4", "c5")
"""Levels of the pyramid, finest first."""


EMBEDDINGS = ("aligned", "embedding")
"""Features of all parts: their maps laid back by the box of each crop (boxes known), or as they are."""


def aligned_sides(encoder: Encoder) -> dict[str, int]:
    """The side of each map that ``aligned`` lays back: those that the encoder's method lays back, as in training, or
    all where it lays back none."""
    maps = sides_of(encoder.embedding)
    return {part: side for part, side in maps.items() if part in encoder.laid_back or not encoder.laid_back}


def crop_features_of(encoder: Encoder, wanted: str) -> tuple[str, ...]:
    """What ``wanted`` means of views whose crops are known: also ``aligned``, which is what ``auto`` begins with for an
    encoder whose method compares so. Raises as :func:`features_of`."""
    if wanted == "auto" and encoder.laid_back:
        return EMBEDDINGS
    if wanted != "aligned":
        return (features_of(encoder, wanted),)
    if not aligned_sides(encoder):
        raise InputError(
            f"{encoder.model} has no spatial map that could be laid back; set features to "
            f"{'pooled' if encoder.embedding is None else 'embedding'}, or give a run of hcl or hcl-geo"
        )
    return (wanted,)


def features_of(encoder: Encoder, wanted: str) -> str:
    """``auto`` settled for an encoder; any other name is checked and returned.

    Raises:
        InputError: no such features, or an embedding asked of weights that have none.
    """
    if wanted == "aligned":
        raise InputError(
            "features aligned lie where random crops were cut, which hetcl contrast alone draws; set features to "
            "embedding"
        )
    if wanted == "auto":
        return "embedding" if encoder.embedding is not None else "pooled"
    if wanted == "embedding" and encoder.embedding is None:
        raise InputError(
            f"{encoder.model} has no embedding (it holds a backbone without contrastive branches); "
            "set features to pooled, c2..c5 or c4x7, or give a run folder or checkpoint"
        )
    if wanted not in ("embedding", "pooled", *encoder.dims):
        _level(wanted)
    return wanted


def _level(name: str) -> tuple[int, int]:
    """``c4x7`` -> (2, 7): which level, and the side of the grid (1: averaged)."""
    found = re.fullmatch(r"(c[2-5])(?:x(\d{1,3}))?", name)
    if not found or found[2] == "0" or (found[2] and int(found[2]) < 1):
        raise InputError(
            f"no features named {name!r}: there are auto, embedding, aligned, pooled, c2, c3, c4, c5, and c4x7 for C4 "
            "on a 7 x 7 grid"
        )
    return LEVELS.index(found[1]), int(found[2] or 1)


class Renormalize(nn.Module):
    """Images as views are normalised (``facts.view_normalization``) as an encoder of other facts wants them.

    One affine map a channel, so that all encoders of a pass can share their views.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, facts: InputFacts) -> None:
        super().__init__()
        theirs = torch.tensor(view_normalization(facts.pixels), dtype=torch.float64)
        if facts.channel_order == "BGR":
            theirs = theirs.flip(1)
        mean, std = torch.tensor([facts.mean, facts.std], dtype=torch.float64)
        self.needed, self.bgr = not facts.ours, facts.channel_order == "BGR"
        self.register_buffer("scale", (theirs[1] / std).float().view(1, -1, 1, 1))
        self.register_buffer("shift", ((theirs[0] - mean) / std).float().view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the same shape."""
        if not self.needed:
            return images
        return (images.flip(1) if self.bgr else images) * self.scale + self.shift


class Extractor(nn.Module):
    """Images to the features that were asked for, from one pass through the pyramid.

    Args:
        encoder: in eval mode; nothing of it is changed.
        features: names that :func:`features_of` gave.
        unit: every part of unit length; otherwise levels come as the backbone gives them (a linear probe takes those).
    """

    def __init__(self, encoder: Encoder, features: Sequence[str], *, unit: bool = True) -> None:
        super().__init__()
        self.encoder, self.features, self.unit = encoder, tuple(features), unit
        self.given, self.pyramid = Renormalize(encoder.facts), encoder.pyramid
        self.branches = None if encoder.embedding is None else encoder.embedding.branches

    def dims(self, feature: str) -> dict[str, int]:
        """Dimensions of the parts of a feature, in the order they lie side by side."""
        if feature in EMBEDDINGS:
            return self.encoder.dims
        if feature in self.encoder.dims:
            return {feature: self.encoder.dims[feature]}
        level, side = (3, 1) if feature == "pooled" else _level(feature)
        return {feature: self.pyramid.spec.channels[level] * side * side}

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``[B, C, H, W]``, normalised as all views are, whatever the encoder's own facts ->
        ``{feature: [B, D]}``, fp32; parts side by side, of unit length. For ``aligned`` see :meth:`align`."""
        maps = self.pyramid(self.given(images))
        return {feature: self._one(feature, maps) for feature in self.features}

    @torch.no_grad()
    def align(self, features: dict[str, Tensor], crops: Crops) -> dict[str, Tensor]:
        """What :meth:`forward` gave, the maps of ``aligned`` laid back to where the views were cut."""
        if "aligned" not in features:
            return features
        dims, sides = self.encoder.dims, aligned_sides(self.encoder)
        parts = dict(zip(dims, features["aligned"].split(list(dims.values()), dim=1), strict=True))
        return {**features, "aligned": torch.cat([*in_image(parts, crops, sides).values()], dim=1)}

    def _one(self, feature: str, maps: Sequence[Tensor]) -> Tensor:
        if feature in EMBEDDINGS:
            assert self.branches is not None
            return torch.cat([normalize(branch(maps)) for branch in self.branches.values()], dim=1)
        if self.branches is not None and feature in self.branches:
            x = self.branches[feature](maps).float()
            return normalize(x) if self.unit else x
        level, side = (3, 1) if feature == "pooled" else _level(feature)
        x = resize_to(maps[level], side).flatten(1).float()
        return normalize(x) if self.unit else x


@torch.no_grad()
def look(
    module: Callable[[Tensor], T], images: Tensor, color: Tensor, photometric: Photometric, *,
    fabric: Fabric, layout: torch.memory_format = torch.contiguous_format,
) -> T:  # fmt: skip
    """What a module makes of images as they leave a loader: ``[B, C, H, W]``, draws ``[B, P]`` on the host."""
    x = photometric(images.to(fabric.device, non_blocking=True), color).contiguous(memory_format=layout)
    with fabric.autocast():
        return module(x)
