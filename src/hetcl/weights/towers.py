"""The encoders in a file: prefixes under which an architecture's names are found, whose words say what they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hetcl.weights.names import Names

QUERY = {"encoder_q", "query_encoder", "query_backbone", "student", "online_encoder", "base_encoder"}
KEY = {
    *(
        "encoder_k",
        "key_encoder",
        "momentum_encoder",
        "momentum_backbone",
        "backbone_momentum",
        "encoder_momentum",
    ),
    *("key_backbone", "teacher", "target_encoder", "momentum_model", "model_ema", "ema", "ema_model"),
}
"""Words in a prefix that say whose encoder it is; without one it is the only encoder, the query's."""
TRANSPARENT = {"module", "_orig_mod", "model", "net", "pyramid"}
"""Prefixes that name nothing: what lies beside an encoder under them may still be its own."""


@dataclass(frozen=True)
class Tower:
    """One encoder in a file."""

    prefix: str
    """What its names have in front, with the dot."""
    keys: Mapping[str, str]
    """Pyramid's name -> key of the file."""

    @property
    def words(self) -> set[str]:
        """Parts of the prefix."""
        return set(self.prefix.split("."))

    def is_named(self, role: set[str]) -> bool:
        """Whether the prefix ends in a word of ``role``, or in one and what names no part of an encoder."""
        parts = self.prefix.removesuffix(".").split(".")
        while parts and parts[-1] in TRANSPARENT | {"backbone", "encoder", "0"}:
            parts.pop()
        return bool(parts) and parts[-1] in role


def find_towers(state: Iterable[str], names: Names) -> list[Tower]:
    """The encoders in a file, the fullest first: prefixes under which at least half as many names are found."""
    tables: tuple[Mapping[str, str], ...] = ({n: n for n in names.shapes}, names.to_pyramid, names.indexed)
    best: dict[str, dict[str, str]] = {}
    for table in tables:
        found: dict[str, dict[str, str]] = {}
        for key in state:
            for prefix, rest in _splits(key):
                if rest in table:
                    found.setdefault(prefix, {})[table[rest]] = key
        for prefix, keys in found.items():
            if len(keys) > len(best.get(prefix, {})):
                best[prefix] = keys
    most = max(map(len, best.values()), default=0)
    out: list[Tower] = []
    for prefix, keys in sorted(best.items(), key=lambda item: (-len(item[1]), len(item[0]))):
        tower = Tower(prefix, keys)
        if any(set(keys.values()) & set(t.keys.values()) for t in out):
            continue
        # An encoder that is called one counts however little of it there is, or a cut file would pass for another.
        cut = any(tower.is_named(role) and not any(t.words & role for t in out) for role in (QUERY, KEY))
        if 2 * len(keys) >= most or cut:
            out.append(tower)
    return out


def _splits(key: str) -> Iterable[tuple[str, str]]:
    """``a.b.c`` -> ``("", "a.b.c"), ("a.", "b.c"), ("a.b.", "c")``."""
    yield "", key
    for match in re.finditer(r"\.", key):
        yield key[: match.end()], key[match.end() :]
