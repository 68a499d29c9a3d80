"""At what size the experiments are run: which recipe a row is, which verb a column is, on which data.

Each scale lies in ``scales/NAME.yaml``: ``full`` is the paper's own, ``mini`` and ``quick`` are for small machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hetcl.trees import parse_yaml

SCALES = Path(__file__).parent / "scales"


@dataclass(frozen=True)
class Method:
    """How the backbone of a row comes about: by a recipe, as a MODEL that is there, or not at all (empty)."""

    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By dotted name, over the recipe."""
    init: str = ""
    """The method whose run takes the place of stage 1."""
    model: str = ""
    """A MODEL in place of a run."""
    of: str = ""
    """The method whose backbone this is; only ``finetune`` differs."""
    finetune: Mapping[str, Any] = field(default_factory=dict)
    """Settings of fine-tuning from it."""


@dataclass(frozen=True)
class Task:
    """What a backbone is put to: a verb, its data and its settings."""

    verb: str = ""
    """``finetune``, ``contrast``, ``probe``, or ``pace``, which times steps."""
    data: str = ""
    """Name of the data: ``images``, ``coco`` ..."""
    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 0
    """Of ``pace``: how often each step is timed."""
    of: str = ""
    """The task whose fine-tuning is looked at on its way ..."""
    at: float = 1.0
    """... after this share of its steps."""


@dataclass(frozen=True)
class Scale:
    """A size at which everything is run."""

    name: str
    about: str
    seeds: int
    pretrain_seeds: int
    """Runs of pre-training; more seeds than these share them in turn."""
    methods: Mapping[str, Method]
    tasks: Mapping[str, Task]
    changes: Sequence[str]
    """What is not as in the paper."""
    data: Mapping[str, str]
    """Name -> DATA or DATASET where the user gives none."""


def load_scale(name: str) -> Scale:
    """A scale by name: ``full``, ``mini`` or ``quick``."""
    tree = parse_yaml((SCALES / f"{name}.yaml").read_text("utf-8"))
    base = tree.get("pretrain", {})
    made = {
        method: Method(**own)
        if not own or "model" in own or "of" in own
        else Method(**{**base, **own, "settings": {**base.get("settings", {}), **own.get("settings", {})}})
        for method, own in tree["methods"].items()
    }
    tasks = {task: Task(**own) for task, own in tree["tasks"].items()}
    return Scale(
        name, tree["about"], tree["seeds"], tree["pretrain_seeds"], made, tasks, tree["changes"],
        tree.get("data", {}),
    )  # fmt: skip
