"""Probes the slow and obvious way: kNN by a double loop, logistic regression by Newton's method, SGD by hand.

All in float64 numpy.
"""

from __future__ import annotations

import numpy as np


def knn_hits(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    k: int,
    temperature: float,
) -> list[bool]:
    """One query after the other: sort the bank by cosine (of equals the earlier first), let k vote."""
    hits = []
    for query, truth in zip(queries.astype(np.float64), labels, strict=True):
        cosines = []
        for place, key in enumerate(bank.astype(np.float64)):
            length = np.linalg.norm(query) * np.linalg.norm(key)
            cosines.append((-(query @ key) / length if length else 0.0, place))
        votes = np.zeros(int(bank_labels.max()) + 1)
        for negative, place in sorted(cosines)[:k]:
            votes[bank_labels[place]] += np.exp(-negative / temperature)
        hits.append(bool(votes.argmax() == truth))
    return hits


def logistic(x: np.ndarray, y: np.ndarray, classes: int, penalty: float, steps: int = 100) -> np.ndarray:
    """Minimise mean cross-entropy + penalty / 2 |weights|^2 by damped Newton steps: ``[C, D + 1]``, bias last."""
    n, d = x.shape
    x = np.concatenate([x, np.ones((n, 1))], axis=1)
    theta = np.zeros((classes, d + 1))
    ridge = np.diag(np.tile([penalty] * d + [0.0], classes))

    def value(theta: np.ndarray) -> float:
        logits = x @ theta.T
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return float(-log_p[np.arange(n), y].mean() + penalty / 2 * (theta[:, :-1] ** 2).sum())

    for _ in range(steps):
        p = np.exp(x @ theta.T - (x @ theta.T).max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradient = ((p - np.eye(classes)[y]).T @ x / n).ravel() + ridge @ theta.ravel()
        hessian = ridge.copy()
        for row, q in zip(x, p, strict=True):
            hessian += np.kron(np.diag(q) - np.outer(q, q), np.outer(row, row)) / n
        # All biases may move together without a change: the pseudo-inverse leaves that direction alone.
        move = (np.linalg.pinv(hessian, rcond=1e-10) @ gradient).reshape(theta.shape)
        size = 1.0
        while size > 1e-10 and value(theta - size * move) > value(theta):
            size /= 2
        theta = theta - size * move
        if np.abs(gradient).max() < 1e-9:
            break
    return theta


def sgd(
    x: list[np.ndarray], y: list[np.ndarray], weight: np.ndarray, bias: np.ndarray, rates: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression by SGD with momentum 0.9, one batch after the other, from some weights ``[C, D]``."""
    weight, bias = weight.astype(np.float64), bias.astype(np.float64)
    speed_w, speed_b = np.zeros_like(weight), np.zeros_like(bias)
    for features, labels, rate in zip(x, y, rates, strict=True):
        p = np.exp(features @ weight.T + bias)
        p /= p.sum(axis=1, keepdims=True)
        error = (p - np.eye(len(bias))[labels]) / len(labels)
        speed_w, speed_b = 0.9 * speed_w + error.T @ features, 0.9 * speed_b + error.sum(axis=0)
        weight, bias = weight - rate * speed_w, bias - rate * speed_b
    return weight, bias
