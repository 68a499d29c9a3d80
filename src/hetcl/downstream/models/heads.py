"""What is in a region: class, box and mask. torchvision's RoI heads, with detectron2's losses and the C4 head.

Class 0 is the background, as everywhere in torchvision (detectron2 puts it last): labels of targets and of
detections are 1..K. The background's own box and mask outputs are never used.

    B  images     R  regions of a batch     F  foreground ones     K  classes     C  channels     M  side of a mask
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.ops import roi_align

from hetcl.downstream.models.proposals import RegionPool, full, heads_start

Sizes = list[tuple[int, int]]
Targets = list[dict[str, Tensor]]


class Predictor(FastRCNNPredictor):
    """Class and box of each region; maps are averaged over space first. Initial weights are detectron2's."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes + 1)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[R, C]`` or ``[R, C, ., .]`` -> logits ``[R, K + 1]``, deltas ``[R, 4 (K + 1)]``."""
        logits, deltas = super().forward(x.mean(dim=(2, 3)) if x.ndim == 4 else x)
        return full(logits), full(deltas)


def mask_predictor(channels: int, classes: int) -> MaskRCNNPredictor:
    """Deconvolution to twice the side, 1x1 convolution to a mask a class; initial weights are detectron2's."""
    predictor = MaskRCNNPredictor(channels, 256, classes + 1)
    nn.init.zeros_(predictor.conv5_mask.bias)
    nn.init.normal_(predictor.mask_fcn_logits.weight, std=0.001)
    nn.init.zeros_(predictor.mask_fcn_logits.bias)
    return predictor


class Heads(RoIHeads):
    """Box and mask heads over an FPN: two linear layers, and four convolutions with regions of their own.

    Args:
        box: pool, head and predictor for boxes.
        mask: the same for masks, or None.
        regions: how many are drawn from each image for training, a quarter of them foreground if there are so many.
        score_threshold: least score of a detection.
        detections: most detections of an image.
    """

    def __init__(
        self,
        box: tuple[RegionPool, nn.Module, nn.Module],
        mask: tuple[RegionPool | None, nn.Module | None, nn.Module | None] = (None, None, None),
        *,
        regions: int,
        score_threshold: float,
        detections: int,
    ) -> None:
        limits = (score_threshold, 0.5, detections)
        super().__init__(*box, 0.5, 0.5, regions, 0.25, None, *limits, *mask)

    def has_mask(self) -> bool:
        return self.mask_predictor is not None

    def check_targets(self, targets: Targets | None) -> None:
        """Raises ValueError for missing keys, and for labels outside 1..K (0 would pass for background)."""
        super().check_targets(targets)
        classes = self.box_predictor.cls_score.out_features - 1
        labels = torch.cat([t["labels"] for t in targets or []])
        if ((labels < 1) | (labels > classes)).any():
            raise ValueError(f"labels of targets must lie in 1..{classes}: 0 is the background")

    def mask_features(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sizes, shared: Tensor | None
    ) -> Tensor:
        """What masks are predicted from: ``[F, C, ., .]``. ``shared`` is the box head's, where it is at hand."""
        return self.mask_head(self.mask_roi_pool(features, boxes, sizes))

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: Sizes,
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Maps by name and per image ``[n, 4]`` boxes -> detections (evaluation), losses by name (training)."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes, targets: Targets | None
    ) -> dict[str, Tensor]:
        boxes, matched, labels, wanted = self.select_training_samples(proposals, targets)
        shared = self.box_head(self.box_roi_pool(features, boxes, sizes))
        logits, deltas = self.box_predictor(shared)
        classified, placed = box_losses(logits, deltas, torch.cat(labels), torch.cat(wanted))
        losses = {"loss_classifier": classified, "loss_box_reg": placed}
        if self.has_mask():
            assert targets is not None
            front = [label > 0 for label in labels]
            boxes, matched, labels = (
                [x[f] for x, f in zip(xs, front, strict=True)] for xs in (boxes, matched, labels)
            )
            seen = self.mask_features(features, boxes, sizes, shared[torch.cat(front)])
            truth = [
                mask_targets(t["masks"], b, m, size, 2 * seen.shape[-1])
                for t, b, m, size in zip(targets, boxes, matched, sizes, strict=True)
            ]
            losses["loss_mask"] = mask_loss(
                full(self.mask_predictor(seen)), torch.cat(labels), torch.cat(truth)
            )
        return losses

    def _detections(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes
    ) -> list[dict[str, Tensor]]:
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, sizes)))
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, sizes)
        found = [
            {"boxes": b, "labels": label, "scores": s}
            for b, label, s in zip(boxes, labels, scores, strict=True)
        ]
        if self.has_mask():
            seen = self.mask_features(features, boxes, sizes, None)
            masks = maskrcnn_inference(full(self.mask_predictor(seen)), labels)
            for one, mask in zip(found, masks, strict=True):
                one["masks"] = mask
        return found


