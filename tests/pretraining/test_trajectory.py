"""The training step as a run drives it, against the slow trainer of ``tests/reference/moco.py``, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hetcl.model.momentum import shuffle_of
from hetcl.pretraining import stages
from hetcl.types import Crops
from hetcl.views.photometric import FLIP
from tests.model.test_frames import slow
from tests.pretraining.build import batch_of, contrast_stage, normalized
from tests.reference import moco

B, K, SIDE, PIXELS, SEED, STEPS = 8, 13, 4, 64, 3, 4
SGD = {"lr": 0.05, "weight_decay": 1e-2}
M, TEMPERATURE = 0.9, 0.2
CLOSE = {"atol": 1e-9, "rtol": 1e-9}


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Whatever logits the step makes, in order."""
    seen: list[Tensor] = []
    real = stages.info_nce

    def listening(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        out = real(*args, **kwargs)
        seen.append(out[0].detach())
        return out

    monkeypatch.setattr(stages, "info_nce", listening)
    return seen


@pytest.mark.parametrize(
    ("method", "accumulate", "mask_own", "batch_negatives"),
    [
        ("moco-v2", 1, True, False),
        ("moco-v2", 2, False, False),
        ("hcl", 1, False, False),
        ("hcl", 2, True, False),
        ("hcl", 2, True, True),
    ],
)
def test_the_step_of_a_stage_equals_the_slow_trainer(
    method: str, accumulate: int, mask_own: bool, batch_negatives: bool, logits: list[Tensor]
) -> None:
    batches = [batch_of(views=2, count=B, pixels=PIXELS, images=12) for _ in range(STEPS)]
    stage = contrast_stage(
        method,
        batches,
        side=SIDE,
        groups=2,
        queue=K,
        key_momentum=M,
        seed=SEED,
        accumulate=accumulate,
        sgd_momentum=0.9,
        temperature=TEMPERATURE,
        mask_own=mask_own,
        batch_negatives=batch_negatives,
        **SGD,
    )
    expected = moco.run(
        stage.pair.query.state_dict(),
        stage.pair.key.state_dict(),
        stage.queue.keys,
        0,
        [
            (normalized(b.images[0]), normalized(b.images[1]), shuffle_of(B, SEED, "stage1", t))
            for t, b in enumerate(batches)
        ],
        arch="resnet18",
        momentum_sgd=0.9,
        m=M,
        temperature=TEMPERATURE,
        groups=2,
        side=SIDE,
        spatial=method == "hcl",
        # Without the mask every row is an image of its own.
        indices=[b.index.tolist() if mask_own else range(t * B, t * B + B) for t, b in enumerate(batches)],
        queue_index=[-1] * K,
        batch_negatives=batch_negatives,
        **SGD,
    )
    moved = 0.0
    for t, (batch, record) in enumerate(zip(stage.batches(0, 0), expected, strict=True)):
        before = {name: value.clone() for name, value in stage.pair.query.state_dict().items()}
        figures = stage.step(batch, t)

        torch.testing.assert_close(torch.cat(logits), record.logits, **CLOSE)
        logits.clear()
        assert figures["loss"].item() == pytest.approx(record.loss, rel=1e-9, abs=1e-9)
        torch.testing.assert_close(stage.queue.keys, record.queue, **CLOSE)
        assert stage.queue.pointer == record.queue_ptr
        torch.testing.assert_close(dict(stage.pair.query.state_dict()), record.query_state, **CLOSE)
        torch.testing.assert_close(dict(stage.pair.key.state_dict()), record.key_state, **CLOSE)
        after = stage.pair.query.state_dict()
        moved = max(
            moved, float((after["pyramid.conv1.weight"] - before["pyramid.conv1.weight"]).abs().max())
        )
    assert moved > 1e-5, "the weights hardly moved, so equality says little"
    if mask_own:
        assert any(bool(r.logits.isneginf().any()) for r in expected), "no image met its own key"


def test_hcl_geo_contrasts_maps_where_the_crops_were_cut(
    logits: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each view by its own box and flip, in micro-batches, query and key; the rest of the step is HCL's."""
    draw = torch.Generator().manual_seed(5)
    seen: dict[str, list[Tensor]] = {"query": [], "key": []}
    batch = batch_of(views=2, count=B, pixels=PIXELS, images=12)
    corners = torch.rand(2, B, 2, 2, generator=draw).sort(dim=2).values * (PIXELS - 1)
    batch = replace(batch, boxes=corners.flatten(2) + torch.tensor([0.0, 0.0, 1.0, 1.0]))
    batch.color[:, :, FLIP] = torch.rand(2, B, generator=draw).round()
    stage = contrast_stage(
        "hcl-geo", [batch], side=SIDE, groups=2, queue=K, accumulate=2, sgd_momentum=0.9, temperature=TEMPERATURE,
        mask_own=False, **SGD,
    )  # fmt: skip
    before = stage.queue.keys.clone()
    for name, encoder in (("query", stage.pair.query), ("key", stage.pair.key)):

        def keep(module: Any, given: Any, parts: Any, name: str = name) -> None:
            seen[name].append(torch.cat([*parts.values()], dim=1).detach())

        encoder.register_forward_hook(keep)
    stage.step(batch, 0)
    expected = []
    for view, rows in ((0, torch.cat(seen["query"])), (1, torch.cat(seen["key"]))):
        if view:
            rows = rows[torch.argsort(shuffle_of(B, SEED, "stage1", 0))]
        crops = Crops(batch.boxes[view] / PIXELS, batch.color[view, :, FLIP] > 0)
        laid = slow(rows[:, 16:].unflatten(1, (1, SIDE, SIDE)), crops).flatten(1)
        expected.append(
            torch.cat([rows[:, :16], laid / laid.norm(dim=1, keepdim=True).clamp(min=1e-6)], dim=1)
        )
    q, k = expected
    products = torch.cat([(q * k).sum(1, keepdim=True), q @ before.T], dim=1) / TEMPERATURE
    torch.testing.assert_close(torch.cat(logits), products, atol=1e-6, rtol=1e-6)  # boxes are float32
    torch.testing.assert_close(stage.queue.keys[:B], k, atol=1e-6, rtol=1e-6)


def test_the_figures_of_a_step_are_those_of_its_logits(logits: list[Tensor]) -> None:
    batches = [batch_of(views=2, count=B, pixels=PIXELS, images=12) for _ in range(3)]
    stage = contrast_stage(
        "moco-v2",
        batches,
        side=SIDE,
        groups=2,
        queue=K,
        accumulate=2,
        sgd_momentum=0.9,
        temperature=TEMPERATURE,
        mask_own=True,
        **SGD,
    )
    for t, batch in enumerate(stage.batches(0, 0)):
        figures = stage.step(batch, t)
        rows = torch.cat(logits)
        logits.clear()
        right = sum(int(row[0] > row[1:].max()) for row in rows) / B
        assert figures["accuracy_queue"].item() == pytest.approx(right)
        assert figures["chance"].item() == pytest.approx(2.6390573296, abs=1e-6)  # log(14)
        assert figures["queue_filled"].item() == pytest.approx(min(1.0, t * B / K))
