"""Batch norm as a setting: tuned, frozen or synchronised; the optimiser's groups; precise running statistics."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hetcl.errors import InputError
from hetcl.model.norm_statistics import batch_norms

NORMS = ("tuned", "frozen", "sync")


def check_norm(norm: str) -> None:
    """Raises InputError for a name that is none of ``NORMS``."""
    if norm not in NORMS:
        raise InputError(f"norm {norm!r}: no such batch norm; use one of {', '.join(NORMS)}")


class Freezable(nn.Module):
    """A model whose ``frozen`` batch norms keep still: running statistics, scale and offset never move.

    ``frozen`` is a tuple, so the modules stay registered, and named, where they are.
    """

    frozen: tuple[nn.Module, ...] = ()

    def freeze(self, part: nn.Module) -> None:
        """Every batch norm inside ``part`` keeps still from now on."""
        norms = tuple(m for m in part.modules() if isinstance(m, _BatchNorm))
        for norm in norms:
            norm.requires_grad_(False)
        self.frozen = (*self.frozen, *norms)
        self.train(self.training)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for norm in self.frozen:
            norm.eval()
        return self


def synchronised(model: nn.Module) -> nn.Module:
    """The model with each batch norm shared across ranks (timm's own kinds too). PyTorch does so on GPUs only."""
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: batch, layer, group, instance and RMS norm, torchvision's and timm's included."""
    return "Norm" in type(module).__name__ or isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm)


def param_groups(
    model: nn.Module, lr: float, weight_decay: float, norm_weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups for an optimiser: scales and offsets of norms apart, with their own decay (detectron2: none).

    Args:
        model: parameters that need no gradient are left out.
        lr: learning rate of both groups.
        weight_decay: of everything else.
        norm_weight_decay: of norms.
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                groups[is_norm(module)].append(parameter)
    decays = {False: weight_decay, True: norm_weight_decay}
    return [
        {"params": params, "lr": lr, "weight_decay": decays[kind]}
        for kind, params in groups.items()
        if params
    ]


@torch.no_grad()
def precise_bn(model: nn.Module, batches: Iterable[tuple[Any, ...]], steps: int) -> int:
    """Running statistics of every batch norm in training as their mean over batches (detectron2's PreciseBN).

    Weights, batch counters, momenta and modes of modules are as before when it returns; frozen norms keep still.
    In a run of several ranks, call it on each: with synchronised norms over its own share, otherwise over the
    same batches. A detector's samplers draw from torch's global generator meanwhile.

    Args:
        model: called in training mode, as ``model(*batch)``.
        batches: what the model takes; no more than ``steps`` are read.
        steps: how many at most.

    Returns:
        How many batches were averaged.

    Raises:
        InputError: there was none; the statistics are as they were.
    """
    modes = [(m, m.training) for m in model.modules()]
    model.train()
    norms = [norm for norm in batch_norms(model) if norm.training]
    kept = [(n.momentum, [b.clone() for b in n.buffers()]) for n in norms]
    done = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's cumulative average over its own counter
        for batch in islice(batches, max(steps, 0)):
            model(*batch)
            done += 1
    except BaseException:
        done = 0
        raise
    finally:
        for norm, (momentum, buffers) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            _restore(norm, buffers, statistics=done == 0)
        for module, mode in modes:
            module.training = mode
    if not done:
        raise InputError(
            "precise batch norm: no batches to average over; give at least one, or switch it off"
        )
    return done


def _restore(norm: _BatchNorm, buffers: list[Tensor], *, statistics: bool) -> None:
    """The counter as it was; on demand the statistics too."""
    for (name, buffer), old in zip(norm.named_buffers(), buffers, strict=True):
        if statistics or name == "num_batches_tracked":
            buffer.copy_(old)
