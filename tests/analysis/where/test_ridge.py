"""Ridge regression against normal equations solved by hand, narrow and wide; the choice of a penalty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.analysis.where import ridge as module
from hetcl.analysis.where.ridge import SHARES, folds_of, ridge


def by_hand(x: np.ndarray, y: np.ndarray, z: np.ndarray, share: float) -> np.ndarray:
    """The normal equations with an intercept column that is not penalised."""
    n, d = x.shape
    centred = x - x.mean(0)
    penalty = share * (centred**2).sum() / min(n, d)
    ones = np.hstack([x, np.ones((n, 1))])
    damped = ones.T @ ones + penalty * np.diag([1.0] * d + [0.0])
    return np.hstack([z, np.ones((len(z), 1))]) @ np.linalg.solve(damped, ones.T @ y)


def slowly(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, fold: np.ndarray
) -> tuple[np.ndarray, dict[float, float]]:
    tried = {}
    for share in SHARES:
        held = [
            y[fold == f] - by_hand(x[fold != f], y[fold != f], x[fold == f], share) for f in np.unique(fold)
        ]
        tried[share] = float(np.mean(np.concatenate(held) ** 2))
    best = min(tried, key=lambda s: tried[s])
    return by_hand(x, y, z, best), tried


@settings(max_examples=25)
@given(
    n=st.integers(6, 30),
    d=st.integers(1, 40),
    t=st.integers(1, 3),
    folds=st.integers(2, 3),
    seed=st.integers(0, 999),
)
def test_equals_the_normal_equations(n: int, d: int, t: int, folds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, z = rng.normal(3, 2, (n, d)), rng.normal(3, 2, (5, d))
    y = x @ rng.normal(0, 1, (d, t)) + rng.normal(5, 1, (n, t))
    fold = folds_of(n, seed=seed, folds=folds)
    predictions, tried = slowly(x, y, z, fold)
    found = ridge(x, y, z, fold=fold)
    assert found.tried == pytest.approx(tried, rel=1e-6, abs=1e-9)
    if sorted(tried.values())[1] > min(tried.values()) * (1 + 1e-6):  # else either penalty may be taken
        np.testing.assert_allclose(found.predictions, predictions, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("d", [7, 50])
def test_pieces_change_nothing(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, y, z = rng.normal(size=(20, d)), rng.normal(size=(20, 2)), rng.normal(size=(9, d))
    whole = ridge(x, y, z, fold=folds_of(20, seed=0))
    monkeypatch.setattr(module, "BYTES", 8 * d * 3)
    np.testing.assert_allclose(
        ridge(x, y, z, fold=folds_of(20, seed=0)).predictions, whole.predictions, atol=1e-10
    )


def test_scale_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    x, y, z = rng.normal(size=(40, 6)), rng.normal(size=(40, 1)), rng.normal(size=(9, 6))
    a = ridge(x, y, z, fold=folds_of(40, seed=0))
    b = ridge(x * 1e4 + 7, y, z * 1e4 + 7, fold=folds_of(40, seed=0))
    np.testing.assert_allclose(a.predictions, b.predictions, atol=1e-6)


def test_features_that_are_all_equal_give_the_mean() -> None:
    y = np.array([[1.0], [2.0], [6.0]])
    for d in (2, 9):
        found = ridge(np.ones((3, d)), y, np.ones((2, d)), fold=np.zeros(3, int))
        np.testing.assert_allclose(found.predictions, [[3.0], [3.0]])


def test_not_finite() -> None:
    x = np.ones((4, 2))
    x[2, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        ridge(x, np.ones((4, 1)), x, fold=np.zeros(4, int))
    with pytest.raises(ValueError, match="two rows"):
        ridge(x[:1], np.ones((1, 1)), x, fold=np.zeros(1, int))


@given(n=st.integers(1, 50), folds=st.integers(1, 6))
def test_folds_are_equal(n: int, folds: int) -> None:
    sizes = np.bincount(folds_of(n, seed=3, folds=folds))
    assert len(sizes) == min(n, folds)
    assert sizes.max() - sizes.min() <= 1
