"""A pyramid and its branches as one encoder: images to named vectors of unit length.

Shapes: B images, D dimensions of a part (``hetcl/types.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetcl.model.pyramid import Pyramid
from hetcl.types import Parts


class Embedding(nn.Module):
    """Images to parts (paper section 3.3): the branches share one pass through the pyramid.

    Args:
        pyramid: gives C2..C5.
        branches: by name, in the order of concatenation, e.g. ``{"semantic": SemanticBranch(2048), ...}``.
            Each takes the four maps, gives ``[B, dim]`` and has the attribute ``dim``.
    """

    def __init__(self, pyramid: Pyramid, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not branches:
            raise ValueError("an embedding needs at least one branch")
        self.pyramid = pyramid
        self.branches = nn.ModuleDict(branches)

    @property
    def dims(self) -> dict[str, int]:
        """Dimensions of each part, in the order of concatenation (what ``KeyQueue`` takes)."""
        return {name: int(branch.dim) for name, branch in self.branches.items()}  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Parts:
        """``[B, 3, H, W]`` -> ``{name: [B, dim]}``, unit vectors in at least fp32."""
        maps = self.pyramid(images)
        return {name: normalize(branch(maps)) for name, branch in self.branches.items()}

    def concat(self, parts: Parts) -> Tensor:
        """Parts side by side in the order of ``dims``: ``[B, sum of dims]``.

        Each part keeps its unit length, so inner products of two rows are sums of cosines (paper section
        3.3).
        """
        return torch.cat([parts[name] for name in self.branches], dim=1)


def normalize(x: Tensor) -> Tensor:
    """Rows of ``[B, D]`` to unit length, in fp32 or float64 whatever autocast says; a zero row stays zero."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


@dataclass(frozen=True)
class Cost:
    """What a module holds and does."""

    parameters: int
    """Trainable or not."""
    multiply_adds: int
    """Multiplications with an addition, of convolutions and matrix products in one forward pass."""


@torch.no_grad()
def cost_of(module: nn.Module, *shape: int) -> Cost:
    """``module``'s parameters, and its multiply-adds for one input of ``shape`` (e.g. 1, 3, 224, 224)."""
    from torch.utils.flop_counter import FlopCounterMode

    first = next(module.parameters())
    training = module.training
    module.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            module(torch.zeros(*shape, dtype=first.dtype, device=first.device))
    finally:
        module.train(training)
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2)
