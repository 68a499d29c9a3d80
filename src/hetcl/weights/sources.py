"""The ``MODEL`` argument: weights by name, read without running anybody's code.

``RUN`` | ``RUN/checkpoints/FILE`` | ``FILE.safetensors`` | any other FILE of a state dict | ``moco:FILE`` |
``torchvision:ARCH[:FILE|random|WEIGHTS_NAME]`` | ``timm:ARCH[:FILE|random|TAG]``. Only a WEIGHTS_NAME or a TAG may
download. Every reading of a file that hetcl's own training did not write leaves a report (``matched.py``) in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hetcl.errors import InputError
from hetcl.methods import fact_names, words_in
from hetcl.model.pyramid import Pyramid, build_pyramid
from hetcl.paths import expand_spec
from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder
from hetcl.weights import published, unpack
from hetcl.weights.architectures import ModelSpec
from hetcl.weights.facts import InputFacts, input_facts
from hetcl.weights.importers import Imported, import_state, state_of
from hetcl.weights.matched import Matched, patterns, some
from hetcl.weights.names import is_constant, names_of

State = dict[str, Tensor]
log = logging.getLogger("hetcl.weights")
PIXEL_FACTS = ("mean", "std", "channels", "in_chans", "pixel_max")
"""What a checkpoint says of its images, where they are not RGB as ImageNet's."""
GRAMMAR = (
    "give a run folder, RUN/checkpoints/FILE, a FILE of weights (.safetensors, .pth), moco:FILE, "
    "torchvision:ARCH[:FILE|random|WEIGHTS_NAME] or timm:ARCH[:FILE|random|TAG]"
)


@dataclass(frozen=True)
class Weights:
    """Weights with names of an :class:`hetcl.model.embedding.Embedding`: ``pyramid.*`` and ``branches.*``."""

    origin: str
    """What to call them in a message."""
    arch: str | None
    """Architecture of the pyramid where the user, the file or its shapes say so."""
    query: State
    key: State | None
    """The key encoder where there is one."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the encoder: method, size, semantic_dim, spatial, mean, std, channels; only what is known."""
    matched: Matched | None = None
    """What became of the file's keys; None for weights that are in no file."""

    @property
    def in_chans(self) -> int:
        """Channels of the images that they take."""
        return int(self.facts.get("in_chans", 3))


