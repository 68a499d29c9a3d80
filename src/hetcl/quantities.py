"""Numbers of things, and times, in words. Free of torch."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: ``3 h 20 min``."""
    s = max(0, round(seconds))
    for unit, size, lower, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if s >= size:
            return (
                f"{s // size} {unit} {s % size // part} {lower}"
                if s < 10 * size
                else f"{round(s / size)} {unit}"
            )
    return f"{s} s"


def count(n: int, thing: str) -> str:
    """``1 epoch``, ``2 epochs``, ``2 classes``."""
    plural = "es" if thing.endswith("s") else "s"
    return f"{n:,} {thing}{plural * (n != 1)}"
