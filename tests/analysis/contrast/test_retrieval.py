"""Retrieval equals a double loop, whatever the features; the gallery is what it is said to be; memory is bounded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hetcl.analysis import search
from hetcl.analysis.contrast.retrieval import Ranked, first_in_first_out, gallery_length, retrieve
from tests.reference import retrieval as reference

Make = Callable[[np.random.Generator, int, int], np.ndarray]


def unit(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return (x / np.where(length > 0, length, 1)).astype(np.float32)


KINDS: dict[str, Make] = {
    "random": lambda r, n, d: unit(r.normal(size=(n, d))),
    "collapsed": lambda r, n, d: unit(r.normal(size=d) + 1e-4 * r.normal(size=(n, d))),
    "nearly constant": lambda r, n, d: unit(r.normal(size=d) + 1e-7 * r.normal(size=(n, d))),
    "constant": lambda r, n, d: np.repeat(unit(r.normal(size=(1, d))), n, axis=0),
    "duplicates": lambda r, n, d: unit(r.normal(size=(3, d)))[r.integers(3, size=n)],
    "coarse": lambda r, n, d: r.integers(-1, 2, size=(n, d)).astype(np.float32),
    "zero": lambda r, n, d: np.zeros((n, d), np.float32),
    "huge": lambda r, n, d: (1e15 * r.normal(size=(n, d))).astype(np.float32),
    "tiny": lambda r, n, d: (1e-20 * r.normal(size=(n, d))).astype(np.float32),
    "mixed sizes": lambda r, n, d: (r.normal(size=(n, d)) * 10.0 ** r.integers(-2, 3, (n, 1))).astype(
        np.float32
    ),
}


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The precision that the search begins with."""
    start(request.param, monkeypatch)
    return request.param


def start(name: str, patch: pytest.MonkeyPatch) -> None:
    if name == "float64":
        patch.setattr(search, "LARGEST", -1.0)


def noisy(r: np.random.Generator, features: np.ndarray, noise: float) -> np.ndarray:
    spread = features.std(axis=0, dtype=np.float64) if noise else 0.0
    return (features + noise * spread * r.normal(size=features.shape)).astype(np.float32)


def ask(
    query: np.ndarray, key: np.ndarray, gallery: np.ndarray, index: np.ndarray, gallery_index: np.ndarray
) -> Ranked:
    q, k, g, i, j = (
        torch.from_numpy(np.ascontiguousarray(x)) for x in (query, key, gallery, index, gallery_index)
    )
    return retrieve(q, k, g, i, j)


def same(found: Ranked, expected: list[reference.Answer]) -> None:
    assert found.rank.tolist() == [a.rank for a in expected]
    assert found.image.tolist() == [a.image for a in expected]
    assert found.place.tolist() == [a.place for a in expected]
    for got, name in ((found.right, "right"), (found.wrong, "wrong")):
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), [getattr(a, name) for a in expected], rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    b=st.integers(1, 12),
    k=st.integers(1, 150),
    d=st.integers(1, 40),
    noise=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    name=st.sampled_from(["float32", "float64"]),
)
def test_equals_the_double_loop(
    kind: str, seed: int, b: int, k: int, d: int, noise: float, name: str
) -> None:
    r = np.random.default_rng(seed)
    features = KINDS[kind](r, b + k, d)
    query, key = features[:b], noisy(r, features[:b], noise)
    index, gallery_index = r.permutation(b + k)[:b], r.permutation(b + k)[:k]
    with pytest.MonkeyPatch.context() as patch:
        start(name, patch)
        found = ask(query, key, features[b:], index, gallery_index)
    same(found, [
        reference.answer(query[i], key[i], index[i], list(features[b:]), gallery_index.tolist()) for i in range(b)
    ])  # fmt: skip


@pytest.mark.parametrize("kind", ["random", "collapsed", "duplicates", "constant"])
def test_larger_galleries(kind: str, precision: str) -> None:
    """Several chunks and many groups, against plain float64 (where no two sums nearly tie unless they are equal)."""
    r = np.random.default_rng()
    b, k, d = 70, 3001, 24
    features = KINDS[kind](r, b + k, d)
    query, gallery, gallery_index = features[:b], features[b:], r.permutation(k)
    index = r.permutation(k)[:b]
    for noise in (0.1, 1.0, 100.0):
        key = noisy(r, query, noise) if kind not in ("duplicates", "constant") else query
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(search.BLOCK, "cpu", 1 << 18)
            found = ask(query, key, gallery, index, gallery_index)
        own = np.array([reference.similarity(*x) for x in zip(query, key, strict=True)])
        other = np.array([[reference.similarity(q, g) for g in gallery[:50]] for q in query])
        fast = (query.astype(np.float64)[:, None] * gallery.astype(np.float64)).sum(axis=2)
        np.testing.assert_allclose(fast[:, :50], other, rtol=0, atol=1e-14)
        tie = 1e-14
        fast[index[:, None] == gallery_index] = -np.inf
        assert found.rank.tolist() == (1 + (fast >= own[:, None] - tie).sum(axis=1)).tolist()
        first = (fast >= fast.max(axis=1, keepdims=True) - tie).argmax(axis=1)
        assert found.place.tolist() == first.tolist()
        assert found.image.tolist() == gallery_index[first].tolist()


