"""Which image comes when: the order of an epoch, computed for each position and never stored.

N images. Without a window an epoch is one keyed permutation of all images. With a window it keeps reads near
each other: runs of neighbouring images (the shards, or pieces of a window) come in random order, and images
are mixed within windows of that many positions. Either way every image comes exactly once an epoch.
"""

from __future__ import annotations

import numpy as np

from hetcl.draws import Key, digest, permute

PIECES = 16
"""Into how many runs of neighbouring images a window reaches when the source has no blocks of its own."""


class Order:
    """The order of every epoch of a source.

    Args:
        n: images in the source.
        key: what the order is a function of, besides the epoch: (seed, stage).
        window: 0 for a permutation of everything, else how many images are mixed at a time.
        blocks: starts of runs of images best read together (``Source.blocks``), used with a window only.
    """

    def __init__(self, n: int, *key: Key, window: int = 0, blocks: np.ndarray | None = None) -> None:
        self.n, self.key, self.window = n, key, window
        self.blocks = blocks if window and blocks is not None and len(blocks) else None
        self._cache: tuple[int, np.ndarray, np.ndarray] | None = None

    def indices(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Images at ``positions`` (integers in ``[0, n)``, any shape) of ``epoch``: int64, the same shape."""
        positions = np.asarray(positions, np.int64)
        if not self.window:
            return permute(positions, self.n, *self.key, epoch)
        places = self._within_windows(epoch, positions)
        return self._by_blocks(epoch, places) if self.blocks is not None else self._by_runs(epoch, places)

    def _within_windows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Permute positions inside each window of ``window`` positions; the last window may be short."""
        number, inside = np.divmod(positions, self.window)
        out = np.empty_like(positions)
        for w in np.unique(number):
            here = number == w
            start = int(w) * self.window
            length = min(self.window, self.n - start)
            out[here] = start + permute(inside[here], length, *self.key, epoch, "window", int(w))
        return out

    def _by_runs(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Equal runs in random order, from a random starting point so that the odd end moves with the epoch."""
        run = max(1, self.window // PIECES)
        whole = self.n // run
        block, inside = np.divmod(places, run)
        tail = block >= whole
        moved = permute(np.where(tail, 0, block), max(1, whole), *self.key, epoch, "runs")
        start = digest(*self.key, epoch, "start") % self.n
        return (np.where(tail, block, moved) * run + inside + start) % self.n

    def _by_blocks(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """The source's blocks in random order, each read in order. Memory: two numbers a block."""
        starts, ends = self._shuffled_blocks(epoch)
        block = np.searchsorted(ends, places, side="right")
        before = np.where(block > 0, ends[block - 1], 0)
        return starts[block] + places - before

    def _shuffled_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Starts of the blocks in this epoch's order, and where in the epoch each one ends."""
        if self._cache is None or self._cache[0] != epoch:
            assert self.blocks is not None
            starts = np.unique(np.append(0, np.asarray(self.blocks, np.int64)))
            starts = starts[starts < self.n]
            sizes = np.diff(np.append(starts, self.n))
            shuffled = permute(np.arange(len(starts)), len(starts), *self.key, epoch, "blocks")
            self._cache = epoch, starts[shuffled], np.cumsum(sizes[shuffled])
        return self._cache[1], self._cache[2]
