"""The questions against double loops on fresh features, and planted features: of place, of identity, of nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.analysis.where.cells import VOID, iou_of
from hetcl.analysis.where.correspondence import match
from hetcl.analysis.where.questions import Cells, by_chance, dense_knn, dense_linear, localize, matches
from hetcl.types import ViewBatch


def levels_of(rng: np.random.Generator, n: int, side: int, channels: list[int]) -> list[np.ndarray]:
    return [rng.normal(2, 3, (n, c * side * side)).astype(np.float32) for c in channels]


@settings(max_examples=30)
@given(
    n=st.integers(1, 4),
    side=st.integers(1, 4),
    most=st.integers(0, 20),
    unit=st.booleans(),
    seed=st.integers(0, 999),
)
def test_cells_are_rows_of_all_levels(n: int, side: int, most: int, unit: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels = [1, 3, 2]
    levels = levels_of(rng, n, side, channels)
    labels = rng.integers(-1, 3, (n, side * side)).astype(np.int16)
    cells = Cells(levels, labels, unit=unit, most=most, seed=seed)
    kept = (labels != VOID).sum()
    assert len(cells) == (min(most, kept) if most else kept)
    assert cells.shape == (len(cells), 6)
    rows = cells[slice(0, len(cells))]
    for row, at, label in zip(rows, cells.kept.tolist(), cells.labels.tolist(), strict=True):
        image, cell = divmod(at, side * side)
        assert labels[image, cell] == label
        expected = []
        for level, c, spread in zip(levels, channels, cells.spread, strict=True):
            one = level[image].reshape(c, side * side)[:, cell] / spread
            expected += list(one / np.linalg.norm(one) if unit else one)
        np.testing.assert_allclose(row, expected, rtol=1e-5)
    pieces = [cells[slice(i, i + 3)] for i in range(0, len(cells), 3)]
    np.testing.assert_array_equal(np.concatenate([rows[:0], *pieces]), rows)
    assert sum(len(y) for _, y in cells.blocks(2)) == len(cells)


def test_dense_knn_equals_a_double_loop() -> None:
    rng = np.random.default_rng(3)
    train = Cells(levels_of(rng, 3, 3, [2, 4]), rng.integers(-1, 3, (3, 9)).astype(np.int16), unit=True)
    test = Cells(levels_of(rng, 2, 3, [2, 4]), rng.integers(-1, 3, (2, 9)).astype(np.int16), unit=True)
    x, z = train[slice(0, len(train))], test[slice(0, len(test))]
    found = dense_knn(train, test, k=5, device="cpu", interrupt=lambda: None)
    for i, row in enumerate(z):
        cosine = (x @ row) / np.linalg.norm(x, axis=1) / np.linalg.norm(row)
        votes = np.zeros(3)
        for j in np.argsort(-cosine, kind="stable")[:5]:
            votes[train.labels[j]] += np.exp((cosine[j] - 1) / 0.07)
        assert found[i] == votes.argmax()


def planted(n: int, side: int, seed: int, what: str) -> tuple[list[np.ndarray], np.ndarray]:
    """A square of class 1 at a random place of each image; features that tell the class, the place, or nothing."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((n, side, side), np.int16)
    for one in labels:
        top, left = rng.integers(0, side - 2, 2)
        one[top : top + 3, left : left + 3] = 1
    row, column = np.mgrid[:side, :side]
    if what == "identity":
        maps = np.stack([labels, 1 - labels], axis=1) + rng.normal(0, 0.01, (n, 2, side, side))
    elif what == "place":
        maps = np.broadcast_to(np.stack([row, column, row * column, row**2, column**2]), (n, 5, side, side))
    else:
        maps = rng.normal(size=(n, 4, side, side))
    return [np.ascontiguousarray(maps.reshape(n, -1), np.float32)], labels.reshape(n, -1)


@pytest.mark.parametrize("how", ["knn", "linear"])
@pytest.mark.parametrize("what", ["identity", "place", "nothing"])
def test_planted_features(how: str, what: str) -> None:
    (a, la), (b, lb) = planted(30, 8, 0, what), planted(20, 8, 1, what)
    unit = how == "knn"
    train = Cells(a, la, unit=unit)
    test = Cells(b, lb, unit=unit, spread=train.spread)
    if unit:
        predicted = dense_knn(train, test, k=20, device="cpu", interrupt=lambda: None)
    else:
        predicted, _ = dense_linear(train, test, classes=2, seed=0)
    miou = float(np.nanmean(iou_of(test.counts(predicted, 20, 2).sum(axis=0))))
    floors = by_chance(train.labels, test.labels, 2)
    assert miou > 0.99 if what == "identity" else miou < max(floors.values()) + 0.06


def test_counts_belong_to_their_images() -> None:
    labels = np.array([[0, 1, VOID, 1], [VOID] * 4, [1, 1, 0, 0]], np.int16)
    cells = Cells([np.ones((3, 4), np.float32)], labels, unit=False)
    counts = cells.counts(np.array([0, 0, 1, 1, 1, 0, 0]), 3, 2)
    assert counts[0].tolist() == [[1, 1], [1, 2], [2, 1]]
    assert not counts[1].any()
    assert counts[2].tolist() == [[2, 2], [2, 2], [2, 2]]


def test_chance_against_draws() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.choice(3, 50_000, p=[0.7, 0.2, 0.1]), rng.choice(3, 200_000, p=[0.5, 0.3, 0.2])
    found = by_chance(train, test, 3)
    drawn = rng.choice(3, len(test), p=np.bincount(train) / len(train))
    for name, called in (("chance", drawn), ("majority", np.zeros_like(test))):
        iou = [((called == k) & (test == k)).sum() / ((called == k) | (test == k)).sum() for k in range(3)]
        assert found[name] == pytest.approx(np.mean(iou), abs=0.003)


def test_boxes_are_found_from_features_that_hold_them() -> None:
    rng = np.random.default_rng(0)
    low = rng.random((80, 2)) / 2
    boxes = np.hstack([low, low + 0.3])
    mixed = boxes @ rng.normal(size=(4, 200)) + 1
    iou, _ = localize(mixed[:60], boxes[:60], mixed[60:], boxes[60:], seed=0)
    assert iou.min() > 0.95
    blind, _ = localize(
        rng.normal(size=(60, 200)), boxes[:60], rng.normal(size=(20, 200)), boxes[60:], seed=0
    )
    assert blind.mean() < 0.6


def test_matches_in_pieces_equal_one_call() -> None:
    torch.manual_seed(0)
    n, side = 19, 4
    views = [torch.randn(n, 3 * side * side) for _ in range(2)]
    low = torch.rand(2, n, 2) * 30
    boxes = torch.cat([low, low + 20 + torch.rand(2, n, 2) * 30], dim=2)
    batch = ViewBatch(torch.empty(0), boxes, torch.empty(0), torch.empty(0), torch.arange(n), None)
    rows = matches(views, batch, side)
    whole = match(*(v.unflatten(1, (3, side, side)) for v in views), boxes)
    np.testing.assert_allclose(rows["found"], whole.features)
    np.testing.assert_allclose(rows["chance"], whole.chance)
    np.testing.assert_array_equal(rows["cells"], whole.cells)
    assert rows["iou"].shape == (n,)
