"""kNN against a loop; several k from one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hetcl.analysis.knn import knn_accuracies, knn_accuracy


def made(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=g), torch.randint(0, 4, (n,), generator=g)


def slow(bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, labels: np.ndarray, k: int) -> float:
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    right = 0
    for q, truth in zip(queries, labels, strict=True):
        nearest = sorted(range(len(bank)), key=lambda i: -float(q @ bank[i]))[:k]
        votes: dict[int, float] = {}
        for i in nearest:
            votes[int(bank_labels[i])] = votes.get(int(bank_labels[i]), 0) + float(np.exp(q @ bank[i] / 0.07))
        right += max(votes, key=lambda c: votes[c]) == truth
    return right / len(labels)


def test_several_k_equal_a_loop() -> None:
    bank, queries = made(300, 0), made(290, 1)
    found = knn_accuracies(*bank, *queries, ks=(1, 5, 40, 1000))
    for k, value in found.items():
        assert value == pytest.approx(slow(*(x.numpy() for x in (*bank, *queries)), min(k, 300)))
    assert knn_accuracy(*bank, *queries, k=5) == found[5]


def test_what_is_not_finite_is_refused() -> None:
    bank, queries = made(9, 0), made(9, 1)
    bank[0][3, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        knn_accuracy(*bank, *queries)
