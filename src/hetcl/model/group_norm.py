"""Batch norm over groups of the batch: one device normalises like several (the effect behind MoCo's shuffled keys).

Shapes: B batch, G groups, C channels; a group is a contiguous slice of the batch (``hetcl/types.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from hetcl.errors import InputError


class OverGroups(_BatchNorm):
    """Mixed into a batch-norm class: in training, each of ``groups`` slices of the batch is normalised apart.

    Weights, buffers and state keys are the parent's. Running statistics move as the mean over all slices of what
    each saw would move them. NOTE(paper): the official code keeps the first GPU's statistics only; with ``groups=1``
    this is plain batch norm and equals it.

    One whole batch may also come in ``parts`` micro-batches (gradient accumulation); ``groups`` then counts
    the slices of the micro-batch at hand.
    """

    groups: int = 1
    parts: int = 1
    kept: Tensor | None = None
    """See :meth:`keep`, for the micro-batch at hand. A tensor, since a number would be compiled in."""
    parent: type
    then: tuple[str, ...]
    """Children that the parent applies to what was normalised (timm: dropout, activation)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.groups * self.parts == 1:
            return super().forward(input)
        if len(input) % self.groups:
            raise InputError(
                f"a batch of {len(input)} does not split into {self.groups} batch-norm groups: "
                "make the batch a multiple of the groups"
            )
        if input.numel() == self.groups * input.shape[1]:
            raise InputError(
                f"batch-norm groups of one value a channel ({len(input)} images in {self.groups} groups) have no "
                "variance: make the groups fewer or the images larger"
            )
        self._check_input_dim(input)
        normalize = _fusible if torch.compiler.is_compiling() else _Sliced.apply
        out, mean, var = normalize(input, self.weight, self.bias, self.groups, self.eps)
        if self.running_mean is not None and self.running_var is not None:
            kept = self.keep(0, 1) if self.kept is None else self.kept
            for old, new in ((self.running_mean, mean.mean(0)), (self.running_var, var.mean(0))):
                if isinstance(kept, Tensor):
                    old.mul_(kept).addcmul_(new, 1 - kept)
                else:
                    old.mul_(kept).add_(new, alpha=1 - kept)
        for name in self.then:
            out = getattr(self, name)(out)
        return out

    def keep(self, part: int, parts: int) -> float | Tensor:
        """Weight of the old running statistics after a micro-batch, such that all slices of a batch count alike.

        With momentum m for the whole batch in n slices, of which i came before, the sequence of updates
        ``m / n / (1 - m * (n - 1 - i) / n)`` gives each slice m / n; this is the product over the slices at hand.
        """
        count = self.num_batches_tracked
        if count is not None and part == 0:
            count.add_(1)  # a whole batch counts once
        whole: float | Tensor | None = self.momentum
        if whole is None:  # cumulative average
            whole = 0.0 if count is None else 1.0 / count.to(self.running_mean.dtype)  # type: ignore[union-attr]
        left = 1 - part / parts
        return (1 - left * whole) / (1 - (left - 1 / parts) * whole)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Copy and pickle by the parent's name: the class itself is made on the fly."""
        return _blank, (self.parent,), self.__dict__


