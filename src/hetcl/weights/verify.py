"""The check of an export: the file is loaded back and its maps are compared with the source's.

Loaded back means by the library it is for, with the very code that the card shows, or, where that library is not
installed, by :func:`resnet_maps`: a ResNet written here from functions alone, which knows nothing of the pyramid.

Shapes: B images, H W pixels (``hetcl/types.py``); maps ``[B, C_i, H_i, W_i]``, finest first (C2..C5).
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetcl.draws import generator
from hetcl.errors import InputError, WorkFailed
from hetcl.model.pyramid import STRIDES, Pyramid

TOLERANCE = 1e-5
"""Largest difference of a map, in units of the largest absolute value of the source's map of that stage."""
SIDES = (64, 160)
"""Least and most pixels of a side of the images that are compared."""
STAGES = ("C2", "C3", "C4", "C5")


@dataclass(frozen=True)
class Proof:
    """What the check saw."""

    by: str
    """What loaded the file back."""
    keys: int
    """Weights and statistics compared, each equal to the bit; 0 where the file keeps none apart (ONNX)."""
    differences: tuple[float, ...]
    """Largest difference of C2..C5, relative as :data:`TOLERANCE`."""
    images: tuple[tuple[int, int], ...]
    """Height and width of the random images."""


def images(count: int = 2, *, size: tuple[int, int] | None = None) -> list[Tensor]:
    """Random images, each ``[2, 3, H, W]`` of standard normal values: the same ones at every call.

    Args:
        size: height and width where the backbone takes one only; None draws a size for each.
    """
    out = []
    for i in range(count):
        rng = generator("export", "check", i)
        height, width = (int(n) for n in rng.integers(SIDES[0], SIDES[1] + 1, 2)) if size is None else size
        out.append(torch.from_numpy(rng.standard_normal((2, 3, height, width), dtype=np.float32)))
    return out


@torch.no_grad()
def differences(
    source: Callable[[Tensor], Sequence[Tensor]],
    loaded: Callable[[Tensor], Sequence[Tensor]],
    images: Sequence[Tensor],
) -> tuple[float, ...]:
    """Largest ``|loaded - source| / max |source|`` of each stage over all images.

    Raises:
        WorkFailed: a map has another shape, or a value that is not finite, or they differ by more than ``TOLERANCE``.
    """
    worst = [0.0] * len(STAGES)
    for batch in images:
        for i, (ours, theirs) in enumerate(zip(source(batch), loaded(batch), strict=True)):
            if ours.shape != theirs.shape:
                raise WorkFailed(f"{STAGES[i]} has shape {list(theirs.shape)} instead of {list(ours.shape)}")
            scale = float(ours.abs().max())
            gap = float((ours - theirs).abs().max()) / (scale or 1.0)
            if not gap <= TOLERANCE:  # also where it is not a number
                raise WorkFailed(f"{STAGES[i]} differs by {gap:.1e} of its scale, more than {TOLERANCE:.0e}")
            worst[i] = max(worst[i], gap)
    return tuple(worst)


def same_weights(loaded: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> int:
    """How many weights were compared. Raises ``WorkFailed`` at the first name, shape or bit that differs."""
    if odd := sorted(loaded.keys() ^ wanted.keys()):
        raise WorkFailed(f"{len(odd)} keys have no partner, e.g. {odd[0]}")
    for name, value in wanted.items():
        theirs = torch.as_tensor(loaded[name])
        if theirs.dtype != value.dtype or not torch.equal(theirs, value):
            raise WorkFailed(f"{name} came back with other values")
    return len(wanted)


def run_code(code: str, file: Path) -> dict[str, Any]:
    """The names that the card's code leaves, run with ``FILE`` set to ``file``.

    Raises:
        WorkFailed: the code stopped with an error; ``ImportError`` is let through.
    """
    names: dict[str, Any] = {"FILE": str(file)}
    try:
        with quiet(), torch.no_grad():
            exec(compile(code, "the card's code", "exec"), names)
    except ImportError:
        raise
    except Exception as e:  # whatever the library says of a file that does not fit
        why = (str(e).strip().splitlines() or [""])[0][:200]
        raise WorkFailed(f"the card's code stopped: {type(e).__name__} {why}".strip()) from e
    return names


def maps_of(
    backbone: Callable[[Tensor], Any], last: Sequence[bool] = (False,) * 4
) -> Callable[[Tensor], list[Tensor]]:
    """``backbone`` as a function to four maps; ``last`` says which ones it gives as ``[B, H, W, C]``."""

    def maps(images: Tensor) -> list[Tensor]:
        out = backbone(images)
        out = list(out.values()) if isinstance(out, Mapping) else list(out)
        out = [torch.as_tensor(m) for m in out]
        return [m.permute(0, 3, 1, 2) if flip else m for m, flip in zip(out, last, strict=True)]

    return maps


@contextmanager
def quiet() -> Iterator[None]:
    """timm warns of the classifier that a backbone leaves out; we would report the hidden file's keys."""
    loggers = [logging.getLogger(name) for name in ("timm", "hetcl.weights")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@torch.no_grad()
def stage_modules(model: nn.Module, size: tuple[int, int]) -> list[tuple[str, bool]]:
    """Where a whole torchvision model has C2..C5: ``[(module name, whether it gives [B, H, W, C]), ...]``.

    The last child or grandchild whose output has the grid of each stride (``size`` divides by 32).
    """
    found: dict[int, tuple[str, bool]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.ndim == 4:
                for stride in STRIDES:
                    grid = (size[0] // stride, size[1] // stride)
                    if grid in (tuple(out.shape[2:]), tuple(out.shape[1:3])):
                        found[stride] = (name, tuple(out.shape[2:]) != grid)

        return hook

    named = [(n, m) for n, m in model.named_modules() if n and n.count(".") < 2]
    handles = [m.register_forward_hook(note(n)) for n, m in named]
    try:
        model.eval()(torch.zeros(1, 3, *size))
    finally:
        for handle in handles:
            handle.remove()
    return [found[s] for s in STRIDES]


# ---- plain ResNets ---------------------------------------------------------------------------------------------------

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
    """Of the 3x3 convolutions of bottlenecks."""
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


class ArraysOnly(pickle.Unpickler):
    """Reads a pickle of plain containers and numpy arrays, and refuses any other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


def check_resnet(
    pyramid: Pyramid, state: Mapping[str, Any], images: Sequence[Tensor], *, detectron2: bool
) -> tuple[float, ...]:
    """Differences of a plain ResNet's weights run by :func:`resnet_maps`. Raises ``WorkFailed``."""
    return differences(pyramid, lambda x: resnet_maps(state, x, detectron2=detectron2), images)
