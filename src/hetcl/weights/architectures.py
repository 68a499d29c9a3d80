"""A MODEL and its architecture: what the user and the file say (:class:`ModelSpec`), and what the shapes say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

BLOCKS = {
    ((2, 2, 2, 2), False, 64, 64): "resnet18",
    ((3, 4, 6, 3), False, 64, 64): "resnet34",
    ((3, 4, 6, 3), True, 64, 64): "resnet50",
    ((3, 4, 23, 3), True, 64, 64): "resnet101",
    ((3, 8, 36, 3), True, 64, 64): "resnet152",
    ((3, 4, 6, 3), True, 128, 128): "wide_resnet50_2",
    ((3, 4, 23, 3), True, 128, 128): "wide_resnet101_2",
    ((3, 4, 6, 3), True, 128, 4): "resnext50_32x4d",
    ((3, 4, 23, 3), True, 256, 8): "resnext101_32x8d",
    ((3, 4, 23, 3), True, 256, 4): "resnext101_64x4d",
}
"""Blocks of each stage, whether bottlenecks, and the first two sizes of layer1.0.conv2 -> torchvision's name."""


@dataclass(frozen=True)
class ModelSpec:
    """A MODEL, taken apart; of what it says about its architecture the first that is there decides."""

    origin: str
    """What to call it in a message."""
    path: Path | None = None
    """The file; None for weights of a library."""
    arch: str | None = None
    """The architecture that the user names, or the header of a file of hetcl's."""
    stated: str | None = None
    """The one that the file names, without a library mostly; the file's shapes come before it."""
    fallback: str | None = None
    """The one to take when nothing else tells."""
    which: str = ""
    """Which of a library's weights: ``random``, or their name there."""
    moco: bool = False
    """Whether the user said that it is of MoCo, so that a plain ``fc`` is its head."""
    allow: tuple[str, ...] = ()
    """Globs of keys that may be missing, unknown or of another shape."""


def arch_of(state: Mapping[str, Tensor]) -> str | None:
    """The ResNet of torchvision's whose blocks and widths a file has, or None; of several encoders all must agree."""
    found = set()
    for key in state:
        for first, layers in (("layer1.0.conv1.weight", ("layer1", "layer2", "layer3", "layer4")),
                              ("4.0.conv1.weight", ("4", "5", "6", "7"))):  # fmt: skip
            prefix = key.removesuffix(first)
            stem = state.get(prefix + ("conv1.weight" if layers[0] == "layer1" else "0.weight"))
            if prefix == key or (prefix and not prefix.endswith(".")) or stem is None or stem.ndim != 4:
                continue
            counts = tuple(_count(state, f"{prefix}{layer}.") for layer in layers)
            conv2 = state.get(f"{prefix}{layers[0]}.0.conv2.weight")
            if conv2 is None or conv2.ndim != 4:
                continue
            deep = f"{prefix}{layers[0]}.0.conv3.weight" in state
            found.add(BLOCKS.get((counts, deep, *conv2.shape[:2])))
    name = found.pop() if len(found) == 1 else None
    return f"torchvision:{name}" if name else None


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks a stage has."""
    n = 0
    while f"{prefix}{n}.conv1.weight" in state:
        n += 1
    return n
