"""One central view of every image, for features: the pass that ``views/pairs.py`` has for two views.

B images in a step, S side of a view in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from hetcl.boxes import Box
from hetcl.types import RGB, BadImage, BadRecord, PixelFormat, Source, ViewBatch, ViewPolicy
from hetcl.views import crops, photometric
from hetcl.views.loader import Cuts, bad_record, blank, collate, render
from hetcl.views.policies import POLICIES
from hetcl.views.workers import Pool, room


class Central:
    """Central views of some images, in order, as for ImageNet.

    Args:
        source: where the images are.
        indices: which of them; it may be a range, it is never copied whole.
        size: S.
        batch: B; the last step is short.
        whole: the whole image, stretched to a square, instead of its middle.
        workers, pin, pixels: as for :class:`hetcl.views.loader.ViewLoader`.
    """

    def __init__(
        self, source: Source, indices: Sequence[int] | np.ndarray | range, *, size: int, batch: int,
        workers: int = 0, pin: bool = False, whole: bool = False,
        pixels: PixelFormat = RGB,
    ) -> None:  # fmt: skip
        self.source, self.indices, self.size, self.batch = source, indices, size, batch
        self.whole, self.pixels = whole, pixels
        self.images, self.steps = len(indices), -(-len(indices) // batch)
        self._pool = Pool(self._step, workers, pin)
        self.room = room(workers, batch * pixels.bytes * size * size)
        """Bytes of host memory that workers and batches take, about."""

    def run(self, steps: Iterable[int]) -> Iterator[tuple[int, Mapping[tuple[ViewPolicy, int], ViewBatch]]]:
        """``(step, {(policy, size): one view of each})`` for some steps in the order given. One run at a time.

        A batch holds the usable images of its step, maybe none; the others are listed in ``bad``.
        """
        steps = list(steps)
        self._pool.restart((0, step) for step in steps)
        for step in steps:
            yield step, {(POLICIES["none"], self.size): next(self._pool)}

    def close(self) -> None:
        """Stop the workers."""
        self._pool.close()

    def _step(self, _: int, step: int) -> ViewBatch:
        here = self.indices[step * self.batch : (step + 1) * self.batch]
        images = blank(1, len(here), self.size, self.pixels)
        views: list[Cuts] = []
        bad: list[BadRecord] = []
        for index in map(int, here):
            try:
                out = images[:, len(views)].numpy()
                views.append(render(self.source, index, self._box, self.size, out, self.pixels))
            except BadImage as error:
                bad.append(bad_record(self.source, index, error))
        images = images[:, : len(views)]
        color = np.broadcast_to(photometric.NOTHING, (1, len(views), len(photometric.NOTHING))).copy()
        return collate(views, images, color, tuple(bad), self.source.classes is not None)

    def _box(self, width: int, height: int) -> tuple[Box, list[Box]]:
        whole = crops.frame_from(0, width, height, square=False)
        return whole, [whole if self.whole else crops.centre_box(width, height, self.size)]
