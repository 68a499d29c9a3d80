"""A plain ResNet in detectron2's names, written from its documentation: a slow and obvious oracle for exports.

Modules, where ``hetcl/weights/plain_resnet.py`` uses functions; each convolution owns its batch norm as ``norm``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ConvNorm(nn.Conv2d):
    def __init__(self, into: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(into, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Bottleneck(nn.Module):
    def __init__(self, into: int, out: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(into, width, 1)
        self.conv2 = ConvNorm(width, width, 3, stride, groups)  # STRIDE_IN_1X1: False
        self.conv3 = ConvNorm(width, out, 1)
        self.shortcut = ConvNorm(into, out, 1, stride) if into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class Basic(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(into, out, 3, stride)
        self.conv2 = ConvNorm(out, out, 3)
        self.shortcut = ConvNorm(into, out, 1, stride) if into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, 64, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(torch.relu(self.conv1(x)))


class ResNet(nn.Module):
    """Gives res2..res5."""

    def __init__(self, depth: int, groups: int = 1, width: int = 64) -> None:
        super().__init__()
        self.stem = Stem()
        into = 64
        for i, count in enumerate(BLOCKS[depth]):
            out = (64 if depth < 50 else 256) * 2**i
            stage = []
            for block in range(count):
                stride = 2 if i and not block else 1
                stage.append(
                    Basic(into, out, stride)
                    if depth < 50
                    else Bottleneck(into, out, groups * width * 2**i, stride, groups)
                )
                into = out
            self.add_module(f"res{i + 2}", nn.Sequential(*stage))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for i in range(2, 6):
            x = getattr(self, f"res{i}")(x)
            maps.append(x)
        return maps


def detectron2_resnet(arrays: Mapping[str, np.ndarray], depth: int, **kwargs: int) -> ResNet:
    """The ResNet with all of ``arrays`` in it, and nothing left over on either side."""
    model = ResNet(depth, **kwargs)
    found = model.load_state_dict({n: torch.tensor(v) for n, v in arrays.items()}, strict=False)
    assert not found.unexpected_keys
    assert all(n.endswith("num_batches_tracked") for n in found.missing_keys)
    return model.eval()


def detectron2_keys(depth: int) -> set[str]:
    """Keys of detectron2's bottleneck backbone, by rule."""
    norm = ("weight", "bias", "running_mean", "running_var")
    convs = ["stem.conv1"]
    for stage, count in enumerate(BLOCKS[depth], start=2):
        convs.append(f"res{stage}.0.shortcut")
        convs += [f"res{stage}.{block}.conv{i}" for block in range(count) for i in (1, 2, 3)]
    return {f"{c}.weight" for c in convs} | {f"{c}.norm.{part}" for c in convs for part in norm}
