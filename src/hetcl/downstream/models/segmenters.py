"""FCN: a class for each pixel, from one map of stride 16 (docs/facts.md, downstream).

Cell i of a map of stride s stands for the pixels s i to s (i + 1) at every size, as in detectron2 (``upsampled``).

B  images     K  classes     C  channels     H W  height and width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from hetcl.downstream.models.norms import Freezable, check_norm, synchronised
from hetcl.downstream.models.proposals import full
from hetcl.downstream.models.scaling import IMAGENET, normalized
from hetcl.errors import InputError
from hetcl.model.pyramid import Pyramid, ResNetPyramid, WrappedPyramid, build_pyramid, seeded
from hetcl.weights.facts import InputFacts

IGNORED = 255
"""Label of pixels that do not count."""
STRIDE = 16
"""Pixels of an image a cell of the map that is classified."""


class Segmenter(Freezable):
    """Backbone, two dilated 3x3 convolutions of 256 channels with batch norm and ReLU, a 1x1 convolution to K.

    torchvision's ResNets are dilated: layer4's 3x3 convolutions get stride 1 and dilation 2, so C5 has stride 16.
    Any other backbone is left as it is, and C4 and the enlarged C5 are put together instead, at stride 16 too
    (ours).

    Args:
        pyramid: becomes part of the segmenter as ``backbone``.
        classes: K.
        dilation: of the two convolutions.
        facts: how the backbone wants its images.
    """

    def __init__(
        self, pyramid: Pyramid, classes: int, *, dilation: int, facts: InputFacts = IMAGENET
    ) -> None:
        super().__init__()
        self.facts = facts
        self.dilated = isinstance(pyramid, ResNetPyramid)
        if isinstance(pyramid, ResNetPyramid):
            dilate(pyramid.layer4)
        c4, c5 = pyramid.spec.channels[2:]
        self.backbone = pyramid
        convs = [
            Conv2dNormActivation(channels, 256, kernel_size=3, dilation=dilation)
            for channels in (c5 if self.dilated else c4 + c5, 256)
        ]
        last = nn.Conv2d(256, classes, kernel_size=1)
        self.head = nn.Sequential(*convs, last)
        for layer in self.head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(last.weight, std=0.01)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def features(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> ``[B, C, h, w]``, h and w at least H / 16 and W / 16.

        Images are padded to whole cells of C5 where C5 is enlarged: some backbones would round its size down.
        """
        x = normalized(images, self.facts)
        if self.dilated:
            return self.backbone(x)[-1]
        right, bottom = (-side % (2 * STRIDE) for side in (x.shape[-1], x.shape[-2]))
        _, _, c4, c5 = self.backbone(F.pad(x, (0, right, 0, bottom)))
        return torch.cat([c4, upsampled(c5, 2, c4.shape[-2:])], dim=1)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        """Training: a loss; evaluation: logits.

        Args:
            images: float ``[B, 3, H, W]`` in [0, 1], RGB.
            labels: int64 ``[B, H, W]`` in 0..K-1, 255 where a pixel does not count.

        Returns:
            ``{"loss": mean cross-entropy over the pixels that count}`` (0 when none does), or float
            ``[B, K, H, W]``.
        """
        coarse = full(self.head(self.features(images)))
        logits = upsampled(coarse, STRIDE, images.shape[-2:])
        if not self.training:
            return logits
        if labels is None:
            raise ValueError("a segmenter in training needs labels")
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return {"loss": total / (labels != IGNORED).sum().clamp(min=1)}


def upsampled(x: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """``[B, C, h, w]`` -> ``[B, C, H, W]``, bilinear: enlarged ``factor`` times, and what is over cut off.

    So the place of a cell does not hang on the image's size. Stretched over H and W instead, a map of h = H / factor,
    rounded up, would misplace its last cells by up to half a cell, at no two sizes alike. (A ResNet's padding puts the
    middle of what cell i sees at pixel ``factor * i``, not at the middle of its pixels: the same 7.5 pixels at every
    size and place, which training absorbs.)

    Args:
        x: the map; ``factor`` times its sides are at least H and W.
        size: H and W.
    """
    height, width = size
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)[..., :height, :width]


def dilate(layer4: nn.Module) -> None:
    """A ResNet's last stage at its input's resolution: no strides, 3x3 convolutions with dilation 2."""
    for conv in layer4.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (2, 2)


def segmenter(
    arch: str | Pyramid,
    *,
    classes: int,
    norm: str,
    dilation: int = 6,
    facts: InputFacts = IMAGENET,
    seed: int | None = None,
) -> Segmenter:
    """An FCN with random weights.

    Args:
        arch: a backbone for ``build_pyramid``, or a pyramid, which becomes part of the segmenter and, if a
            ResNet of torchvision, is dilated.
        classes: K.
        norm: ``tuned`` (trained), ``sync`` (trained and shared across ranks), ``frozen`` (the backbone's keeps
            still, the head's is trained).
        dilation: of the two 3x3 convolutions of the head.
        facts: how the backbone wants its images.
        seed: what the weights are a function of; None draws from torch's global generator.

    Raises:
        InputError: an unknown norm or backbone, or a number out of range.
    """
    check_norm(norm)
    if not 1 <= classes < IGNORED:
        raise InputError(f"classes {classes}: a segmenter takes 1 to {IGNORED - 1} classes")
    if dilation < 1:
        raise InputError(f"dilation {dilation}: must be at least 1")
    body = arch if isinstance(arch, Pyramid) else build_pyramid(arch, seed=seed, in_chans=len(facts.mean))
    if isinstance(body, WrappedPyramid) and body.size is not None:
        raise InputError(f"{body.arch} takes images of one size only; choose a backbone that takes any")
    with seeded(seed, "segmenter"):
        model: Any = Segmenter(body, classes, dilation=dilation, facts=facts)
    if norm == "frozen":
        model.freeze(body)
    return synchronised(model) if norm == "sync" else model  # type: ignore[return-value]
