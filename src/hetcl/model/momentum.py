"""The query and key pair: momentum update, shuffled keys, batch norm over groups and ranks.

One permutation of the whole (global) batch, a function of (seed, stage, step), serves every layout: on R
ranks, rank r encodes slice r of the permuted batch; on one device with G groups, group g is slice g,
normalised apart. So one device with G groups computes what G ranks compute. Shapes: B local batch, G groups
(``hetcl/types.py``).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, SupportsIndex

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from hetcl.draws import seed_of
from hetcl.errors import InputError
from hetcl.types import Parts


class OverGroups(_BatchNorm):
    """Mixed into a batch-norm class: in training, each of ``groups`` slices of the batch is normalised apart.

    The parent's own ``forward`` runs on one slice after the other (so whatever it adds, such as timm's
    activation, is kept), with a momentum per slice chosen so that the running statistics end where the mean
    over all slices of what each saw would take them: the same total weight for every slice. Weights, buffers
    and state keys are the parent's. NOTE(paper): the official code keeps the first GPU's statistics only;
    with ``groups=1`` this is plain batch norm and equals it.

    One whole batch may also come in ``parts`` micro-batches (gradient accumulation); ``groups`` then counts
    the slices of the micro-batch at hand, and ``part`` says which it is.
    """

    groups: int = 1
    part: int = 0
    parts: int = 1
    parent: type

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.groups * self.parts == 1:
            return super().forward(input)
        if len(input) % self.groups:
            raise InputError(
                f"a batch of {len(input)} does not split into {self.groups} batch-norm groups: "
                "make the batch a multiple of the groups"
            )
        kept, tracked = self.momentum, self.num_batches_tracked
        if tracked is not None and self.part == 0:
            tracked.add_(1)
        whole = kept
        if whole is None:  # cumulative average (this waits for the device, as PyTorch's own does)
            whole = 0.0 if tracked is None else 1.0 / float(tracked)
        slices = self.groups * self.parts
        out = []
        try:
            self.num_batches_tracked = None  # a whole batch counts once, not once a slice
            for g, piece in enumerate(input.chunk(self.groups)):
                later = slices - 1 - (self.part * self.groups + g)
                self.momentum = (whole / slices) / (1 - later * whole / slices)
                out.append(super().forward(piece))
        finally:
            self.momentum, self.num_batches_tracked = kept, tracked
        return torch.cat(out)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Copy and pickle by the parent's name: the class itself is made on the fly."""
        return _blank, (self.parent,), self.__dict__


@functools.cache
def grouped(norm: type) -> type:
    """The class ``norm`` over groups: ``nn.BatchNorm2d`` -> ``GroupBatchNorm2d``."""
    return type(f"Group{norm.__name__}", (OverGroups, norm), {"parent": norm, "__doc__": OverGroups.__doc__})


def _blank(norm: type) -> nn.Module:
    made: type[nn.Module] = grouped(norm)
    return made.__new__(made)


GroupBatchNorm2d = grouped(nn.BatchNorm2d)


def group_batch_norm(module: nn.Module, groups: int) -> nn.Module:
    """Turn every batch norm inside ``module`` (timm's, 1-D and 3-D too) into one over ``groups``, in place.

    Raises:
        InputError: a layer that looks at the whole batch in some other way, so that it cannot be split:
            synchronised batch norm, in-place activated batch norm, EvoNorm-B.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.SyncBatchNorm) or _normalises_batch_otherwise(child):
            raise InputError(
                f"{name or 'the model'} is a {type(child).__name__}, which cannot be split into groups: "
                "use plain batch norm (statistics shared over the batch would also leak the pairing)"
            )
        if isinstance(child, _BatchNorm):
            if not isinstance(child, OverGroups):
                kind: type = type(child)
                child.__class__ = grouped(kind)
            child.groups = groups  # type: ignore[assignment]
    return module


def _normalises_batch_otherwise(module: nn.Module) -> bool:
    """Running variance of its own, yet no batch norm that we know, nor instance norm or a frozen one."""
    known = isinstance(module, (_BatchNorm, _InstanceNorm)) or "Frozen" in type(module).__name__
    return not known and any("running_var" in name for name, _ in module.named_buffers(recurse=False))


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
        """One momentum update; call it after the query pass and before the key pass."""
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
        shuffled = gather(images)[shuffle[mine].to(images.device)]
        if images.is_contiguous(memory_format=torch.channels_last):
            shuffled = shuffled.contiguous(memory_format=torch.channels_last)
        pieces = []
        for i, piece in enumerate(shuffled.chunk(chunks)):
            with self.micro_batch(self.key, i, chunks):
                pieces.append(self.key(piece))
        place = torch.argsort(shuffle)[mine].to(images.device)
        return {name: gather(torch.cat([p[name] for p in pieces]))[place] for name in pieces[0]}

    def micro_batch(self, encoder: nn.Module, part: int, parts: int) -> AbstractContextManager[None]:
        """See :func:`micro_batch`, with this pair's groups."""
        return micro_batch(encoder, self.groups, part, parts)


@contextmanager
def micro_batch(encoder: nn.Module, groups: int, part: int, parts: int) -> Iterator[None]:
    """Inside, ``encoder`` takes micro-batch ``part`` of ``parts``: fewer groups, the same total effect.

    The micro-batches must come in order, all of them, once a step.

    Args:
        groups: batch-norm groups of the whole local batch.

    Raises:
        InputError: a model with batch norm whose groups cannot be shared out over the micro-batches.
    """
    norms = [m for m in encoder.modules() if isinstance(m, OverGroups)]
    if norms and groups % parts:
        raise InputError(
            f"{groups} batch-norm groups cannot be shared out over {parts} micro-batches: "
            f"make the groups a multiple of {parts}, or accumulate over fewer micro-batches"
        )
    for norm in norms:
        norm.groups, norm.part, norm.parts = groups // parts, part, parts
    try:
        yield
    finally:
        for norm in norms:
            norm.groups, norm.part, norm.parts = groups, 0, 1
