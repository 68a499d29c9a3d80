"""Intervals over seeds and the verdicts that they give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.reproduce.experiments import Claim, Column
from hetcl.reproduce.results import estimate

AP = Column("task", "ap")


def claim(bound: str, threshold: float) -> Claim:
    return Claim("ours is better", [("a", AP)], [("b", AP)], bound, threshold)


def test_interval_of_three_seeds_by_hand() -> None:
    found = estimate([1.0, 2.0, 6.0])
    assert found is not None
    half = 4.303 * math.sqrt(7.0) / math.sqrt(3)  # variance (4 + 1 + 9) / 2
    assert found["mean"] == 3
    assert found["low"] == pytest.approx(3 - half, abs=1e-3)
    assert found["high"] == pytest.approx(3 + half, abs=1e-3)


def test_one_seed_has_no_interval_and_none_no_figure() -> None:
    found = estimate([4.0])
    assert found == {"values": [4.0], "mean": 4.0, "low": None, "high": None}
    assert estimate([]) is None


@pytest.mark.parametrize(
    ("bound", "threshold", "low", "high", "verdict"),
    [
        ("above", 0, 0.1, 2, "confirmed"),
        ("above", 0, -0.1, 2, "not resolved"),
        ("above", 0, -2, -0.1, "refuted"),
        ("below", 10, 3, 9, "confirmed"),
        ("below", 10, 11, 12, "refuted"),
        ("below", 10, 9, 12, "not resolved"),
        ("within", 0.5, -0.4, 0.3, "confirmed"),
        ("within", 0.5, -0.6, 0.3, "not resolved"),
        ("within", 0.5, 0.6, 0.9, "refuted"),
        ("within", 0.5, -0.9, -0.6, "refuted"),
    ],
)
def test_verdicts(bound: str, threshold: float, low: float, high: float, verdict: str) -> None:
    assert claim(bound, threshold).verdict(low, high) == verdict


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12))
def test_a_claim_and_its_reverse_are_never_both_confirmed(values: Sequence[float]) -> None:
    found = estimate(values)
    assert found is not None
    verdicts = [claim(bound, 0).verdict(found["low"], found["high"]) for bound in ("above", "below")]
    assert verdicts.count("confirmed") <= 1
    assert found["low"] <= found["mean"] <= found["high"]


def test_a_difference_of_differences() -> None:
    long, short = Column("2x", "ap"), Column("1x", "ap")
    lead = Claim("", [("a", short), ("b", long)], [("b", short), ("a", long)], "above", 0)
    figures = {("a", short): 40.0, ("b", short): 39.2, ("a", long): 41.8, ("b", long): 41.6}
    assert lead.value(figures) == pytest.approx(0.6)
    assert lead.value({k: v for k, v in figures.items() if k != ("a", long)}) is None