def test_a_tie_of_duplicates_counts_against(precision: str) -> None:
    """The same image twice, anywhere: rank 2 and not a toss-up of two kernels' rounding."""
    r = np.random.default_rng()
    for d in (3, 128, 324):
        features = unit(r.normal(size=(500, d)))
        query = unit(features[:40] + 0.5 / np.sqrt(d) * r.normal(size=(40, d)))
        found = ask(query, features[:40], features[::-1].copy(), np.arange(40) + 1000, np.arange(500))
        alone = ask(query, features[:40], features[::-1].copy(), 499 - np.arange(40), np.arange(500))
        assert torch.equal(found.rank, alone.rank + 1)


def test_an_empty_gallery() -> None:
    x, where = torch.randn(9, 4), torch.arange(9)
    for gallery, index in ((x[:0], where[:0]), (x, where[:1].repeat(9))):  # or none but the query's own image
        none = retrieve(x[:1], x[:1], gallery, where[:1], index)
        assert none.rank.tolist() == [1]
        assert none.place.tolist() == none.image.tolist() == [-1]
        assert none.wrong.tolist() == [-float("inf")]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad: float) -> None:
    x = torch.randn(9, 4)
    y, where = x.clone(), torch.arange(9)
    y[6, 1] = y[7, 2] = bad
    with pytest.raises(ValueError, match="row 6 are not finite"):
        list(first_in_first_out(y.numpy(), x.numpy(), where.numpy(), dims={"all": 4}, gallery=2, batch=2))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 40),
    gallery=st.integers(1, 45),
    batch=st.integers(1, 45),
    kind=st.sampled_from(["random", "collapsed", "duplicates", "constant", "coarse"]),
)
def test_the_driver_equals_the_double_loop(seed: int, n: int, gallery: int, batch: int, kind: str) -> None:
    r = np.random.default_rng(seed)
    dims = {"semantic": 3, "spatial": 4}
    query, index = KINDS[kind](r, n, 7), r.permutation(10 * n)[:n]
    key = noisy(r, query, 0.5)
    results = list(first_in_first_out(query, key, index, dims=dims, gallery=gallery, batch=batch))
    assert [(s.start, s.stop) for s, _, _ in results] == [(i, min(i + batch, n)) for i in range(0, n, batch)]
    expected = reference.first_in_first_out(query, key, index, gallery, batch)
    row = {image: i for i, image in enumerate(index.tolist())}
    for rows, found, part in results:
        same(found, expected[rows])
        for i, f in zip(range(rows.start, rows.stop), found.image.tolist(), strict=True):
            for name, where in (("semantic", slice(0, 3)), ("spatial", slice(3, 7))):
                right = reference.similarity(query[i, where], key[i, where])
                wrong = reference.similarity(query[i, where], key[row[f], where]) if f >= 0 else -np.inf
                assert part.right[name][i - rows.start].item() == pytest.approx(right, rel=1e-6, abs=1e-30)
                assert part.wrong[name][i - rows.start].item() == pytest.approx(wrong, rel=1e-6, abs=1e-30)
    assert {found.rank.dtype for _, found, _ in results} == {torch.int64}


def join(results: Iterator) -> list[tuple]:
    names = ("rank", "place", "image", "right", "wrong")
    return [(s.start, s.stop, *(getattr(f, name).tolist() for name in names)) for s, f, _ in results]


