"""What each format's file holds: an encoder's weights to bytes, and what those look like to their library.

Nothing is written here. ``exporters.py`` writes, has the file checked, and puts the card beside it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hetcl.errors import InputError
from hetcl.methods import fact_names
from hetcl.model.pyramid import STRIDES, ResNetPyramid, WrappedPyramid, build_pyramid, first_conv, seeded
from hetcl.paths import expand_spec
from hetcl.runs.folder import RunFolder, machine
from hetcl.weights import hub
from hetcl.weights.cards import Facts
from hetcl.weights.load_code import Target
from hetcl.weights.names import library_model, library_names, names_of
from hetcl.weights.plain_resnet import detectron2_name, plain_resnet
from hetcl.weights.sealed import seal
from hetcl.weights.sources import Weights

State = dict[str, Tensor]


@dataclass(frozen=True)
class Material:
    """What is exported."""

    model: str
    """The MODEL, as it was given."""
    weights: Weights
    pyramid: ResNetPyramid | WrappedPyramid
    """With the weights in it, fp32, in eval mode, on the host."""
    facts: Facts

    @property
    def state(self) -> State:
        """The pyramid's weights under its library's names."""
        return library_names(self.facts.arch, _plain(self.pyramid.state_dict()))


@dataclass(frozen=True)
class Payload:
    """A file, before it is written."""

    data: bytes
    state: State
    """What the file must hold once loaded, under the names it has there; empty for ONNX."""
    target: Target
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Where it is a folder: the other files in it, by name."""


def _plain(state: Mapping[str, Tensor]) -> State:
    """Tensors of their own memory, dense and on the host."""
    return {n: v.detach().cpu().clone(memory_format=torch.contiguous_format) for n, v in state.items()}


def run_of(model: str) -> dict[str, Any] | None:
    """Settings and origin of the run that made ``model``; None where it is not part of a run."""
    path = Path(expand_spec(model))
    if not path.exists():
        return None
    for folder in (path, path.parent, path.parent.parent):
        run = RunFolder(folder)
        inside = path in (folder, run.backbone) or path.parent == run.checkpoints
        if not inside or not run.settings.is_file():
            continue
        with contextlib.suppress(InputError):
            tree = run.read_settings()
            run.check_seal()
            made = run.read_summary()
            by, data = (made[n] if isinstance(made.get(n), dict) else {} for n in ("machine", "data"))
            return {
                "hetcl": tree.get("hetcl"),
                "recipe": tree.get("recipe"),
                "settings": tree["settings"],
                "commit": by.get("commit"),
                "images": data.get("images"),
                "data": tree.get("data"),
                "knn": (made.get("knn") or {}).get("after"),
            }
    return None


def _saved(content: Any) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


# ---- targets ---------------------------------------------------------------------------------------------------------


def _in_library(m: Material, library: str, format: str) -> Target:
    """``m`` as a model of ``library``: its own one, or the one of the same name with the same weights there.

    Raises:
        InputError: the library has no such model.
    """
    own, _, name = m.facts.arch.partition(":")
    if own != library:
        name = name.split(".")[0]
        try:
            other = names_of(f"{library}:{name}", m.facts.in_chans)
            theirs = {n: other.shapes[p] for n, p in other.to_pyramid.items()}
        except InputError:
            theirs = {}
        if {n: tuple(v.shape) for n, v in m.state.items()} != theirs:
            raise InputError(
                f"{m.model} is {m.facts.arch}, and {library} has no model of that name with the same weights; "
                f"export it as {own}, onnx or safetensors"
            )
    return _target(m, format, library, name)


def _target(m: Material, format: str, library: str, name: str, **more: Any) -> Target:
    """A target, with the channels of the images."""
    first = ""
    if m.facts.in_chans != 3 and library == "torchvision":
        first, _ = first_conv(library_model(f"torchvision:{name}"))
    return Target(format, library, name, in_chans=m.facts.in_chans, first=first, **more)


def _only_rgb(m: Material, what: str) -> None:
    """Raises ``InputError`` where a format is of RGB images and the weights are not."""
    if not m.facts.rgb:
        images = (
            f"{m.facts.in_chans} channels" if m.facts.in_chans != 3 else f"values up to {m.facts.pixel_max:g}"
        )
        raise InputError(
            f"{m.model} takes images of {images}, and {what} reads RGB of 8 bits alone; export it as timm, "
            "torchvision, onnx or safetensors"
        )


def _with_maps(m: Material, target: Target) -> Target:
    """The target with where its library's model has the four maps."""
    if target.library == "timm":
        pyramid = m.pyramid
        if m.facts.arch.partition(":")[0] != "timm":
            pyramid = build_pyramid(  # type: ignore[assignment]
                f"timm:{target.name}", seed=0, in_chans=m.facts.in_chans
            )
        assert isinstance(pyramid, WrappedPyramid)
        body: Any = pyramid.body
        given = list(body.feature_info.out_indices)  # of some models not every level is given
        return replace(target, indices=tuple(given[int(i)] for i in pyramid.pick), last=pyramid.last)
    size = getattr(m.pyramid, "size", None) or (64, 96)
    found = stage_modules(library_model(f"torchvision:{target.name}", device="cpu"), size)
    return replace(target, stages=tuple(n for n, _ in found), last=tuple(last for _, last in found))


def to_torchvision(m: Material, file: Path) -> Payload:
    target = _with_maps(m, _in_library(m, "torchvision", "torchvision"))
    beyond = names_of(f"torchvision:{target.name}").beyond
    counted = (n for n in beyond if not n.endswith("num_batches_tracked"))  # torch adds those itself
    target = replace(target, missing=tuple(sorted(counted)))
    return Payload(_saved(m.state), m.state, target)


