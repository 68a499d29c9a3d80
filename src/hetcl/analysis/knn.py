"""kNN classification of frozen features. M queries, N of the bank, D dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 256
"""Queries compared with the bank at a time."""


@torch.no_grad()
def knn_accuracies(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int],
    temperature: float = 0.07,
) -> dict[int, float]:
    """For each k the share of ``queries [M, D]`` whose label wins the vote of their k nearest in ``bank [N, D]``.

    Cosine similarity; each neighbour votes with exp(cosine / temperature) (Wu et al. 2018). A k above N is N. CPU-GPU
    sync point.

    Raises:
        ValueError: a feature is not finite.
    """
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    if not bool(bank.isfinite().all() & queries.isfinite().all()):
        raise ValueError("features that are not finite have no neighbours")
    classes = int(max(bank_labels.max(), labels.max())) + 1
    right = dict.fromkeys(ks, 0)
    most = min(max(ks), len(bank))
    for rows, truth in zip(queries.split(CHUNK), labels.split(CHUNK), strict=True):
        cosine, nearest = (rows @ bank.t()).topk(most, dim=1)
        weight, voter = ((cosine - 1) / temperature).exp(), bank_labels[nearest]
        for k in right:
            votes = torch.zeros(len(rows), classes, dtype=cosine.dtype, device=cosine.device)
            votes.scatter_add_(1, voter[:, :k], weight[:, :k])
            right[k] += int((votes.argmax(dim=1) == truth).sum())
    return {k: n / len(labels) for k, n in right.items()}


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """:func:`knn_accuracies` for one k."""
    asked = {"ks": (k,), "temperature": temperature}
    return knn_accuracies(bank, bank_labels, queries, labels, **asked)[k]  # type: ignore[arg-type]
