"""The learning rate of every step against closed forms written out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.training.schedule import schedule


def test_cosine_changes_with_whole_epochs_as_in_moco() -> None:
    rate = schedule("cosine", lr=0.03, epochs=200, steps_per_epoch=7)
    for step in range(1400):
        assert rate(step) == pytest.approx(
            0.03 * 0.5 * (1 + math.cos(math.pi * (step // 7) / 200)), rel=1e-14
        )
    assert rate(0) == rate(6) == 0.03
    assert rate(700) == pytest.approx(0.015)
    assert rate(1399) == pytest.approx(0.03 * math.sin(math.pi / 400) ** 2)


def test_cosine_by_step_falls_every_step_to_nearly_nothing() -> None:
    rate = schedule("cosine-step", lr=0.5, epochs=3, steps_per_epoch=10)
    values = [rate(step) for step in range(30)]
    assert values == [pytest.approx(0.25 * (1 + math.cos(math.pi * s / 30))) for s in range(30)]
    assert all(a > b for a, b in itertools.pairwise(values))
    assert rate(30) == pytest.approx(0, abs=1e-15)


def test_step_multiplies_at_each_milestone() -> None:
    rate = schedule("step", lr=0.03, epochs=200, steps_per_epoch=4, milestones=(120, 160))
    assert [rate(4 * e) for e in (0, 119, 120, 159, 160, 199)] == pytest.approx(
        [0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003]
    )
    assert rate(4 * 120 - 1) == 0.03


@pytest.mark.parametrize("kind", ["cosine", "cosine-step", "step"])
def test_warm_up_rises_linearly_and_then_leaves_the_schedule_alone(kind: str) -> None:
    settings = {"lr": 0.4, "epochs": 4, "steps_per_epoch": 10, "milestones": (2,)}
    plain, warm = schedule(kind, **settings), schedule(kind, **settings, warmup=0.5)  # type: ignore[arg-type]
    assert [warm(s) / plain(s) for s in range(6)] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert [warm(s) for s in range(5, 40)] == [plain(s) for s in range(5, 40)]


@given(
    st.sampled_from(["cosine", "cosine-step", "step"]),
    st.integers(1, 50),
    st.integers(1, 50),
    st.floats(0, 3),
)
def test_it_stays_between_zero_and_the_rate_asked_for(
    kind: str, epochs: int, steps: int, warmup: float
) -> None:
    rate = schedule(kind, lr=0.1, epochs=epochs, steps_per_epoch=steps, milestones=(5,), warmup=warmup)  # type: ignore[arg-type]
    assert all(0 < rate(s) <= 0.1 for s in range(epochs * steps))
