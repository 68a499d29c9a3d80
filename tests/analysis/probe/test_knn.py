"""kNN against a double loop on fresh random features; ties, blocks, k above the bank, what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.analysis.probe import knn
from hetcl.analysis.probe.knn import knn_accuracy, knn_hits
from hetcl.errors import WorkFailed
from tests.reference import probe as slow

T = 0.07


def made(n: int, rng: np.random.Generator, dim: int = 6, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(1).normal(size=(classes, dim))
    return (centres[labels] + rng.normal(size=(n, dim))).astype(np.float32), labels


def test_several_k_from_one_pass_equal_a_double_loop() -> None:
    rng = np.random.default_rng()
    bank, queries = made(120, rng), made(50, rng)
    ks = [50, 1, 7, 500]
    found = knn_hits([bank], [queries], ks=ks, temperature=T)
    assert list(found) == ks
    for k in ks:
        assert found[k].tolist() == slow.knn_hits(*bank, *queries, k, T), k


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 59), max_size=4), rows=st.integers(1, 70), seed=st.integers(0, 10**6))
def test_blocks_change_nothing_and_ties_go_to_the_earlier(cuts: list[int], rows: int, seed: int) -> None:
    """Features of few whole numbers: many images exactly as similar, at every place and across blocks."""
    rng = np.random.default_rng(seed)
    x = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 60)] * rng.choice([1, 2, 4], (60, 1)).astype(
        np.float32
    )
    bank, queries = (x, rng.integers(0, 3, 60)), (np.eye(4, dtype=np.float32), rng.integers(0, 3, 4))
    pieces = [p for p in zip(*(np.split(a, sorted(set(cuts))) for a in bank), strict=True) if len(p[1])]
    before = knn.ROWS
    knn.ROWS = rows
    try:
        found = knn_hits(pieces, [queries], ks=[1, 5, 20], temperature=T)
    finally:
        knn.ROWS = before
    for k in found:
        assert found[k].tolist() == slow.knn_hits(*bank, *queries, k, T), (k, cuts, rows, seed)


def test_equal_votes_go_to_the_smaller_label_and_an_unknown_label_is_never_right() -> None:
    bank = (torch.ones(4, 3), torch.tensor([2, 1, 1, 2]))
    queries = (torch.ones(2, 3), torch.tensor([1, -1]))
    assert knn_hits([bank], [queries], ks=[4])[4].tolist() == [True, False]
    assert knn_hits([bank], [(queries[0], torch.tensor([2, 2]))], ks=[1])[1].tolist() == [True, True]


def test_length_does_not_matter_and_a_zero_is_like_nothing() -> None:
    rng = np.random.default_rng()
    bank, queries = made(40, rng), made(20, rng)
    bank[0][7] = 0
    stretched = bank[0] * 2.0 ** rng.integers(-8, 8, (40, 1)).astype(np.float32)
    found = [knn_hits([(x, bank[1])], [queries], ks=[5])[5].tolist() for x in (bank[0], stretched)]
    assert found[0] == found[1] == slow.knn_hits(*bank, *queries, 5, T)


def test_accuracy_is_the_share_of_hits() -> None:
    rng = np.random.default_rng()
    bank, queries = (tuple(torch.from_numpy(a) for a in made(n, rng)) for n in (70, 33))
    k = random.choice([1, 20, 100])
    share = sum(slow.knn_hits(*(t.numpy() for t in (*bank, *queries)), k, T)) / 33
    assert knn_accuracy(*bank, *queries, k=k) == pytest.approx(share)


@pytest.mark.parametrize("which", ["training", "test"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_in_words(which: str, value: float) -> None:
    bank, queries = (torch.rand(9, 3), torch.arange(9)), (torch.rand(5, 3), torch.arange(5))
    (bank if which == "training" else queries)[0][2, 1] = value
    with pytest.raises(WorkFailed, match=f"1 of . {which} images are not finite"):
        knn_hits([bank], [queries], ks=[3])


def test_nothing_to_ask_and_nobody_to_vote() -> None:
    some = (torch.rand(3, 2), torch.arange(3))
    with pytest.raises(ValueError, match="neighbours"):
        knn_hits([some], [some], ks=[0])
    with pytest.raises(ValueError, match="no images"):
        knn_hits([], [some], ks=[1])
