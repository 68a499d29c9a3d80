"""The command that made a run or a result, as far as its folder says. Free of torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetcl.errors import InputError
from hetcl.reporting.read import Result, mapping
from hetcl.settings import flatten, resolve, resolve_finetune, resolve_probe, to_dict

NAMED = {
    "pretrain": ("data", "out", "recipe", "init"),
    "finetune": ("data", "out", "recipe", "init"),
    "contrast": ("data", "out"),
    "probe": ("data", "out"),
    "evaluate": ("data", "out"),
    "predict": ("out",),
    "export": ("format", "out"),
}
"""Verbs that load a backbone, and which of their options are arguments of their function; the others are settings."""


def quoted(value: object) -> str:
    """One word for a shell."""
    return shlex.quote(str(value))


def command_of(
    result: Result, *, out: str | Path | None = None, changes: Mapping[str, Any] | None = None
) -> str:
    """The command in one line.

    Args:
        out: another folder than it was written to.
        changes: settings by dotted name that replace the run's.
    """
    tree, kind = result.tree, result.kind
    words: list[object]
    if kind == "evaluation":
        words = [
            "evaluate",
            tree.get("run", "RUN"),
            "--data",
            mapping(tree.get("data")).get("data", "DATASET"),
        ]
    elif kind == "reproduction":
        words = ["reproduce", *(table["name"] for table in tree["experiments"])]
        words += [] if tree["scale"] == "full" else [f"--{tree['scale']}"]
        words += [w for name, value in tree["data"].items() for w in (f"--{name}", value)]
        words += [w for row, model in tree["weights"].items() for w in ("--weights", f"{row}={model}")]
        words += ["--seeds", tree["seeds"]]
    elif kind == "contrast":
        named = [m["model"] for m in tree["models"] if m.get("role") == "model"]
        words = ["contrast", *dict.fromkeys(named), "--data", mapping(tree.get("data")).get("data", "DATA")]
    elif kind in ("what", "where"):
        models = tree["models"] if kind == "where" else [tree["model"] | {"role": "model"}]
        named = [m["model"] for m in models if m.get("role") == "model"]
        words = ["probe", *dict.fromkeys(named), "--data", mapping(tree.get("data")).get("data", "DATA")]
    else:
        words = [kind, "--data", tree.get("data", "DATA")]
        words[1:1] = ["--init", tree["init"]] if tree.get("init") else []
    words += ["--out", result.path if out is None else out]
    if kind in ("pretrain", "finetune") and tree.get("recipe"):
        words += ["--recipe", tree["recipe"]]
    for name, value in (_changed(result) | dict(changes or {})).items():
        words += [f"--{name}", ",".join(map(_word, value)) if isinstance(value, list) else _word(value)]
    line = "hetcl " + " ".join(map(quoted, words))
    return python_of(line, own) if (own := own_backbone(result)) else line


def own_backbone(result: Result) -> str:
    """The class of a backbone that was given from Python; empty where all are libraries'."""
    tree, models = result.tree, result.tree.get("models")
    known = [result.settings.get("backbone"), tree.get("arch"), mapping(tree.get("model")).get("arch")]
    known += [mapping(model).get("arch") for model in models] if isinstance(models, list) else []
    found = next((str(arch) for arch in known if str(arch).startswith("module:")), "")
    return found.partition(":")[2].rpartition("-")[0]


def python_of(command: str, own: str) -> str:
    """A line of Python that does what a command does, which does not know the backbone ``own``; others stay."""
    _, verb, *words = shlex.split(command)
    if verb not in NAMED or not command.startswith("hetcl "):
        return command
    plain, named, rest = list[str](), dict[str, str](), list[str]()
    while words:
        word = words.pop(0)
        name = word.removeprefix("--").replace("-", "_")
        if not word.startswith("--"):
            plain.append(word)
        elif name == "resume":
            named[name] = "True"
        elif name == "backbone":
            if not words.pop(0).startswith("module:"):
                return command  # it names another one
        elif name in NAMED[verb]:
            named[name] = repr(words.pop(0))
        else:
            rest += [word, words.pop(0)]
    first = (
        [repr(plain[0] if len(plain) == 1 else plain)] if plain and verb != "predict" else [*map(repr, plain)]
    )
    parts = first + [f"{name}={value}" for name, value in named.items()]
    parts += [f"overrides={rest!r}"] * bool(rest) + [f"backbone={own}"] * (verb == "pretrain")
    return f"hetcl.{verb}({', '.join(parts)})"


def _word(value: object) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:.6g}"
        if isinstance(value, float)
        else str(value)
    )


def _changed(result: Result) -> dict[str, Any]:
    """The settings that are not those of the recipe; none where the recipe is gone."""
    recipe = result.tree.get("recipe")
    base: Any
    try:
        if result.kind == "pretrain":
            base = resolve(recipe)
        elif result.kind == "finetune":
            base = resolve_finetune(recipe)
        elif result.kind in ("what", "where") and result.settings:
            base = resolve_probe()
        else:
            return {}
    except (InputError, OSError):
        return {}
    plain = flatten(to_dict(base))
    return {k: v for k, v in flatten(result.settings).items() if k in plain and plain[k] != v}
