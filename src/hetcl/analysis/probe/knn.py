"""Classification by the nearest neighbours of frozen features, for several k in one pass over the bank.

Shapes: M queries, N images of the bank, D dimensions, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hetcl.errors import WorkFailed

Block = tuple[Any, Any]
"""Features ``[b, D]`` and labels ``[b]`` of some images, as tensors or numpy arrays."""

ROWS = 1024
"""Queries compared at a time, with at most that many images of the bank times 16."""


@torch.no_grad()
def knn_labels(
    bank: Iterable[Block],
    queries: Sequence[Block],
    *,
    ks: Sequence[int],
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> dict[int, Tensor]:
    """For each k: the label that wins the vote of the k nearest images of the bank, for each query.

    Cosine similarity; a neighbour votes with exp(cosine / temperature) (Wu et al. 2018). Of images exactly as
    similar the earlier in the bank is nearer; of labels with equal votes the smaller wins; a k above N is N. The bank
    is read once; besides it and the queries, memory holds M x k neighbours and some 64 MB.

    Args:
        bank, queries: as many blocks as one likes; the labels are numbers from 0; those of queries are not looked at.

    Returns:
        ``{k: int64 [M]}`` on the host, M in the order of the blocks.

    Raises:
        WorkFailed: a feature is not finite.
        ValueError: nothing in the bank, or a k below 1.
    """
    if min(ks, default=0) < 1:
        raise ValueError(f"the numbers of neighbours must be whole numbers from 1, not {list(ks)}")
    pieces = [piece for block in queries for piece in _pieces(block, ROWS)]
    nearest: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(pieces)
    largest, total = -1, 0
    for block in bank:
        for piece in _pieces(block, 16 * ROWS):
            keys, labels = _unit(piece[0], device, "training"), torch.as_tensor(piece[1]).to(device)
            total += len(labels)
            largest = max(largest, int(labels.max()))
            for i, (rows, _) in enumerate(pieces):
                new = _top(_unit(rows, device, "test"), keys, labels, max(ks))
                nearest[i] = new if not nearest[i][0].numel() else _merge(nearest[i], new, max(ks))
    if not total:
        raise ValueError("no images to vote")
    found: dict[int, list[Tensor]] = {k: [torch.zeros(0, dtype=torch.int64)] for k in ks}
    for cosine, voter in nearest:
        for k, winner in _winners(cosine, voter, ks, largest + 1, temperature).items():
            found[k].append(winner.cpu())
    return {k: torch.cat(winners) for k, winners in found.items()}


def knn_hits(bank: Iterable[Block], queries: Sequence[Block], **options: Any) -> dict[int, Tensor]:
    """For each k: whether the label of each query wins (:func:`knn_labels`): bool ``[M]``; a label of -1 never does."""
    truth = torch.cat(
        [torch.zeros(0, dtype=torch.int64), *(torch.as_tensor(labels) for _, labels in queries)]
    )
    return {k: winners == truth for k, winners in knn_labels(bank, queries, **options).items()}


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of ``queries [M, D]`` that :func:`knn_hits` finds right in ``bank [N, D]``. CPU-GPU sync point."""
    hits = knn_hits(
        [(bank, bank_labels)], [(queries, labels.cpu())], ks=[k], temperature=temperature, device=bank.device
    )
    return float(hits[k].double().mean())


def _pieces(block: Block, size: int) -> list[Block]:
    features, labels = block
    return [(features[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size)]


def _unit(features: Any, device: torch.device | str, which: str) -> Tensor:
    """Rows of unit length on the device. Raises ``WorkFailed`` where they are not finite."""
    x = torch.as_tensor(np.array(features) if isinstance(features, np.ndarray) else features).to(device)
    bad = int((~x.isfinite()).any(dim=1).sum())
    if bad:
        raise WorkFailed(
            f"the features of {bad} of {len(x)} {which} images are not finite (NaN or infinite): "
            "the weights are broken" + (", or bf16 is too coarse for them" if x.is_cuda else "")
        )
    return F.normalize(x, dim=1)


def _top(rows: Tensor, keys: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine and label of the k most similar keys, ``[r, min(k, b)]``: the nearest first, of equals the earlier."""
    similarity = rows @ keys.t()  # [r, b]
    k = min(k, len(keys))
    cosine, place = similarity.topk(min(k + 1, len(keys)), dim=1)
    if len(keys) > k:  # which of several equals made it to place k is topk's whim
        tied = (cosine[:, k] == cosine[:, k - 1]).nonzero()[:, 0]
        cosine, place = cosine[:, :k], place[:, :k].contiguous()
        place[tied] = similarity[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    place = place.sort(dim=1).values
    cosine, order = similarity.gather(1, place).sort(dim=1, descending=True, stable=True)
    return cosine, labels[place.gather(1, order)]


def _merge(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of both; the old ones stand earlier in the bank."""
    cosine, order = torch.cat([old[0], new[0]], dim=1).sort(dim=1, descending=True, stable=True)
    return cosine[:, :k], torch.cat([old[1], new[1]], dim=1).gather(1, order[:, :k])


def _winners(
    cosine: Tensor, voter: Tensor, ks: Sequence[int], classes: int, temperature: float
) -> dict[int, Tensor]:
    """For each k the label with the most votes: int64 ``[r]``. Votes only grow with k, so each is cast once."""
    weight = ((cosine - 1) / temperature).exp()
    out: dict[int, list[Tensor]] = {k: [] for k in ks}
    step = max(1, (1 << 24) // classes)
    for w, v in zip(weight.split(step), voter.split(step), strict=True):
        votes = torch.zeros(len(w), classes, dtype=w.dtype, device=w.device)
        cast = 0
        for k in sorted(ks):
            votes.scatter_add_(1, v[:, cast:k], w[:, cast:k])
            cast = max(cast, k)
            out[k].append(votes.argmax(dim=1))
    return {k: torch.cat(winners) for k, winners in out.items()}
