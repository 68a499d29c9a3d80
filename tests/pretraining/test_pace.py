"""Timing a real step, before a run and in ``hetcl doctor``."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetcl.pretraining import doctor, pace
from hetcl.pretraining.build import build_model, build_task
from hetcl.pretraining.stages import Contrast, pieces_of
from hetcl.settings import resolve, stages_of
from hetcl.training.devices import chosen_kernels
from tests.pretraining.build import fabric

TINY = {"backbone": "timm:test_resnet", "size": 32, "spatial.side": 2, "stage1.queue": 64, "stage2.queue": 64}


@pytest.mark.parametrize("recipe", ["hcl-r50", "moco-v1-r50", "supervised-r50"])
@pytest.mark.parametrize("layout", [(256, 8, 2), (32, 8, 1), (24, 1, 1)])
def test_every_method_is_timed_by_its_own_step(recipe: str, layout: tuple[int, int, int]) -> None:
    batch, groups, accumulate = layout
    settings = resolve(recipe, {**TINY, "batch": batch, "groups": groups, "accumulate": accumulate})
    for stage in stages_of(settings).values():
        found = pace.measure_step(settings, stage, fabric=fabric(), classes=3)
        assert found.images_per_second > 0
        assert found.seconds(100) == pytest.approx(100 / found.images_per_second)
        assert found.memory == 0  # a CPU


def test_a_batch_that_does_not_fit_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pace, "build_task", full)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2**33)
    overrides = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    warnings = doctor.doctor(data="scenes:64", recipe="hcl-r50", overrides=overrides)
    assert [w[:40] for w in warnings if "--accumulate 2" in w] == [
        "stage1: a batch of 256 does not fit into",
        "stage2: a batch of 256 does not fit into",
    ]
    assert "in all" not in capsys.readouterr().out


@given(st.integers(1, 40), st.integers(1, 10))
def test_pieces_are_those_of_chunk(each: int, pieces: int) -> None:
    count = each * pieces
    rows = torch.arange(count)
    found = [rows[piece].tolist() for piece in pieces_of(count, pieces)]
    assert found == [piece.tolist() for piece in rows.chunk(pieces)]


@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_are_chosen_for_the_run_alone(deterministic: bool) -> None:
    """Somebody else's training in the same process keeps the switches it had."""

    def switches() -> tuple[bool, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark,
        )

    before = switches()
    with contextlib.suppress(ZeroDivisionError), chosen_kernels(deterministic=deterministic):
        assert switches() == (deterministic, not deterministic, not deterministic)
        raise ZeroDivisionError
    assert switches() == before


def test_a_gpu_that_would_wait_for_images_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve("hcl-r50", TINY | {"workers": 2})
    monkeypatch.setattr(doctor, "measure_step", lambda *_, **__: pace.Pace(3000, 2**30))
    monkeypatch.setattr(doctor, "make_fabric", lambda **_: SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(doctor, "device_name", lambda _: "a GPU")
    for reading, waits in ((0.0005, False), (0.005, True)):
        warnings: list[str] = []
        doctor._recipe(settings, stages_of(settings), "hcl-r50", None, reading, warnings)
        assert any("3000 a second need about 20 workers" in w for w in warnings) == waits


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_encoder_is_compiled_once_a_stage(accumulate: int) -> None:
    """Also after others were compiled in this process: PyTorch gives up compiling beyond so many graphs."""
    overrides = TINY | {"batch": 8, "groups": 4, "accumulate": accumulate, "compile": True}
    settings = resolve("hcl-r50", overrides)
    counted = torch._dynamo.utils.counters["stats"]
    found = []
    for stage in stages_of(settings).values():
        model = build_model(settings, stage, None)
        loader: Any = pace._OneBatch(stage.views, images=8, size=32, views=2, pixels=settings.pixels)
        task = build_task(settings, "trial", stage, model, fabric=fabric(), loader=loader)
        assert isinstance(task, Contrast)
        for encoder in (task.pair.query, task.pair.key):
            encoder.compile(backend="eager")
        before = counted["unique_graphs"]
        for step, batch in zip(range(3), task.batches(0, 0), strict=False):
            task.step(batch, step)
        found.append(counted["unique_graphs"] - before)
    assert found == [2, 2]
