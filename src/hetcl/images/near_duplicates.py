"""How many images nearly repeat others: bursts, frames of a film, a camera that stands still, the same photo twice.

By the difference hash: 8 x 8 cells, each a bit that says whether the cell to its right is brighter. It stays as it is
under compression, scaling and changes of light, and changes where something else is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hetcl.draws import permute
from hetcl.images.channels import drawable
from hetcl.images.decode import open_image
from hetcl.types import RGB, BadImage, PixelFormat, Source

ALIKE = 8
"""Bits that two images called alike differ in, at most. Of photos of different things 1 pair in 100,000 does."""
CONTRAST = 2
"""Gray levels between two cells from which it counts as seen which is brighter."""
PLAIN = 32
"""An image with fewer such cells is too plain to be compared: a digit on black, a blank page."""
RUN = 8
"""Neighbours of the listing that are looked at together, since bursts lie together."""

SMALLEST = 72
"""Pixels of the shorter side that are decoded at least, where there are as many."""


@dataclass(frozen=True)
class NearDuplicates:
    """What was found among the images that were looked at."""

    looked: int
    """Images that were hashed, the plain ones included."""
    plain: int
    """Of these, too plain to be compared."""
    pairs: int
    """Neighbours in the listing that were compared."""
    repeats: int
    """Of these pairs, how many are alike."""
    different: int
    """Images that are left when of those alike, directly or over others, one is kept."""
    example: tuple[str, str] | None
    """Names of the first pair that is alike: neighbours, or else any two."""

    @property
    def share(self) -> float:
        """The share of images that nearly repeat the one listed before them."""
        return self.repeats / max(1, self.pairs)


def difference_hash(image: Image.Image) -> np.ndarray | None:
    """The hash of an image of any mode and size: bool ``[64]``; None: it is too plain."""
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    steps = np.diff(cells, axis=1).ravel()
    return steps > 0 if (abs(steps) >= CONTRAST).sum() >= PLAIN else None


def some_runs(n: int, images: int) -> np.ndarray:
    """Which images to look at: all of ``n``, or about ``images`` in runs of neighbours all over them, int64, sorted."""
    if n <= images:
        return np.arange(n)
    chosen = permute(np.arange(max(1, images // RUN)), n // RUN, "near duplicates")
    return (np.sort(chosen)[:, None] * RUN + np.arange(RUN)).ravel()


def near_duplicates(source: Source, images: int, pixels: PixelFormat = RGB) -> NearDuplicates:
    """Compare about ``images`` of a source, read as ``pixels``. Images that cannot be read are left out."""
    index: list[int] = []
    names: list[str] = []
    hashes: list[np.ndarray | None] = []
    for i in some_runs(len(source), images).tolist():
        try:
            sample = source.sample(i)
            opened = open_image(sample, pixels=pixels)
            side = min(opened.width, opened.height)
            reduce = next(r for r in (8, 4, 2, 1) if side >= SMALLEST * r or r == 1)
            hashes.append(difference_hash(Image.fromarray(drawable(opened.pixels(reduce)))))
        except BadImage:
            continue
        index.append(i)
        names.append(sample.name or f"image {i}")
    kept = [k for k, h in enumerate(hashes) if h is not None]
    bits = np.array([h for h in hashes if h is not None], np.float32).reshape(-1, 64)
    ones = bits.sum(axis=1)
    apart = ones[:, None] + ones[None, :] - 2 * bits @ bits.T
    first, second = np.nonzero(np.triu(apart <= ALIKE, 1))
    where = np.array(index, np.int64)[kept]
    near = where[second] - where[first] == 1
    pairs = int((np.diff(where) == 1).sum())
    shown = np.flatnonzero(near)[:1] if near.any() else np.arange(len(first))[:1]
    example = [(names[kept[first[k]]], names[kept[second[k]]]) for k in shown]
    different = len(index) - len(kept) + _groups(len(kept), first.tolist(), second.tolist())
    return NearDuplicates(
        len(index), len(index) - len(kept), pairs, int(near.sum()), different, example[0] if example else None
    )


def _groups(n: int, first: Sequence[int], second: Sequence[int]) -> int:
    """How many groups ``n`` things fall into when some pairs of them belong together."""
    head = list(range(n))

    def find(k: int) -> int:
        while head[k] != k:
            head[k] = k = head[head[k]]
        return k

    for a, b in zip(first, second, strict=True):
        head[find(a)] = find(b)
    return sum(head[k] == k for k in range(n))
