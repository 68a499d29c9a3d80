"""The encoder of each method (``hetcl/methods.py``), from plain keywords.

Shapes: B images, H W pixels (``hetcl/types.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hetcl.draws import seed_of
from hetcl.errors import InputError
from hetcl.methods import KINDS, METHODS, faults_of
from hetcl.model import branches
from hetcl.model.embedding import Embedding
from hetcl.model.pyramid import build_pyramid


def build_embedding(
    method: str,
    backbone: str,
    *,
    seed: int,
    classes: int | None = None,
    words: Mapping[str, Mapping[str, Any]] | None = None,
    in_chans: int = 3,
) -> nn.Module:
    """The encoder that a method trains, with initial weights that are a function of ``seed``.

    Args:
        classes: how many a method that learns labels tells apart.
        words: keywords by kind of branches: ``{"spatial": {"side": 14}}``; without them its defaults.
        in_chans: channels of its images.

    Returns:
        an ``Embedding`` with the method's branches; of a method that learns labels a :class:`Classifier`.

    Raises:
        InputError: the method's entry cannot be built.
    """
    if faults := faults_of(method):
        raise InputError("\n".join(faults))
    entry, pyramid = METHODS[method], build_pyramid(backbone, seed=seed, in_chans=in_chans)
    made: dict[str, nn.Module] = {}
    for name, branch in entry.branches.items():
        kind, channels = KINDS[branch.kind], pyramid.spec.channels
        given = {**(words or {}).get(branch.kind, {}), **branch.fixed}
        if branch.kind == "class":
            given["classes"] = classes
        drawn = seed if name == branch.kind else seed_of(seed, name)  # two of a kind do not start alike
        module = getattr(branches, kind.module)
        made[name] = module(channels[-1] if kind.last else channels, seed=drawn, **given)
        if branch.frame == "image" and not hasattr(made[name], "side"):
            raise InputError(
                f"method {method}: part {name} has frame='image', and {kind.module} has no side: only a map can be "
                "laid back"
            )
    return Classifier(pyramid, made) if entry.labels else Embedding(pyramid, made)


class Classifier(nn.Module):
    """Pyramid and class logits, with an embedding's names (``pyramid.*``, ``branches.class.*``)."""

    def __init__(self, pyramid: nn.Module, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.branches = nn.ModuleDict(branches)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> logits ``[B, classes]``."""
        return self.branches["class"](self.pyramid(images))