class _Sliced(torch.autograd.Function):
    """PyTorch's own batch norm, slice by slice, each written to its place in one output: nothing is concatenated.

    ``(x [B, C, ...], weight [C], bias [C], G, eps) -> (y [B, C, ...], mean [G, C], unbiased variance [G, C])``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = weight.dtype if weight is not None else torch.promote_types(x.dtype, torch.float32)
        dense = (
            torch.contiguous_format,
            *{4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(x.dim(), []),
        )
        if not any(x.is_contiguous(memory_format=m) for m in dense):
            x = x.contiguous()  # with an output of ours, the CPU's kernel reads no other layout rightly
        mean, var, center, scale = x.new_zeros(4, groups, x.shape[1], dtype=dtype).unbind()
        out = torch.empty_like(x)
        slices = zip(x.chunk(groups), mean, var, out.chunk(groups), center, scale, strict=True)
        for part, m, v, *written in slices:  # a momentum of 1 leaves the slice's own statistics
            torch.native_batch_norm(part, weight, bias, m, v, True, 1.0, eps, out=tuple(written))
        ctx.save_for_backward(x, weight, center, scale)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, center, scale = ctx.saved_tensors
        needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
        out = torch.empty_like(x) if needed[0] else None
        places = [None] * len(center) if out is None else out.chunk(len(center))
        sums = []
        for place, g, part, m, s in zip(
            places, grad.chunk(len(center)), x.chunk(len(center)), center, scale, strict=True
        ):
            to_input, *to_affine = torch.ops.aten.native_batch_norm_backward(
                g, part, weight, None, None, m, s, True, ctx.eps, needed
            )
            if place is not None:
                place.copy_(to_input)
            sums.append(to_affine)
        affine = [
            torch.stack(s).sum(0) if n else None
            for s, n in zip(zip(*sums, strict=True), needed[1:], strict=True)
        ]
        return out, *affine, None, None


def _fusible(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:class:`_Sliced` in plain operations, which a compiler joins with their neighbours."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    parts = x.unflatten(0, (groups, -1)).to(dtype)
    axes = [1, *range(3, parts.dim())]
    var, mean = torch.var_mean(parts, axes, correction=0, keepdim=True)
    out = ((parts - mean) * torch.rsqrt(var + eps)).flatten(0, 1)
    shape = [-1, *[1] * (x.dim() - 2)]
    out = out if weight is None else out * weight.view(shape)
    out = out if bias is None else out + bias.view(shape)
    count = parts[0].numel() // parts.shape[2]
    mean, var = (s.detach().reshape(groups, -1) for s in (mean, var))
    return out.to(x.dtype), mean, var * (count / max(1, count - 1))


@functools.cache
def grouped(norm: type) -> type:
    """The class ``norm`` over groups: ``nn.BatchNorm2d`` -> ``GroupBatchNorm2d``.

    Raises:
        InputError: ``norm`` computes something of its own, so that it is not known how to split it.
    """
    then: tuple[str, ...] = ()
    if norm.forward is not _BatchNorm.forward:  # type: ignore[attr-defined]
        from timm.layers import BatchNormAct2d

        if norm.forward is not BatchNormAct2d.forward:  # type: ignore[attr-defined]
            raise InputError(
                f"{norm.__name__} has a forward of its own, which cannot be split into groups: use plain batch norm"
            )
        then = ("drop", "act")
    members = {"parent": norm, "then": then, "__doc__": OverGroups.__doc__}
    return type(f"Group{norm.__name__}", (OverGroups, norm), members)


def _blank(norm: type) -> nn.Module:
    made: type[nn.Module] = grouped(norm)
    return made.__new__(made)


def group_batch_norm(module: nn.Module, groups: int) -> nn.Module:
    """Turn every batch norm inside ``module`` (timm's, 1-D and 3-D too) into one over ``groups``, in place.

    Raises:
        InputError: a layer that looks at the whole batch in some other way, so that it cannot be split:
            synchronised batch norm, in-place activated batch norm, EvoNorm-B, a batch norm of the user's own.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.SyncBatchNorm) or _normalizes_batch_otherwise(child):
            raise InputError(
                f"{name or 'the model'} is a {type(child).__name__}, which cannot be split into groups: "
                "use plain batch norm (statistics shared over the batch would also leak the pairing)"
            )
        if isinstance(child, _BatchNorm):
            if not isinstance(child, OverGroups):
                kind: type = type(child)
                child.__class__ = grouped(kind)
            # Of the instance: where an attribute lies, too, is compiled in.
            child.groups, child.parts, child.kept = groups, 1, None  # type: ignore[assignment]
    return module


def _normalizes_batch_otherwise(module: nn.Module) -> bool:
    """Running variance of its own, yet no batch norm that we know, nor instance norm or a frozen one."""
    known = isinstance(module, (_BatchNorm, _InstanceNorm)) or "Frozen" in type(module).__name__
    return not known and any("running_var" in name for name, _ in module.named_buffers(recurse=False))


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
        norm.groups, norm.parts = groups // parts, parts
        old = norm.running_mean
        if parts > 1 and norm.training and old is not None:
            kept = norm.keep(part, parts)
            norm.kept = kept if isinstance(kept, Tensor) else old.new_full((), kept)
    try:
        yield
    finally:
        for norm in norms:
            norm.groups, norm.parts, norm.kept = groups, 1, None
