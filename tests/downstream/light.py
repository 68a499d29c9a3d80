"""Detectors with heads of some ten thousand weights instead of 17 million, for tests of what goes on around them.

Names and shapes of what leaves a head stay as they are. (A checkpoint of the whole ones is 160 MB.)
"""

from __future__ import annotations

import pytest
from torch import nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from hetcl.downstream.models import detectors, heads

WIDTH = 16


class Mlp(TwoMLPHead):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, WIDTH)
        self.fc7 = nn.Linear(WIDTH, out)


def convolutions(channels: int, layers: tuple[int, ...], dilation: int) -> MaskRCNNHeads:
    return MaskRCNNHeads(channels, (WIDTH,) * (len(layers) - 1) + layers[-1:], dilation)


def masks(channels: int, _: int, classes: int) -> MaskRCNNPredictor:
    return MaskRCNNPredictor(channels, WIDTH, classes)


def small_heads(patch: pytest.MonkeyPatch) -> None:
    """Make every detector that is built from now on small."""
    patch.setattr(detectors, "WIDTH", WIDTH)
    patch.setattr(heads, "TwoMLPHead", Mlp)
    patch.setattr(heads, "MaskRCNNHeads", convolutions)
    patch.setattr(heads, "MaskRCNNPredictor", masks)