def to_timm(m: Material, file: Path) -> Payload:
    target = _with_maps(m, _in_library(m, "timm", "timm"))
    with seeded(0, "export"):
        whole = _timm_without_classifier(target.name, m.facts.in_chans).state_dict()
    ours = m.state
    if lost := sorted(ours.keys() - whole.keys()):
        raise InputError(
            f"timm's {target.name} without its classifier has no {lost[0]}; export it as safetensors"
        )
    state = {n: ours.get(n, v) for n, v in _plain(whole).items()}
    target = replace(target, untrained=tuple(n for n in state if n not in ours))
    data = seal(state, _header(m, "timm")) if file.suffix == ".safetensors" else _saved(state)
    return Payload(data, state, target)


def to_hub(m: Material, file: Path) -> Payload:
    payload = to_timm(m, Path(hub.WEIGHTS))
    model: Any = _timm_without_classifier(payload.target.name, m.facts.in_chans)
    name = payload.target.name.split(".")[0]
    config = hub.config(m.facts, name, int(model.num_features), model.pretrained_cfg)
    return replace(payload, target=replace(payload.target, format="hub"), beside={hub.CONFIG: config})


def _timm_without_classifier(name: str, in_chans: int) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_chans)


def _header(m: Material, contents: str, **more: Any) -> dict[str, Any]:
    """What a header says of the weights."""
    facts = m.facts.metadata() | {"contents": contents, "licence": "code Apache-2.0; weights: their owner's"}
    facts["commit"] = (run_of(m.model) or {}).get("commit")
    return facts | more


def to_safetensors(m: Material, file: Path) -> Payload:
    library, _, _ = m.facts.arch.partition(":")
    target = _with_maps(m, _in_library(m, library, "safetensors"))
    if library == "torchvision":
        missing = list(names_of(m.facts.arch).beyond)
    else:
        whole = _timm_without_classifier(target.name, m.facts.in_chans).state_dict()
        missing = [n for n in whole if n not in m.state]
    # Of a plain dictionary torch adds the counters that are not there, and does not call them missing.
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    target = replace(target, missing=tuple(sorted(missing)))
    return Payload(seal(m.state, _header(m, "backbone")), m.state, target)


def to_full(m: Material, file: Path) -> Payload:
    state = _plain(m.weights.query)
    state |= {f"key.{n}": v for n, v in _plain(m.weights.key or {}).items()}
    broken = [n for n, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if broken:
        raise InputError(f"{m.model} holds values that are not finite, e.g. in {broken[0]}")
    more = {name: m.weights.facts[name] for name in fact_names() if name in m.weights.facts}
    library, _, name = m.facts.arch.partition(":")
    return Payload(seal(state, _header(m, "encoder", **more)), state, _target(m, "full", library, name))


def to_detectron2(m: Material, file: Path) -> Payload:
    _only_rgb(m, "detectron2")
    net = plain_resnet(m.state, m.facts.arch)
    state = {
        detectron2_name(n): v.float() for n, v in m.state.items() if not n.endswith("num_batches_tracked")
    }
    content = {
        "model": {n: v.numpy() for n, v in state.items()},
        "__author__": "hetcl",
        "matching_heuristics": True,
    }
    buffer = io.BytesIO()
    _ArrayPickler(buffer, protocol=4).dump(content)
    library, _, name = m.facts.arch.partition(":")
    return Payload(buffer.getvalue(), state, Target("detectron2", library, name, resnet=net))


class _ArrayPickler(pickle.Pickler):
    """Names ``numpy.ndarray`` and ``numpy.dtype`` only: numpy 1 does not know the private names that numpy 2 writes."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray:
            return np.ndarray, ((0,), "b"), obj.__reduce__()[2]
        return NotImplemented


def to_mmdet(m: Material, file: Path) -> Payload:
    _only_rgb(m, "mmdetection")
    net = plain_resnet(m.state, m.facts.arch)
    if net.groups == 1 and net.width_per_group != 64:
        raise InputError(
            f"{m.facts.arch} is a wide ResNet, which mmdetection does not have; export it as onnx"
        )
    target = _in_library(m, "torchvision", "mmdet")
    state = {f"backbone.{n}": v for n, v in m.state.items()}
    meta = {"hetcl": machine()["hetcl"], **m.facts.metadata()}
    return Payload(_saved({"meta": meta, "state_dict": state}), state, replace(target, resnet=net))


def to_onnx(m: Material, file: Path) -> Payload:
    lacking = [p for p in ("onnx", "onnxscript") if importlib.util.find_spec(p) is None]
    if lacking:
        raise InputError(
            f"--format onnx needs {' and '.join(lacking)}: pip install onnx onnxscript onnxruntime"
        )
    size = getattr(m.pyramid, "size", None)
    shapes = None if size else ({0: "batch", 2: "height", 3: "width"},)
    example = torch.zeros(2, m.facts.in_chans, *(size or (96, 128)))
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                m.pyramid,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["c2", "c3", "c4", "c5"],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as e:  # the exporter's own errors, of many kinds
        raise InputError(
            f"torch cannot export {m.facts.arch} to ONNX ({type(e).__name__}); choose another format"
        ) from e
    library, _, name = m.facts.arch.partition(":")
    return Payload(onnx_bytes(program, _header(m, "graph")), {}, _target(m, "onnx", library, name))


def onnx_bytes(program: Any, facts: Mapping[str, Any]) -> bytes:
    """An exported program (``torch.onnx.ONNXProgram``) as a file, with ``facts`` in its metadata under ``hetcl``."""
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del part.metadata_props[:]  # source lines and paths of this machine
    entry = model.metadata_props.add()
    entry.key, entry.value = "hetcl", json.dumps(facts, sort_keys=True)
    return model.SerializeToString()


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


@contextlib.contextmanager
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
