"""The projection heads beside an encoder in a file, where they are MoCo's: linear (v1), or linear-ReLU-linear (v2).

A file holds shapes, not activations: that a ReLU stands between two layers is known from who writes such names
(MoCo, lightly's ``MoCoProjectionHead``, solo-learn's MoCo, mmpretrain's ``MoCoV2Neck``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

BESIDE = {
    "query_backbone": ("query_projection_head.",),
    "momentum_backbone": ("momentum_projector.", "momentum_projection_head."),
    "backbone_momentum": ("projection_head_momentum.",),
    "momentum_encoder": ("momentum_projector.", "momentum_projection_head."),
    "backbone": ("projection_head.", "projector.", "neck."),
    "encoder": ("projection_head.", "projector.", "neck."),
}
"""Last word of an encoder's prefix -> what its head is called beside it."""
CLASSES = {1000, 21841, 21843, 11221, 10450}
"""Rows of an ``fc`` that are ImageNet's classes and no embedding."""


@dataclass(frozen=True)
class Head:
    """A head that fits :class:`hetcl.model.branches.SemanticBranch`, or why there is none."""

    keys: Mapping[str, str] = field(default_factory=dict)
    """The branch's name (``fc.0.weight``) -> key of the file."""
    layers: int = 0
    dim: int = 0
    """Dimensions of its vectors."""
    unfit: tuple[str, ...] = ()
    """Keys of a head of another form."""
    why: str = ""
    """What form that is."""


def find_head(state: Mapping[str, Tensor], prefix: str, channels: int, *, moco: bool) -> Head:
    """The head of the encoder under ``prefix``.

    Args:
        channels: of C5, which the head takes.
        moco: a linear ``fc`` is a head and no classifier.
    """
    unfit = Head()
    for place in _places(prefix):
        held = {k.removeprefix(place): k for k in state if k.startswith(place)}
        own = place == f"{prefix}fc."
        if not held or (own and not moco and held.keys() <= {"weight", "bias"}):
            continue
        head = _of_moco(state, held, channels)
        if head is not None and not (own and head.layers == 1 and head.dim in CLASSES):
            return head
        if not own:
            unfit = Head(
                unfit=tuple(held.values()), why=f"projection head of another form than MoCo's on {channels}"
            )
    return unfit


def _places(prefix: str) -> Sequence[str]:
    """Where the head of an encoder may be: inside it, after it in a sequence, or beside it."""
    *before, last = prefix.rstrip(".").split(".")
    base = "".join(f"{word}." for word in before)
    inside = [f"{prefix}fc."]
    if last == "0":
        inside.append(f"{base}1.")
    return inside + [base + name for name in BESIDE.get(last, ())]


def _of_moco(state: Mapping[str, Tensor], held: Mapping[str, str], channels: int) -> Head | None:
    """The head whose keys are ``held`` (by their name in it) when it is one or two layers with biases, else None."""
    layers = sorted({name.rpartition(".")[0] for name in held})
    if len(held) != 2 * len(layers) or len(layers) not in (1, 2):
        return None
    keys: dict[str, str] = {}
    width = channels
    for i, layer in enumerate(layers):
        dot = layer and layer + "."
        weight, bias = held.get(f"{dot}weight"), held.get(f"{dot}bias")
        if weight is None or bias is None:
            return None
        w, b = state[weight], state[bias]
        last = i == len(layers) - 1
        if (
            w.ndim != 2
            or w.shape[1] != width
            or b.shape != w.shape[:1]
            or not (last or w.shape[0] == channels)
        ):
            return None
        if not w.is_floating_point() or not b.is_floating_point():
            return None
        own = "fc" if len(layers) == 1 else f"fc.{2 * i}"
        keys |= {f"{own}.weight": weight, f"{own}.bias": bias}
        width = int(w.shape[0])
    return Head(keys, len(layers), width)
