"""A set of pictures with a class for each pixel, the classes stored as pictures too.

N  pictures     K  classes     H W  height and width in pixels
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hetcl.downstream.data.files import read_indices, read_picture, stored_size
from hetcl.downstream.objects import Skipped
from hetcl.errors import InputError
from hetcl.training.progress import count
from hetcl.types import BadPicture

VOID = 255
"""The class of pixels that do not count."""


class MapSet:
    """Pictures and their label maps (``objects.SegmentationSet``).

    Args:
        kind: whose rules of evaluation apply.
        classes: names, K of them, at most 255.
        root: folder of both.
        pairs: paths of a picture and of its map, relative to ``root``.
        source: what was read, for messages.
        lookup: uint8 ``[256]``: stored value -> class; without it values are classes already.
        colours: what colours mean, for maps that are stored in them (``files.read_indices``).

    Raises:
        InputError: there are no pictures.
    """

    def __init__(
        self,
        kind: str,
        classes: tuple[str, ...],
        root: Path,
        pairs: list[tuple[str, str]],
        source: str,
        skipped: Skipped,
        lookup: np.ndarray | None = None,
        colours: Mapping[int, int] | None = None,
    ) -> None:
        if not pairs:
            raise InputError(
                f"{source}: no picture that can be used; {'; '.join(skipped.lines()) or 'none is listed'}"
            )
        self.kind, self.classes, self.skipped = kind, classes, skipped
        self._root, self._lookup, self._colours = str(root), lookup, colours
        self.lists: tuple[str, ...] = ()
        """The lists that name its images, with their numbers, where the layout has such."""
        self._names, self._maps = (np.array([os.fsencode(p[i]) for p in pairs]) for i in (0, 1))
        content = [json.dumps(classes).encode(), *self._names.tolist(), *self._maps.tolist()]
        self.fingerprint = hashlib.blake2b(b"\0".join(content), digest_size=8).hexdigest()
        pictures, kinds = count(len(pairs), "picture"), count(len(classes), "class")
        self.description = f"{pictures} with pixels in {kinds}, from {source}"

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The picture's file, relative to the root."""
        return os.fsdecode(self._names[index])

    def picture(self, index: int) -> np.ndarray:
        """uint8 ``[H, W, 3]``, RGB, as stored. Raises ``BadPicture``."""
        return read_picture(self._root, self.name(index), None)

    def label_map(self, index: int) -> np.ndarray:
        """uint8 ``[H, W]``: class of each pixel, 255 where it does not count.

        Raises:
            BadPicture: it cannot be read, has another size than its picture, or a value that is no class.
        """
        name = os.fsdecode(self._maps[index])
        size = stored_size(self._root, self.name(index))
        values = read_indices(self._root, name, self._colours, size)
        top = VOID if self._lookup is not None else len(self.classes) - 1
        wrong = values[(values < 0) | ((values > top) & (values != VOID))]
        if len(wrong):
            raise BadPicture(f"{name}: value {int(wrong[0])}, and the classes are 0 to {top}")
        return values.astype(np.uint8) if self._lookup is None else self._lookup[values]
