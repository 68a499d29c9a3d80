"""Every setting of pre-training as a frozen, typed dataclass; recipes and overrides meet here.

The defaults are the paper's main run, recipe ``hcl-r50``. A line under a field is its help on the command line, so
there is one source for both. Only ``cli.py`` and the entry function of a room see these objects; below them travel
plain keywords.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_type_hints

from hetcl.errors import InputError
from hetcl.types import ViewPolicy

Method = Literal["supervised", "moco-v1", "moco-v2", "hcl"]


@dataclass(frozen=True)
class StageSettings:
    """One stage of pre-training. A stage of 0 epochs is skipped."""

    method: Method = "moco-v2"
    """What to train: supervised (needs labels), moco-v1 (linear head), moco-v2 (MLP head), hcl (MLP head and spatial
    branch)."""
    epochs: int = 200
    """Passes over the data; 0 skips the stage."""
    lr: float = 0.03
    """Learning rate at the start, for the batch that is set (it is not scaled by itself). Paper: 0.03, stage 2 0.05."""
    schedule: Literal["cosine", "cosine-step", "step"] = "cosine"
    """cosine: changes once an epoch, as in MoCo and the paper; cosine-step: changes every step; step: times 0.1 at the
    milestones."""
    milestones: tuple[int, ...] = (120, 160)
    """Epochs at which the step schedule multiplies the learning rate by 0.1 (MoCo-v1)."""
    warmup: float = 0.0
    """Epochs of linear warm-up from zero, changed every step. MoCo has none."""
    sgd_momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of SGD, on every parameter as in MoCo."""
    temperature: float = 0.2
    """Divides the inner products (MoCo-v1: 0.07)."""
    key_momentum: float = 0.999
    """m of the momentum update: key = m * key + (1 - m) * query."""
    queue: int = 65536
    """Keys in the queue; shortened to the number of pictures when the data has fewer (see fit_queue)."""
    views: ViewPolicy = field(default_factory=ViewPolicy)
    """How views are drawn."""


@dataclass(frozen=True)
class SemanticSettings:
    """The semantic branch: pooled C5 to a vector, by a linear layer (moco-v1) or an MLP."""

    dim: int = 128
    """Length of the semantic vector."""


@dataclass(frozen=True)
class SpatialSettings:
    """The spatial branch: a small feature pyramid giving one map (paper section 3.3)."""

    side: int = 14
    """Side of the map; its square is the length of the spatial vector. 14 at 224 pixels."""
    width: int = 256
    """Channels of the lateral and the 3x3 convolution."""
    fused: bool = True
    """Pool large levels before the lateral convolution (paper section 4.3.2); false is the plain FPN."""