@pytest.mark.parametrize(("n", "gallery", "batch"), [(1003, 200, 50), (1003, 60, 100), (300, 280, 50)])
def test_ranks_give_what_one_gives(n: int, gallery: int, batch: int) -> None:
    r = np.random.default_rng()
    query = unit(r.normal(size=(n // 2, 16)))[r.integers(n // 2, size=n)]  # some alike: ties are broken alike
    key, index = np.where(r.random((n, 1)) < 0.5, query, noisy(r, query, 1.0)), r.permutation(n)
    keywords = {"dims": {"all": 16}, "gallery": gallery, "batch": batch}
    whole = join(first_in_first_out(query, key, index, **keywords))
    cuts = [0, batch, 3 * batch, n]
    parts = [
        join(first_in_first_out(query, key, index, rows=rows, **keywords))
        for rows in itertools.pairwise(cuts)
    ]
    assert whole == list(itertools.chain(*parts))
    assert list(first_in_first_out(query, key, index, rows=(batch, batch), **keywords)) == []
    for rows in ((1, n), (0, n - 1), (0, n + batch), (-batch, n)):
        with pytest.raises(ValueError, match="not whole batches"):
            next(first_in_first_out(query, key, index, rows=rows, **keywords))


def test_projection() -> None:
    class Half:
        dims: ClassVar[dict[str, int]] = {"a": 2, "b": 3}

        def __call__(self, features: Tensor) -> Tensor:
            return features[:, [0, 1, 4, 5, 6]] * 2

    r = np.random.default_rng()
    query = unit(r.normal(size=(40, 8)))
    key, index = noisy(r, query, 1.0), np.arange(40)
    keywords = {"gallery": 10, "batch": 8}
    projected = list(first_in_first_out(query, key, index, dims={"all": 8}, project=Half(), **keywords))
    columns = [0, 1, 4, 5, 6]
    plain = first_in_first_out(query[:, columns] * 2, key[:, columns] * 2, index, dims=Half.dims, **keywords)
    assert join(iter(projected)) == join(plain)
    assert list(projected[0][2].right) == ["a", "b"]


def test_gallery_length() -> None:
    assert gallery_length(1000, 900, 100) == 900
    assert gallery_length(1000, 901, 100) == 999
    assert gallery_length(1000, 65536, 1) == 999
    assert (gallery_length(1, 5, 5), gallery_length(2, 5, 5), gallery_length(0, 5, 5)) == (0, 1, 0)
    with pytest.raises(ValueError, match="gallery"):
        gallery_length(10, 0, 5)


def ranks(query: np.ndarray, key: np.ndarray, gallery: int, batch: int) -> np.ndarray:
    n = len(query)
    results = first_in_first_out(
        query, key, np.arange(n), dims={"all": query.shape[1]}, gallery=gallery, batch=batch
    )
    return np.concatenate([f.rank.numpy() for _, f, _ in results])


def test_planted_identity_finds_everything_and_noise_finds_chance() -> None:
    r = np.random.default_rng()
    n, g = 6000, 9
    identity = unit(r.normal(size=(n, 32)))
    assert ranks(identity, identity, 1000, 64).max() == 1
    noise = ranks(unit(r.normal(size=(n, 8))), unit(r.normal(size=(n, 8))), g, 64)
    chance = 1 / (1 + g)
    bound = 5 * np.sqrt(chance * (1 - chance) / n)  # five standard deviations: fails once in two million runs
    assert abs((noise == 1).mean() - chance) < bound
    assert abs((noise <= 5).mean() - 5 * chance) < 5 * np.sqrt(0.25 / n)


def test_planted_position_scores_by_overlap() -> None:
    """Features that encode where the crop was, and nothing of the image: the nearer the crops, the better."""
    r = np.random.default_rng()
    n = 3000
    centre = r.random((n, 2))
    shift = 0.3 * r.random((n, 1)) * unit(r.normal(size=(n, 2)))
    overlap = np.prod(np.clip(0.4 - np.abs(shift), 0, None), axis=1)  # of two crops of side 0.4

    def encode(where: np.ndarray) -> np.ndarray:
        return unit(np.concatenate([where, 1.5 - (where**2).sum(axis=1, keepdims=True)], axis=1) + 0.01)

    rank = ranks(encode(centre), encode(centre + shift), 200, 100)
    order = np.argsort(overlap)
    accuracy = [(rank[part] <= 5).mean() for part in np.array_split(order, 4)]
    assert accuracy[-1] > accuracy[0] + 0.2
    assert accuracy == sorted(accuracy)


class Largest(TorchDispatchMode):
    """Remembers the most bytes that any operation has returned."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return out


@pytest.mark.parametrize("kind", ["random", "constant"])
@pytest.mark.parametrize("noise", [0.1, 100.0])
def test_no_temporary_is_larger_than_the_budget(
    kind: str, noise: float, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = np.random.default_rng()
    budget, k, b, d = 1 << 18, 2048, 600, 32
    monkeypatch.setitem(search.BLOCK, "cpu", budget)
    features = KINDS[kind](r, k, d)
    key = noisy(r, features[:b], noise)
    with Largest() as seen:
        ask(features[:b], key, features, np.arange(b), np.arange(k))
    assert budget / 2 <= seen.bytes <= max(budget, features.nbytes)  # the arguments themselves pass through
