"""Words and trees to settings: frozen, typed dataclasses, whose attribute docstrings are the command line's help."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hetcl.errors import InputError
from hetcl.methods import in_words

T = TypeVar("T")


def documented(cls: type) -> list[tuple[str, Any, str]]:
    """(field, type, help) of a settings class, in order; the help is the string under the field."""
    help_of: dict[str, str] = {}
    for kind in reversed(cls.__mro__[:-1]):
        help_of |= _helps(kind.__module__).get(kind.__name__, {})
    hints = get_type_hints(cls)
    return [
        (f.name, hints[f.name], help_of.get(f.name, "").replace("{methods}", in_words())) for f in fields(cls)
    ]


@cache
def _helps(module: str) -> dict[str, dict[str, str]]:
    """The strings under the fields of each class of a module. (One parse a module: ``--help`` waits for it.)"""
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
def _kinds(cls: Any) -> dict[str, Any]:
    """The type of every plain setting below a settings class, by dotted name."""

    def walk(cls: Any, prefix: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, kind in get_type_hints(cls).items():
            out |= walk(kind, f"{prefix}{name}.") if is_dataclass(kind) else {f"{prefix}{name}": kind}
        return out

    return walk(cls, "")


def near(word: str, words: Sequence[str]) -> str:
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


def override_pairs(cls: type, arguments: Sequence[str]) -> dict[str, str]:
    """``--a.b VALUE`` and ``--a.b=VALUE`` to ``{"a.b": "VALUE"}``; ``cls`` has the settings."""
    out: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InputError(f"unexpected argument {word!r}; settings are given as --NAME VALUE")
        name, equals, value = word[2:].partition("=")
        if not equals:
            given = bool(rest) and not rest[0].startswith("--")
            if not given and name.replace("-", "_") in keys_of(cls):
                raise InputError(f"--{name} needs a value")
            value = rest.pop(0) if given else ""
        out[name.replace("-", "_")] = value
    return out


def given_in(cls: type, overrides: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Overrides of the settings ``cls``, a tree or command-line words, by dotted name."""
    return flatten(overrides) if isinstance(overrides, Mapping) else dict(override_pairs(cls, overrides))


def to_dict(settings: Any) -> dict[str, Any]:
    """Plain nested mapping for YAML (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return plain(asdict(settings))


@cache
def _parser(cls: Any) -> Any:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(cls)
    return parser


@cache
def _parser_of_one(kind: Any) -> Any:
    """A parser of ``--value``, of the type of one field; the parser of all fields takes some ten times as long."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--value", type=kind)
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


def build(cls: type[T], given: Mapping[str, tuple[Any, str]], check: Callable[[T], list[str]]) -> T:
    """Settings from values, each parsed by the type of its field, then checked together.

    Args:
        cls: a frozen dataclass with defaults, maybe of further ones.
        given: ``{dotted name: (value, where it was written)}``.
        check: what is wrong with values that each have the right type, a line each.

    Raises:
        InputError: every fault found, a line each.
    """
    from argparse import ArgumentError

    wrong = (ArgumentError, SystemExit, ValueError, TypeError)
    kind: Any = cls  # (a type variable is not hashable to mypy)
    kinds = _kinds(kind)
    words = {key: _words(value, kinds[key]) for key, (value, _) in given.items() if key in kinds}
    options = [f"--{key}={word}" for key, word in words.items()]
    values: Mapping[str, Any] | None = None
    if len(words) == len(given):
        with contextlib.suppress(*wrong):  # when some value is wrong: go one by one, to name each
            values = _parser(kind).parse_args(options).as_dict()
    if values is not None:
        settings = _instance(cls, values)
        if faults := check(settings):
            raise InputError(*faults)
        return settings
    faults = []
    for key, (value, origin) in given.items():
        where = f" in {origin}" if origin else ""
        if key not in kinds:
            faults.append(_unknown(cls, key, where))
            continue
        try:
            _parser_of_one(kinds[key]).parse_args([f"--value={words[key]}"])
        except wrong:
            faults.append(f"setting {key}{where} must be {_wanted(kinds[key], value)}, not {value!r}")
    raise InputError(*(faults or [f"cannot read the settings {', '.join(options)}"]))


def resolve_as(
    cls: type[T],
    check: Callable[[T], list[str]],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    origin: str = "",
) -> T:
    """Settings with overrides on top of a tree, which ``origin`` names in messages. Raises as :func:`build`."""
    given = {key: (value, origin) for key, value in flatten(base or {}).items()}
    return build(cls, given | {key: (value, "") for key, value in given_in(cls, overrides).items()}, check)


def build_saved(
    cls: type[T],
    tree: Mapping[str, Any],
    origin: str,
    check: Callable[[T], list[str]],
    *,
    but: Collection[str],
    beside: Callable[[], None],
) -> T:
    """Settings that a run has saved: none that decides a number may be missing, or a default would make another run.

    Args:
        origin: the file, for messages.
        check: as of :func:`build`.
        but: settings that decide no numbers, whose defaults will do.
        beside: checks what else was saved, once the settings are known to have the right types.

    Raises:
        InputError: names, types, what is beside, what is missing, values: the first of these that is wrong.
    """
    given = {key: (value, origin) for key, value in flatten(tree).items()}
    build(cls, given, lambda _: [])
    beside()
    kind: Any = cls
    lacking = [key for key in keys_of(kind) if key not in given and key not in but]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise InputError(
            f"{origin} lacks the setting {lacking[0]}{more}: it is damaged, or of an older hetcl; put back the run's "
            "own, or start a new folder"
        )
    return build(cls, given, check)


def _unknown(cls: type, key: str, where: str) -> str:
    below = [k for k in keys_of(cls) if k.startswith(f"{key}.")]
    if below:
        return f"{key!r}{where} is a group of settings; set one of them, such as {below[0]}"
    return f"unknown setting {key!r}{where}{near(key, keys_of(cls))}"


def _instance(cls: type[T], values: Mapping[str, Any]) -> T:
    hints = get_type_hints(cls)
    return cls(**{k: _instance(hints[k], v) if is_dataclass(hints[k]) else v for k, v in values.items()})


def _wanted(kind: Any, value: Any) -> str:
    """What a setting of this type takes, in words."""
    one = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    choices, several = get_args(kind), {int: "whole numbers", float: "numbers", str: "names"}
    if get_origin(kind) is Literal:
        return f"one of {', '.join(choices)}{near(str(value), choices)}"
    if get_origin(kind) is not tuple:
        return one[kind]
    if choices[-1] is ...:
        return f"a list of {several[choices[0]]} such as [120, 160]"
    return f"{len(choices)} {several[choices[0]]} such as [{', '.join(['0.2', '1', '0.2', '0.1'][: len(choices)])}]"
