"""Plain ResNets without modules: told by names and shapes, named as detectron2 names them, run by functions.

They know nothing of the pyramid, so that an export can be proved with them (``export_proof.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hetcl.errors import InputError, WorkFailed

DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
"""By (bottleneck, blocks of each stage)."""
NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class PlainResNet:
    """A ResNet as detectron2 and mmdetection describe it; the stride is in the 3x3 convolution."""

    depth: int
    bottleneck: bool
    groups: int
    """Groups of the 3x3 convolutions of bottlenecks."""
    width_per_group: int
    """Channels of a group in the first stage."""

    @property
    def name(self) -> str:
        plain = (self.groups, self.width_per_group) == (1, 64)
        return f"R{self.depth}" if plain else f"R{self.depth} {self.groups}x{self.width_per_group}d"


def plain_resnet(state: Mapping[str, Tensor], arch: str) -> PlainResNet:
    """What ResNet the weights (torchvision's names) are of, judged by all names and shapes.

    Raises:
        InputError: they are not of a plain ResNet.
    """
    no = InputError(
        f"{arch} is no plain ResNet, which is all that this format describes (ResNet-18 to 152, ResNeXt); "
        "export it as onnx or safetensors"
    )
    blocks: list[int] = []
    for stage in range(1, 5):
        indices = {int(m[1]) for n in state if (m := re.match(rf"layer{stage}\.(\d+)\.", n))}
        blocks.append(len(indices))
    bottleneck = "layer1.0.conv3.weight" in state
    depth = DEPTHS.get((bottleneck, tuple(blocks)))
    first = state.get("layer1.0.conv2.weight")
    if depth is None or first is None or first.ndim != 4 or first.shape[0] % first.shape[1]:
        raise no
    groups = first.shape[0] // first.shape[1]
    found = PlainResNet(depth, bottleneck, groups, first.shape[0] // groups)
    if not bottleneck and (groups, found.width_per_group) != (1, 64):
        raise no
    wanted = _resnet_shapes(found, blocks)
    given = {n: tuple(v.shape) for n, v in state.items() if not n.endswith("num_batches_tracked")}
    if given != wanted:
        raise no
    return found


def _resnet_shapes(net: PlainResNet, blocks: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Names (torchvision's) and shapes of all weights of a plain ResNet, without counters."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, norm: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, into, kernel, kernel)
        shapes.update({f"{norm}.{part}": (out,) for part in NORM})

    conv("conv1", "bn1", 64, 3, 7)
    into = 64
    for stage, count in enumerate(blocks):
        width = net.groups * net.width_per_group << stage
        out = (256 if net.bottleneck else 64) << stage
        kernels = (1, 3, 1) if net.bottleneck else (3, 3)
        for block in range(count):
            at = f"layer{stage + 1}.{block}"
            channels = [into, *[width] * (len(kernels) - 1), out]
            for i, kernel in enumerate(kernels):
                per_group = channels[i] // net.groups if net.bottleneck and kernel == 3 else channels[i]
                conv(f"{at}.conv{i + 1}", f"{at}.bn{i + 1}", channels[i + 1], per_group, kernel)
            if into != out:
                conv(f"{at}.downsample.0", f"{at}.downsample.1", out, into, 1)
            into = out
    return shapes


def detectron2_name(name: str) -> str:
    """torchvision's name of a ResNet's weight -> detectron2's (``layer1.0.bn2.bias`` -> ``res2.0.conv2.norm.bias``)."""
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    stage = re.match(r"layer(\d)\.", name)
    return f"res{int(stage[1]) + 1}.{name[stage.end() :]}" if stage else f"stem.{name}"


def resnet_maps(state: Mapping[str, Any], images: Tensor, *, detectron2: bool) -> list[Tensor]:
    """C2..C5 of a plain ResNet from its weights alone, by functions, in detectron2's or torchvision's names.

    Args:
        state: arrays or tensors. Counters (``num_batches_tracked``) are not needed.
        images: ``[B, 3, H, W]``, normalised.

    Raises:
        WorkFailed: a weight is missing, or one has no use.
    """
    used: set[str] = set()

    def take(name: str) -> Tensor:
        used.add(name)
        if name not in state:
            raise WorkFailed(f"{name} is missing")
        return torch.as_tensor(state[name])

    def conv(x: Tensor, name: str, norm: str, stride: int) -> Tensor:
        weight = take(f"{name}.weight")
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        gain, shift, mean, var = (take(f"{norm}.{part}") for part in NORM)
        return F.batch_norm(x, mean, var, gain, shift)

    def name_norm(at: str, i: int) -> tuple[str, str]:
        if i == 0:
            names = ("shortcut", "shortcut.norm") if detectron2 else ("downsample.0", "downsample.1")
        else:
            names = (f"conv{i}", f"conv{i}.norm" if detectron2 else f"bn{i}")
        return f"{at}{names[0]}", f"{at}{names[1]}"

    x = F.relu(conv(images, *name_norm("stem." if detectron2 else "", 1), 2))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    maps = []
    for stage in range(1, 5):
        at_stage = f"res{stage + 1}." if detectron2 else f"layer{stage}."
        count = len({n.removeprefix(at_stage).split(".")[0] for n in state if n.startswith(at_stage)})
        for block in range(count):
            at, stride = f"{at_stage}{block}.", 2 if stage > 1 and block == 0 else 1
            convs = [i for i in (1, 2, 3) if f"{name_norm(at, i)[0]}.weight" in state]
            strided = 2 if len(convs) == 3 else 1  # the 3x3 of a bottleneck, the first of a basic block
            y = x
            for i in convs:
                y = conv(y, *name_norm(at, i), stride if i == strided else 1)
                y = F.relu(y) if i != convs[-1] else y
            shortcut = name_norm(at, 0)
            x = F.relu(y + (conv(x, *shortcut, stride) if f"{shortcut[0]}.weight" in state else x))
        maps.append(x)
    unused = sorted(n for n in state if n not in used and not n.endswith("num_batches_tracked"))
    if unused:
        raise WorkFailed(f"{len(unused)} keys have no use, e.g. {unused[0]}")
    return maps
