"""The query and key pair: momentum update, shuffled keys, statistics over ranks.

One permutation of the whole (global) batch, a function of (seed, stage, step), serves every layout: on R
ranks, rank r encodes slice r of the permuted batch; on one device with G groups, group g is slice g,
normalised apart. So one device with G groups computes what G ranks compute. Shapes: B local batch, G groups
(``hetcl/types.py``).
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hetcl.draws import seed_of
from hetcl.errors import InputError
from hetcl.model.group_norm import group_batch_norm, micro_batch
from hetcl.ranks import world
from hetcl.types import Parts


def gather(x: Tensor) -> Tensor:
    """``[B, ...]`` of every rank, in order of rank: ``[R * B, ...]``. No gradient."""
    ranks = world()[1]
    if ranks == 1:
        return x
    x = x.contiguous()
    out = [torch.empty_like(x) for _ in range(ranks)]
    dist.all_gather(out, x)
    return torch.cat(out)


def shuffle_of(size: int, *key: int | str) -> Tensor:
    """The permutation of a global batch of ``size``, int64 ``[size]`` on the host, a function of ``key``."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed_of("shuffle", *key)))


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Make batch-norm statistics the mean over ranks, before saving or evaluating (updates are linear).

    The ranks must not have copied statistics from each other before (DDP with ``broadcast_buffers=False``).
    """
    ranks = world()[1]
    if ranks == 1:
        return
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            for statistic in (norm.running_mean, norm.running_var):
                if statistic is not None:
                    dist.all_reduce(statistic)
                    statistic /= ranks


class MomentumPair(nn.Module):
    """A query encoder and the key encoder that follows it (MoCo section 3.2).

    Args:
        query: any module ``images -> Parts``; the key encoder starts as its copy.
        momentum: m in ``key = m * key + (1 - m) * query``, on parameters only (not on batch-norm statistics).
        groups: batch-norm groups of this process's batch (global groups / ranks).
    """

    def __init__(self, query: nn.Module, *, momentum: float = 0.999, groups: int = 1) -> None:
        super().__init__()
        self.query = group_batch_norm(query, groups)
        self.key = copy.deepcopy(self.query)
        self.key.requires_grad_(False)
        self.momentum, self.groups = momentum, groups

    @torch.no_grad()
    def update_key(self) -> None:
        """One momentum update; call it before the key pass and before the optimiser's step."""
        keys: list[Tensor] = [*self.key.parameters()]
        queries: list[Tensor] = [*self.query.parameters()]
        torch._foreach_mul_(keys, self.momentum)
        torch._foreach_add_(keys, queries, alpha=1 - self.momentum)

    @torch.no_grad()
    def encode_keys(self, images: Tensor, shuffle: Tensor, *, chunks: int = 1) -> Parts:
        """Keys of this rank's ``images [B, 3, H, W]``, encoded after the shuffle and put back in order.

        Args:
            shuffle: permutation of the global batch ``[R * B]`` (:func:`shuffle_of`), the same on every rank.
            chunks: encode in that many pieces, one after the other (gradient accumulation); each must hold
                whole groups. The result and the statistics do not depend on it.
        """
        rank, ranks = world()
        size = len(images)
        if len(shuffle) != ranks * size:
            raise ValueError(f"a shuffle of {len(shuffle)} for a global batch of {ranks} x {size}")
        if size % chunks:
            raise InputError(
                f"a batch of {size} does not split into {chunks} micro-batches: make it a multiple"
            )
        mine = slice(rank * size, (rank + 1) * size)
        shuffled = gather(images)[shuffle[mine].to(images.device, non_blocking=True)]
        if images.is_contiguous(memory_format=torch.channels_last):
            shuffled = shuffled.contiguous(memory_format=torch.channels_last)
        pieces = []
        for i, piece in enumerate(shuffled.chunk(chunks)):
            with self.micro_batch(self.key, i, chunks):
                pieces.append(self.key(piece))
        place = torch.argsort(shuffle)[mine].to(images.device, non_blocking=True)
        return {name: gather(torch.cat([p[name] for p in pieces]))[place] for name in pieces[0]}

    def micro_batch(self, encoder: nn.Module, part: int, parts: int) -> AbstractContextManager[None]:
        """See :func:`micro_batch`, with this pair's groups."""
        return micro_batch(encoder, self.groups, part, parts)
