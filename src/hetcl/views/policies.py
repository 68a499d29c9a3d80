"""The published augmentations by name (docs/facts.md), those of methods from their table. Free of torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hetcl.errors import InputError
from hetcl.methods import METHODS
from hetcl.paths import expand
from hetcl.textfiles import read_text
from hetcl.trees import TreeError, parse_yaml
from hetcl.types import ViewPolicy

_PLAIN = ViewPolicy(jitter_p=0.0, grayscale_p=0.0, blur_p=0.0, flip_p=0.0)

POLICIES: dict[str, ViewPolicy] = {
    **{name: method.views for name, method in METHODS.items() if not method.labels},
    # Figure 2 of the paper: two crops, no flip, no colour change.
    "crop": _PLAIN,
    # Figure 4 of the paper: crop, flip and colour jitter. NOTE(paper): it gives no strengths; MoCo-v2's.
    "standard": replace(_PLAIN, jitter_p=0.8, flip_p=0.5),
    **{name: method.views for name, method in METHODS.items() if method.labels},
    # The whole image, squeezed (or its central part where it is longer than 4:3); nothing random.
    "none": replace(_PLAIN, area=(1.0, 1.0)),
}
"""Policies by name."""

FIELDS = {f.name: f for f in fields(ViewPolicy)}


def policy_of(text: str) -> tuple[str, ViewPolicy]:
    """A policy as one types it, with a short name for tables and files.

    ``standard`` | ``crop:grayscale_p=1:area=0.5..1`` (a name with changes; several numbers joined by ``..``) | a YAML
    file with fields of a policy, and ``base: NAME`` (``standard`` where it is left out).

    Raises:
        InputError: an unknown name or field, or a value that cannot be.
    """
    if text.endswith((".yaml", ".yml")):
        return Path(text).stem, _from_file(Path(expand(text)))
    name, *changes = text.split(":")
    given = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"views {text!r}: changes are written FIELD=VALUE, as in crop:grayscale_p=1")
        given[field.strip()] = [_number(v) for v in value.split("..")]
    return text.strip(), _changed(_named(name.strip(), text), given, f"views {text!r}")


def _named(name: str, text: str) -> ViewPolicy:
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"no views named {name!r}{hint}; there are {', '.join(POLICIES)}, or a YAML file")
    return POLICIES[name]


def _from_file(path: Path) -> ViewPolicy:
    try:
        tree = parse_yaml(read_text(path))
    except TreeError as e:
        raise InputError(f"{path} is {e}") from None
    if not isinstance(tree, Mapping):
        raise InputError(f"{path} must hold fields of the views as 'name: value' lines")
    base = _named(str(tree.get("base", "standard")), str(path))
    given = {str(k): v if isinstance(v, list) else [v] for k, v in tree.items() if k != "base"}
    return _changed(base, given, str(path))


def _number(text: str) -> Any:
    """``1``, ``0.5``, ``true``; anything else stays text and is refused where it is used."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _changed(base: ViewPolicy, given: Mapping[str, list[Any]], where: str) -> ViewPolicy:
    """``base`` with some fields replaced. Raises ``InputError``."""
    changes: dict[str, Any] = {}
    for field, values in given.items():
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(f"{where}: no field {field!r}{hint}; there are {', '.join(FIELDS)}")
        now, value = getattr(base, field), None  # type: Any, Any
        if isinstance(now, bool):
            fits = len(values) == 1 and (isinstance(values[0], bool) or values[0] in (0, 1))
            wanted, value = "true or false", bool(values[0]) if fits else None
        else:
            count = len(now) if isinstance(now, tuple) else 1
            fits = len(values) == count and all(
                isinstance(v, int | float) and not isinstance(v, bool) for v in values
            )
            numbers = tuple(float(v) for v in values) if fits else ()
            wanted = "a number" if count == 1 else f"{count} numbers"
            value = numbers if isinstance(now, tuple) else (numbers[0] if fits else None)
        if not fits:
            shown = "..".join(map(str, values))
            raise InputError(f"{where}: {field} must be {wanted}, not {shown!r}")
        changes[field] = value
    policy = replace(base, **changes)
    for field, what in policy.faults():
        raise InputError(f"{where}: {field} {what}")
    return policy
