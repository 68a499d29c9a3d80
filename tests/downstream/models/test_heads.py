"""Losses of the heads against the slow and obvious; C4's head and its one run of layer4; initial weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hetcl.downstream.models.heads import box_losses, mask_loss, mask_targets
from tests.downstream.models.making import batch, small, total


def test_box_losses_are_cross_entropy_and_l1_over_all_regions() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 2, 1, 0, 2])
    logits, deltas, wanted = torch.randn(5, 3), torch.randn(5, 12), torch.randn(5, 4)
    class_sum = box_sum = 0.0
    for i, k in enumerate(labels.tolist()):
        class_sum -= math.log(math.exp(logits[i, k]) / sum(math.exp(v) for v in logits[i].tolist()))
        if k:
            box_sum += sum(abs(deltas[i, 4 * k + j].item() - wanted[i, j].item()) for j in range(4))
    classified, placed = box_losses(logits, deltas, labels, wanted)
    assert classified.item() == pytest.approx(class_sum / 5, rel=1e-5)
    assert placed.item() == pytest.approx(box_sum / 5, rel=1e-5)


def test_mask_loss_is_that_of_the_true_class() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4), torch.tensor([2, 1])
    truth = (torch.rand(2, 4, 4) > 0.5).float()
    terms = []
    for i, k in enumerate(labels.tolist()):
        for p, t in zip(logits[i, k].sigmoid().flatten().tolist(), truth[i].flatten().tolist(), strict=True):
            terms.append(-math.log(p if t else 1 - p))
    assert mask_loss(logits, labels, truth).item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert mask_loss(logits[:0], labels[:0], truth[:0]).item() == 0


def test_mask_targets_are_what_of_the_object_lies_in_the_box() -> None:
    """A disc of 300 x 200 pixels' image, seen from an image scaled by 1.5 and 1.5."""
    y, x = np.mgrid[:200, :300] + 0.5
    discs = np.stack([np.hypot(x - 100, y - 90) < 60, np.hypot(x - 220, y - 120) < 40])
    boxes = torch.tensor([[40.0, 30, 160, 150], [60, 50, 100, 140], [150, 70, 290, 190]]) * 1.5
    matched = torch.tensor([0, 0, 1])
    got = mask_targets(torch.from_numpy(discs), boxes, matched, (300, 450), 28).numpy()
    for drawn, box, which in zip(got, boxes.numpy() / 1.5, matched, strict=True):
        wanted = np.zeros((28, 28))
        for row in range(28):
            for column in range(28):
                xs = box[0] + (box[2] - box[0]) * (column + 0.5) / 28
                ys = box[1] + (box[3] - box[1]) * (row + 0.5) / 28
                wanted[row, column] = discs[which, int(ys), int(xs)]
        assert set(np.unique(drawn)) <= {0, 1}
        assert np.mean(drawn != wanted) < 0.03  # cells on the edge may fall either way
        assert 0.1 < drawn.mean() <= 1


def test_mask_targets_without_boxes() -> None:
    none = mask_targets(
        torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(0, 4), torch.zeros(0).long(), (8, 8), 14
    )
    assert none.shape == (0, 14, 14)


def test_layer4_runs_once_a_training_step_and_its_counters_advance_once() -> None:
    torch.manual_seed(0)
    model = small("c4").train()
    seen: list[int] = []
    layer4 = model.backbone.body.layer4
    layer4.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    images, targets = batch(2)
    losses = model(images, targets)
    assert losses["loss_mask"] > 0
    assert seen == [16]  # 8 regions of each image
    counters = [b for n, b in layer4.named_buffers() if n.endswith("num_batches_tracked")]
    assert counters
    assert all(c == 1 for c in counters)
    assert model.roi_heads.box_head.norm.num_batches_tracked == 1


def test_in_evaluation_layer4_runs_over_proposals_and_over_detections() -> None:
    torch.manual_seed(0)
    model = small("c4", score_threshold=0.0, detections=5).eval()
    seen: list[int] = []
    model.backbone.body.layer4.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    with torch.no_grad():
        found = model(batch(1)[0])[0]
    assert seen == [8, 5]
    assert found["masks"].shape == (5, 1, 128, 128)


def test_the_mask_head_of_c4_reads_the_foreground_rows_of_the_box_head() -> None:
    torch.manual_seed(0)
    model = small("c4").train()
    rows: list[torch.Tensor] = []
    outs: list[torch.Tensor] = []
    model.roi_heads.mask_predictor.register_forward_hook(lambda _, args, __: rows.append(args[0]))
    model.roi_heads.box_head.register_forward_hook(lambda _, __, out: outs.append(out))
    total(model(*batch(1))).backward()
    assert 0 < len(rows[0]) < len(outs[0])
    assert all(any(torch.equal(row, out) for out in outs[0]) for row in rows[0])
    assert model.roi_heads.mask_predictor(rows[0]).shape[-2:] == (14, 14)


def test_a_batch_norm_follows_layer4_unless_frozen() -> None:
    assert isinstance(small("c4").roi_heads.box_head.norm, torch.nn.BatchNorm2d)
    assert isinstance(small("c4", norm="frozen").roi_heads.box_head.norm, torch.nn.Identity)


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_initial_weights_of_the_heads(neck: str) -> None:
    heads = small(neck).roi_heads
    stds = [(heads.box_predictor.cls_score, 0.01), (heads.box_predictor.bbox_pred, 0.001)]
    stds.append((heads.mask_predictor.mask_fcn_logits, 0.001))
    up = heads.mask_predictor.conv5_mask
    stds.append((up, math.sqrt(2 / (up.in_channels * 4))))
    if neck == "fpn":
        for block in heads.mask_head:
            stds.append((block[0], math.sqrt(2 / (256 * 9))))
        stds.append((heads.box_head.fc6, math.sqrt(1 / heads.box_head.fc6.in_features)))
    for layer, std in stds:
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        assert not layer.bias.any()
