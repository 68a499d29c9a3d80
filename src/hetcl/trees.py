"""YAML and JSON to trees, bounded: a small file can neither fill the memory nor hang, whatever it repeats or nests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LONGEST = 4 << 20
"""Characters of a text: the settings of a run have some thousand."""
LONGEST_NUMBER = 400
"""Characters of a number: a float of 64 bits written out has fewer."""
MOST = 1_000_000
"""Nodes of a tree when every repetition is written out."""


class TreeError(ValueError):
    """Text that holds no tree, or one that is refused; the message goes on from ``it is``."""


def parse_yaml(text: str) -> Any:
    """What YAML says. Runs no code.

    Raises:
        TreeError: no YAML, a name that comes twice in a mapping, or a tree that is too large, too deep or endless.
    """
    import yaml

    if len(text) > LONGEST:
        raise TreeError(f"too long ({len(text):,} characters)")
    try:
        tree = yaml.load(text, _loader())
        _count(tree, {})
    except TreeError:
        raise
    except yaml.MarkedYAMLError as e:
        line = f" in line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise TreeError(f"not valid YAML{line}: {e.problem or e.context}") from None
    except RecursionError:
        raise TreeError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as e:
        raise TreeError(f"not valid YAML: {_first_line(e)}") from None
    return tree


def parse_json(data: bytes) -> Any:
    """What JSON says. Raises ``TreeError``: no JSON, or nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise TreeError("nested too deeply") from None
    except ValueError as e:  # no text, or no JSON
        raise TreeError(f"not valid JSON: {_first_line(e)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _loader() -> Any:
    """PyYAML's safe loader, which also refuses a name that comes twice in a mapping."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in seen:
                        raise TreeError(
                            f"not valid YAML in line {key.start_mark.line + 1}: {key.value!r} comes twice"
                        )
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    def bounded(make: Any) -> Any:
        def construct(loader: Any, node: Any) -> Any:
            if len(node.value) > LONGEST_NUMBER:  # in base 60 (1:1:1...) time grows with the square
                raise TreeError(
                    f"not valid YAML in line {node.start_mark.line + 1}: a number of {len(node.value):,} characters"
                )
            return make(loader, node)

        return construct

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", bounded(getattr(base, f"construct_yaml_{kind}")))
    return Loader


def _count(value: Any, counts: dict[int, int]) -> int:
    """Nodes below ``value``, repetitions written out. Raises ``TreeError`` when there are too many, or no end."""
    if not isinstance(value, Mapping | list | tuple | set):
        return 1
    known = counts.get(id(value))
    if known == 0:
        raise TreeError("a tree that contains itself")
    if known is not None:
        return known
    counts[id(value)] = 0  # being counted
    inside = [*value.keys(), *value.values()] if isinstance(value, Mapping) else [*value]
    total = 1 + sum(_count(v, counts) for v in inside)
    if total > MOST:
        raise TreeError("a tree that repeats itself too often")
    counts[id(value)] = total
    return total
