"""Maps to vectors: the semantic branch, the spatial branch, and the classifier of supervised training.

Every branch takes the four maps ``(C2, C3, C4, C5)`` and gives ``[B, dim]``, not normalised (``embedding.py``
does). Shapes: ``hetcl/types.py``; maps ``[B, C_i, H_i, W_i]``, finest first; S side of the spatial grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from hetcl.model.pyramid import seeded


class SemanticBranch(nn.Module):
    """What is in the image: C5 averaged over space, then a linear layer or an MLP (MoCo-v1, MoCo-v2).

    Initial weights are PyTorch's defaults for linear layers, as in the official code, whose names ``fc`` (v1)
    and ``fc.0``, ``fc.2`` (v2) these are.

    Args:
        in_channels: channels of C5.
        dim: dimensions of the vector.
        mlp: two layers with a ReLU between (v2) instead of one (v1); no batch norm.
        hidden: width of the hidden layer; None is ``in_channels``.
        seed: what the initial weights are a function of; None draws from torch's global generator.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        dim: int = 128,
        mlp: bool = True,
        hidden: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        hidden = in_channels if hidden is None else hidden
        self.fc: nn.Module
        with seeded(seed, "semantic"):
            if mlp:
                self.fc = nn.Sequential(nn.Linear(in_channels, hidden), nn.ReLU(), nn.Linear(hidden, dim))
            else:
                self.fc = nn.Linear(in_channels, dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """``(..., C5 [B, C, H, W])`` -> ``[B, dim]``."""
        return self.fc(maps[-1].mean(dim=(2, 3)))


class SpatialBranch(nn.Module):
    """Where things are: an FPN that ends in one ``S x S`` map, flattened (paper sections 3.3, 4.3.2).

    1x1 laterals, top-down sum with nearest upsampling, 3x3 convolution, 1x1 convolution to one channel; no
    normalisation, no activation. Fused (the paper's design): each map meets the others at the grid, and is
    pooled *before* its lateral, since average pooling and a 1x1 convolution commute. Vanilla (the plain FPN
    of section 4.3.2): laterals and sum at the resolution of C2, then average pooling to the grid.
    NOTE(paper): figure 3 is not in the text; the vanilla 3x3 runs on the grid after the pooling, since at
    C2's resolution it alone would add 40% to a ResNet-50 instead of the paper's 10%. So where sizes divide,
    fused and vanilla compute the same function.

    Convolutions start as in the FPN paper's implementations: Kaiming uniform with a = 1 (variance 1 / fan-in,
    which keeps the scale of its input), biases zero, so that no direction is common to all images by
    construction.

    Args:
        channels: channels of C2..C5 (``pyramid.spec.channels``).
        width: channels of the laterals.
        side: S. Larger maps are average-pooled to it, smaller ones upsampled, so any image size works.
        fused: pool first, or vanilla. The weights and their names are the same.
        seed: what the initial weights are a function of; None draws from torch's global generator.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        width: int = 256,
        side: int = 14,
        fused: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.side, self.fused, self.dim = side, fused, side * side
        with seeded(seed, "spatial"):
            self.lateral = nn.ModuleList(nn.Conv2d(c, width, kernel_size=1) for c in channels)
            self.smooth = nn.Conv2d(width, width, kernel_size=3, padding=1)
            self.project = nn.Conv2d(width, 1, kernel_size=1)
            for conv in [*self.lateral, self.smooth, self.project]:
                assert isinstance(conv, nn.Conv2d)
                assert conv.bias is not None
                nn.init.kaiming_uniform_(conv.weight, a=1)
                nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """``(C2, ..., C5)``, each ``[B, C_i, H_i, W_i]`` -> ``[B, S * S]``, row by row."""
        total = self._sum_at_grid(maps) if self.fused else self._sum_at_finest(maps)
        return self.project(self.smooth(total)).flatten(1)

    def _sum_at_grid(self, maps: Sequence[Tensor]) -> Tensor:
        """Each level to ``[B, width, S, S]``, the cheaper way: pooled before its lateral, upsampled after."""
        total: Tensor | None = None
        for lateral, level in zip(self.lateral, maps, strict=True):
            term = resize_to(lateral(pool_to(level, self.side)), self.side)
            total = term if total is None else total + term
        assert total is not None
        return total

    def _sum_at_finest(self, maps: Sequence[Tensor]) -> Tensor:
        """The plain FPN: top-down from C5 to the resolution of C2, then ``[B, width, S, S]``."""
        total: Tensor | None = None
        for lateral, level in zip(reversed(self.lateral), reversed(maps), strict=True):
            term = lateral(level)
            if total is not None:
                term = term + F.interpolate(total, size=term.shape[-2:], mode="nearest")
            total = term
        assert total is not None
        return resize_to(total, self.side)

    def extra_repr(self) -> str:
        return f"side={self.side}, fused={self.fused}"


class ClassBranch(nn.Module):
    """Class logits for supervised training: C5 averaged over space, one linear layer.

    Args:
        in_channels: channels of C5.
        classes: number of classes.
        seed: as above. Initial weights are PyTorch's defaults.
    """

    def __init__(self, in_channels: int, classes: int, *, seed: int | None = None) -> None:
        super().__init__()
        self.dim = classes
        with seeded(seed, "class"):
            self.fc = nn.Linear(in_channels, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """``(..., C5 [B, C, H, W])`` -> logits ``[B, classes]``."""
        return self.fc(maps[-1].mean(dim=(2, 3)))


def pool_to(x: Tensor, side: int) -> Tensor:
    """Average-pool each axis of ``[B, C, H, W]`` that is longer than ``side``; shorter ones stay."""
    height, width = x.shape[-2:]
    rows, columns = min(height, side), min(width, side)
    if (rows, columns) == (height, width):
        return x
    if height % rows == 0 and width % columns == 0:  # plain windows: faster, and deterministic on a GPU
        return F.avg_pool2d(x, (height // rows, width // columns))
    return F.adaptive_avg_pool2d(x, (rows, columns))


def resize_to(x: Tensor, side: int) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, C, side, side]``: longer axes averaged, shorter ones repeated (nearest)."""
    x = pool_to(x, side)
    return x if x.shape[-2:] == (side, side) else F.interpolate(x, size=(side, side), mode="nearest")