class C4Heads(Heads):
    """Heads over C4: layer4 is the box head, and the mask head reads the foreground rows of what it gave.

    In training layer4 runs once a step; in evaluation once over the proposals and once over the detections.
    """

    def mask_features(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sizes, shared: Tensor | None
    ) -> Tensor:
        return self.box_head(self.box_roi_pool(features, boxes, sizes)) if shared is None else shared


class Layer4(nn.Module):
    """A backbone's last stage as box head, and the batch norm after it (MoCo's settings).

    The stage stays registered in the backbone and in no second place: a tuple hides it from ``nn.Module``,
    so that each weight has one name (``backbone.body...layer4``).
    """

    def __init__(self, stage: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self._stage = (stage,)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """``[R, C, 14, 14]`` -> ``[R, 2 C, 7, 7]``."""
        return self.norm(self._stage[0](x))


def fpn_heads(
    channels: int,
    *,
    masks: bool,
    classes: int,
    scale: float,
    regions: int,
    score_threshold: float,
    detections: int,
) -> Heads:
    """Heads over P2..P5 of ``channels`` each; the mask head gives 28 x 28. ``scale``: see ``RegionPool``."""
    names, strides = ["0", "1", "2", "3"], (4, 8, 16, 32)
    mlp = TwoMLPHead(channels * 7 * 7, 1024)
    heads_start(mlp)
    box = (RegionPool(names, strides, 7, scale=scale), mlp, Predictor(1024, classes))
    limits = {"regions": regions, "score_threshold": score_threshold, "detections": detections}
    if not masks:
        return Heads(box, **limits)  # type: ignore[arg-type]
    pool = RegionPool(names, strides, 14, scale=scale)
    mask = (pool, MaskRCNNHeads(channels, (256,) * 4, 1), mask_predictor(256, classes))
    return Heads(box, mask, **limits)  # type: ignore[arg-type]


def c4_heads(
    layer4: nn.Module,
    channels: int,
    *,
    norm: bool,
    masks: bool,
    classes: int,
    regions: int,
    score_threshold: float,
    detections: int,
) -> C4Heads:
    """Heads over C4; the mask head gives 14 x 14. ``channels``: of layer4's output; ``norm``: batch norm after it."""
    last = Layer4(layer4, nn.BatchNorm2d(channels) if norm else nn.Identity())
    box = (RegionPool(["0"], (16,), 14), last, Predictor(channels, classes))
    mask = (None, None, mask_predictor(channels, classes) if masks else None)
    return C4Heads(box, mask, regions=regions, score_threshold=score_threshold, detections=detections)


def box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy over all regions; L1 of the true class's deltas, summed over foreground, over all regions.

    Args:
        logits: ``[R, K + 1]``. deltas: ``[R, 4 (K + 1)]``.
        labels: int64 ``[R]``, 0 is background. wanted: ``[R, 4]``.
    """
    rows = torch.where(labels > 0)[0]
    chosen = deltas.view(len(deltas), -1, 4)[rows, labels[rows]]
    placed = F.l1_loss(chosen, wanted[rows], reduction="sum") / max(len(labels), 1)
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1), placed


def mask_loss(logits: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of the true class's mask: ``[F, K + 1, M, M]``, int64 ``[F]``, ``[F, M, M]`` of 0 and 1."""
    if not len(labels):
        return logits.sum() * 0
    chosen = logits[torch.arange(len(labels), device=labels.device), labels]
    return F.binary_cross_entropy_with_logits(chosen, truth)


def mask_targets(masks: Tensor, boxes: Tensor, matched: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """What of an object's mask lies in a box, drawn as ``side x side``: detectron2's way with bitmaps.

    Args:
        masks: bool or uint8 ``[n, H, W]``, at the image's own size.
        boxes: float ``[F, 4]``, in pixels of the scaled image.
        matched: int64 ``[F]``, the object of each box.
        size: height and width of the scaled image.

    Returns:
        float ``[F, side, side]`` of 0 and 1.
    """
    if not len(boxes):
        return boxes.new_zeros((0, side, side))
    back = boxes.new_tensor([masks.shape[-1] / size[1], masks.shape[-2] / size[0]]).repeat(2)
    rois = torch.cat([matched[:, None].to(boxes), boxes * back], dim=1)
    cut = roi_align(masks[:, None].to(boxes), rois, (side, side), 1.0, 0, aligned=True)
    return (cut[:, 0] >= 0.5).to(boxes)


def tower(maps: tuple[Tensor, ...]) -> OrderedDict[str, Tensor]:
    """Maps, finest first, under torchvision's names "0", "1", ..."""
    return OrderedDict((str(i), level) for i, level in enumerate(maps))
