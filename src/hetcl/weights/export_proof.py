"""The proof that an export is equal: the file is loaded back, its weights and its maps are compared with the source's.

Loaded back means by the library it is for, with the very code that the card shows (``load_code.py``), or, where that
library is not installed, by a ResNet of functions alone (``plain_resnet.py``).

Shapes: B images, H W pixels (``hetcl/types.py``); maps ``[B, C_i, H_i, W_i]``, finest first (C2..C5).
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetcl.draws import generator
from hetcl.errors import WorkFailed
from hetcl.model.embedding import Embedding
from hetcl.model.pyramid import Pyramid
from hetcl.weights.encoder import load_encoder
from hetcl.weights.load_code import Target, code, onnx_by_reference
from hetcl.weights.plain_resnet import resnet_maps
from hetcl.weights.sources import read_weights
from hetcl.weights.writers import Material, Payload, quiet

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


def random_images(count: int = 2, *, size: tuple[int, int] | None = None, in_chans: int = 3) -> list[Tensor]:
    """Random images, each ``[2, in_chans, H, W]`` of standard normal values: the same ones at every call.

    Args:
        size: height and width where the backbone takes one only; None draws a size for each.
    """
    out = []
    for i in range(count):
        rng = generator("export", "check", i)
        height, width = (int(n) for n in rng.integers(SIDES[0], SIDES[1] + 1, 2)) if size is None else size
        out.append(torch.from_numpy(rng.standard_normal((2, in_chans, height, width), dtype=np.float32)))
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


class ArraysOnly(pickle.Unpickler):
    """Reads a pickle of plain containers and numpy arrays, and refuses any other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


# ---- of each format --------------------------------------------------------------------------------------------------


def _images(m: Material, target: Target) -> list[Tensor]:
    """Random images that the library's model takes."""
    size = getattr(m.pyramid, "size", None)
    if size is None and target.library == "timm":
        import timm

        config: Any = timm.get_pretrained_cfg(target.name)
        # a pyramid can let go of it, the plain model cannot
        if config is not None and config.fixed_input_size:
            size = tuple(config.input_size[-2:])
    images = random_images(size=size, in_chans=target.in_chans)
    try:
        with torch.no_grad():
            m.pyramid(images[0])
    except RuntimeError:  # a model that takes whole multiples of its largest stride alone
        images = random_images(size=(96, 128), in_chans=target.in_chans)
    return images


def _proof(by: str, keys: int, gaps: tuple[float, ...], images: list[Tensor]) -> Proof:
    return Proof(by, keys, gaps, tuple((int(x.shape[2]), int(x.shape[3])) for x in images))


def check_code(m: Material, p: Payload, file: Path) -> tuple[Proof, str]:
    """Runs the card's code; its ``model`` has the file's weights, its ``backbone`` the source's maps."""
    text = code(p.target)
    names = run_code(text, file)
    added = {n for n in names["model"].state_dict() if n.endswith("num_batches_tracked") and n not in p.state}
    left = added | set(p.target.missing)
    held = {n: v for n, v in names["model"].state_dict().items() if n not in left}
    keys = same_weights(held, p.state)
    images = _images(m, p.target)
    gaps = differences(m.pyramid, maps_of(names["backbone"], p.target.last), images)
    if "same" in names:
        differences(m.pyramid, names["same"], images)
    return _proof(_version(p.target.library), keys, gaps, images), text


def check_hub(m: Material, p: Payload, file: Path) -> tuple[Proof, str]:
    proof, text = check_code(m, p, file)
    stated = run_code(text, file)["model"].pretrained_cfg
    if [tuple(stated[n]) for n in ("mean", "std")] != [m.facts.mean, m.facts.std] or stated["num_classes"]:
        raise WorkFailed("config.json is read back with another mean, std or classifier")
    return proof, text


