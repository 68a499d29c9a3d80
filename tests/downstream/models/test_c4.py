"""A C4 detector's evaluation, whole, against the slow and obvious: detectron2's rules, on unpadded images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from hetcl.downstream.models.scaling import scaled_size
from tests.downstream.models.making import small
from tests.downstream.models.test_scaling import naive_paste

SETTINGS: dict[str, Any] = {"test_size": 58, "max_size": 83, "test_proposals": 12, "detections": 5}
THRESHOLD = 0.1


def decoded(deltas: Tensor, boxes: list[list[float]], weights: tuple[float, ...]) -> list[list[float]]:
    """Boxes moved by deltas (dx, dy, dw, dh), as in R-CNN."""
    out = []
    for (left, top, right, bottom), row in zip(boxes, deltas.tolist(), strict=True):
        dx, dy, dw, dh = (value / weight for value, weight in zip(row, weights, strict=True))
        width, height = right - left, bottom - top
        x, y = left + width / 2 + dx * width, top + height / 2 + dy * height
        w, h = (side * math.exp(min(d, math.log(1000 / 16))) for side, d in ((width, dw), (height, dh)))
        out.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return out


def clipped(boxes: list[list[float]], size: tuple[int, int]) -> list[list[float]]:
    return [[min(max(v, 0.0), size[1 - i % 2]) for i, v in enumerate(box)] for box in boxes]


def iou(a: list[float], b: list[float]) -> float:
    sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def kept(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    """Non-maximum suppression: which boxes stay, best first."""
    left: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j]) <= threshold for j in left):
            left.append(i)
    return left


def slow(model: Any, image: Tensor) -> list[tuple[float, int, list[float], np.ndarray]]:
    """Score, label, box and mask (bool ``[H, W]``) of each detection in ``[3, H, W]``, best first."""
    original = (image.shape[1], image.shape[2])
    size = scaled_size(original, SETTINGS["test_size"], SETTINGS["max_size"])
    x = F.interpolate(image[None], size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    body, heads = model.backbone.body, model.roi_heads
    for stage in (body.conv1, body.bn1, body.relu, body.maxpool, body.layer1, body.layer2, body.layer3):
        x = stage((x - mean) / std) if stage is body.conv1 else stage(x)
    assert tuple(x.shape[-2:]) == tuple(-(-side // 16) for side in size)

    head = model.rpn.head
    hidden = F.relu(F.conv2d(x, head.conv[0][0].weight, head.conv[0][0].bias, padding=1))
    logits = head.cls_logits(hidden)[0].permute(1, 2, 0).flatten()
    deltas = head.bbox_pred(hidden)[0].permute(1, 2, 0).reshape(-1, 4)
    anchors = []
    for row in range(x.shape[-2]):
        for column in range(x.shape[-1]):
            for side in (32, 64, 128, 256, 512):
                for ratio in (0.5, 1.0, 2.0):
                    w = math.sqrt((side / 4) ** 2 / ratio)
                    x0, y0 = 16 * column, 16 * row
                    anchors.append([x0 - w / 2, y0 - w * ratio / 2, x0 + w / 2, y0 + w * ratio / 2])
    boxes = clipped(decoded(deltas, anchors, (1, 1, 1, 1)), size)
    large = [i for i, b in enumerate(boxes) if b[2] - b[0] >= 1e-3 and b[3] - b[1] >= 1e-3]
    boxes, scores = [boxes[i] for i in large], logits[large].tolist()
    boxes = [boxes[i] for i in kept(boxes, scores, 0.7)][: SETTINGS["test_proposals"]]

    def regions(of: list[list[float]]) -> Tensor:
        rois = torch.tensor([[0.0, *box] for box in of])
        return heads.box_head.norm(body.layer4(roi_align(x, rois, 14, 1 / 16, 0, aligned=True)))

    predictor = heads.box_predictor
    pooled = regions(boxes).mean(dim=(2, 3))
    chances = predictor.cls_score(pooled).softmax(dim=1)
    moves = predictor.bbox_pred(pooled).view(len(boxes), -1, 4)
    found: list[tuple[float, int, list[float]]] = []
    for label in range(1, chances.shape[1]):
        moved = clipped(decoded(moves[:, label], boxes, (10, 10, 5, 5)), size)
        rows = [i for i in range(len(boxes)) if chances[i, label] > THRESHOLD]
        mine, values = [moved[i] for i in rows], chances[rows, label].tolist()
        found += [(values[i], label, mine[i]) for i in kept(mine, values, 0.5)]
    found = sorted(found, key=lambda one: -one[0])[: SETTINGS["detections"]]

    masks = heads.mask_predictor(regions([box for _, _, box in found])).sigmoid()
    out = []
    for i, (value, label, box) in enumerate(found):
        back = [v * original[1 - j % 2] / size[1 - j % 2] for j, v in enumerate(box)]
        out.append((value, label, back, naive_paste(masks[i, label].numpy(), back, original)))
    return out


@pytest.mark.parametrize("size", [(75, 60), (64, 64), (31, 91)])
def test_evaluation_is_detectron2s_at_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(sum(size))
    model = small("c4", classes=3, score_threshold=THRESHOLD, **SETTINGS).double().eval()
    for (
        name,
        weights,
    ) in model.named_parameters():  # larger than detectron2's start: boxes move, classes differ
        if "rpn" in name or "predictor" in name:
            torch.nn.init.normal_(weights, std=0.05)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            image = torch.rand(3, *size)
            ours, theirs = model([image])[0], slow(model, image)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(theirs) == len(ours["boxes"]) > 2
    assert ours["labels"].tolist() == [label for _, label, _, _ in theirs]
    np.testing.assert_allclose(ours["scores"].tolist(), [value for value, _, _, _ in theirs], atol=1e-10)
    np.testing.assert_allclose(
        ours["boxes"].tolist(), [box for _, _, box, _ in theirs], atol=2e-5
    )  # (torchvision's ratio)
    for mask, (_, _, _, drawn) in zip(ours["masks"][:, 0].numpy(), theirs, strict=True):
        assert (mask != drawn).sum() <= 1  # the last bits of a value at one half
