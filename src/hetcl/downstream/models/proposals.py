"""The region proposal network and the pooling of regions: torchvision's, with detectron2's numbers.

A  anchors of an image     n  boxes     L  levels, finest first     C  channels
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from hetcl.downstream.models.anchors import Anchors


def full(x: Tensor) -> Tensor:
    """Half precision (autocast) to float32: boxes of a thousand pixels need more than 8 bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class ProposalHead(RPNHead):
    """torchvision's; normal weights of std 0.01 as in detectron2; its numbers leave in full precision."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [full(o) for o in objectness], [full(d) for d in deltas]


class Proposals(RegionProposalNetwork):
    """torchvision's, with detectron2's losses: L1, and both divided by the anchors asked for (256 an image)."""

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """``[images * A, 1]`` and ``[images * A, 4]`` against labels 1, 0 and -1 (left out) and deltas."""
        positive, negative = (torch.cat(chosen) > 0 for chosen in self.fg_bg_sampler(labels))
        asked = self.fg_bg_sampler.batch_size_per_image * len(labels)
        wanted, sampled = torch.cat(regression_targets)[positive], positive | negative
        box = F.l1_loss(pred_bbox_deltas[positive], wanted, reduction="sum") / asked
        truth = torch.cat(labels)[sampled]
        return F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], truth, reduction="sum"
        ) / asked, box


def proposals(
    channels: int, anchors: Anchors, *, before: tuple[int, int], after: tuple[int, int]
) -> Proposals:
    """The network with detectron2's thresholds: positive from IoU 0.7, negative below 0.3, NMS at 0.7.

    Args:
        channels: of each map.
        anchors: laid over the maps.
        before: boxes kept per level before NMS, in training and in evaluation.
        after: boxes kept per image after NMS, likewise.
    """
    return Proposals(
        anchors,
        ProposalHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": before[0], "testing": before[1]},
        post_nms_top_n={"training": after[0], "testing": after[1]},
        nms_thresh=0.7,
    )


class RegionPool(MultiScaleRoIAlign):
    """Regions cut from maps: aligned, with as many samples a bin as it is large (detectron2's ratio 0).

    torchvision guesses the levels' scales from the first batch; here they are given.

    Args:
        names: of the maps to cut from.
        strides: theirs, in pixels.
        side: of the cut regions.
        scale: multiplies 224, the size of a box that belongs to stride 16 (FPN paper, equation 1).
    """

    def __init__(self, names: list[str], strides: tuple[int, ...], side: int, *, scale: float = 1.0) -> None:
        super().__init__(names, side, 0, canonical_scale=224 * scale)
        self.strides = strides

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Maps ``[B, C, ., .]`` and per image ``[n, 4]`` in pixels -> ``[all n, C, side, side]``."""
        image = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
        rois = torch.cat([image, torch.cat(boxes)], dim=1)
        levels = self.levels(boxes)
        out = rois.new_zeros((rois.shape[0], x[self.featmap_names[0]].shape[1], *self.output_size))
        for i, (name, stride) in enumerate(zip(self.featmap_names, self.strides, strict=True)):
            here = torch.where(levels == i)[0]
            cut = roi_align(x[name].to(rois), rois[here], self.output_size, 1 / stride, 0, aligned=True)
            out = out.index_copy(0, here, cut)
        return out

    def levels(self, boxes: list[Tensor]) -> Tensor:
        """Which map each box is cut from: int64 ``[all n]``."""
        finest, coarsest = int(math.log2(self.strides[0])), int(math.log2(self.strides[-1]))
        return LevelMapper(finest, coarsest, self.canonical_scale, self.canonical_level)(boxes)


def heads_start(module: nn.Module) -> None:
    """Linear layers as detectron2's box head starts them: Kaiming uniform with a = 1, biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
