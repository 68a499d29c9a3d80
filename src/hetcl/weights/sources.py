"""The ``MODEL`` argument: weights by name, read without running anybody's code.

``RUN`` | ``RUN/checkpoints/FILE.ckpt`` | ``FILE.safetensors`` | ``torchvision:ARCH[:random|FILE|WEIGHTS_NAME]`` |
a plain state-dict file of a torchvision backbone. Only a WEIGHTS_NAME may download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hetcl.errors import InputError
from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder
from hetcl.weights import unpack

State = dict[str, Tensor]
_HEADS = ("fc.", "classifier.", "head.", "heads.")
"""What published classifiers call the part that a pyramid does not have."""
_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "encoder_q.", "pyramid.")


@dataclass(frozen=True)
class Weights:
    """Weights with names of an :class:`hetcl.model.embedding.Embedding`: ``pyramid.*`` and ``branches.*``."""

    origin: str
    """What to call them in a message."""
    arch: str | None
    """Architecture of the pyramid where the file says so."""
    query: State
    key: State | None
    """The key encoder where there is one."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a checkpoint says of its encoder: method, size, semantic_dim, spatial; empty where the file does not say."""


def read_weights(model: str) -> Weights:
    """Weights named by ``model``. Raises ``InputError`` naming the file and what is wrong with it."""
    if model.startswith("torchvision:"):
        return _torchvision(model)
    if model.startswith("timm:"):
        return _timm(model)
    if model.startswith("moco:"):
        raise InputError(
            f"{model}: this hetcl does not read {model.split(':')[0]} weights yet; give a run folder, "
            "a .safetensors file or torchvision:ARCH:FILE"
        )
    if not model.strip():
        raise InputError("an empty name of weights")
    path = Path(model)
    if path.is_dir():
        run = RunFolder(path)
        run.read_settings()
        for name in ("stage2.ckpt", "stage1.ckpt", "last.ckpt"):
            if (run.checkpoints / name).is_file():
                return _checkpoint(run.checkpoints / name)
        raise InputError(
            f"{path} is a run without a checkpoint yet; let it finish a stage, or name other weights"
        )
    if not path.is_file():
        raise InputError(
            f"no weights {model!r}: give a run folder, RUN/checkpoints/FILE, FILE.safetensors "
            "or torchvision:ARCH[:FILE|random|WEIGHTS_NAME]"
        )
    if path.suffix == ".ckpt":
        return _checkpoint(path)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    return Weights(str(path), None, _pyramid_names(_state_dict(path)), None)


def _checkpoint(path: Path) -> Weights:
    state = checkpoint.load(path)
    task = state.get("task", {})
    if "query" not in task:
        raise InputError(f"{path} holds no encoder")
    facts: dict[str, Any] = {
        name: state[name] for name in ("method", "size", "semantic_dim", "spatial") if name in state
    }
    key = dict(task["key"]) if "key" in task else None
    return Weights(str(path), state.get("arch"), dict(task["query"]), key, facts)


def _safetensors(path: Path) -> Weights:
    state, facts = unpack.open_file(path)
    arch = facts.get("arch")
    if any(name.startswith("pyramid.") for name in state):  # a whole encoder, and its key
        query = {n: v for n, v in state.items() if not n.startswith("key.")}
        key = {n.removeprefix("key."): v for n, v in state.items() if n.startswith("key.")}
        return Weights(str(path), arch, query, key or None, facts)
    named = _pyramid_names(state)
    if arch is not None:
        bare = {n.removeprefix("pyramid."): v for n, v in named.items()}
        named = {f"pyramid.{n}": v for n, v in _of_library(str(arch), bare).items()}
    return Weights(str(path), arch, named, None, facts)


def _torchvision(model: str) -> Weights:
    import torchvision

    from hetcl.model.pyramid import build_pyramid

    _, arch, *rest = model.split(":", 2)
    if not rest or rest[0] == "random":
        state = build_pyramid(f"torchvision:{arch}", seed=0).state_dict()
        return Weights(model, f"torchvision:{arch}", {f"pyramid.{k}": v for k, v in state.items()}, None)
    if Path(rest[0]).is_file():
        return Weights(model, f"torchvision:{arch}", _pyramid_names(_state_dict(Path(rest[0]))), None)
    try:
        weights = torchvision.models.get_model_weights(arch)[rest[0]]
    except (KeyError, ValueError):
        raise InputError(
            f"{model}: {rest[0]!r} is neither a file nor a weights name of torchvision's {arch}"
        ) from None
    try:
        return Weights(
            model, f"torchvision:{arch}", _pyramid_names(weights.get_state_dict(progress=False)), None
        )
    except OSError as e:
        raise InputError(f"{model}: cannot download {rest[0]}: {e}") from None


