"""Timing a real step, before a run and in ``hetcl doctor``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetcl.pretrain import doctor
from hetcl.pretrain.stages import pieces_of
from hetcl.settings import resolve, stages_of
from tests.pretrain.build import fabric

TINY = {"backbone": "timm:test_resnet", "size": 32, "spatial.side": 2, "stage1.queue": 64, "stage2.queue": 64}


@pytest.mark.parametrize("recipe", ["hcl-r50", "moco-v1-r50", "supervised-r50"])
@pytest.mark.parametrize("layout", [(256, 8, 2), (32, 8, 1), (24, 1, 1)])
def test_every_method_is_timed_by_its_own_step(recipe: str, layout: tuple[int, int, int]) -> None:
    batch, groups, accumulate = layout
    settings = resolve(recipe, {**TINY, "batch": batch, "groups": groups, "accumulate": accumulate})
    for stage in stages_of(settings).values():
        pace = doctor.measure_step(settings, stage, fabric=fabric(), classes=3)
        assert pace.images_per_second > 0
        assert pace.seconds(100) == pytest.approx(100 / pace.images_per_second)
        assert pace.memory == 0  # a CPU


def test_a_batch_that_does_not_fit_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(doctor, "build_task", full)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2**33)
    overrides = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    warnings = doctor.doctor(data="scenes:64", recipe="hcl-r50", overrides=overrides)
    assert [w[:40] for w in warnings if "--accumulate 2" in w] == [
        "stage1: a batch of 256 does not fit into",
        "stage2: a batch of 256 does not fit into",
    ]
    assert "in all" not in capsys.readouterr().out


@given(st.integers(1, 40), st.integers(1, 10))
def test_pieces_are_those_of_chunk(count: int, pieces: int) -> None:
    rows = torch.arange(count)
    found = [rows[piece].tolist() for piece in pieces_of(count, pieces)]
    assert found == [piece.tolist() for piece in rows.chunk(pieces)]
