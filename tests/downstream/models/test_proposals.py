"""Anchors, proposals and the cutting of regions, against the slow and obvious."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align

from hetcl.downstream.models.anchors import RATIOS, Anchors
from hetcl.downstream.models.proposals import ProposalHead, RegionPool, proposals
from tests.downstream.models.making import small


def naive_anchors(sizes: list[float], stride: int, rows: int, columns: int) -> list[list[float]]:
    """detectron2's rule: around the corner of each cell, size by size, ratio by ratio."""
    found = []
    for row in range(rows):
        for column in range(columns):
            for size in sizes:
                for ratio in (0.5, 1.0, 2.0):
                    w = math.sqrt(size * size / ratio)
                    h = w * ratio
                    x, y = column * stride, row * stride
                    found.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return found


@pytest.mark.parametrize(("neck", "scale"), [("fpn", 1.0), ("c4", 1.0), ("fpn", 0.25), ("c4", 0.3)])
def test_anchors_lie_where_detectron2_lays_them(neck: str, scale: float) -> None:
    rpn = small(neck, anchor_scale=scale).rpn
    image = torch.zeros(2, 3, 96, 160)  # P6 is 2 x 3: its stride is 64, not 96 // 2 = 48
    sizes = [s * scale for s in (32, 64, 128, 256, 512)]
    if neck == "fpn":
        grids = [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]
        plan = [([s], 4 * 2**i, *grid) for i, (s, grid) in enumerate(zip(sizes, grids, strict=True))]
    else:
        plan = [(sizes, 16, 6, 10)]
    maps = [torch.zeros(2, 1, rows, columns) for _, _, rows, columns in plan]
    got = rpn.anchor_generator(ImageList(image, [(96, 160), (90, 150)]), maps)
    wanted = torch.tensor([box for part in plan for box in naive_anchors(*part)])
    assert len(got) == 2
    for one in got:
        torch.testing.assert_close(one, wanted, rtol=1e-6, atol=1e-4)


def test_c4_has_fifteen_anchors_a_cell_and_the_fpn_three() -> None:
    assert small("c4").rpn.head.cls_logits.out_channels == 15
    assert small("fpn").rpn.head.cls_logits.out_channels == 3
    assert len(RATIOS) == 3


def test_anchors_of_a_half_precision_map_are_not_rounded() -> None:
    anchors = Anchors(((32.0,),), (4,))
    maps = [torch.zeros(1, 1, 1, 300, dtype=torch.bfloat16)]
    got = anchors(ImageList(torch.zeros(1, 3, 4, 1200), [(4, 1200)]), maps)[0]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor(naive_anchors([32], 4, 1, 300)))


def kept(rpn: torch.nn.Module, boxes: torch.Tensor, levels: list[int]) -> int:
    """How many of ``boxes``, best first within each level, are proposed in a large image."""
    scores = torch.cat([torch.linspace(5, -5, n) for n in levels])
    return len(rpn.filter_proposals(boxes[None], scores[None], [(10**4, 10**4)], levels)[0][0])


