"""The features of labelled images as classifiers read them: block by block from the disk.

n images of a part, D dimensions, b of a block.
"""

from __future__ import annotations

import numpy as np

from hetcl.analysis.store import Store
from hetcl.images.subset import Subset

SMALLEST, LARGEST, BLOCKS = 1024, 16384, 64
"""Images of a block, at least and at most, and how many blocks there are in between."""
BYTES, LEAST = 256 << 20, 64
"""The most bytes of a block, and the images that it has all the same."""


class Bank:
    """The images of a part that could be used, with their features ``[n, D]`` out of the store."""

    def __init__(self, part: Subset, store: Store) -> None:
        self.part, self.store = part, store
        (self.dim,) = store.columns["features"].shape

    def rows(self) -> np.ndarray:
        """Which images of the part: int64, ascending."""
        return np.searchsorted(self.part.index, self.store.read()["index"])

    def blocks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Features ``[b, D]`` (memory-mapped) and labels ``[b]``. Raises ``WorkFailed``."""
        rows, features = self.rows(), self.store.read()["features"]
        length = min(LARGEST, max(SMALLEST, -(-len(self.part) // BLOCKS)))
        length = max(LEAST, min(length, BYTES // (4 * self.dim)))
        ends = np.searchsorted(rows, np.arange(length, len(self.part) + length, length))
        pairs = zip([0, *ends[:-1]], ends, strict=True)
        return [(features[a:b], self.part.labels[rows[a:b]]) for a, b in pairs if a < b]
