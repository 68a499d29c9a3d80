"""Numbers, flags and ids as people's own programs write them: as numbers or as text, with spaces, as true or false."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hetcl.images.decode import MAX_PIXELS
from hetcl.textfiles import strip

_WHOLE = re.compile(r"[+-]?\d{1,18}(?:\.0*)?")
_FLAGS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}

Key = int | str
"""An id: a whole number, or text that is none."""


def number(value: Any) -> float | None:
    """``3``, ``3.5``, ``"3.5"`` and ``" 3 "`` as numbers, which may be infinite or NaN; anything else is None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(strip(value) if isinstance(value, str) else value)
    except OverflowError:  # an integer of a thousand digits
        return math.inf
    except ValueError:
        return None


def numbers(values: Any, count: int) -> list[float] | None:
    """A list of exactly ``count`` numbers, as ``number`` reads them; else None."""
    if not isinstance(values, list | tuple) or len(values) != count:
        return None
    read = [number(value) for value in values]
    return None if None in read else read  # type: ignore[return-value]


def whole(value: Any) -> int | None:
    """``7``, ``7.0``, ``"7"``, ``" 7 "`` and ``"7.0"`` as whole numbers; anything else is None."""
    if isinstance(value, str):
        text = strip(value)
        return int(text.split(".")[0]) if _WHOLE.fullmatch(text) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def sides(height: Any, width: Any) -> tuple[int, int] | None:
    """The size that a file states for an image; None where it is no size that an image can have here."""
    found = whole(height), whole(width)
    if None in found or min(found) < 1 or found[0] * found[1] > MAX_PIXELS:  # type: ignore[type-var, operator]
        return None
    return found  # type: ignore[return-value]


def flag(value: Any) -> bool | None:
    """``1``, ``true``, ``"1"``, ``" True "``, ``"yes"`` and their opposites; nothing at all is False, the rest None."""
    if value is None or isinstance(value, bool):
        return bool(value)
    found = whole(value)
    if found is not None:
        return found != 0
    return _FLAGS.get(strip(value).lower()) if isinstance(value, str) else None


def key(value: Any) -> Key | None:
    """An id: whole numbers as numbers, also where they are written as text, and other text without spaces around it.

    Text with zeros in front (``"007"``) stays text, since the file's own ids go into results for other tools.
    """
    found = whole(value)
    if isinstance(value, str) and (found is None or str(found) != strip(value).split(".")[0].lstrip("+")):
        return strip(value) or None
    return found


class Ids:
    """The ids of a file, and what may be written in their place.

    Args:
        keys: the ids.
        names: other names of each (of an image its file); one that several share stands for none of them.
        same: what is as good as an id; it is not counted.
    """

    def __init__(
        self,
        keys: Iterable[Key],
        names: Iterable[tuple[str, Key]] = (),
        same: Mapping[str, Key] | None = None,
    ) -> None:
        self._keys, self._same = set(keys), same or {}
        self._numbers = _unique((int(k), k) for k in self._keys if isinstance(k, str) and k.isdecimal())
        self._names = _unique(names)
        self.by_name = 0
        """How often an id was found by a name alone."""

    def find(self, value: Any) -> Key | None:
        """The id that ``value`` means: itself, the same number (``7`` and ``"007"``), or by name; else None."""
        wanted = key(value)
        if wanted is None or wanted in self._keys:
            return wanted
        amount = whole(value)
        if amount is not None and amount in self._keys:
            return amount
        if amount is not None and amount in self._numbers:
            return self._numbers[amount]
        if str(wanted) in self._same:
            return self._same[str(wanted)]
        found = self._names.get(str(wanted))
        self.by_name += found is not None
        return found


def _unique(pairs: Iterable[tuple[Any, Key]]) -> dict[Any, Key]:
    """Name -> id, of names that stand for one id alone."""
    found: dict[Any, Key | None] = {}
    for name, target in pairs:
        found[name] = target if found.get(name, target) == target else None
    return {name: target for name, target in found.items() if target is not None}
