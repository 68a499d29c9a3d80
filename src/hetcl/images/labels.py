"""Labels beside the images of a shard, and the names of the classes."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any

from hetcl.errors import InputError
from hetcl.textfiles import decode, lines, strip

log = logging.getLogger(__name__)

LARGEST_LABEL = 10_000_000
"""A number from here on is no class number but some identifier."""


ENDINGS = ("cls", "label", "lbl", "class", "cls.txt", "label.txt")
"""Members ``KEY.cls`` and so on hold the number of a class, as text; the first that there is counts."""
FIELDS = ("label", "cls", "class", "class_id", "label_id", "target")
"""Fields of ``KEY.json`` that hold it, likewise."""


def plausible(classes: int, things: int) -> bool:
    """Whether there can be so many classes among so many images or names: no number makes a list by itself."""
    return classes <= max(100_000, 100 * things)


class LabelReader:
    """Reads labels out of ``KEY.cls`` and ``KEY.json``; remembers what was no class number."""

    def __init__(self) -> None:
        self.complaint: str | None = None
        """The first that was none."""

    def text(self, data: bytes, name: str) -> int:
        """The number in the text of ``KEY.cls``; -1 where there is none."""
        try:
            return self._number(strip(decode(data, name, warn=False)), name)
        except InputError as error:
            self.complaint = self.complaint or str(error)
            return -1

    def json(self, data: bytes, name: str) -> int:
        """The number in ``KEY.json``; -1 where there is none."""
        try:
            fields = json.loads(decode(data, name, warn=False))
        except (ValueError, InputError, RecursionError) as error:
            self.complaint = self.complaint or f"{name} is not JSON ({str(error).splitlines()[0]})"
            return -1
        if not isinstance(fields, dict):
            return -1
        value = next((fields[k] for k in FIELDS if fields.get(k) is not None), None)
        return -1 if value is None else self._number(value, name)

    def _number(self, value: object, name: str) -> int:
        number = -1
        with contextlib.suppress(ValueError, OverflowError):
            if isinstance(value, str | int | float) and float(value).is_integer():
                number = int(float(value))
        if not 0 <= number < LARGEST_LABEL:
            self.complaint = self.complaint or f"{name} says {str(value)[:40]!r}, which is no class number"
            return -1
        return number


def class_names(text: bytes, path: str) -> tuple[str, ...] | None:
    """Names by class number out of a ``classes.json`` or ``classes.txt``; None (and a warning) for another shape.

    Taken: a list of names; a list of ``{"id": 0, "name": ...}``; ``{"0": name}``; ``{name: 0}``; or one of
    these under ``classes``, ``names`` or ``categories``. As text: a name a line, the first of class 0.
    """
    try:
        decoded = decode(text, path)
        data = [line for _, line in lines(decoded)] if path.endswith(".txt") else json.loads(decoded)
        if isinstance(data, dict):
            data = next(
                (
                    data[k]
                    for k in ("classes", "names", "categories")
                    if isinstance(data.get(k), (list, dict))
                ),
                data,
            )
        pairs = _pairs(data)
        if pairs and min(pairs) >= 0 and plausible(max(pairs) + 1, len(pairs)):
            names = [""] * (max(pairs) + 1)
            for number, name in pairs.items():
                names[number] = name
            return tuple(name or str(i) for i, name in enumerate(names))
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, InputError, RecursionError):
        pass
    log.warning("%s does not name classes in a form that is understood: classes go by number", path)
    return None


def _pairs(data: Any) -> dict[int, str]:
    """Class number to name."""
    if isinstance(data, list):
        if all(isinstance(item, str) for item in data):
            return dict(enumerate(data))
        return {int(item.get("id", i)): str(item.get("name", i)) for i, item in enumerate(data)}
    numbers = all(isinstance(value, int) or str(value).isdecimal() for value in data.values())
    if numbers and not all(key.isdecimal() and isinstance(value, str) for key, value in data.items()):
        return {int(value): str(name) for name, value in data.items()}
    return {int(i): str(name[-1] if isinstance(name, list) else name) for i, name in data.items()}
