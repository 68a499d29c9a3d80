"""What became of every key of a file: the report that each reading of weights leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Matched:
    """The keys of a file, by what was done with them."""

    origin: str
    """The MODEL or file."""
    arch: str | None
    """What the file was taken for."""
    matched: tuple[str, ...] = ()
    """Keys of the file that were taken."""
    missing: tuple[str, ...] = ()
    """Weights of the pyramid that the file has not, and that were allowed to be missing: they stay random."""
    unexpected: tuple[str, ...] = ()
    """Keys that fit nothing and were allowed."""
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Keys that are not needed, by the reason."""
    notes: tuple[str, ...] = ()
    """What else a person should know: which encoder was taken, how the architecture was found."""

    def lines(self) -> list[str]:
        """The report: one line when all fits, one more for each thing to know."""
        of = f" of {self.arch}" if self.arch else ""
        first = f"{self.origin}: {len(self.matched)} weights{of} matched"
        if self.ignored:
            first += "; not needed: " + ", ".join(
                f"{reason} ({len(keys)})" for reason, keys in self.ignored.items()
            )
        out = [first, *(f"{self.origin}: {note}" for note in self.notes)]
        if self.missing:
            out.append(f"{self.origin}: missing and left random, as allowed: {some(self.missing)}")
        if self.unexpected:
            out.append(f"{self.origin}: not used, as allowed: {some(self.unexpected)}")
        return out


@dataclass
class Account:
    """Where each key goes, filled while a file is read; at its end a :class:`Matched`."""

    taken: set[str] = field(default_factory=set)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ignore(self, reason: str, keys: Iterable[str]) -> None:
        for key in keys:
            if key not in self.taken:
                self.ignored.setdefault(reason, []).append(key)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of ``names`` and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """``allow_partial`` as the caller wrote it: one glob, or several."""
    return (given,) if isinstance(given, str) else tuple(given)


def allowed(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the glob ``patterns`` names ``name``."""
    return any(fnmatchcase(name, p) for p in patterns)