def check_full(m: Material, p: Payload, file: Path) -> tuple[Proof, str]:
    text = code(p.target)
    names = run_code(text, file)
    again = read_weights(str(file))
    keys = same_weights(again.query | {f"key.{n}": v for n, v in (again.key or {}).items()}, p.state)
    images = _images(m, p.target)
    _check_parts(load_encoder(m.model).embedding, names["embedding"], images)
    gaps = differences(m.pyramid, names["backbone"], images)
    return _proof(_version("hetcl"), keys, gaps, images), text


@torch.no_grad()
def _check_parts(source: Embedding | None, loaded: Embedding | None, images: list[Tensor]) -> None:
    """Raises ``WorkFailed`` when the vectors differ: the branches' shape is in the facts, not in the weights alone."""
    if source is None and loaded is None:
        return
    if source is None or loaded is None or source.dims != loaded.dims:
        raise WorkFailed("the encoder that is read back has other branches")
    for batch in images:
        ours, theirs = source(batch), loaded(batch)
        for name, vectors in ours.items():
            if float((vectors - theirs[name]).abs().max()) > TOLERANCE:  # they have unit length
                raise WorkFailed(f"the {name} part of the encoder that is read back differs")


def check_detectron2(m: Material, p: Payload, file: Path) -> tuple[Proof, str]:
    with open(file, "rb") as f:
        content = ArraysOnly(f).load()
    if (content.keys() - {"model"}) != {"__author__", "matching_heuristics"} or content[
        "matching_heuristics"
    ] is not True:
        raise WorkFailed("the pickle has other entries than model, __author__ and matching_heuristics")
    keys = same_weights(content["model"], p.state)
    images = random_images()
    gaps = check_resnet(m.pyramid, content["model"], images, detectron2=True)
    by = "hetcl's own ResNet in detectron2's names (a ResNet written apart from the one that was trained)"
    if importlib.util.find_spec("detectron2") is None:
        return _proof(by, keys, gaps, images), ""
    text = code(p.target)
    try:
        names = run_code(text, file)
    except ImportError:
        return _proof(f"{by}; the detectron2 that is installed does not import", keys, gaps, images), ""
    held = {n: v for n, v in names["backbone"].state_dict().items() if not n.endswith("num_batches_tracked")}
    keys = same_weights(held, p.state)
    gaps = differences(m.pyramid, maps_of(names["backbone"]), images)
    return _proof(_version("detectron2"), keys, gaps, images), text


def check_mmdet(m: Material, p: Payload, file: Path) -> tuple[Proof, str]:
    text = code(p.target)
    names = run_code(text, file)
    keys = same_weights(names["checkpoint"]["state_dict"], p.state)
    held = {n: v for n, v in names["model"].state_dict().items() if not n.startswith("fc.")}
    same_weights({f"backbone.{n}": v for n, v in held.items()}, p.state)
    images = random_images()
    gaps = check_resnet(m.pyramid, names["state"], images, detectron2=False)
    by = f"{_version('torchvision')}, whose names mm's ResNets have, and hetcl's own ResNet in those names"
    return _proof(by, keys, gaps, images), text


def check_onnx(m: Material, p: Payload, file: Path) -> tuple[Proof, str]:
    import onnx

    try:
        onnx.checker.check_model(str(file), full_check=True)
    except Exception as e:  # of several kinds
        raise WorkFailed(f"onnx's own checker refuses it ({type(e).__name__})") from e
    runtime = importlib.util.find_spec("onnxruntime") is not None
    text = code(p.target) if runtime else onnx_by_reference(p.target)
    names = run_code(text, file)
    images = _images(m, p.target)
    gaps = differences(m.pyramid, maps_of(names["backbone"]), images)
    return _proof(_version("onnxruntime" if runtime else "onnx"), 0, gaps, images), text


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def check_resnet(
    pyramid: Pyramid, state: Mapping[str, Any], images: Sequence[Tensor], *, detectron2: bool
) -> tuple[float, ...]:
    """Differences of a plain ResNet's weights run by :func:`resnet_maps`. Raises ``WorkFailed``."""
    return differences(pyramid, lambda x: resnet_maps(state, x, detectron2=detectron2), images)
