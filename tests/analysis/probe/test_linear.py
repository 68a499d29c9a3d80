"""Logistic regression against Newton's method, its gradient against autograd; the choice of a penalty; SGD by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.analysis.probe import linear
from hetcl.analysis.probe.linear import (
    LinearTask,
    Standardised,
    fit,
    logistic_regression,
    objective,
    rank_of,
    scale_of,
)
from hetcl.types import ViewBatch
from tests.reference import probe as slow

DRAWS = itertools.count()
"""Keys of the draws that a test makes: other ones each time, the same ones in each run of the test."""


@pytest.fixture(autouse=True)
def draws_from_the_start() -> None:
    global DRAWS
    DRAWS = itertools.count()


def made(n: int = 200, dim: int = 3, classes: int = 4, noise: float = 1.5, *, seed: Any = None) -> Any:
    """Features of very different scales and labels that they tell in part."""
    rng = np.random.default_rng(next(DRAWS) if seed is None else seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(9).normal(size=(classes, dim))
    scale = np.logspace(-2, 2, dim)
    return ((centres[labels] + noise * rng.normal(size=(n, dim))) * scale + 5).astype(np.float32), labels


def standardised(x: np.ndarray, y: np.ndarray, classes: int, **more: Any) -> Standardised:
    return Standardised([(x, y)], *scale_of([(x, y)]), classes=classes, dtype=torch.float64, **more)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_the_optimum_is_that_of_newtons_method(penalty: float) -> None:
    x, y = made()
    found = fit(standardised(x, y, 4), classes=4, dim=3, penalty=penalty, tolerance=1e-9)
    z = (x - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)
    np.testing.assert_allclose(found.numpy(), slow.logistic(z, y, 4, penalty), atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6), blocks=st.integers(1, 5), penalty=st.floats(0, 10), logits=st.integers(1, 90)
)
def test_value_and_gradient_are_those_of_autograd(
    seed: int, blocks: int, penalty: float, logits: int
) -> None:
    x, y = made(60, seed=seed)
    cut = list(zip(np.array_split(x, blocks), np.array_split(y, blocks), strict=True))
    mean, std = scale_of(cut)
    before = linear.LOGITS
    linear.LOGITS = logits
    try:
        data = Standardised(cut, mean, std, classes=4, dtype=torch.float64)
        theta = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 4))).requires_grad_()
        value, gradient = objective(theta.detach(), data, penalty)
    finally:
        linear.LOGITS = before
    z = torch.from_numpy((x - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64))
    loss = F.cross_entropy(z @ theta[:, :-1].T + theta[:, -1], torch.from_numpy(y))
    loss = loss + penalty / 2 * theta[:, :-1].square().sum()
    loss.backward()
    assert value == pytest.approx(loss.item())
    torch.testing.assert_close(gradient, theta.grad)


def test_in_fp32_the_gradient_is_near_zero_too() -> None:
    x, y = made(400, dim=12)
    data = Standardised([(x, y)], *scale_of([(x, y)]), classes=4)
    theta = fit(data, classes=4, dim=12, penalty=1e-3)
    assert float(objective(theta, data, 1e-3)[1].abs().max()) < 1e-4


def test_features_too_many_to_keep_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = made(100)
    chosen = np.random.default_rng(next(DRAWS)).random(100) < 0.5
    cut = [(x[:30], y[:30]), (x[30:31], y[30:31]), (x[31:], y[31:])]
    mean, std = scale_of(cut)
    kept = Standardised(cut, mean, std, classes=4, chosen=chosen)
    monkeypatch.setattr(linear, "KEEP", 0)
    streamed = Standardised(cut, mean, std, classes=4, chosen=chosen)
    assert (kept._kept is None, streamed._kept is None) == (False, True)
    for _ in range(2):
        for a, b in zip(kept, streamed, strict=True):
            assert all(map(torch.equal, a, b))
    assert torch.cat([labels for _, labels in streamed]).tolist() == y[chosen].tolist()


def test_a_constant_feature_and_a_class_without_images_do_no_harm() -> None:
    x, y = made(80, classes=3, noise=0.5)
    x = np.concatenate([x, np.full((80, 1), 7.0, np.float32)], axis=1)
    found = logistic_regression([(x, y)], [(x, y)], classes=5, seed=0)
    assert (found.ranks == 1).mean() > 0.5
    assert found.ranks.max() <= 5


def test_the_penalty_is_chosen_on_images_held_out() -> None:
    """Labels that features tell exactly want a small one, noise in many dimensions a large one."""
    rng = np.random.default_rng(0)
    x, y = made(300, dim=4, noise=0.05)
    plain = logistic_regression([(x, y)], [(x, y)], classes=4, seed=0)
    assert (plain.ranks == 1).all()
    signal, truth = made(1000, dim=4, noise=1.0, seed=3)
    noisy = np.concatenate([signal, rng.normal(size=(1000, 400))], axis=1)
    noisy = noisy.astype(np.float32)
    found = logistic_regression([(noisy, truth)], [(noisy, truth)], classes=4, seed=0)
    assert found.penalty >= 1e-3
    assert found.tried[found.penalty] == max(found.tried.values())
    assert list(found.tried) == sorted(found.tried, reverse=True)


def test_too_few_images_to_choose_a_penalty() -> None:
    x, y = made(20)
    found = logistic_regression([(x, y)], [(x, y)], classes=4, seed=0)
    assert (found.penalty, found.tried) == (linear.USUAL, {})


def test_the_same_key_gives_the_same_answer_and_blocks_do_not_matter() -> None:
    x, y = made(300, dim=6)
    cut = list(zip(np.array_split(x, 4), np.array_split(y, 4), strict=True))
    one, two, three = (logistic_regression(b, [(x, y)], classes=4, seed=5) for b in ([(x, y)], [(x, y)], cut))
    assert one.ranks.tolist() == two.ranks.tolist()
    assert one.penalty == three.penalty
    assert (one.ranks == three.ranks).mean() > 0.98


def test_it_can_be_interrupted() -> None:
    x, y = made()
    calls = []

    def interrupt() -> None:
        calls.append(0)
        if len(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        logistic_regression([(x, y)], [(x, y)], classes=4, seed=0, interrupt=interrupt)
    assert len(calls) == 7


def test_ranks_count_ties_against_and_never_take_nan_for_right() -> None:
    logits = torch.tensor([[1.0, 3, 2], [2.0, 2, 0], [0.0, 1, 2], [float("nan")] * 3])
    assert rank_of(logits, torch.tensor([1, 0, -1, 2])).tolist() == [1, 2, 4, 3]


# ---- the MoCo recipe -------------------------------------------------------------------------------------------------


class Views:
    """Batches of one-pixel images, with labels, in place of a loader."""

    steps_per_epoch = 4

    def __init__(self) -> None:
        rng = np.random.default_rng(next(DRAWS))
        self.x = [rng.integers(0, 256, (6, 3)).astype(np.uint8) for _ in range(4)]
        self.y = [rng.integers(0, 5, 6) for _ in range(4)]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ViewBatch]:
        for x, y in list(zip(self.x, self.y, strict=True))[start:]:
            empty = torch.zeros(0)
            images = torch.from_numpy(x)[None, :, :, None, None]
            yield ViewBatch(images, empty, empty, torch.zeros(1, 6, 11), torch.arange(6), torch.from_numpy(y))

    def close(self) -> None: ...


def test_sgd_equals_the_recipe_by_hand() -> None:
    views = Views()
    test = [(np.random.default_rng(next(DRAWS)).random((9, 3), np.float32), np.arange(9) % 5)]
    task = LinearTask(
        lambda images, _: images.flatten(1).float() / 255,
        dim=3, classes=5, loader=views, test=test, epochs=2, batch=6, seed=3, lr=0.7, device=torch.device("cpu"),
    )  # type: ignore[arg-type] # fmt: skip
    weight, bias = (p.detach().numpy().copy() for p in task.fc.parameters())
    assert not bias.any()
    assert 0.002 < weight.std() < 0.03
    rates = [0.7, 0.7, 0.07, 0.07]
    for step, (batch, rate) in enumerate(zip(task.batches(0, 0), rates, strict=True)):
        for group in task.optimizer.param_groups:
            group["lr"] = rate
        values = task.step(batch, step)
        assert set(values) == {"loss", "accuracy"}
    hand = slow.sgd([x / 255 for x in views.x], views.y, weight, bias, rates)
    for found, wanted in zip(task.fc.parameters(), hand, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-5)
    logits = test[0][0] @ hand[0].T + hand[1]
    right = (logits.argmax(axis=1) == test[0][1]).mean()
    assert task.evaluate(1)["top1"] == pytest.approx(right)
    assert set(task.state_dict()) == {"fc", "optimizer"}
