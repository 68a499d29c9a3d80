"""Anchors, the region proposal network, and the pooling of regions: torchvision's, with detectron2's numbers.

A  anchors of an image     n  boxes     L  levels, finest first     C  channels
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

SIZES = (32, 64, 128, 256, 512)
"""Square roots of the anchors' areas, in pixels of the scaled image."""
RATIOS = (0.5, 1.0, 2.0)
"""Height over width."""


def full(x: Tensor) -> Tensor:
    """Half precision (autocast) to float32: boxes of a thousand pixels need more than 8 bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


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
        like = full(feature_maps[0].detach()[:0])
        self.set_cell_anchors(like.dtype, like.device)
        grids = [list(level.shape[-2:]) for level in feature_maps]
        strides = [[s, s] for s in self.strides]
        laid = torch.cat(self.grid_anchors(grids, strides))
        return [laid] * len(image_list.image_sizes)


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
        out = rois.new_zeros((len(rois), x[self.featmap_names[0]].shape[1], *self.output_size))
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
