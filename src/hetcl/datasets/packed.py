"""A detection set in a few arrays: what the readers of the layouts fill, and what goes to the worker processes.

N  images     M  objects of all images
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hetcl.datasets import segments
from hetcl.datasets.annotations import Annotations, Category, Segment, Skipped
from hetcl.datasets.files import read_bytes, read_image
from hetcl.errors import InputError
from hetcl.quantities import count
from hetcl.types import RGB

Box = Sequence[float]
"""Left, top, right, bottom."""

_CROWD, _DIFFICULT = 1, 2
SLACK = 2
"""Pixels that the size of an image may be off where no mask hangs on it: some tools round."""


def box_fault(box: Box, size: tuple[int, int]) -> str | None:
    """Why a box cannot be used in an image of ``size`` (H, W), or None."""
    left, top, right, bottom = box
    if not all(abs(edge) <= segments.FAR for edge in box):
        return f"box with a coordinate that is not finite or beyond {segments.FAR:,} pixels"
    if right <= left or bottom <= top:
        return "box of zero or negative size"
    if right <= 0 or bottom <= 0 or left >= size[1] or top >= size[0]:
        return "box outside its image"
    return None


MOST_OBJECTS = 10_000
"""Objects of an image."""


class _Lists:
    """Lists of numbers of different lengths, one after the other."""

    def __init__(self) -> None:
        self.values, self.ends = array("q"), array("q", [0])

    def append(self, values: Iterable[int]) -> None:
        self.values.extend(values)
        self.ends.append(len(self.values))

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return tuple(self.values[self.ends[index] : self.ends[index + 1]])


class Packer:
    """Takes images and their objects one after the other, then gives the set."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.image_ids: list[int | str] = []
        self.ids: list[int | str] = []
        self.sizes, self.starts = array("q"), array("q")
        self.boxes, self.areas = array("d"), array("d")
        self.labels, self.flags = array("q"), array("B")
        self.forms, self.ends, self.data = array("B"), array("q", [0]), bytearray()
        self.negative, self.not_exhaustive = _Lists(), _Lists()
        self._here: set[tuple[float, ...]] = set()

    def image(
        self,
        image_id: int | str,
        name: str,
        size: tuple[int, int],
        negative: Iterable[int] = (),
        not_exhaustive: Iterable[int] = (),
    ) -> None:
        """The next image; the objects that follow are its own. Arguments as in ``Annotations``."""
        self.image_ids.append(image_id)
        self.names.append(name)
        self.sizes.extend(size)
        self.starts.append(len(self.labels))
        self._here = set()
        self.negative.append(negative)
        self.not_exhaustive.append(not_exhaustive)

    def reservation(self, box: Box, label: int) -> str | None:
        """What should be said of an object of the last image that is kept, or None."""
        left, top, right, bottom = box
        repeated = (label, *box) in self._here
        self._here.add((label, *box))
        if repeated:
            return "object that repeats another of its image, of the same class and box"
        return "box that is a pixel wide or high, or less" if min(right - left, bottom - top) <= 1 else None

    def image_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image."""
        return list(zip(self.sizes[::2], self.sizes[1::2], strict=True))

    @property
    def slack(self) -> int:
        """Pixels that the sizes of these images may be off."""
        return 0 if any(self.forms) else SLACK

    def add(
        self,
        id: int | str,
        box: Box,
        label: int,
        *,
        crowd: bool = False,
        difficult: bool = False,
        area: float | None = None,
        segment: Segment | None = None,
    ) -> None:
        """An object of the last image. Without an area, the box's is taken."""
        left, top, right, bottom = box
        self.ids.append(id)
        self.boxes.extend(box)
        self.labels.append(label)
        self.flags.append(_CROWD * crowd | _DIFFICULT * difficult)
        self.areas.append((right - left) * (bottom - top) if area is None else area)
        form, data = segments.pack(segment)
        self.forms.append(form)
        self.data += data
        self.ends.append(len(self.data))

    def finish(
        self, kind: str, classes: tuple[Category, ...], root: Path, source: str, skipped: Skipped
    ) -> PackedDetection:
        """The set.

        Args:
            source: what was read, for messages.

        Raises:
            InputError: see ``check``.
        """
        self.check(source, skipped)
        return PackedDetection(self, kind, classes, root, source, skipped)

    def check(self, source: str, skipped: Skipped) -> None:
        """Raises ``InputError`` where there is no image, every annotation had to be left out, or an image has too
        many objects."""
        if not self.names:
            raise InputError(f"{source}: no image that can be used; {_reasons(skipped)}")
        if not self.labels and skipped.counts:
            raise InputError(f"{source}: no annotation that can be used; {_reasons(skipped)}")
        counts = np.diff([*self.starts, len(self.labels)])
        if counts.max() > MOST_OBJECTS:
            raise InputError(
                f"{source}: {self.names[int(counts.argmax())]} has {counts.max():,} objects, and at most "
                f"{MOST_OBJECTS:,} of an image are taken (memory grows with their square): cut it into tiles"
            )


