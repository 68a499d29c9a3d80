"""PCA part by part: equal to numpy's SVD, whole or in chunks; what cannot be projected is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.analysis.contrast import pca
from hetcl.analysis.contrast.pca import CannotProject

DIMS = {"semantic": 7, "spatial": 5}


def keys(n: int = 40, seed: int = 0) -> np.ndarray:
    """Correlated float32 features ``[n, 12]`` away from the origin."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12)) + 3).astype(np.float32)


def by_svd(x: np.ndarray, part: slice, kept: int) -> tuple[np.ndarray, float]:
    """Projected rows of unit length, and the share of the variance kept, from numpy's SVD of the centred matrix."""
    centred = x[:, part].astype(np.float64) - x[:, part].astype(np.float64).mean(axis=0)
    _, s, v = np.linalg.svd(centred, full_matrices=False)
    y = centred @ v[:kept].T
    return y / np.linalg.norm(y, axis=1, keepdims=True), float((s[:kept] ** 2).sum() / (s**2).sum())


@pytest.mark.parametrize(
    ("total", "split", "kept"), [(6, 0.5, (3, 3)), (8, 0.25, (6, 2)), (4, 0.0, (4, 0)), (4, 1.0, (0, 4))]
)
def test_projected_similarities_and_variance_equal_numpys_svd(
    total: int, split: float, kept: tuple[int, int]
) -> None:
    x = keys()
    made = pca.fit([x], DIMS).projection(total, split=split)
    assert made.dims == {p: k for p, k in zip(DIMS, kept, strict=True) if k}
    y = made(torch.from_numpy(x)).double().numpy()
    similar = y @ y.T
    expected, start = np.zeros_like(similar), 0
    for (part, d), k in zip(DIMS.items(), kept, strict=True):
        if k:
            rows, share = by_svd(x, slice(start, start + d), k)
            expected += rows @ rows.T
            assert made.variance_kept is not None
            assert made.variance_kept[part] == pytest.approx(share, abs=1e-12)
        start += d
    np.testing.assert_allclose(similar, expected, atol=2e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(1, 39), max_size=4, unique=True))
def test_chunks_of_any_size_give_the_same_axes(seed: int, cuts: list[int]) -> None:
    x = keys(seed=seed)
    whole, pieces = pca.fit([x], DIMS), pca.fit(np.split(x, sorted(cuts)), DIMS)
    for part in DIMS:
        np.testing.assert_allclose(pieces.variances[part], whole.variances[part], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(pieces.axes[part], whole.axes[part], atol=1e-7)
        assert (
            np.abs(pieces.axes[part]).max(axis=0) == pieces.axes[part].max(axis=0)
        ).all()  # signs are settled


def test_far_from_the_origin_nothing_is_lost() -> None:
    x = keys().astype(np.float64) * 1e-3 + 1e4
    values = pca.fit([x], DIMS).variances["semantic"]
    s = np.linalg.svd(x[:, :7] - x[:, :7].mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(values, s**2 / len(x), rtol=1e-5)


def test_full_and_alone_leave_numbers_as_they_are() -> None:
    x = torch.from_numpy(keys())
    assert torch.equal(pca.full(DIMS)(x), x)
    assert torch.equal(pca.alone(DIMS, "spatial")(x), x[:, 7:])
    assert pca.alone(DIMS, "spatial").dims == {"spatial": 5}


def test_what_cannot_be_projected_is_said() -> None:
    with pytest.raises(CannotProject, match="6 dimensions asked of the spatial part, which has 5"):
        pca.fit([keys()], DIMS).projection(12)
    with pytest.raises(CannotProject, match="needs more than 3 images, not 3"):
        pca.fit([keys(3)], DIMS).projection(6)
    constant = keys()
    constant[:, 7:] = 0.25
    with pytest.raises(CannotProject, match="spatial part has no variance"):
        pca.fit([constant], DIMS).projection(4)
    assert pca.fit([constant], DIMS).projection(4, split=0).dims == {"semantic": 4}


def test_odd_totals_go_to_both_and_one_part_gets_all() -> None:
    assert sum(pca.fit([keys()], DIMS).projection(5).dims.values()) == 5
    assert pca.fit([keys()], {"pooled": 12}).projection(5).dims == {"pooled": 5}
