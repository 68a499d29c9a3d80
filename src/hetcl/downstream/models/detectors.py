"""Faster and Mask R-CNN over any pyramid: with an FPN, or for ResNets with layer4 as the head (C4).

    detector("resnet50", neck="fpn", masks=True, classes=80, norm="sync", min_size=(640, ..., 800), ...)

Names of weights: the pyramid's own under ``backbone.body``, layer4 included; the FPN's under ``backbone.fpn``;
``rpn``; ``roi_heads``. What still differs from detectron2, with no known effect on the figures: class 0 is the
background; proposals narrower than 0.001 pixels are dropped, and detections narrower than 0.01;
masks of training are bitmaps, not polygons; images are scaled in floating point, not in whole numbers.

    B  images     C  channels     H W  height and width
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from hetcl.downstream.models.anchors import c4_anchors, fpn_anchors
from hetcl.downstream.models.heads import c4_heads, fpn_heads, tower
from hetcl.downstream.models.norms import Freezable, check_norm, synchronised
from hetcl.downstream.models.proposals import proposals
from hetcl.downstream.models.scaling import IMAGENET, Scaling
from hetcl.errors import InputError
from hetcl.model.pyramid import Pyramid, ResNetPyramid, WrappedPyramid, build_pyramid, seeded
from hetcl.weights.facts import InputFacts

WIDTH = 256
"""Channels of the FPN."""
TIMM_RESNET = ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"]
"""The modules of timm's ResNets, in order."""


class Detector(Freezable, GeneralizedRCNN):
    """torchvision's GeneralizedRCNN.

    In training: a list of float ``[3, H, W]`` in [0, 1] (RGB) and a list of targets -> losses by name. A target
    has ``boxes`` float ``[n, 4]`` in the image's pixels (positive width and height; n may be 0), ``labels``
    int64 ``[n]`` in 1..K, and with masks ``masks`` bool or uint8 ``[n, H, W]``.

    In evaluation: the images -> per image ``boxes`` ``[n, 4]`` in the image's pixels, ``scores`` ``[n]``,
    ``labels`` ``[n]`` in 1..K, and with masks ``masks`` bool ``[n, 1, H, W]``; best first.
    """


class FpnBackbone(nn.Module):
    """A pyramid and an FPN over it: maps "0".."3" (P2..P5) and "pool" (P6, every second of P5)."""

    def __init__(self, body: Pyramid, *, norm: bool) -> None:
        super().__init__()
        self.body, self.out_channels = body, WIDTH
        layer = nn.BatchNorm2d if norm else None
        self.fpn = FeaturePyramidNetwork(list(body.spec.channels), WIDTH, LastLevelMaxPool(), layer)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """``[B, 3, H, W]`` -> maps ``[B, 256, ., .]``."""
        return self.fpn(tower(self.body(images)))


class C4Backbone(nn.Module):
    """A ResNet up to layer3: map "0" (C4). Its layer4 lies here too, so that it keeps its name; the head runs it."""

    def __init__(self, body: Pyramid) -> None:
        super().__init__()
        self.body, self.out_channels = body, body.spec.channels[2]
        resnet_stages(body)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """``[B, 3, H, W]`` -> map ``[B, C, H / 16, W / 16]``."""
        for stage in resnet_stages(self.body)[:-1]:
            images = stage(images)
        return tower((images,))


def resnet_stages(pyramid: Pyramid) -> list[nn.Module]:
    """Stem and stages of a ResNet in order, layer4 last. Raises InputError for any other backbone."""
    if isinstance(pyramid, ResNetPyramid):
        names = ["relu" if name == "act1" else name for name in TIMM_RESNET]
        return [getattr(pyramid, name) for name in names]
    body = pyramid.body if isinstance(pyramid, WrappedPyramid) else pyramid
    if isinstance(body, nn.ModuleDict) and list(body) == TIMM_RESNET:
        return list(body.values())
    raise InputError(f"neck c4: {pyramid.arch} is no ResNet, which has a layer4 to be the head; use neck fpn")


