"""Every setting of pre-training as a frozen, typed dataclass; recipes and overrides meet here.

The defaults are the paper's main run, recipe ``hcl-r50``. A line under a field is its help on the command line, so
there is one source for both. Only ``cli.py`` and the entry function of a room see these objects; below them travel
plain keywords.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

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
    help_of = _helps(cls.__module__).get(cls.__name__, {})
    hints = get_type_hints(cls)
    return [(f.name, hints[f.name], help_of.get(f.name, "")) for f in fields(cls)]


@cache
def _helps(module: str) -> dict[str, dict[str, str]]:
    """Of each class of a module, the strings under its fields. (One parse a module: ``--help`` waits for it.)"""
    import ast

    tree = ast.parse(Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8"))
    return {
        node.name: {
            line.target.id: " ".join(ast.literal_eval(text.value).split())
            for line, text in pairwise(node.body)
            if isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and isinstance(text, ast.Expr)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


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


@cache
def _kinds() -> dict[str, Any]:
    """The type of every plain setting, by dotted name."""

    def walk(cls: Any, prefix: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, kind in get_type_hints(cls).items():
            out |= walk(kind, f"{prefix}{name}.") if is_dataclass(kind) else {f"{prefix}{name}": kind}
        return out

    return walk(Settings, "")


# ---- recipes ---------------------------------------------------------------------------------------------------


RECIPES = Path(__file__).with_name("recipes")


def recipe_names() -> list[str]:
    """The recipes that come with hetcl."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_text(recipe: str) -> str:
    """The YAML of a recipe by name or file. Raises ``InputError`` when there is none."""
    path = RECIPES / f"{recipe}.yaml" if recipe in recipe_names() else Path(recipe)
    if recipe and path.is_dir():
        raise InputError(
            f"recipe {recipe} is a folder; name a YAML file, or a recipe that `hetcl recipes` lists"
        )
    if not path.is_file():
        near = _near(recipe, recipe_names())
        raise InputError(f"no recipe named {recipe!r} and no such file{near}; `hetcl recipes` lists them")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"recipe {recipe} is not text; name a YAML file") from None
    except OSError as e:
        raise InputError(f"cannot read recipe {recipe}: {e.strerror}") from None


def _recipe_tree(name: str) -> Mapping[Any, Any]:
    """What a recipe sets; of a run's ``settings.yaml``, what the run was set to."""
    import yaml

    text = recipe_text(name)
    try:
        tree = yaml.safe_load(text)
    except yaml.MarkedYAMLError as e:
        line = f" in line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise InputError(f"recipe {name} is not valid YAML{line}: {e.problem or e.context}") from None
    except yaml.YAMLError as e:
        raise InputError(f"recipe {name} is not valid YAML: {str(e).splitlines()[0]}") from None
    if tree is None:
        return {}
    if isinstance(tree, Mapping) and isinstance(tree.get("settings"), Mapping):
        tree = tree["settings"]
    if not isinstance(tree, Mapping):
        raise InputError(f"recipe {name} must hold settings as 'name: value' lines")
    return tree


def _near(word: str, words: Sequence[str]) -> str:
    import difflib

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
            given = bool(rest) and not rest[0].startswith("--")
            if not given and name.replace("-", "_") in keys_of(Settings):
                raise InputError(f"--{name} needs a value")
            value = rest.pop(0) if given else ""
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
    name = "hcl-r50" if recipe is None else recipe
    tree = _recipe_tree(name)
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


def _words(value: Any, kind: Any) -> str:
    """A value as the settings parser reads it on a command line; ``0.2,1`` and ``5`` are lists where one is due."""
    import yaml

    several = get_origin(kind) is tuple
    if isinstance(value, str):
        return f"[{value}]" if several and value.strip()[:1] not in ("[", "(") else value
    if isinstance(value, tuple) or (several and isinstance(value, int | float)):
        value = list(value) if isinstance(value, tuple) else [value]
    return yaml.safe_dump(value, default_flow_style=True, width=10000).removesuffix("\n...\n").strip()


def _build(given: Mapping[str, tuple[Any, str]]) -> Settings:
    """Parse ``{dotted name: (value, where it was written)}`` by the types of the dataclasses, then check values."""
    from argparse import ArgumentError

    wrong = (ArgumentError, SystemExit, ValueError, TypeError)
    kinds = _kinds()
    words = {key: f"--{key}={_words(value, kinds[key])}" for key, (value, _) in given.items() if key in kinds}
    try:
        if len(words) == len(given):
            return _checked(_parser().parse_args([*words.values()]).as_dict())
    except wrong:
        pass  # some value is wrong: go one by one, to name each
    faults = []
    for key, (value, origin) in given.items():
        where = f" in {origin}" if origin else ""
        if key not in kinds:
            faults.append(_unknown(key, where))
            continue
        try:
            _parser().parse_args([words[key]])
        except wrong:
            faults.append(f"setting {key}{where} must be {_wanted(kinds[key], value)}, not {value!r}")
    raise InputError("\n".join(faults) or f"cannot read the settings {', '.join(words.values())}")


