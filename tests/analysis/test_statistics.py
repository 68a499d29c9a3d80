"""Counts to figures: intervals against their defining equations and by coverage, bins and tallies against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.analysis.statistics import (
    Bins,
    PairedTally,
    Tally,
    mean_of,
    paired_difference,
    proportion,
    z_of,
)


@given(n=st.integers(1, 10_000), share=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilsons_bounds_solve_the_score_equation(n: int, share: float, confidence: float) -> None:
    k = round(share * n)
    e, z = proportion(k, n, confidence), z_of(confidence)
    assert 0 <= e.low <= e.value <= e.high <= 1
    for bound in (e.low, e.high):
        if 0 < bound < 1:
            assert abs(k / n - bound) == pytest.approx(z * np.sqrt(bound * (1 - bound) / n), rel=1e-6)


def test_known_values() -> None:
    assert z_of(0.95) == pytest.approx(1.959964, abs=1e-6)
    e = proportion(0, 10)
    assert (e.low, e.high) == pytest.approx((0, 0.27753), abs=1e-4)
    e = proportion(5, 10)
    assert (e.low, e.high) == pytest.approx((0.23659, 0.76341), abs=1e-4)


@pytest.mark.parametrize("probabilities", [(0.02, 0.01), (0.1, 0.1), (0.3, 0.1), (0.0005, 0.0), (0.5, 0.2)])
@pytest.mark.parametrize("n", [40, 400, 4000])
def test_the_paired_interval_covers_the_truth(probabilities: tuple[float, float], n: int) -> None:
    only_a, only_b = probabilities
    rng = np.random.default_rng(n)
    draws = rng.multinomial(n, [only_a, only_b, 1 - only_a - only_b], size=2000)
    held = 0
    for a, b, _ in draws.tolist():
        e = paired_difference(a, b, n)
        assert e.low <= e.value <= e.high
        held += e.low <= only_a - only_b <= e.high
    # With two or three disagreements in all, no interval for counts keeps exactly to its promise.
    assert held / 2000 > (0.93 if n * max(probabilities) > 3 else 0.85)


def test_no_disagreement_still_has_an_interval_that_shrinks_with_n() -> None:
    few, many = paired_difference(0, 0, 50), paired_difference(0, 0, 50_000)
    assert few.low < 0 < few.high < 0.1
    assert many.high < few.high / 100


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_means_have_the_normal_interval(values: list[float]) -> None:
    x = np.array(values)
    e = mean_of(float(x.sum()), float((x**2).sum()), len(x))
    half = 1.959964 * x.std(ddof=1) / np.sqrt(len(x))
    assert e.value == pytest.approx(x.mean())
    assert e.low == pytest.approx(max(0, x.mean() - half), abs=1e-6)
    assert e.high == pytest.approx(min(1, x.mean() + half), abs=1e-6)


@given(iou=st.floats(0, 1), bins=st.integers(1, 30))
def test_every_overlap_falls_in_one_bin(iou: float, bins: int) -> None:
    b = Bins(bins)
    place = int(b.assign(np.array([iou]))[0])
    low, high = b.bounds(place)
    assert (low == high == 0) if iou == 0 else low < iou <= high
    inside = [i for i in range(len(b)) if i and b.bounds(i)[0] < iou <= b.bounds(i)[1]]
    assert inside == ([] if iou == 0 else [place])


@given(data=st.data(), n=st.integers(1, 200), bins=st.integers(1, 12))
def test_tallies_in_chunks_equal_a_loop(data: st.DataObject, n: int, bins: int) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    rank, iou = rng.integers(1, 9, n), np.where(rng.random(n) < 0.2, 0, rng.random(n))
    tally, cut = Tally(Bins(bins)), data.draw(st.integers(0, n))
    tally.add(rank[:cut], iou[:cut])
    tally.add(rank[cut:], iou[cut:])
    overall = tally.overall()
    assert overall["top1"].value == sum(r == 1 for r in rank) / n
    assert overall["top5"].value == sum(r <= 5 for r in rank) / n
    assert overall["mrr"].value == pytest.approx(sum(1 / r for r in rank) / n)
    for row in tally.by_bin():
        here = [
            r
            for r, x in zip(rank, iou, strict=True)
            if (x == 0 if row["high"] == 0 else row["low"] < x <= row["high"])
        ]
        assert row["count"] == len(here)
        assert (
            row["top1"] is None if not here else row["top1"]["value"] == sum(r == 1 for r in here) / len(here)
        )


@given(seed=st.integers(0, 999), n=st.integers(2, 200))
def test_paired_tallies_equal_the_difference_of_two(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(1, 5, n), rng.integers(1, 5, n)
    tally = PairedTally()
    tally.add(a[: n // 2], b[: n // 2])
    tally.add(a[n // 2 :], b[n // 2 :])
    d = tally.differences()
    assert d["top1"].value == pytest.approx((a == 1).mean() - (b == 1).mean())
    assert d["mrr"].value == pytest.approx((1 / a).mean() - (1 / b).mean())
    assert d["top1"].low <= d["top1"].value <= d["top1"].high


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="share of nothing"):
        proportion(0, 0)
