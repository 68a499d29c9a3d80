"""The encoder of each method (``hetcl/methods.py``), from plain keywords.

Shapes: B images, H W pixels (``hetcl/types.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from hetcl.draws import seed_of
from hetcl.methods import METHODS
from hetcl.model.branches import ClassBranch, SemanticBranch, SpatialBranch
from hetcl.model.embedding import Embedding
from hetcl.model.pyramid import build_pyramid

KINDS: dict[str, Callable[..., nn.Module]] = {
    "semantic": lambda channels, **words: SemanticBranch(channels[-1], **words),
    "spatial": SpatialBranch,
    "class": lambda channels, **words: ClassBranch(channels[-1], **words),
}
"""Kinds of branches by name: from the channels of C2..C5 and keywords to a module."""


def build_embedding(
    method: str,
    backbone: str,
    *,
    seed: int,
    semantic_dim: int = 128,
    side: int = 14,
    width: int = 256,
    fused: bool = True,
    classes: int | None = None,
) -> nn.Module:
    """The encoder that a method trains, with initial weights that are a function of ``seed``.

    Returns:
        an ``Embedding`` with the method's branches; of a method that learns labels a :class:`Classifier`.
    """
    entry, pyramid = METHODS[method], build_pyramid(backbone, seed=seed)
    settings: dict[str, dict[str, Any]] = {
        "semantic": {"dim": semantic_dim},
        "spatial": {"side": side, "width": width, "fused": fused},
        "class": {"classes": classes},
    }
    branches: dict[str, nn.Module] = {}
    for name, branch in entry.branches.items():
        drawn = seed if name == branch.kind else seed_of(seed, name)  # two of a kind do not start alike
        words = {**settings[branch.kind], **branch.fixed}
        branches[name] = KINDS[branch.kind](pyramid.spec.channels, seed=drawn, **words)
    return Classifier(pyramid, branches) if entry.labels else Embedding(pyramid, branches)


class Classifier(nn.Module):
    """Pyramid and class logits, with an embedding's names (``pyramid.*``, ``branches.class.*``)."""

    def __init__(self, pyramid: nn.Module, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.branches = nn.ModuleDict(branches)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> logits ``[B, classes]``."""
        return self.branches["class"](self.pyramid(images))
