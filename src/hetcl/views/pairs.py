"""Two views of every image for several policies and sizes, from one pass over the data (offline testing).

Draws are functions of (seed, image, view) alone: neither the policy, the size, the order, the batch nor the workers
change where an image is cut. N images, B images in a step, S side of a view in pixels, P columns of colour draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hetcl.draws import generator
from hetcl.images.decode import open_image
from hetcl.types import RGB, BadImage, BadRecord, PixelFormat, Source, ViewBatch, ViewPolicy
from hetcl.views import crops, photometric
from hetcl.views.loader import bad_record
from hetcl.views.order import Order
from hetcl.views.workers import Pool, room

VIEWS = 2
STAGE = "contrast"
"""What the draws are keyed by, besides seed, image and view."""

Cut = tuple[tuple[float, float], tuple[float, float], bool]
"""What decides a crop box: the policy's area, ratio and square."""


def cut_of(policy: ViewPolicy) -> Cut:
    """What decides the crop boxes of a policy."""
    return policy.area, policy.ratio, policy.square


@dataclass(frozen=True)
class Views:
    """Views of the images of one step, as they leave a worker: each distinct cut once."""

    images: dict[tuple[Cut, int], Tensor]
    """``[2, B, C, S, S]`` for each cut and size."""
    boxes: dict[Cut, Tensor]
    """float32 ``[2, B, 4]``."""
    color: dict[ViewPolicy, Tensor]
    """float32 ``[2, B, P]``."""
    frames: dict[Cut, Tensor]
    """float32 ``[B, 4]``."""
    index: Tensor
    bad: tuple[BadRecord, ...]

    def batch(self, policy: ViewPolicy, size: int) -> ViewBatch:
        """The views of one policy at one size; images are shared with policies that cut alike."""
        cut = cut_of(policy)
        return ViewBatch(
            self.images[cut, size],
            self.boxes[cut],
            self.frames[cut],
            self.color[policy],
            self.index,
            None,
            self.bad,
        )

    def pin_memory(self) -> Views:
        """The same in page-locked memory (called by the data loader)."""
        return replace(self, images={k: v.pin_memory() for k, v in self.images.items()})