def read_weights(model: str, *, arch: str | None = None, allow_partial: str | Sequence[str] = ()) -> Weights:
    """Weights named by ``model``.

    Args:
        arch: the architecture to take a file for that neither says its own nor has a ResNet's shapes.
        allow_partial: globs of keys (the file's, the library's or the pyramid's names) that may be missing, unknown or
            of another shape. Missing weights are then random, a function of nothing but the architecture.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    spec = _taken_apart(expand_spec(model), arch, patterns(allow_partial))
    weights = _of_library(spec) if spec.path is None else _of_file(spec, spec.path)
    for line in weights.matched.lines() if weights.matched and weights.arch is not None else ():
        log.info(line)
    return weights


def _taken_apart(model: str, fallback: str | None, allow: tuple[str, ...]) -> ModelSpec:
    """A MODEL by the grammar; of a run, its last checkpoint. Raises ``InputError``."""
    library, colon, rest = model.partition(":")
    if not model.strip():
        raise InputError(f"an empty name of weights: {GRAMMAR}")
    if colon and library in ("torchvision", "timm"):
        name, several, which = rest.partition(":")
        if several and Path(which).is_file():
            return ModelSpec(model, Path(which), arch=f"{library}:{name}", allow=allow)
        if library == "timm" and "." in name and not several:
            bare, tag = name.split(".", 1)
            raise InputError(
                f"{model}: write timm:{bare}:{tag} for those weights, or timm:{bare} for random ones"
            )
        return ModelSpec(model, arch=f"{library}:{name}", which=which, allow=allow)
    if colon and library == "moco":
        return ModelSpec(model, Path(rest), fallback=fallback, moco=True, allow=allow)
    path = Path(model)
    if path.is_dir():
        path = _last_checkpoint(path)
        return ModelSpec(str(path), path, allow=allow)
    if not path.is_file():
        raise InputError(f"no weights {model!r}: {GRAMMAR}")
    return ModelSpec(model, path, fallback=fallback, allow=allow)


def _last_checkpoint(path: Path) -> Path:
    run = RunFolder(path)
    ended = _last_stage(run.read_settings())
    if ended and run.backbone.exists() and not (run.checkpoints / ended).is_file():
        raise InputError(
            f"{path} is a run that has ended, but its checkpoint {ended} is gone; name other weights, such as "
            f"{run.backbone}"
        )
    for name in ("stage2.ckpt", "stage1.ckpt", "last.ckpt"):
        if (run.checkpoints / name).is_file():
            return run.checkpoints / name
    raise InputError(
        f"{path} is a run without a checkpoint yet; let it finish a stage, or name other weights"
    )


def _last_stage(tree: Mapping[str, Any]) -> str | None:
    """The checkpoint that a pre-training run ends with; None of other runs."""
    stage = tree["settings"].get("stage2")
    if "kind" in tree or not isinstance(stage, Mapping):
        return None
    return "stage2.ckpt" if stage.get("epochs") else "stage1.ckpt"


def _of_library(spec: ModelSpec) -> Weights:
    """Random or published weights of torchvision or timm."""
    model, arch, which = spec.origin, str(spec.arch), spec.which
    if which in ("", "random"):
        return Weights(model, arch, {f"pyramid.{n}": v for n, v in _random(arch).items()}, None)
    names = names_of(arch)  # an unknown architecture is the first fault to speak of
    if "/" in which or Path(which).suffix in (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar"):
        raise InputError(f"{model}: there is no file {which}")
    state, facts = published.fetch(model, names.arch, which)
    return _weights(spec, import_state(state, spec), facts)


def _of_file(spec: ModelSpec, path: Path) -> Weights:
    """A checkpoint of hetcl's, a whole encoder of ``hetcl export --format full``, or a stranger's file."""
    origin, arch = spec.origin, spec.arch
    if not path.is_file():
        raise InputError(f"{origin}: there is no file {str(path)!r}")
    content, facts = unpack.open_file(path)
    ours = isinstance(content, dict) and "hetcl" in content
    stated = content.get("arch") if ours else facts.get("arch")
    if arch is not None and isinstance(stated, str) and _bare(stated) != _bare(arch):
        raise InputError(f"{origin}: the file says that it is of {stated}; write {path} alone")
    if ours:
        return _checkpoint(path, content)
    if facts and any(n.startswith("pyramid.") for n in content):
        return _whole(origin, stated, content, facts)
    state, word, others = state_of(content, origin)
    if arch is None and stated:
        try:
            names_of(stated)
        except InputError as e:
            raise InputError(f"{origin} says that it is of {stated}: {e}") from None
    found = import_state(state, replace(spec, arch=arch or stated, stated=word), others)
    if spec.moco and found.arch is None:
        raise InputError(no_arch(origin, str(path)))
    return _weights(spec, found, facts)


def _bare(arch: str) -> str:
    """An architecture without its library and tag."""
    return arch.rpartition(":")[2].split(".")[0]


def no_arch(origin: str, file: str | None = None) -> str:
    """What to say of weights that do not tell their architecture."""
    file = file or origin
    return (
        f"{origin} does not say its architecture, and its shapes are those of no ResNet of torchvision's: "
        f"write torchvision:ARCH:{file} or timm:ARCH:{file}"
    )


def _checkpoint(path: Path, content: Mapping[str, Any]) -> Weights:
    layout = content["hetcl"]
    if not isinstance(layout, int) or layout > checkpoint.FORMAT:
        raise InputError(f"{path} was written by a newer hetcl (layout {layout}); upgrade hetcl")
    task = content.get("task", {})
    encoders = [task[n] for n in ("query", "key") if n in task] if isinstance(task, Mapping) else []
    if not encoders or "query" not in task:
        if content.get("kind") == "hetcl-finetune":
            raise InputError(
                f"{path} holds a detector or segmenter; its backbone is the backbone.safetensors of the run"
            )
        raise InputError(f"{path} holds no encoder")
    sound = isinstance(content.get("arch"), str) and all(
        isinstance(e, Mapping) and all(isinstance(n, str) and isinstance(v, Tensor) for n, v in e.items())
        for e in encoders
    )
    facts: dict[str, Any] = {
        name: content[name] for name in ("method", "size", *PIXEL_FACTS, *fact_names()) if name in content
    }
    if not sound or words_in(facts) is None or not _counted(facts):
        raise InputError(f"{path} is no checkpoint as hetcl writes them; give the run's own")
    key = dict(task["key"]) if "key" in task else None
    return Weights(str(path), content["arch"], dict(task["query"]), key, facts)


def _counted(facts: Mapping[str, Any]) -> bool:
    """Whether the number of channels, where it is stated, is one."""
    count = facts.get("in_chans", 3)
    return isinstance(count, int) and 0 < count <= 512


def _whole(origin: str, arch: str | None, content: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Weights:
    """A whole encoder of ``hetcl export --format full``: every key accounted for.

    Raises:
        InputError: a key that is none of an encoder, a momentum copy that is not one, or values that are not finite.
    """
    if arch is None or words_in(facts) is None or not _counted(facts):
        raise InputError(f"{origin}: the facts in its header do not describe an encoder; export it anew")
    query = {n: v for n, v in content.items() if not n.startswith("key.")}
    key = {n.removeprefix("key."): v for n, v in content.items() if n.startswith("key.")}
    strange = [n for n in content if not n.removeprefix("key.").startswith(("pyramid.", "branches."))]
    if strange:
        raise InputError(
            f"{origin} holds {len(strange)} keys of no encoder (e.g. {some(strange)}); export it anew"
        )
    shapes = [{n: v.shape for n, v in state.items()} for state in (query, key)]
    if key and shapes[0] != shapes[1]:
        odd = sorted(shapes[0].items() ^ shapes[1].items())[0][0]
        raise InputError(f"{origin}: its momentum copy does not fit its encoder (e.g. {odd}); export it anew")
    broken = [n for n, v in content.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if broken:
        raise InputError(f"{origin} holds values that are not finite, e.g. in {broken[0]}")
    return Weights(origin, arch, query, key or None, facts, Matched(origin, arch, tuple(content)))


def _weights(spec: ModelSpec, found: Imported, facts: Mapping[str, Any]) -> Weights:
    """Weights of what was imported; what was allowed to be missing is filled with random weights."""
    query, key = found.query, found.key
    if found.arch is not None and found.matched.missing:
        fresh = {f"pyramid.{n}": v for n, v in _random(found.arch, found.facts.get("in_chans", 3)).items()}
        query = fresh | query
        key = None if key is None else fresh | key
    return Weights(spec.origin, found.arch, query, key, dict(found.facts) | dict(facts), found.matched)


def _random(arch: str, in_chans: int = 3) -> State:
    return build_pyramid(arch, seed=0, in_chans=in_chans).state_dict()


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
    pyramid = [name for name in own if name.startswith("pyramid.") and not is_constant(name)]
    if any(n.startswith("pyramid.") and n not in own for n in state):
        state = _renamed(module, state)
    missing = [n for n in pyramid if n not in state]
    strange = [n for n in state if n.startswith("pyramid.") and n not in own]
    shapes = [n for n in pyramid if n in state and not _alike(state[n], own[n])]
    if shapes and not (missing or strange) and (differ := _channels(shapes, state, own)):
        raise InputError(f"{origin} {differ}")
    if missing or strange or shapes:
        ours = getattr(getattr(module, "pyramid", None), "arch", "this backbone")
        examples = some([n.removeprefix("pyramid.") for n in missing + shapes + strange])
        raise InputError(
            f"{origin} does not fit {ours}: {len(missing)} weights missing, {len(strange)} unknown, "
            f"{len(shapes)} of another shape (e.g. {examples}); "
            f"set backbone to {arch or 'the architecture of the file'}"
        )
    take = {n: state[n] for n in pyramid}
    notes = []
    branches = sorted({n.split(".")[1] for n in [*own, *state] if n.startswith("branches.")})
    for branch in branches:
        prefix = f"branches.{branch}."
        ours = {n for n in own if n.startswith(prefix)}
        theirs = {n for n in state if n.startswith(prefix)}
        if ours and ours == theirs and all(_alike(state[n], own[n]) for n in ours):
            take |= {n: state[n] for n in ours}
        elif ours:
            notes.append(
                f"{branch} branch: starts afresh" + (" (another shape in the file)" if theirs else "")
            )
        else:
            notes.append(f"{branch} branch of {origin}: not used")
    broken = [n for n in take if take[n].is_floating_point() and not bool(take[n].isfinite().all())]
    if broken:
        raise InputError(
            f"{origin} holds values that are not finite, e.g. in {broken[0].removeprefix('pyramid.')}"
        )
    module.load_state_dict(take, strict=False)
    return notes


def _channels(names: Sequence[str], theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """What to say where shapes differ by the number of channels of the images alone; else empty."""
    pairs = [(tuple(theirs[n].shape), tuple(ours[n].shape)) for n in names]
    if not all(len(a) == len(b) == 4 and (a[0], *a[2:]) == (b[0], *b[2:]) for a, b in pairs):
        return ""
    found, wanted = pairs[0][0][1], pairs[0][1][1]
    return f"takes images of {found} channels, and in_chans is {wanted}: set in_chans to {found}"


def _alike(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and theirs.is_floating_point() == ours.is_floating_point()


def _renamed(module: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state in its library's names as the module's pyramid calls them, without what lies beyond C5."""
    arch = getattr(getattr(module, "pyramid", None), "arch", None)
    if arch is None:
        return state
    names = names_of(arch)
    out = {}
    for name, value in state.items():
        bare = name.removeprefix("pyramid.")
        if name.startswith("pyramid.") and bare not in names.beyond:
            out[f"pyramid.{names.to_pyramid.get(bare, bare)}"] = value
        elif not name.startswith("pyramid."):
            out[name] = value
    return out


