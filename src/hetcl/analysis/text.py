"""Numbers and names in words, for tables, figures and sentences. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percent(share: float) -> str:
    """``71.2%``; of very small shares two digits that say something, ``0.0015%``."""
    if share == 0 or share >= 0.0005:
        return f"{share:.1%}"
    digits = min(12, 1 - math.floor(math.log10(100 * share)))
    return f"{100 * share:.{digits}f}".rstrip("0") + "%"


def shortened(text: str, longest: int) -> str:
    """At most ``longest`` characters: the middle gives way."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def short_names(names: Sequence[str], longest: int) -> list[str]:
    """Names that fit and still tell models apart: what all share gives way first, then the middle; else numbered."""
    if all(len(n) <= longest for n in names):
        return list(names)
    out = [shortened(n, longest) for n in _without_shared(names, longest)]
    if len(set(out)) < len(set(names)):
        out = [f"{i}: {shortened(n, longest - 4)}" for i, n in enumerate(names, 1)]
    return out


def _without_shared(names: Sequence[str], longest: int) -> list[str]:
    """Names without so much of the beginning and the end that all share as is needed to fit."""
    head = _shared(names)
    tail = _shared([n[head:][::-1] for n in names])
    spare = max(0, longest - 2 - max(len(n) - head - tail for n in names))
    head_kept = min(head, max(spare - spare // 3, spare - tail))
    tail_kept = min(tail, spare - head_kept)
    head, tail = head - head_kept, tail - tail_kept
    head, tail = (head if head > 1 else 0), (tail if tail > 1 else 0)
    return ["…" * bool(head) + n[head : len(n) - tail] + "…" * bool(tail) for n in names]


def _shared(names: Sequence[str]) -> int:
    """Characters at the beginning that all names share."""
    columns = enumerate(zip(*names, strict=False))
    return next((i for i, column in columns if len(set(column)) > 1), min(map(len, names), default=0))


def signed(points: float) -> str:
    """``+2.2``; never a negative zero."""
    return f"{round(points, 1) + 0.0:+.1f}"