@dataclass(frozen=True)
class KnnSettings:
    """The kNN check by which a person sees learning, where the data has labels (they are used for nothing else)."""

    every: int = 1
    """Epochs between checks; 0 never checks. The first check is made before training."""
    bank: int = 10000
    """Labelled pictures to search among."""
    queries: int = 2000
    """Pictures to classify: held out if the data has a validation part, else other training pictures."""
    k: int = 20
    """Neighbours that vote, weighted by exp(cosine / 0.07)."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a pre-training run, but for the data and the folder it writes."""

    backbone: str = "torchvision:resnet50"
    """Architecture: torchvision:NAME or timm:NAME, any with four stages."""
    size: int = 224
    """Side of a view in pixels."""
    batch: int = 256
    """Pictures in a step, over all devices."""
    groups: int = 8
    """Batch-norm groups in that batch: each normalises apart, as the paper's 8 GPUs of 32 do, on any number of
    devices."""
    accumulate: int = 1
    """Pieces in which each device takes its part of the batch, one after the other, to save memory."""
    seed: int = 0
    """Where every random number comes from."""
    semantic: SemanticSettings = field(default_factory=SemanticSettings)
    """The semantic branch."""
    spatial: SpatialSettings = field(default_factory=SpatialSettings)
    """The spatial branch (hcl)."""
    stage1: StageSettings = field(default_factory=StageSettings)
    """First stage."""
    stage2: StageSettings = field(
        default_factory=lambda: StageSettings(method="hcl", lr=0.05, views=ViewPolicy(flip_p=0.0))
    )
    """Second stage; it starts from the query and key encoders of the first."""
    fit_queue: bool = True
    """Shorten the queue to the number of pictures when the data has fewer."""
    mask_own: bool = True
    """Keep earlier keys of the query's own picture out of its negatives. The official code does not."""
    knn: KnnSettings = field(default_factory=KnnSettings)
    """The kNN check."""
    folder_classes: bool = False
    """Take sub-folders as classes (for the kNN check and supervised training)."""
    max_bad: float = 0.1
    """Share of unreadable pictures above which the run stops."""
    workers: int = -1
    """Processes that read and cut pictures, for each device; -1: one for each core up to 8, 0: none."""
    window: int = 0
    """Read pictures in windows of that many neighbours (slow storage); 0: anywhere."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    devices: int = 1
    """Devices of this process's machine; under torchrun or SLURM the launcher decides."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """auto: bf16 autocast on a GPU that has it, fp32 elsewhere. The loss is never below fp32."""
    channels_last: bool = True
    """Memory layout of images and convolutions: channels last is faster on CPU and GPU."""
    compile: bool = False
    """Use torch.compile on both encoders."""
    threads: int = 0
    """Threads for computing on a CPU; 0 leaves PyTorch's choice. Bits repeat only for equal numbers."""
    log_every: int = 50
    """Steps between rows of metrics.csv."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: every epoch only (it is also saved every epoch, and on a signal)."""


def stages_of(settings: Settings) -> dict[str, StageSettings]:
    """The stages that train, by name, in order."""
    both = {"stage1": settings.stage1, "stage2": settings.stage2}
    return {name: stage for name, stage in both.items() if stage.epochs > 0}


def documented(cls: type) -> list[tuple[str, Any, str]]:
    """(field, type, help) of a settings class, in order; the help is the string under the field."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    help_of = {
        line.target.id: " ".join(ast.literal_eval(text.value).split())
        for line, text in pairwise(body)
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(text, ast.Expr)
    }
    hints = get_type_hints(cls)
    return [(f.name, hints[f.name], help_of.get(f.name, "")) for f in fields(cls)]


@cache
def keys_of(cls: type, prefix: str = "") -> tuple[str, ...]:
    """Dotted names of all plain settings below a settings class."""
    hints = get_type_hints(cls)
    out: list[str] = []
    for f in fields(cls):
        kind = hints[f.name]
        out += (
            keys_of(kind, f"{prefix}{f.name}.")
            if is_dataclass(kind) and isinstance(kind, type)
            else [f"{prefix}{f.name}"]
        )
    return tuple(out)


# ---- recipes ---------------------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """The recipes that come with hetcl."""
    folder = resources.files("hetcl") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def recipe_text(recipe: str) -> str:
    """The YAML of a recipe by name or file. Raises ``InputError`` when there is none."""
    if recipe in recipe_names():
        return (resources.files("hetcl") / "recipes" / f"{recipe}.yaml").read_text()
    path = Path(recipe)
    if path.is_file():
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"cannot read recipe {recipe}: {e}") from None
    near = _near(recipe, recipe_names())
    raise InputError(f"no recipe named {recipe!r} and no such file{near}; `hetcl recipes` lists them")


def _near(word: str, words: Sequence[str]) -> str:
    match = difflib.get_close_matches(word, words, 1, 0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted names."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        out |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return out


def _override_pairs(arguments: Sequence[str]) -> dict[str, str]:
    """``--a.b VALUE`` and ``--a.b=VALUE`` to ``{"a.b": "VALUE"}``."""
    out: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InputError(f"unexpected argument {word!r}; settings are given as --NAME VALUE")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and name in keys_of(Settings)):
                raise InputError(f"--{name} needs a value")
            value = rest.pop(0) if not rest[0].startswith("--") else ""
        out[name.replace("-", "_")] = value
    return out


def given_keys(overrides: Mapping[str, Any] | Sequence[str]) -> set[str]:
    """Dotted names that overrides set."""
    return set(flatten(overrides) if isinstance(overrides, Mapping) else _override_pairs(overrides))


def resolve(recipe: str | None = None, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Settings:
    """Settings of a recipe (default ``hcl-r50``) with overrides on top.

    Args:
        recipe: the name of a recipe or a YAML file.
        overrides: dotted names with values, or command-line words ``["--stage1.epochs", "3"]``.

    Raises:
        InputError: every fault of names, types and values found, gathered in one message, one to a line.
    """
    import yaml

    name = recipe or "hcl-r50"
    try:
        tree = yaml.safe_load(recipe_text(name)) or {}
    except yaml.YAMLError as e:
        raise InputError(f"recipe {name} is not valid YAML: {str(e).splitlines()[0]}") from None
    if not isinstance(tree, Mapping):
        raise InputError(f"recipe {name} must hold settings as 'name: value' lines")
    given = flatten(overrides) if isinstance(overrides, Mapping) else _override_pairs(overrides)
    base = {k: (v, f"recipe {name}") for k, v in flatten(tree).items()}
    return _build({**base, **{k: (v, "") for k, v in given.items()}})


def from_dict(tree: Mapping[str, Any], origin: str) -> Settings:
    """Settings from what :func:`to_dict` gave (a saved run)."""
    return _build({k: (v, origin) for k, v in flatten(tree).items()})


def to_dict(settings: Settings) -> dict[str, Any]:
    """Plain nested mapping for YAML (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return plain(asdict(settings))


@cache
def _parser() -> Any:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Settings)
    return parser