def load_backbone(model: str, *, allow_partial: str | Sequence[str] = ()) -> nn.Module:
    """The backbone that ``model`` names, as a module that gives C2..C5 (``hetcl.model.pyramid.Pyramid``), in eval mode.

    Its attribute ``facts`` (:class:`hetcl.weights.facts.InputFacts`) says how images are given to it:
    mean, std, size, channel order.

    Args:
        allow_partial: as :func:`read_weights`.

    Raises:
        InputError: no such weights, broken ones, or a file that does not say its architecture.
    """
    weights = read_weights(model, allow_partial=allow_partial)
    if weights.arch is None:
        raise InputError(no_arch(model))
    backbone: Any = pyramid_of(weights)
    backbone.facts = stated_facts(weights, model)
    return backbone


def pyramid_of(weights: Weights) -> Pyramid:
    """The backbone of weights of known architecture, in eval mode. Raises ``InputError`` as :func:`install`."""
    holder = nn.Module()
    holder.pyramid = pyramid = build_pyramid(str(weights.arch), seed=0, in_chans=weights.in_chans)
    own = {n: v for n, v in weights.query.items() if n.startswith("pyramid.")}
    install(holder, own, weights.origin, arch=weights.arch)
    return pyramid.eval()


def stated_facts(weights: Weights, model: str) -> InputFacts:
    """How images are given to a MODEL of known architecture; said in the log when nobody states it.

    Raises:
        InputError: the file states something that cannot be.
    """
    facts = input_facts(weights.facts, str(weights.arch), weights.origin)
    if facts.source == "assumed" and weights.matched is not None:
        log.info(
            f"{model}: nothing says how its images are normalised; ImageNet's mean and std, "
            f"{facts.channel_order}, are assumed"
        )
    return facts