def _reasons(skipped: Skipped) -> str:
    return "; ".join(skipped.lines()) or "it lists none"


class PackedDetection:
    """Images with objects (``annotations.DetectionSet``) in memory: a few arrays, one buffer for all segments."""

    def __init__(
        self,
        packer: Packer,
        kind: str,
        classes: tuple[Category, ...],
        root: Path,
        source: str,
        skipped: Skipped,
    ) -> None:
        self.kind, self.classes, self.skipped = kind, classes, skipped
        self._root = str(root)
        self._names = np.array([os.fsencode(name) for name in packer.names])
        self._image_ids, self._ids = _column(packer.image_ids), _column(packer.ids)
        self._sizes = np.array(packer.sizes, np.int32).reshape(-1, 2)
        self._starts = np.array([*packer.starts, len(packer.labels)], np.int64)
        self._boxes = np.array(packer.boxes, np.float64).reshape(-1, 4)
        self._areas = np.array(packer.areas, np.float64)
        self._labels = np.array(packer.labels, np.int32)
        self._flags = np.array(packer.flags, np.uint8)
        self._forms = np.array(packer.forms, np.uint8)
        self._ends = np.array(packer.ends, np.int64)
        self._data = bytes(packer.data)
        self._negative, self._not_exhaustive = packer.negative, packer.not_exhaustive
        self.has_masks = bool(self._forms.any())
        self.fingerprint = self._hash()
        self.lists: tuple[str, ...] = ()
        """The lists that name its images, with their numbers, where the layout has such."""
        self.pixels = RGB
        """As what its images are read."""
        objects = f"{count(len(self._labels), 'object')} in {count(len(classes), 'class')}"
        masks = "with masks" if self.has_masks else "without masks"
        self.description = f"{count(len(self), 'image')}, {objects}, {masks}, from {source}"

    def __len__(self) -> int:
        return len(self._names)

    def annotations(self, index: int) -> Annotations:
        """What is in an image, without reading it."""
        index = range(len(self))[index]
        mine = slice(self._starts[index], self._starts[index + 1])
        height, width = self._sizes[index].tolist()
        return Annotations(
            image_id=_item(self._image_ids, index),
            name=self.name(index),
            size=(height, width),
            boxes=self._boxes[mine].copy(),
            labels=self.labels(index),
            crowd=self._flags[mine] & _CROWD != 0,
            difficult=self._flags[mine] & _DIFFICULT != 0,
            areas=self._areas[mine].copy(),
            ids=tuple(_item(self._ids, i) for i in range(mine.start, mine.stop)),
            segments=self._segments(mine, (height, width)) if self.has_masks else None,
            negative=self._negative[index],
            not_exhaustive=self._not_exhaustive[index],
        )

    def labels(self, index: int) -> np.ndarray:
        """The labels of an image alone, int64 ``[n]``: quicker than ``truth``."""
        return self._labels[self._starts[index] : self._starts[index + 1]].astype(np.int64)

    def image(self, index: int) -> np.ndarray:
        """``[H, W, C]`` as stored, of the type that ``pixels`` says. Raises ``BadImage``."""
        index = range(len(self))[index]
        height, width = self._sizes[index].tolist()
        slack = 0 if self.has_masks else SLACK
        return read_image(self._root, self.name(index), (height, width), slack, self.pixels)

    def stored(self, index: int) -> bytes:
        """The image's file as it is. Raises ``BadImage``."""
        return read_bytes(os.path.join(self._root, self.name(index)))

    def name(self, index: int) -> str:
        """The image's file, relative to the root."""
        return os.fsdecode(self._names[index])

    def _segments(self, mine: slice, size: tuple[int, int]) -> tuple[Segment | None, ...]:
        ends = self._ends[mine.start : mine.stop + 1].tolist()
        return tuple(
            segments.unpack(form, self._data[start:end], size)
            for form, start, end in zip(self._forms[mine].tolist(), ends, ends[1:], strict=False)
        )

    def _hash(self) -> str:
        whole = hashlib.blake2b(digest_size=8)
        whole.update(json.dumps([[c.id, c.name] for c in self.classes]).encode())
        whole.update(b"\0".join(self._names.tolist()))
        for column in (self._sizes, self._starts, self._boxes, self._labels, self._flags, self._forms):
            whole.update(column.tobytes())
        whole.update(self._data)
        return whole.hexdigest()


def _column(values: list[int | str]) -> Any:
    """Ids as int64 where they all are such numbers, else as they come."""
    if all(type(value) is int and abs(value) < 1 << 63 for value in values):
        return np.array(values, np.int64)
    return tuple(values)


def _item(column: Any, index: int) -> int | str:
    return int(column[index]) if isinstance(column, np.ndarray) else column[index]
