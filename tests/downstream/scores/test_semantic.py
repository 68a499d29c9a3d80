"""Pixels counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

from hetcl.downstream.scores import Confusion
from hetcl.errors import InputError

NAMES = ("sky", "road", "tree", "lake", "moon")


def images(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Moons are nowhere; lakes are in predictions alone; trees in truths alone; 255 in both."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(4):
        shape = rng.integers(5, 12, 2)
        truth = rng.choice([0, 1, 2, 255], shape, p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
        said = np.where(rng.random(shape) < 0.6, truth, rng.choice([0, 1, 3], shape)).astype(np.uint8)
        made.append((np.where(said == 2, 0, said).astype(np.uint8), truth))
    return made


def naive(made: list[tuple[np.ndarray, np.ndarray]]) -> tuple[dict[str, float], dict[str, float]]:
    counts = [[0] * 5 for _ in range(5)]
    for said, truth in made:
        for a, b in zip(truth.ravel().tolist(), said.ravel().tolist(), strict=True):
            if a != 255:
                counts[a][b] += 1
    ious, accuracies = {}, []
    for k, name in enumerate(NAMES):
        true, predicted = sum(counts[k]), sum(row[k] for row in counts)
        if true + predicted:
            ious[name] = 100 * counts[k][k] / (true + predicted - counts[k][k])
        if true:
            accuracies.append(100 * counts[k][k] / true)
    right, total = sum(counts[k][k] for k in range(5)), sum(map(sum, counts))
    figures = {
        "miou": sum(ious.values()) / len(ious),
        "pixel_accuracy": 100 * right / total,
        "mean_accuracy": sum(accuracies) / len(accuracies),
    }
    return figures, ious


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_equals_a_loop_over_pixels(seed: int, kind: type) -> None:
    made = images(seed)
    whole = Confusion(5)
    for said, truth in made:
        whole.add(said.astype(kind), truth)
    figures, ious = naive(made)
    outcome = whole.metrics(NAMES)
    assert whole.counts.dtype == np.int64
    assert outcome.figures == pytest.approx(figures, abs=1e-10)
    assert {name: outcome.per_class[name]["iou"] for name in ious} == pytest.approx(ious, abs=1e-10)
    assert ious["lake"] == 0
    assert np.isnan(outcome.per_class["moon"]["iou"])
    assert np.isnan(outcome.per_class["lake"]["accuracy"])


def test_parts_add_up() -> None:
    whole, first, second = Confusion(5), Confusion(5), Confusion(5)
    for place, (said, truth) in enumerate(images(9)):
        whole.add(said, truth)
        (second if place % 2 else first).add(said, truth)
    first.merge(second.counts)
    assert (first.counts == whole.counts).all()
    assert whole.counts.sum() > 0


def test_rows_are_truths() -> None:
    confusion = Confusion(3)
    confusion.add(np.array([[2, 2]]), np.array([[0, 1]], dtype=np.uint8))
    assert confusion.counts.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]


def test_nothing_counted_is_nan() -> None:
    confusion = Confusion(2)
    confusion.add(np.full((2, 2), 7), np.full((2, 2), 255, dtype=np.uint8))
    assert all(np.isnan(value) for value in confusion.metrics(("a", "b")).figures.values())


@pytest.mark.parametrize(
    ("said", "truth", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"\(2, 3\) pixels for a truth of \(3, 2\)"),
        (np.full((2, 2), 2), np.zeros((2, 2)), "prediction must be 0 to 1, not 2 to 2"),
        (np.full((2, 2), -1), np.zeros((2, 2)), "prediction must be 0 to 1, not -1 to -1"),
        (np.zeros((2, 2)), np.full((2, 2), 254), "truth must be 0 to 1, not 254 to 254"),
    ],
)
def test_what_does_not_fit_is_refused(said: np.ndarray, truth: np.ndarray, message: str) -> None:
    confusion = Confusion(2)
    with pytest.raises(InputError, match=message):
        confusion.add(said.astype(np.int64), truth.astype(np.uint8))
    assert not confusion.counts.any()


def test_counts_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be added"):
        Confusion(2).merge(np.zeros((3, 3), dtype=np.int64))
