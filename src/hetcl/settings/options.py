"""Every setting as an option of the command line, so that ``--help`` shows it. Free of torch."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, Literal, get_args, get_origin

from hetcl.settings.parse import documented, keys_of


def add_settings(parser: argparse.ArgumentParser, settings: Any, text: str) -> None:
    """Every setting as an option, so that ``--help`` shows it; values are checked where settings are resolved."""
    run = parser.add_argument_group("settings", text)
    compute, of_compute = parser.add_argument_group("computing", "where and how"), keys_of(settings.__base__)

    def add(cls: type, default: Any, prefix: str, group: Any, hidden: bool = False) -> None:
        for name, kind, text in documented(cls):
            key, value = f"{prefix}{name}", getattr(default, name)
            if dataclasses.is_dataclass(kind):
                assert isinstance(kind, type)
                second = name == "stage2"
                if name == "stage1":
                    text = "--stage2.* likewise; it starts as method hcl, lr 0.05, views.flip_p 0."
                inner = group if hidden or second else parser.add_argument_group(f"settings --{key}.*", text)
                add(kind, value, f"{key}.", inner, hidden or second)
                continue
            help_ = argparse.SUPPRESS if hidden else f"{text} (default: {_shown(value)})".replace("%", "%%")
            inner = compute if name in of_compute else group
            inner.add_argument(f"--{key}", dest="settings", action=_Collect, metavar=_takes(kind), help=help_)

    add(settings, settings(), "", run)


def _takes(kind: Any) -> str:
    """What a setting of this type takes, as short as help likes it."""
    one = {int: "N", float: "X", bool: "true|false", str: "NAME"}
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return "|".join(inner)
    if get_origin(kind) is not tuple:
        return one[kind]
    return ",".join(f"{one[t]},..." if inner[-1] is ... else one[t] for t in inner if t is not ...)


def _shown(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()


class _Collect(argparse.Action):
    """Append ``--name=value`` to the list of overrides."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.settings = [*(getattr(namespace, "settings", None) or []), f"{option_string}={values}"]
