"""A set of images with a class for each pixel, the classes stored as images too.

N  images     K  classes     H W  height and width in pixels
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hetcl.datasets.annotations import Skipped
from hetcl.datasets.files import read_bytes, read_image, read_indices, stored_size
from hetcl.errors import InputError
from hetcl.quantities import count
from hetcl.types import RGB, BadImage

VOID = 255
"""The class of pixels that do not count."""


class MapSet:
    """Images and their label maps (``annotations.SegmentationSet``).

    Args:
        kind: whose rules of evaluation apply.
        classes: names, K of them, at most 255.
        root: folder of both.
        pairs: paths of an image and of its map, relative to ``root``.
        source: what was read, for messages.
        lookup: uint8 ``[256]``: stored value -> class; without it values are classes already.
        colours: what colours mean, for maps that are stored in them (``files.read_indices``).

    Raises:
        InputError: there are no images.
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
        colors: Mapping[int, int] | None = None,
    ) -> None:
        if not pairs:
            raise InputError(
                f"{source}: no image that can be used; {'; '.join(skipped.lines()) or 'none is listed'}"
            )
        self.kind, self.classes, self.skipped = kind, classes, skipped
        self._root, self._lookup, self._colors = str(root), lookup, colors
        self.lists: tuple[str, ...] = ()
        """The lists that name its images, with their numbers, where the layout has such."""
        self.pixels = RGB
        """As what its images are read."""
        self._names, self._maps = (np.array([os.fsencode(p[i]) for p in pairs]) for i in (0, 1))
        content = [json.dumps(classes).encode(), *self._names.tolist(), *self._maps.tolist()]
        self.fingerprint = hashlib.blake2b(b"\0".join(content), digest_size=8).hexdigest()
        images, kinds = count(len(pairs), "image"), count(len(classes), "class")
        self.description = f"{images} with pixels in {kinds}, from {source}"

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The image's file, relative to the root."""
        return os.fsdecode(self._names[index])

    def image(self, index: int) -> np.ndarray:
        """``[H, W, C]`` as stored, of the type that ``pixels`` says. Raises ``BadImage``."""
        return read_image(self._root, self.name(index), None, pixels=self.pixels)

    def stored(self, index: int) -> bytes:
        """The image's file as it is. Raises ``BadImage``."""
        return read_bytes(os.path.join(self._root, self.name(index)))

    def label_map(self, index: int) -> np.ndarray:
        """uint8 ``[H, W]``: class of each pixel, 255 where it does not count.

        Raises:
            BadImage: it cannot be read, has another size than its image, or a value that is no class.
        """
        name = os.fsdecode(self._maps[index])
        size = stored_size(self._root, self.name(index))
        values = read_indices(self._root, name, self._colors, size)
        top = VOID if self._lookup is not None else len(self.classes) - 1
        wrong = values[(values < 0) | ((values > top) & (values != VOID))]
        if len(wrong):
            raise BadImage(f"{name}: value {int(wrong[0])}, and the classes are 0 to {top}")
        return values.astype(np.uint8) if self._lookup is None else self._lookup[values]
