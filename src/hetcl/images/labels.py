"""Labels beside the pictures of a shard, and the names of the classes."""

from __future__ import annotations

import json
import logging
from typing import Any

log = logging.getLogger(__name__)

LARGEST_LABEL = 10_000_000
"""A number from here on is no class number but some identifier."""


class LabelReader:
    """Reads labels out of ``KEY.cls`` and ``KEY.json``; remembers the first that was no class number."""

    def __init__(self) -> None:
        self.complaint: str | None = None

    def cls(self, text: bytes, name: str) -> int:
        return self._number(text.decode("utf-8", "replace").strip(), name)

    def json(self, text: bytes, name: str) -> int:
        try:
            fields = json.loads(text)
        except ValueError:
            return -1
        if not isinstance(fields, dict):
            return -1
        value = next((fields[k] for k in ("label", "cls") if fields.get(k) is not None), None)
        return -1 if value is None else self._number(value, name)

    def _number(self, value: object, name: str) -> int:
        try:
            number = int(value) if isinstance(value, (str, int)) else -1
        except ValueError:
            number = -1
        if not 0 <= number < LARGEST_LABEL:
            self.complaint = self.complaint or f"{name} says {str(value)[:40]!r}, which is no class number"
            return -1
        return number


def class_names(text: bytes, path: str) -> tuple[str, ...] | None:
    """Names by class number out of a ``classes.json``; None (and a warning) when it has another shape.

    Taken: a list of names; a list of ``{"id": 0, "name": ...}``; ``{"0": name}``; ``{name: 0}``; or one of
    these under ``classes``, ``names`` or ``categories``.
    """
    try:
        data = json.loads(text)
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
        names = [""] * (max(pairs) + 1)
        for number, name in pairs.items():
            names[number] = name
        if pairs and min(pairs) >= 0 and len(names) < LARGEST_LABEL:
            return tuple(name or str(i) for i, name in enumerate(names))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        pass
    log.warning("%s does not name classes in a form that is understood: classes go by number", path)
    return None


def _pairs(data: Any) -> dict[int, str]:
    """Class number to name."""
    if isinstance(data, list):
        if all(isinstance(item, str) for item in data):
            return dict(enumerate(data))
        return {int(item.get("id", i)): str(item.get("name", i)) for i, item in enumerate(data)}
    if all(isinstance(value, int) for value in data.values()):
        return {int(value): str(name) for name, value in data.items()}
    return {int(i): str(name[-1] if isinstance(name, list) else name) for i, name in data.items()}