def _words(value: Any) -> str:
    """A value as the settings parser reads it on a command line."""
    import yaml

    if isinstance(value, str):
        return value
    text = yaml.safe_dump(
        list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=10000
    )
    return text.removesuffix("\n...\n").strip()


def _build(given: Mapping[str, tuple[Any, str]]) -> Settings:
    """Parse ``{dotted name: (value, where it was written)}`` by the types of the dataclasses, then check values."""
    from argparse import ArgumentError

    faults, words = [], []
    try:
        if all(key in keys_of(Settings) for key in given):
            every = [f"--{key}={_words(value)}" for key, (value, _) in given.items()]
            return _checked(_parser().parse_args(every).as_dict())
    except (ArgumentError, SystemExit, ValueError, TypeError):
        pass  # some value is wrong: go one by one, to name each
    for key, (value, origin) in given.items():
        where = f" in {origin}" if origin else ""
        if key not in keys_of(Settings):
            faults.append(f"unknown setting {key!r}{where}{_near(key, keys_of(Settings))}")
            continue
        word = [f"--{key}={_words(value)}"]
        try:
            _parser().parse_args(word)
        except (ArgumentError, SystemExit, ValueError, TypeError) as e:
            faults.append(f"setting {key}{where}: {_reason(str(e), value)}")
            continue
        words += word
    if faults:
        raise InputError("\n".join(faults))
    return _checked(_parser().parse_args(words).as_dict())


def _checked(values: Mapping[str, Any]) -> Settings:
    """Settings from parsed values. Raises ``InputError`` with every value that cannot be."""
    settings = _instance(Settings, values)
    faults = check(settings)
    if faults:
        raise InputError("\n".join(faults))
    return settings


def _instance(cls: type, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls)
    return cls(**{k: _instance(hints[k], v) if is_dataclass(hints[k]) else v for k, v in values.items()})


def _reason(text: str, value: Any) -> str:
    """The parser's complaint in one line."""
    expected = re.search(r"Expected (?:a |an )?(.+?)\. Got", text, re.S)
    kind = expected.group(1) if expected else " ".join(text.split())
    kind = re.sub(r"<class '(\w+)'>", r"\1", kind).replace("typing.", "")
    kind = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(kind, kind)
    choices = re.search(r"Literal\[(.+?)\]", text)
    if choices:
        names = [c.strip(" '\"") for c in choices.group(1).split(",")]
        return f"must be one of {', '.join(names)}, not {value!r}{_near(str(value), names)}"
    return f"must be {kind}, not {value!r}"


