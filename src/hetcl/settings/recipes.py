"""The recipes that come with hetcl, and recipe files: YAML with ``name: value`` lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetcl.errors import InputError
from hetcl.settings.parse import near

RECIPES = Path(__file__).parent.parent / "recipes"


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
        hint = near(recipe, recipe_names())
        raise InputError(f"no recipe named {recipe!r} and no such file{hint}; `hetcl recipes` lists them")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"recipe {recipe} is not text; name a YAML file") from None
    except OSError as e:
        raise InputError(f"cannot read recipe {recipe}: {e.strerror}") from None


def recipe_tree(name: str) -> Mapping[Any, Any]:
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