def _checked(values: Mapping[str, Any]) -> Settings:
    """Settings from parsed values. Raises ``InputError`` with every value that cannot be."""
    settings = _instance(Settings, values)
    faults = check(settings)
    if faults:
        raise InputError("\n".join(faults))
    return settings


def _unknown(key: str, where: str) -> str:
    below = [k for k in keys_of(Settings) if k.startswith(f"{key}.")]
    if below:
        return f"{key!r}{where} is a group of settings; set one of them, such as {below[0]}"
    return f"unknown setting {key!r}{where}{_near(key, keys_of(Settings))}"


def _instance(cls: type, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls)
    return cls(**{k: _instance(hints[k], v) if is_dataclass(hints[k]) else v for k, v in values.items()})


def _wanted(kind: Any, value: Any) -> str:
    """What a setting of this type takes, in words."""
    one = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    choices, several = get_args(kind), {int: "whole numbers", float: "numbers"}
    if get_origin(kind) is Literal:
        return f"one of {', '.join(choices)}{_near(str(value), choices)}"
    if get_origin(kind) is not tuple:
        return one[kind]
    if choices[-1] is ...:
        return f"a list of {several[choices[0]]} such as [120, 160]"
    return f"{len(choices)} {several[choices[0]]} such as [{', '.join(['0.2', '1', '0.2', '0.1'][: len(choices)])}]"


def check(settings: Settings) -> list[str]:
    """What is wrong with values that each have the right type, a line each."""
    s, faults = settings, []

    def want(ok: bool, message: str) -> None:
        if not ok:
            faults.append(message)

    for key, value in flatten(to_dict(s)).items():
        numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, float)]
        want(
            all(abs(v) < 1e30 for v in numbers),
            f"setting {key} must be a finite number of sensible size, not {value}",
        )
    if faults:
        return faults
    for name in ("size", "batch", "groups", "accumulate", "devices", "log_every"):
        want(getattr(s, name) >= 1, f"setting {name} must be at least 1, not {getattr(s, name)}")
    for name in ("window", "threads", "checkpoint_every"):
        want(getattr(s, name) >= 0, f"setting {name} must be 0 or more, not {getattr(s, name)}")
    want(s.threads <= 1024, f"setting threads must be at most 1024, not {s.threads}")
    want(-1 <= s.workers <= 1024, f"setting workers must be -1 (choose) or 0 to 1024, not {s.workers}")
    want(abs(s.seed) < 2**63, f"setting seed must fit in 64 bits, not {s.seed}")
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
        want(
            stage.epochs <= 0 or stage.warmup <= stage.epochs,
            f"setting {name}.warmup must not exceed {name}.epochs ({stage.epochs}), not {stage.warmup}",
        )
        rising = all(a < b for a, b in pairwise((0, *stage.milestones)))
        want(
            rising, f"setting {name}.milestones must be epochs that rise from 1, not {list(stage.milestones)}"
        )
        want(stage.queue >= 1, f"setting {name}.queue must be at least 1, not {stage.queue}")
        for key in ("key_momentum", "sgd_momentum"):
            want(0 <= getattr(stage, key) <= 1, f"setting {name}.{key} must lie between 0 and 1")
        for key in ("jitter_p", "grayscale_p", "blur_p", "flip_p"):
            want(0 <= getattr(v, key) <= 1, f"setting {name}.views.{key} is a probability between 0 and 1")
        want(
            0 < v.area[0] <= v.area[1] <= 1,
            f"setting {name}.views.area must be least and most, above 0 and up to 1, not {list(v.area)}",
        )
        for key in ("ratio", "blur_sigma"):
            low, high = getattr(v, key)
            want(
                0 < low <= high,
                f"setting {name}.views.{key} must be least and most, above 0, not {[low, high]}",
            )
        want(min(v.jitter) >= 0, f"setting {name}.views.jitter has a negative strength")
        want(
            max(v.jitter[:3]) <= 1 and v.jitter[3] <= 0.5,
            f"setting {name}.views.jitter: at most 1, hue at most 0.5",
        )
    return faults