def _timm(model: str) -> Weights:
    """``timm:ARCH[:random|FILE]``: files carry timm's own names, with or without the classifier."""
    from hetcl.model.pyramid import build_pyramid

    _, arch, *rest = model.split(":", 2)
    if not rest or rest[0] == "random":
        state: Mapping[str, Tensor] = build_pyramid(f"timm:{arch}", seed=0).state_dict()
    elif Path(rest[0]).is_file():
        path = Path(rest[0])
        found = _safetensors_state(path) if path.suffix == ".safetensors" else _state_dict(path)
        state = _of_library(f"timm:{arch}", found)
    else:
        raise InputError(f"{model}: no file {rest[0]!r}; published weights of timm by tag are not read yet")
    return Weights(model, f"timm:{arch}", {f"pyramid.{n}": v for n, v in state.items()}, None)


def _of_library(arch: str, state: Mapping[str, Tensor]) -> State:
    """A library's names to the pyramid's, without what lies beyond C5 (the classifier)."""
    from hetcl.weights.names import names_of, pyramid_names

    beyond = names_of(arch).beyond
    return {n: v for n, v in pyramid_names(arch, state).items() if n not in beyond}


def _safetensors_state(path: Path) -> State:
    """The tensors of a safetensors file by their own names."""
    read = _safetensors(path)
    return {n.removeprefix("pyramid."): v for n, v in read.query.items()}


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    """A state dict from a file of weights, unwrapped from ``state_dict`` or ``model``."""
    state, _ = unpack.open_file(path)
    for name in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path} holds no state dict (names with tensors)")
    return state


def _pyramid_names(state: Mapping[str, Tensor]) -> State:
    """Strip wrappers' prefixes and the classifier, and name the rest as the pyramid's."""
    out = dict(state)
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if out and all(name.startswith(prefix) for name in out):
                out, stripped = {name[len(prefix) :]: v for name, v in out.items()}, True
    return {f"pyramid.{name}": v for name, v in out.items() if not name.startswith(_HEADS)}


def install(
    module: nn.Module, state: Mapping[str, Tensor], origin: str, *, arch: str | None = None
) -> list[str]:
    """Load ``state`` into an embedding: the pyramid wholly, each branch wholly or not at all.

    Args:
        arch: the architecture that the weights say they are of, for the message when they do not fit.

    Returns:
        lines that say which branches came along, which start afresh, and what was left unused.

    Raises:
        InputError: a weight of the pyramid is missing, has another shape, or is not finite; nothing is changed then.
    """
    own = module.state_dict()
    pyramid = [name for name in own if name.startswith("pyramid.")]
    missing = [n for n in pyramid if n not in state]
    strange = [n for n in state if n.startswith("pyramid.") and n not in own]
    shapes = [n for n in pyramid if n in state and state[n].shape != own[n].shape]
    if missing or strange or shapes:
        ours = getattr(getattr(module, "pyramid", None), "arch", "this backbone")
        example = (missing + strange + shapes)[0].removeprefix("pyramid.")
        raise InputError(
            f"{origin} does not fit {ours}: {len(missing)} weights missing, {len(strange)} unknown, "
            f"{len(shapes)} of another shape (e.g. {example}); set backbone to {arch or 'the architecture of the file'}"
        )
    broken = [n for n in pyramid if state[n].is_floating_point() and not bool(state[n].isfinite().all())]
    if broken:
        raise InputError(
            f"{origin} holds values that are not finite, e.g. in {broken[0].removeprefix('pyramid.')}"
        )
    take = {n: state[n] for n in pyramid}
    said = []
    branches = sorted({n.split(".")[1] for n in [*own, *state] if n.startswith("branches.")})
    for branch in branches:
        prefix = f"branches.{branch}."
        ours = {n for n in own if n.startswith(prefix)}
        theirs = {n for n in state if n.startswith(prefix)}
        if ours and ours == theirs and all(state[n].shape == own[n].shape for n in ours):
            take |= {n: state[n] for n in ours}
        elif ours:
            said.append(
                f"{branch} branch: starts afresh" + (" (another shape in the file)" if theirs else "")
            )
        else:
            said.append(f"{branch} branch of {origin}: not used")
    module.load_state_dict(take, strict=False)
    return said


def load_backbone(model: str) -> nn.Module:
    """The backbone that ``model`` names, as a module that gives C2..C5 (``hetcl.model.pyramid.Pyramid``), in eval mode.

    Raises:
        InputError: no such weights, or the file does not say its architecture (a plain state dict).
    """
    from hetcl.model.pyramid import build_pyramid

    weights = read_weights(model)
    if weights.arch is None:
        raise InputError(f"{model} does not say its architecture: write torchvision:ARCH:{model}")
    holder = nn.Module()
    holder.pyramid = build_pyramid(weights.arch)
    install(holder, {n: v for n, v in weights.query.items() if n.startswith("pyramid.")}, weights.origin)
    return holder.pyramid.eval()
