"""Statistics of batch norms: whether they were ever measured, and measuring them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Those inside ``module`` that keep running statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def is_unmeasured(module: nn.Module) -> bool:
    """Whether it has batch norms and all their statistics are as made: means of 0 and variances of 1."""
    norms = batch_norms(module)
    return bool(norms) and all(
        not bool(norm.running_mean.any()) and bool((norm.running_var == 1).all())  # type: ignore[union-attr]
        for norm in norms
    )


@contextmanager
def measuring(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms take their statistics anew, as the mean over the batches that ``module`` is given; all else
    of it is in evaluation mode, as all of it is afterwards."""
    module.eval()
    norms = [(norm, norm.momentum) for norm in batch_norms(module)]
    for norm, _ in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's cumulative average
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
            norm.eval()