def detector(
    arch: str | Pyramid,
    *,
    neck: str,
    masks: bool,
    classes: int,
    norm: str,
    min_size: tuple[int, ...],
    max_size: int,
    test_size: int,
    score_threshold: float = 0.05,
    detections: int = 100,
    anchor_scale: float = 1.0,
    regions: int = 512,
    test_proposals: int = 1000,
    facts: InputFacts = IMAGENET,
    seed: int | None = None,
) -> Detector:
    """A detector with random weights, numbers as in detectron2's and MoCo's settings (docs/facts.md).

    Args:
        arch: a backbone for ``build_pyramid``, or a pyramid, which becomes part of the detector.
        neck: ``fpn``, or ``c4`` (ResNets of torchvision and timm).
        masks: Mask R-CNN instead of Faster R-CNN.
        classes: K, without the background.
        norm: batch norm of backbone, FPN and the one after layer4: ``tuned`` (trained), ``sync`` (trained and
            shared across ranks), ``frozen`` (the backbone's keeps still, and the others are not there).
        min_size: short sides in pixels, one drawn for each training image.
        max_size: most pixels of the long side.
        test_size: short side in evaluation.
        score_threshold: least score of a detection.
        detections: most detections of an image.
        anchor_scale: multiplies the anchors' sizes, 32..512, and the box size by which the FPN's level is
            chosen, for images much smaller than 800 pixels.
        regions: how many are drawn from each image for the heads' losses. With C4, layer4 runs over all of
            them, and over all ``test_proposals`` in evaluation: on a CPU take fewer.
        test_proposals: how many of an image the heads look at in evaluation.
        facts: how the backbone wants its images.
        seed: what the weights are a function of; None draws from torch's global generator.

    Raises:
        InputError: an unknown neck, norm or backbone, a backbone that does not fit, or a number out of range.
    """
    check_norm(norm)
    _check(neck, classes, anchor_scale)
    if not min_size or min(*min_size, max_size, test_size, regions, test_proposals, detections) < 1:
        raise InputError(
            "min_size, max_size, test_size, regions, test_proposals and detections must be at least 1"
        )
    body = arch if isinstance(arch, Pyramid) else build_pyramid(arch, seed=seed, in_chans=len(facts.mean))
    if isinstance(body, WrappedPyramid) and body.size is not None:
        raise InputError(f"{body.arch} takes images of one size only; choose a backbone that takes any")
    common: dict[str, Any] = {
        "masks": masks,
        "classes": classes,
        "regions": regions,
        "score_threshold": score_threshold,
        "detections": detections,
    }
    with seeded(seed, "detector"):
        parts = _fpn if neck == "fpn" else _c4
        backbone, rpn, heads = parts(body, norm != "frozen", anchor_scale, test_proposals, common)
    # as detectron2: an FPN adds maps of which each is twice the next; C4 alone may have any size
    scaling = Scaling(min_size, max_size, test_size, divisible=32 if neck == "fpn" else 1, facts=facts)
    model: Any = Detector(backbone, rpn, heads, scaling)
    if norm == "frozen":
        model.freeze(body)
    return synchronised(model) if norm == "sync" else model  # type: ignore[return-value]


def _fpn(
    body: Pyramid, norm: bool, scale: float, kept: int, common: dict[str, Any]
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Backbone, RPN and heads: five levels."""
    backbone = FpnBackbone(body, norm=norm)
    rpn = proposals(WIDTH, fpn_anchors(scale), before=(2000, 1000), after=(1000, kept))
    return backbone, rpn, fpn_heads(WIDTH, scale=scale, **common)


def _c4(
    body: Pyramid, norm: bool, scale: float, kept: int, common: dict[str, Any]
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Backbone, RPN and heads: one level."""
    backbone = C4Backbone(body)
    rpn = proposals(backbone.out_channels, c4_anchors(scale), before=(12000, 6000), after=(2000, kept))
    layer4 = resnet_stages(body)[-1]
    return backbone, rpn, c4_heads(layer4, body.spec.channels[3], norm=norm, **common)


def _check(neck: str, classes: int, anchor_scale: float) -> None:
    """Raises InputError for a setting out of range."""
    if neck not in ("fpn", "c4"):
        raise InputError(f"neck {neck!r}: no such neck; use fpn or c4")
    if classes < 1:
        raise InputError(f"classes {classes}: a detector needs at least one class")
    if not anchor_scale > 0:
        raise InputError(f"anchor_scale {anchor_scale}: must be above 0")
