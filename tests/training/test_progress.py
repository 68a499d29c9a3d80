"""Words for people: counts, and how much time is left."""

from __future__ import annotations

import pytest

from hetcl.quantities import count
from hetcl.training import meters
from hetcl.training.meters import Stopwatch


def test_counts() -> None:
    assert [count(n, "step") for n in (0, 1, 2, 1000)] == ["0 steps", "1 step", "2 steps", "1,000 steps"]
    assert [count(n, "class") for n in (1, 11)] == ["1 class", "11 classes"]


def test_the_start_of_the_workers_is_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 10 steps takes 10 s; the first took 100 s more, and a busy moment doubles one of the later ones."""
    now = 0.0
    monkeypatch.setattr(meters.time, "monotonic", lambda: now)
    watch, left = Stopwatch(0.0, 0.0), []
    for seconds in (110, 10, 10, 10, 20, 10, 10):
        now += seconds
        watch.steps = 10
        watch.take(4)
        left.append(watch.left(100))
    assert left[0] == pytest.approx(1100)
    assert left[1:4] == pytest.approx([100, 100, 100])
    assert max(left[4:]) < 140  # the pace of the last row alone would say 200
    assert left[6] < left[5] < left[4]