class Pairs:
    """The pass over the data for offline testing.

    Args:
        source: where the images are.
        policies: how views are drawn; two views of each image for each.
        size: S, or several.
        batch: B.
        seed: what every draw is a function of.
        workers: processes that decode; 0 decodes here. Changes nothing but speed.
        window: mix images within windows of that many (slow storage); 0: everything, or as the source prefers.
        images: the first so many of the random order; 0: all.
        pin: batches in page-locked memory, for a GPU.
        pixels: as what images are read.
    """

    def __init__(
        self, source: Source, policies: Sequence[ViewPolicy], *, size: int | Sequence[int], batch: int,
        seed: int, workers: int = 0, window: int = 0, images: int = 0, pin: bool = False,
        pixels: PixelFormat = RGB,
    ) -> None:  # fmt: skip
        self.source, self.policies, self.batch = source, tuple(dict.fromkeys(policies)), batch
        self.sizes = (size,) if isinstance(size, int) else tuple(size)
        self.seed, self.pixels = seed, pixels
        self.images = min(images or len(source), len(source))
        window = window or source.prefers_window
        self.order = Order(
            len(source), seed, STAGE, window=window, blocks=source.blocks() if window else None
        )
        self.steps = -(-self.images // batch)
        self._pool = Pool(self._step, workers, pin)
        cuts = len({cut_of(p) for p in self.policies})
        self.room = room(
            workers, cuts * VIEWS * batch * pixels.bytes * sum(side * side for side in self.sizes)
        )
        """Bytes of host memory that workers and batches take, about."""

    def run(self, steps: Iterable[int]) -> Iterator[tuple[int, Mapping[tuple[ViewPolicy, int], ViewBatch]]]:
        """``(step, {(policy, size): views})`` for some steps in the order given. One run at a time.

        A batch holds the usable images of its step, maybe none; the others are listed in ``bad``.
        """
        steps = list(steps)
        self._pool.restart((0, step) for step in steps)
        for step in steps:
            views: Views = next(self._pool)
            yield step, {(p, s): views.batch(p, s) for p in self.policies for s in self.sizes}

    def indices(self, step: int) -> np.ndarray:
        """The images of a step: int64, at most B."""
        return self.order.indices(0, np.arange(step * self.batch, min((step + 1) * self.batch, self.images)))

    def render(self, indices: Sequence[int], policy: ViewPolicy, size: int) -> ViewBatch:
        """The same views of given images again, in this process. Unusable ones are left out."""
        return self._views(indices, (policy,), (size,)).batch(policy, size)

    def close(self) -> None:
        """Stop the workers."""
        self._pool.close()

    def _step(self, _: int, step: int) -> Views:
        return self._views(self.indices(step).tolist(), self.policies, self.sizes)

    def _views(self, indices: Sequence[int], policies: Sequence[ViewPolicy], sizes: Sequence[int]) -> Views:
        cuts: list[Cut] = list(dict.fromkeys(cut_of(p) for p in policies))
        n = len(indices)
        channels, dtype = self.pixels.channels, self.pixels.dtype
        images = {(c, s): np.empty((VIEWS, n, channels, s, s), dtype) for c in cuts for s in sizes}
        boxes = {c: np.zeros((VIEWS, n, 4), np.float32) for c in cuts}
        color = {p: np.zeros((VIEWS, n, len(photometric.COLUMNS)), np.float32) for p in policies}
        frames = {c: np.zeros((n, 4), np.float32) for c in cuts}
        kept: list[int] = []
        bad: list[BadRecord] = []
        for index in indices:
            row = len(kept)
            draws = self._draws(index, policies, {p: color[p][:, row] for p in policies})
            try:
                self._cut(
                    index,
                    draws,
                    {k: v[:, row] for k, v in images.items()},
                    {c: b[:, row] for c, b in boxes.items()},
                    {c: f[row] for c, f in frames.items()},
                )
            except BadImage as error:
                bad.append(bad_record(self.source, index, error))
                continue
            kept.append(index)
        m = len(kept)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array[:, :m]))

        return Views(
            {k: tensor(v) for k, v in images.items()},
            {c: tensor(b) for c, b in boxes.items()},
            {p: tensor(c) for p, c in color.items()},
            {c: torch.from_numpy(f[:m].copy()) for c, f in frames.items()},
            torch.tensor(kept, dtype=torch.int64),
            tuple(bad),
        )

    def _draws(
        self, index: int, policies: Sequence[ViewPolicy], out: Mapping[ViewPolicy, np.ndarray]
    ) -> list[np.ndarray]:
        """Colour draws of an image into ``out``; returns the draws of the crop of each view, ``[tries, 4]``."""
        places = []
        for view in range(VIEWS):
            for policy in policies:
                rng = generator(self.seed, STAGE, index, view)
                out[policy][view] = photometric.draw(policy, rng)
            places.append(rng.random((crops.TRIES, 4)))  # the same after any policy
        return places

    def _cut(
        self,
        index: int,
        draws: Sequence[np.ndarray],
        images: Mapping[tuple[Cut, int], np.ndarray],
        boxes: Mapping[Cut, np.ndarray],
        frames: Mapping[Cut, np.ndarray],
    ) -> None:
        """Decode an image once and cut all its views. Raises ``BadImage``."""
        image = open_image(self.source.sample(index), pixels=self.pixels)
        plane = image.width, image.height
        place, chosen = generator(self.seed, STAGE, index, "frame").random(), {}
        for area, ratio, square in boxes:
            frame = crops.frame_from(place, *plane, square)
            frames[area, ratio, square][:] = frame
            chosen[area, ratio, square] = crops.boxes_in(frame, draws, area, ratio)
        scaled: dict[int, np.ndarray] = {}  # by reduction, which must not depend on what else is asked for
        for (cut, size), out in images.items():
            k = crops.reduction(*plane, chosen[cut], size)
            if k not in scaled:
                scaled[k] = image.pixels(k)
            crops.cut(scaled[k], chosen[cut], size, plane=plane, out=out)
        for cut, out in boxes.items():
            out[:] = chosen[cut]
