"""The recipes that come with hetcl, and recipe files: YAML with ``name: value`` lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetcl.errors import InputError
from hetcl.paths import expand
from hetcl.settings.parse import near
from hetcl.textfiles import read_text
from hetcl.trees import TreeError, parse_yaml

RECIPES = Path(__file__).parent.parent / "recipes"
VERBS = ("pretrain", "finetune")
"""The verbs that have recipes, each in a folder of its own."""


def recipe_names(verb: str = "pretrain") -> list[str]:
    """The recipes that come with hetcl for a verb, ``pretrain`` or ``finetune``."""
    return sorted(path.stem for path in (RECIPES / verb).glob("*.yaml"))


def recipe_text(recipe: str, verb: str | None = None) -> str:
    """The YAML of a recipe by name or file.

    Args:
        verb: whose recipe it is to be; None: anybody's.

    Raises:
        InputError: there is none, or it is another verb's.
    """
    owner = next((v for v in VERBS if recipe in recipe_names(v)), None)
    if verb is not None and owner not in (None, verb):
        raise InputError(
            f"recipe {recipe} is one of `hetcl {owner}`; `hetcl recipes` lists those of each verb"
        )
    path = RECIPES / owner / f"{recipe}.yaml" if owner else Path(expand(recipe))
    if recipe and path.is_dir():
        raise InputError(
            f"recipe {recipe} is a folder; name a YAML file, or a recipe that `hetcl recipes` lists"
        )
    if not path.is_file():
        hint = near(recipe, [n for v in VERBS if verb in (None, v) for n in recipe_names(v)])
        raise InputError(f"no recipe named {recipe!r} and no such file{hint}; `hetcl recipes` lists them")
    return read_text(path)


def recipe_tree(name: str, verb: str) -> Mapping[Any, Any]:
    """What a recipe sets; of a run's ``settings.yaml``, what the run was set to."""
    try:
        tree = parse_yaml(recipe_text(name, verb))
    except TreeError as e:
        raise InputError(f"recipe {name} is {e}") from None
    if tree is None:
        return {}
    if isinstance(tree, Mapping) and isinstance(tree.get("settings"), Mapping):
        tree = tree["settings"]
    if not isinstance(tree, Mapping):
        raise InputError(f"recipe {name} must hold settings as 'name: value' lines")
    return tree
