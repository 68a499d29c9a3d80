"""Prefixes of names in strangers' files (``module.encoder_q.``): where encoders are, whose they are, and without them.

MoCo's prefix is one of many: an architecture's names are looked for under every prefix, and taken without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from hetcl.errors import InputError
from hetcl.weights.matched import Account
from hetcl.weights.names import Names

T = TypeVar("T")

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


def chosen(
    towers: list[Tower], state: Mapping[str, Tensor], origin: str, account: Account
) -> tuple[Tower, Tower | None]:
    """Query and key encoder among the encoders of a file. Raises ``InputError`` where that cannot be told."""
    queries = [t for t in towers if t.words & QUERY and not t.words & KEY]
    keys = [t for t in towers if t.words & KEY]
    plain = [t for t in towers if t not in queries and t not in keys]
    if queries and plain and not keys and any("query_backbone" in t.words for t in queries):
        plain, keys = [], plain  # lightly's benchmarks: `backbone` is the momentum copy of `query_backbone`
    again = [t for t in plain if queries and _equal(state, t, queries[0])]
    account.ignore("the same encoder under another name", (k for t in again for k in t.keys.values()))
    candidates = queries + [t for t in plain if t not in again]
    if len(candidates) > 1:
        raise InputError(
            f"{origin} holds several encoders ({', '.join(repr(t.prefix) for t in candidates)}); "
            "save the state dict of the one you mean alone"
        )
    if not candidates:
        if len(keys) > 1:
            raise InputError(
                f"{origin} holds several encoders ({', '.join(repr(t.prefix) for t in keys)}); "
                "save the state dict of the one you mean alone"
            )
        account.notes.append(f"the only encoder is under {keys[0].prefix!r}")
        return keys[0], None
    query = candidates[0]
    key = keys[0] if len(keys) == 1 else None
    if key is not None:
        account.notes.append(f"encoder from {query.prefix!r}, its momentum copy from {key.prefix!r}")
    elif keys:
        account.notes.append(f"encoder from {query.prefix!r}; several momentum copies, none taken")
        account.ignore("other copies of the encoder", (k for t in keys for k in t.keys.values()))
    return query, key


def _equal(state: Mapping[str, Tensor], a: Tower, b: Tower) -> bool:
    return a.keys.keys() == b.keys.keys() and all(state[a.keys[n]].equal(state[b.keys[n]]) for n in a.keys)


def without_prefixes(state: Mapping[str, T]) -> dict[str, T]:
    """A state dict of no known architecture without what wrappers put in front of all of its names."""
    out = dict(state)
    words = (*TRANSPARENT, *QUERY, *KEY, "backbone", "encoder")
    while True:
        firsts = {name.partition(".")[0] for name in out}
        first = firsts.pop()
        if firsts or first not in words or any("." not in name for name in out):
            return out
        out = {name.partition(".")[2]: value for name, value in out.items()}
