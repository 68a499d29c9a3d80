"""InfoNCE as a pure function: query, key and queue in, logits and loss out.

Shapes: B queries, D dimensions, K keys in the queue (``hetcl/types.py``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logits_of(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    index: Tensor | None = None,
    queue_index: Tensor | None = None,
) -> Tensor:
    """Inner products ``[q.k, q.queue]`` before the temperature, at least fp32.

    Args:
        query, key: ``[B, D]``, row i of both from one image.
        queue: ``[K, D]``.
        index: int64 ``[B]``, the image of each query; with ``queue_index`` int64 ``[K]`` keys of a query's own
            image are masked out (minus infinity): they are no negatives.

    Returns:
        ``[B, 1 + K]``; column 0 is the positive.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query, key, queue = query.to(dtype), key.to(dtype), queue.to(dtype)
        positive = (query * key).sum(dim=1, keepdim=True)
        negative = query @ queue.t()
    if index is not None and queue_index is not None:
        negative = negative.masked_fill(index[:, None] == queue_index[None, :], float("-inf"))
    return torch.cat([positive, negative], dim=1)


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    temperature: float,
    index: Tensor | None = None,
    queue_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits and loss of contrasting each query's own key against the queue (paper equation 1).

    Parts that are normalised one by one and concatenated make the inner product the sum of their cosines
    (paper section 3.3), so heterogeneous contrast needs no other formula.

    Args:
        query, key, queue, index, queue_index: as in :func:`logits_of`.
        temperature: divides the inner products.

    Returns:
        ``(logits [B, 1 + K], loss scalar)``: the mean cross-entropy with target 0, in at least fp32.
    """
    logits = logits_of(query, key, queue, index=index, queue_index=queue_index) / temperature
    target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return logits, F.cross_entropy(logits, target)


@torch.no_grad()
def top1(logits: Tensor) -> Tensor:
    """Share of rows whose positive (column 0) is above every other; ties count as failures. Scalar, no sync."""
    if logits.shape[1] < 2:
        return torch.ones((), device=logits.device)
    return (logits[:, 0] > logits[:, 1:].amax(dim=1)).float().mean()


@torch.no_grad()
def top1_in_batch(query: Tensor, key: Tensor, index: Tensor | None = None) -> Tensor:
    """Share of queries nearer to their own key than to every other key of the batch (chance 1/B). Scalar.

    Keys of one batch have one age, so this is the accuracy an encoder cannot fake by telling keys by age.
    """
    products = query.float() @ key.float().t()
    own = products.diagonal().clone()
    same = torch.eye(len(query), dtype=torch.bool, device=query.device)
    if index is not None:
        same = same | (index[:, None] == index[None, :])
    products = products.masked_fill(same, float("-inf"))
    return (own > products.amax(dim=1)).float().mean()
