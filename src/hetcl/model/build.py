"""The encoder of each method, from plain keywords.

Shapes: B images, H W pixels (``hetcl/types.py``).
"""

from __future__ import annotations

from torch import Tensor, nn

from hetcl.model.branches import ClassBranch, SemanticBranch, SpatialBranch
from hetcl.model.embedding import Embedding
from hetcl.model.pyramid import build_pyramid


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
        an ``Embedding`` with the method's branches; for ``supervised`` a :class:`Classifier`.
    """
    pyramid = build_pyramid(backbone, seed=seed)
    channels = pyramid.spec.channels
    if method == "supervised":
        assert classes is not None
        return Classifier(pyramid, ClassBranch(channels[-1], classes, seed=seed))
    branches: dict[str, nn.Module] = {
        "semantic": SemanticBranch(channels[-1], dim=semantic_dim, mlp=method != "moco-v1", seed=seed)
    }
    if method == "hcl":
        branches["spatial"] = SpatialBranch(channels, width=width, side=side, fused=fused, seed=seed)
    return Embedding(pyramid, branches)


class Classifier(nn.Module):
    """Pyramid and class logits, with an embedding's names (``pyramid.*``, ``branches.class.*``)."""

    def __init__(self, pyramid: nn.Module, branch: ClassBranch) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.branches = nn.ModuleDict({"class": branch})

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> logits ``[B, classes]``."""
        return self.branches["class"](self.pyramid(images))
