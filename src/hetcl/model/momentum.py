"""The query and key pair: momentum update, shuffled keys, batch norm over groups and ranks.

One permutation of the whole (global) batch, a function of (seed, stage, step), serves every layout: on R ranks,
rank r encodes slice r of the permuted batch; on one device with G groups, group g is slice g, normalised apart.
So one device with G groups computes what G ranks compute. Shapes: B local batch, G groups (``hetcl/types.py``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hetcl.draws import seed_of
from hetcl.types import Parts


class GroupBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises each of ``groups`` contiguous slices of the batch by itself.

    Weights, buffers and state keys are those of ``nn.BatchNorm2d``. Running statistics move by the mean over the
    groups of what each group saw. NOTE(paper): the official code keeps the first GPU's statistics only; with
    ``groups=1`` this is plain batch norm and equals it.
    """

    groups: int = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.groups == 1:
            return super().forward(x)
        if len(x) % self.groups:
            raise ValueError(f"a batch of {len(x)} does not split into {self.groups} batch-norm groups")
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        out, means, variances = [], [], []
        for part in x.chunk(self.groups):
            mean, variance = self.running_mean, self.running_var
            if mean is not None and variance is not None:
                mean, variance = mean.clone(), variance.clone()
                means.append(mean)
                variances.append(variance)
            momentum = 0.1 if self.momentum is None else self.momentum
            out.append(F.batch_norm(part, mean, variance, self.weight, self.bias, True, momentum, self.eps))
        if means and self.running_mean is not None and self.running_var is not None:
            self.running_mean.copy_(torch.stack(means).mean(0))
            self.running_var.copy_(torch.stack(variances).mean(0))
        return torch.cat(out)


def group_batch_norm(module: nn.Module, groups: int) -> nn.Module:
    """Turn every ``nn.BatchNorm2d`` inside ``module`` into batch norm over ``groups`` slices, in place."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d) and not isinstance(child, nn.SyncBatchNorm):
            if type(child) is nn.BatchNorm2d:
                child.__class__ = GroupBatchNorm2d
            if isinstance(child, GroupBatchNorm2d):
                child.groups = groups
    return module


def world() -> tuple[int, int]:
    """(rank, number of ranks)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


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
    """Make batch-norm statistics the mean over ranks (before saving or evaluating; the update is linear, so exact)."""
    ranks = world()[1]
    if ranks == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= ranks


@contextmanager
def _bn_momentum(modules: Iterable[nn.Module], part: int, parts: int) -> Iterator[None]:
    """Batch-norm momentum for micro-batch ``part`` of ``parts`` such that all of them together move the running
    statistics as one batch with ``parts`` times the groups would: by the mean of what they saw."""
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d) and m.momentum is not None]
    saved = [n.momentum for n in norms]
    for norm, m in zip(norms, saved, strict=True):
        assert m is not None
        norm.momentum = (m / parts) / (1 - (parts - 1 - part) * m / parts)
    try:
        yield
    finally:
        for norm, m in zip(norms, saved, strict=True):
            norm.momentum = m


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
        """One momentum update; call it after the query pass and before the key pass."""
        keys, queries = list(self.key.parameters()), list(self.query.parameters())
        torch._foreach_mul_(keys, self.momentum)
        torch._foreach_add_(keys, queries, alpha=1 - self.momentum)

    @torch.no_grad()
    def encode_keys(self, images: Tensor, shuffle: Tensor, *, chunks: int = 1) -> Parts:
        """Keys of this rank's ``images [B, 3, H, W]``, encoded after the shuffle and put back in order.

        Args:
            shuffle: permutation of the global batch ``[R * B]`` (:func:`shuffle_of`), the same on every rank.
            chunks: encode in that many pieces, one after the other (gradient accumulation); each must hold whole
                groups. The result and the statistics do not depend on it.
        """
        rank, ranks = world()
        size = len(images)
        everything = gather(images)
        mine = shuffle[rank * size : (rank + 1) * size].to(images.device)
        shuffled = everything[mine]
        pieces = []
        for i, piece in enumerate(shuffled.chunk(chunks)):
            with self.micro_batch(self.key, i, chunks):
                pieces.append(self.key(piece))
        place = torch.argsort(shuffle)[rank * size : (rank + 1) * size].to(images.device)
        return {name: gather(torch.cat([p[name] for p in pieces]))[place] for name in pieces[0]}

    @contextmanager
    def micro_batch(self, encoder: nn.Module, part: int, parts: int) -> Iterator[None]:
        """Inside, ``encoder`` takes micro-batch ``part`` of ``parts``: fewer groups, the same total effect."""
        if parts == 1:
            yield
            return
        norms = [m for m in encoder.modules() if isinstance(m, GroupBatchNorm2d)]
        for norm in norms:
            norm.groups = max(1, self.groups // parts)
        try:
            with _bn_momentum(norms, part, parts):
                yield
        finally:
            for norm in norms:
                norm.groups = self.groups
