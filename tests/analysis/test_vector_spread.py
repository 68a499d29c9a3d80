"""Alignment, uniformity, effective rank against loops and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hetcl.analysis.vector_spread import alignment, effective_rank, uniformity


def unit(n: int, d: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


def test_alignment_and_uniformity_equal_loops() -> None:
    q, k = unit(17, 5), unit(17, 5, seed=1)
    slow = np.mean(
        [
            sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
            for x, y in zip(q.tolist(), k.tolist(), strict=True)
        ]
    )
    assert float(alignment(q, k)) == pytest.approx(slow)
    pairs = [
        np.exp(-2 * sum((a - b) ** 2 for a, b in zip(q[i].tolist(), q[j].tolist(), strict=True)))
        for i in range(17)
        for j in range(17)
        if i != j
    ]
    assert float(uniformity(q)) == pytest.approx(np.log(np.mean(pairs)))


def test_uniformity_of_equal_vectors_is_zero() -> None:
    assert float(uniformity(unit(1, 4).expand(9, 4))) == pytest.approx(0)
    assert float(uniformity(unit(1, 4))) == 0


@pytest.mark.parametrize(
    ("variances", "rank"),
    [
        ([1, 1, 1, 1], 4),
        ([5, 0, 0], 1),
        ([0, 0], 0),
        ([4, 1], np.exp(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)))),
    ],
)
def test_effective_rank(variances: list[float], rank: float) -> None:
    assert effective_rank(np.array(variances, float)) == pytest.approx(rank)