def check(settings: Settings) -> list[str]:
    """What is wrong with values that each have the right type, a line each."""
    s, faults = settings, []

    def want(ok: bool, message: str) -> None:
        if not ok:
            faults.append(message)

    for name in ("size", "batch", "groups", "accumulate", "devices", "log_every"):
        want(getattr(s, name) >= 1, f"setting {name} must be at least 1, not {getattr(s, name)}")
    for name in ("window", "threads", "checkpoint_every"):
        want(getattr(s, name) >= 0, f"setting {name} must be 0 or more, not {getattr(s, name)}")
    want(s.workers >= -1, f"setting workers must be -1 (choose), 0 or more, not {s.workers}")
    want(0 <= s.max_bad <= 1, f"setting max_bad is a share between 0 and 1, not {s.max_bad}")
    want(s.semantic.dim >= 1, "setting semantic.dim must be at least 1")
    want(
        s.spatial.side >= 1 and s.spatial.width >= 1,
        "settings spatial.side and spatial.width must be at least 1",
    )
    want(s.size >= 32, f"setting size must be at least 32 (C5 has stride 32), not {s.size}")
    want(s.knn.every >= 0, "setting knn.every must be 0 (never) or more")
    want(
        min(s.knn.bank, s.knn.queries, s.knn.k) >= 1,
        "settings knn.bank, knn.queries and knn.k must be at least 1",
    )
    if s.batch >= 1 and s.groups >= 1:
        want(
            s.batch % s.groups == 0,
            f"a batch of {s.batch} does not split into {s.groups} batch-norm groups; set groups to a divisor of batch",
        )
        want(
            s.accumulate < 1 or s.groups % s.accumulate == 0,
            f"{s.groups} batch-norm groups do not split into accumulate = {s.accumulate} pieces; "
            "make groups a multiple",
        )
        want(
            s.batch // s.groups != 1 or s.batch == 1,
            f"batch-norm groups of one picture each cannot normalise; lower groups (now {s.groups}) or raise batch",
        )
    want(bool(stages_of(s)), "both stages have 0 epochs: nothing to do; set stage1.epochs or stage2.epochs")
    for name, stage in (("stage1", s.stage1), ("stage2", s.stage2)):
        v = stage.views
        want(stage.epochs >= 0, f"setting {name}.epochs must be 0 (skip) or more, not {stage.epochs}")
        for key in ("lr", "temperature"):
            want(getattr(stage, key) > 0, f"setting {name}.{key} must be above 0, not {getattr(stage, key)}")
        for key in ("warmup", "weight_decay"):
            want(
                getattr(stage, key) >= 0, f"setting {name}.{key} must be 0 or more, not {getattr(stage, key)}"
            )
        want(stage.queue >= 1, f"setting {name}.queue must be at least 1, not {stage.queue}")
        for key in ("key_momentum", "sgd_momentum"):
            want(0 <= getattr(stage, key) <= 1, f"setting {name}.{key} must lie between 0 and 1")
        for key in ("jitter_p", "grayscale_p", "blur_p", "flip_p"):
            want(0 <= getattr(v, key) <= 1, f"setting {name}.views.{key} is a probability between 0 and 1")
        want(
            0 < v.area[0] <= v.area[1] <= 1,
            f"setting {name}.views.area must rise within (0, 1], not {v.area}",
        )
        want(0 < v.ratio[0] <= v.ratio[1], f"setting {name}.views.ratio must rise above 0, not {v.ratio}")
        want(0 < v.blur_sigma[0] <= v.blur_sigma[1], f"setting {name}.views.blur_sigma must rise above 0")
        want(min(v.jitter) >= 0, f"setting {name}.views.jitter has a negative strength")
        want(
            max(v.jitter[:3]) <= 1 and v.jitter[3] <= 0.5,
            f"setting {name}.views.jitter: at most 1, hue at most 0.5",
        )
    return faults