def apart(count: int) -> torch.Tensor:
    """Boxes that do not overlap."""
    at = torch.arange(count)
    corner = torch.stack([at % 120, at // 120], dim=1).float() * 4
    return torch.cat([corner, corner + 2], dim=1)


@pytest.mark.parametrize(
    ("neck", "training", "before", "after"),
    [
        ("fpn", True, 2000, 1000),
        ("fpn", False, 1000, 1000),
        ("c4", True, 12000, 2000),
        ("c4", False, 6000, 1000),
    ],
)
def test_how_many_proposals_are_kept(neck: str, training: bool, before: int, after: int) -> None:
    rpn = small(neck, test_proposals=1000).rpn.train(training)
    levels = [before + 50] * (2 if neck == "fpn" else 1)
    assert kept(rpn, apart(sum(levels)), levels) == after
    # All but one of those that NMS sees lie on each other, so that one of them and the last are left of each
    # level (or the count before NMS is another).
    alike = torch.cat([apart(n) for n in levels])
    for start in range(0, len(alike), before + 50):
        alike[start : start + before - 1] = torch.tensor([0.0, 900, 9, 909])
    assert kept(rpn, alike, levels) == 2 * len(levels)


def test_losses_of_the_rpn_are_l1_and_log_loss_over_256_a_image() -> None:
    torch.manual_seed(0)
    rpn = proposals(4, Anchors(((32.0,),), (4,)), before=(10, 10), after=(10, 10))
    labels = [torch.tensor([1.0, 0, -1, 0]), torch.tensor([0.0, 0, 1, -1])]  # fewer than 256: all are sampled
    objectness, deltas, wanted = torch.randn(8, 1), torch.randn(8, 4), torch.randn(2, 4, 4)
    scored, placed = rpn.compute_loss(objectness, deltas, labels, list(wanted))
    score_sum = place_sum = 0.0
    for i, label in enumerate(torch.cat(labels).tolist()):
        p = 1 / (1 + math.exp(-objectness[i].item()))
        if label == 1:
            score_sum -= math.log(p)
            place_sum += sum(abs(deltas[i, j].item() - wanted.view(8, 4)[i, j].item()) for j in range(4))
        elif label == 0:
            score_sum -= math.log(1 - p)
    assert scored.item() == pytest.approx(score_sum / 512, rel=1e-5)
    assert placed.item() == pytest.approx(place_sum / 512, rel=1e-5)


def test_the_rpn_samples_256_anchors_half_of_them_positive_at_most() -> None:
    torch.manual_seed(0)
    labels = torch.cat([torch.ones(500), torch.zeros(500)])
    positive, negative = small().rpn.fg_bg_sampler([labels])
    assert (positive[0].sum(), negative[0].sum()) == (128, 128)


def test_rpn_weights_start_normal() -> None:
    torch.manual_seed(0)
    head = ProposalHead(256, 3)
    for conv in (head.conv[0][0], head.cls_logits, head.bbox_pred):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.15)
        assert not conv.bias.any()


def test_regions_are_cut_aligned_from_the_level_of_their_size() -> None:
    torch.manual_seed(0)
    strides = (4, 8, 16, 32)
    maps = {str(i): torch.randn(2, 3, 256 // s, 256 // s) for i, s in enumerate(strides)}
    maps["pool"] = torch.randn(2, 3, 4, 4)
    boxes = [torch.rand(30, 4) * 120, torch.rand(25, 4) * 60]
    for b in boxes:
        b[:, 2:] += b[:, :2] + 1
    boxes[0][0] = torch.tensor([0.0, 0, 250, 250])
    boxes[0][1] = torch.tensor([20.0, 30, 180, 190])
    scale = 0.5
    pool = RegionPool(["0", "1", "2", "3"], strides, 7, scale=scale)
    got = pool(maps, boxes, [(256, 256)] * 2)
    assert isinstance(pool, MultiScaleRoIAlign)
    used = set()
    at = 0
    for image, per in enumerate(boxes):
        for x0, y0, x1, y1 in per.tolist():
            size = math.sqrt((x1 - x0) * (y1 - y0))
            level = min(max(math.floor(4 + math.log2(size / (224 * scale))), 2), 5) - 2
            used.add(level)
            roi = torch.tensor([[image, x0, y0, x1, y1]])
            cut = roi_align(maps[str(level)], roi, (7, 7), 1 / strides[level], sampling_ratio=0, aligned=True)
            torch.testing.assert_close(got[at], cut[0])
            at += 1
    assert at == len(got)
    assert used == {0, 1, 2, 3}


def test_the_detectors_pools_are_aligned_ones() -> None:
    for neck in ("fpn", "c4"):
        heads = small(neck).roi_heads
        assert isinstance(heads.box_roi_pool, RegionPool)
        assert heads.box_roi_pool.output_size == ((7, 7) if neck == "fpn" else (14, 14))
    assert isinstance(small().roi_heads.mask_roi_pool, RegionPool)


def test_regions_of_half_precision_maps_are_cut_at_full_coordinates() -> None:
    torch.manual_seed(0)
    level = torch.randn(1, 2, 4, 400).bfloat16()
    box = torch.tensor([[1201.3, 2.2, 1230.9, 14.1]])  # bfloat16 knows 1200 and 1208
    pool = RegionPool(["0"], (4,), 7)
    whole = pool({"0": level.float()}, [box], [(16, 1600)])
    torch.testing.assert_close(pool({"0": level}, [box], [(16, 1600)]).float(), whole)


def test_no_boxes_give_no_regions() -> None:
    pool = RegionPool(["0", "1"], (4, 8), 7)
    maps = {"0": torch.zeros(2, 3, 8, 8, requires_grad=True), "1": torch.zeros(2, 3, 4, 4)}
    out = pool(maps, [torch.zeros(0, 4), torch.zeros(0, 4)], [(32, 32)] * 2)
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
