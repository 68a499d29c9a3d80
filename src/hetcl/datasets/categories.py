"""The classes of a document in COCO's format, and what annotations may call them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from hetcl.datasets import values
from hetcl.datasets.annotations import Category, Skipped
from hetcl.datasets.values import Ids, Key
from hetcl.errors import InputError


def categories(path: Path, entries: list[Any], skipped: Skipped) -> tuple[tuple[Category, ...], Ids]:
    """The classes in order of id, and how an annotation's ``category_id`` finds one (the ``id`` of a ``Category``).

    Ids that are text and no numbers are numbered from 1 in the file's order, which is remarked. A name that stands
    twice is told apart by its id.

    Args:
        path: the file, for messages.
        entries: the document's ``categories``.

    Raises:
        InputError: there are none, an id is missing or stands twice.
    """
    names: dict[Key, tuple[str, str]] = {}
    for i, entry in enumerate(entries):
        key = values.key(entry.get("id")) if isinstance(entry, dict) else None
        if key is None:
            raise InputError(f"{path}: categories[{i}] has no whole number as id")
        name = _name(entry)
        if not name:
            name = f"class {key}"
            skipped.remark(f"{path.name}: category {key} has no name and is called {name!r}")
        if key in names:
            raise InputError(f"{path}: categories {names[key][0]!r} and {name!r} both have the id {key}")
        names[key] = name, str(entry.get("frequency", ""))
    if not names:
        raise InputError(f"{path}: lists no categories")
    text = [key for key in names if isinstance(key, str)]
    if text:
        skipped.remark(
            f"{path.name}: ids of categories are text (e.g. {text[0]!r}): they are numbered from 1 as the file "
            "has them, in results too"
        )
    ids = {key: n if text else int(key) for n, key in enumerate(names, 1)}
    _remark_alike([name for name, _ in names.values()], path.name, skipped)
    every = [name for name, _ in names.values()]
    times = Counter(every)
    for name in sorted(name for name, n in times.items() if n > 1):
        skipped.remark(
            f"{path.name}: {times[name]} categories are called {name!r}: they are told apart by id"
        )
    found = sorted(
        (
            Category(ids[key], name if times[name] == 1 else f"{name} ({key})", frequency)
            for key, (name, frequency) in names.items()
        ),
        key=lambda category: category.id,
    )
    known = Ids(ids.values(), ((c.name, c.id) for c in found), {str(key): ids[key] for key in text})
    return tuple(found), known


def _name(entry: dict[str, Any]) -> str:
    """The name without spaces around it; LVIS's first synonym where it has none."""
    synonyms = entry.get("synonyms")
    name = entry.get("name") or (synonyms[0] if isinstance(synonyms, list) and synonyms else "")
    return values.strip(str(name))


def _remark_alike(names: list[str], where: str, skipped: Skipped) -> None:
    """Say which names differ in capitals and spaces alone."""
    seen: dict[str, str] = {}
    for name in dict.fromkeys(names):
        other = seen.setdefault(alike(name), name)
        if other != name:
            skipped.remark(
                f"{where}: classes {other!r} and {name!r} differ in capitals or spaces alone: are they one?"
            )


def alike(name: str) -> str:
    """A name without capitals, and with single spaces."""
    return " ".join(name.casefold().split())
