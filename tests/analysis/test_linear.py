"""Logistic regression at its optimum, in chunks as whole; the penalty that is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hetcl.analysis import linear
from hetcl.analysis.linear import accuracy, choose_logistic, fit_logistic, hits_of


def made(
    n: int = 300, d: int = 8, classes: int = 4, seed: int = 0, noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    scale = np.linspace(0.1, 30, d)
    return ((centres[labels] + noise * rng.normal(size=(n, d))) * scale + 5).astype(np.float32), labels


@pytest.mark.parametrize("penalty", [0.1, 0.001])
def test_the_gradient_is_zero_at_the_solution(penalty: float) -> None:
    x, y = made()
    found = fit_logistic(x, y, classes=4, penalty=penalty)
    z = torch.from_numpy((x - x.mean(0)) / x.std(0)).double()
    w, b = (p.double().clone().requires_grad_() for p in (found.weight, found.bias))
    loss = F.cross_entropy(z @ w + b, torch.from_numpy(y)) + penalty / 2 * w.square().sum()
    gradients = torch.autograd.grad(loss, [w, b])
    assert max(float(g.abs().max()) for g in gradients) < 1e-4
    other = fit_logistic(x, y, classes=4, penalty=penalty, start=fit_logistic(x, y, classes=4, penalty=1.0))
    torch.testing.assert_close(other.weight, found.weight, atol=2e-3, rtol=1e-2)


def test_two_classes_equal_newtons_method() -> None:
    """The difference of the two columns is ordinary logistic regression with half the penalty."""
    x, y = made(classes=2, noise=2.0)
    z = np.c_[(x - x.mean(0)) / x.std(0), np.ones(len(x))].astype(np.float64)
    beta, penalty = np.zeros(9), 0.01
    ridge = np.diag([penalty / 2] * 8 + [1e-12])
    for _ in range(50):
        p = 1 / (1 + np.exp(-z @ beta))
        gradient = z.T @ (p - y) / len(y) + ridge @ beta
        beta -= np.linalg.solve((z.T * (p * (1 - p))) @ z / len(y) + ridge, gradient)
    found = fit_logistic(x, y, classes=2, penalty=penalty)
    np.testing.assert_allclose((found.weight[:, 1] - found.weight[:, 0]).numpy(), beta[:8], atol=2e-3)
    assert float(found.bias[1] - found.bias[0]) == pytest.approx(beta[8], abs=2e-3)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = made()
    whole = fit_logistic(x, y, classes=4, penalty=0.01)
    monkeypatch.setattr(linear, "CHUNK", 37)
    torch.testing.assert_close(
        fit_logistic(x, y, classes=4, penalty=0.01).weight, whole.weight, atol=2e-3, rtol=1e-2
    )


def test_it_learns_and_a_noisy_problem_asks_for_a_larger_penalty() -> None:
    x, y = made(noise=0.3)
    test = made(seed=1, noise=0.3)
    model = choose_logistic(x, y, classes=4, seed=0)
    assert accuracy(model, *test)[1] / len(test[1]) > 0.9
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 200)).astype(np.float32)
    assert choose_logistic(noise, rng.integers(0, 4, 60), classes=4, seed=0).penalty >= 1e-3


def test_a_constant_feature_does_no_harm() -> None:
    x, y = made()
    x[:, 3] = 7
    found = fit_logistic(x, y, classes=4, penalty=0.01)
    assert bool(found.weight.isfinite().all())
    assert accuracy(found, x, y)[1] > 200


def test_hits_with_few_classes() -> None:
    logits, labels = torch.tensor([[3.0, 1, 2], [0.0, 1, 2]]), torch.tensor([0, 0])
    found: dict[int, Any] = hits_of(logits, labels)
    assert (int(found[1]), int(found[5])) == (1, 2)
