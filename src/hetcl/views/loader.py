"""Batches of views, a function of (seed, stage, epoch, position) alone.

Neither the number of workers nor the number of ranks nor where a run was resumed changes what a sample looks like.
An image that cannot be used is replaced by another, drawn from its own key, and nothing else moves.
N images, B global batch, R ranks, V views, S side of a view in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from hetcl.boxes import Box
from hetcl.draws import Key, generator
from hetcl.errors import InputError
from hetcl.images.decode import open_image
from hetcl.types import RGB, BadImage, BadRecord, PixelFormat, Source, ViewBatch, ViewPolicy
from hetcl.views import crops, photometric
from hetcl.views.order import Order
from hetcl.views.workers import Pool

T = TypeVar("T")
TRIES = 50
"""How many images in a row may fail to replace one before the data set is given up."""


@dataclass(frozen=True)
class Cuts:
    """The views of one image, before they are collated."""

    boxes: list[Box]
    """V rectangles in the plane of the original."""
    frame: Box
    """The rectangle that they were drawn in."""
    index: int
    """Which image of the source."""
    label: int | None
    """Its class, where the data has labels."""


def render(
    source: Source,
    index: int,
    choose: Callable[[int, int], tuple[Box, list[Box]]],
    size: int,
    out: np.ndarray,
    pixels: PixelFormat = RGB,
) -> Cuts:
    """Decode an image once and cut its views into ``out``.

    Args:
        choose: from (width, height) the frame, and V boxes in it.
        size: S.
        out: ``[V, C, S, S]``, written.
        pixels: as what it is read.

    Raises:
        BadImage: it cannot be used; ``out`` may hold anything.
    """
    sample = source.sample(index)
    image = open_image(sample, pixels=pixels)
    plane = image.width, image.height
    frame, boxes = choose(*plane)
    lowest = math.ceil(max(bottom for *_, bottom in boxes))
    whole = image.pixels(crops.reduction(*plane, boxes, size), rows=lowest)
    crops.cut(whole, boxes, size, plane=plane, out=out)
    return Cuts(boxes, frame, index, sample.label)


def name_of(source: Source, index: int) -> str:
    """What to call an image in a message, also when it cannot be read."""
    try:
        named = source.name(index) if hasattr(source, "name") else source.sample(index).name
        return named or f"image {index}"
    except BadImage:
        return f"image {index}"


def bad_record(source: Source, index: int, error: BadImage) -> BadRecord:
    """The record of an image that could not be used."""
    return BadRecord(index, name_of(source, index), str(error))


def or_another(
    index: int, make: Callable[[int], T], *, data: Any, name: Callable[[int], str], key: tuple[Key, ...]
) -> tuple[T, list[BadRecord]]:
    """What ``make`` gives for an image, or for the one that takes its place; and the images that could not be used.

    Args:
        make: raises ``BadImage`` for an image that cannot be used.
        data: what the images are of, with its length and ``description``; ``name``: of its images, for messages.
        key: what the draws of other images are a function of.

    Raises:
        InputError: so many in a row could not be used that the data is given up.
    """
    failed = dict[int, BadRecord]()
    for attempt in range(TRIES):
        try:
            return make(index), list(failed.values())
        except BadImage as error:
            failed[index] = BadRecord(index, name(index), str(error))
            index = int(generator(*key, "replacement", attempt).integers(len(data)))
    first = next(iter(failed.values()))
    raise InputError(
        f"{data.description}: drawn {TRIES} times, no image could be used, from {first.name} ({first.reason}) on; "
        "check the data"
    )


def blank(views: int, count: int, size: int, pixels: PixelFormat = RGB) -> torch.Tensor:
    """Where views are cut into: ``[V, B, C, S, S]``, not filled; each view is channels last in memory.

    That is how they are resized; the device turns them into floats and reorders them on the way.
    """
    shape = views, count, size, size, pixels.channels
    images = torch.from_numpy(np.empty(shape, pixels.dtype))  # numpy asks for large pages
    return images.permute(0, 1, 4, 2, 3)


def collate(
    views: Sequence[Cuts],
    images: torch.Tensor,
    color: np.ndarray,
    bad: tuple[BadRecord, ...],
    labelled: bool,
) -> ViewBatch:
    """Rows of a batch (``images`` uint8 ``[V, B, 3, S, S]``, ``color`` float32 ``[V, B, P]``) as a ViewBatch."""
    shape = images.shape[:2]
    boxes = np.array([v.boxes for v in views], np.float32).reshape(*shape[::-1], 4).swapaxes(0, 1)
    labels = [-1 if v.label is None else v.label for v in views]
    return ViewBatch(
        images=images,
        boxes=torch.from_numpy(np.ascontiguousarray(boxes)),
        frames=torch.from_numpy(np.array([v.frame for v in views], np.float32).reshape(-1, 4)),
        color=torch.from_numpy(color),
        index=torch.tensor([v.index for v in views], dtype=torch.int64),
        label=torch.tensor(labels, dtype=torch.int64) if labelled else None,
        bad=bad,
    )


class ViewLoader:
    """Two views of every image, once an epoch, in batches.

    No image is dropped: the last batch is completed with images from the start of the same epoch's order.

    Args:
        source: where the images are.
        policy: how views are drawn.
        size: S, side of a view in pixels.
        batch: B, the global batch; rank r yields its contiguous slice of B / R images.
        seed, stage: with the epoch and the image, what every draw is a function of.
        views: V.
        rank, ranks: this process and how many there are.
        workers: processes that decode; 0 decodes here. Changes nothing but speed.
        window: mix images within windows of that many, so that reads stay near each other (slow disks, shards);
            0 mixes everything, or as the source prefers.
        pin: batches in page-locked memory, for a GPU.
        pixels: as what images are read.

    Raises:
        InputError: fewer images than ``batch``, or a batch that does not split over the ranks.
    """

    def __init__(
        self, source: Source, *, policy: ViewPolicy, size: int, batch: int, seed: int, stage: str | int,
        views: int = 2, rank: int = 0, ranks: int = 1, workers: int = 0, window: int = 0,
        pin: bool = False, pixels: PixelFormat = RGB,
    ) -> None:  # fmt: skip
        if len(source) < batch:
            raise InputError(
                f"{source.description}: {len(source)} images are fewer than a batch of {batch}; "
                f"set the batch to {len(source)} or less"
            )
        if batch < 1 or batch % ranks:
            raise InputError(
                f"a batch of {batch} does not split over {ranks} processes; choose a multiple of {ranks}"
            )
        self.source, self.policy, self.size, self.batch, self.views = source, policy, size, batch, views
        self.key, self.pixels = (seed, stage), pixels
        self.steps_per_epoch, self.local_batch = -(-len(source) // batch), batch // ranks
        self._share = slice(rank * self.local_batch, (rank + 1) * self.local_batch)
        window = window or getattr(source, "prefers_window", 0)
        blocks = source.blocks() if window else None
        self._order = Order(len(source), *self.key, window=window, blocks=blocks)
        self._pool = Pool(self._step, workers, pin)
        self._next: tuple[int, int] | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ViewBatch]:
        """The batches of ``epoch`` from step ``start`` on. One epoch is read at a time.

        Workers go on to the next epoch while the last batches of this one are used; asking for anything but what
        comes next makes them start afresh.

        Raises:
            InputError: no usable image could be found to replace a bad one.
            WorkFailed: a worker died.
        """
        if self._next != (epoch, start) or not self._pool.running:
            self._pool.restart(_from(epoch, start, self.steps_per_epoch))
        for step in range(start, self.steps_per_epoch):
            self._next = None
            batch = next(self._pool)
            self._next = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
            yield batch

    def images(self, epoch: int, step: int) -> np.ndarray:
        """Which images a step asks for, before bad ones are replaced: int64 ``[B / R]``. Nothing is read."""
        positions = np.arange(step * self.batch, (step + 1) * self.batch)[self._share] % len(self.source)
        return self._order.indices(epoch, positions)

    def close(self) -> None:
        """Stop the workers. Not needed at the end of the program."""
        self._pool.close()

    def _step(self, epoch: int, step: int) -> ViewBatch:
        """The local batch: what the workers compute."""
        indices = self.images(epoch, step)
        count = len(indices)
        images = blank(self.views, count, self.size, self.pixels)
        color = np.empty((self.views, count, len(photometric.COLUMNS)), np.float32)
        views: list[Cuts] = []
        bad: list[BadRecord] = []
        for row, index in enumerate(indices.tolist()):
            views.append(self._sample(epoch, index, images[:, row].numpy(), color[:, row], bad))
        return collate(views, images, color, tuple(bad), self.source.classes is not None)

    def _sample(
        self, epoch: int, index: int, images: np.ndarray, color: np.ndarray, bad: list[BadRecord]
    ) -> Cuts:
        """Views of the image at ``index`` of the order, or of the one that takes its place.

        The draws belong to the place in the order, so a replacement is cut and coloured as the image it replaces
        would have been, and unlike its own appearance elsewhere in the epoch.
        """
        key = (*self.key, epoch, index)
        places = []
        for view, row in enumerate(color):
            rng = generator(*key, view)
            row[:] = photometric.draw(self.policy, rng)
            places.append(rng.random((crops.TRIES, 4)))

        place = generator(*key, "frame").random() if self.policy.square else 0.0

        def choose(width: int, height: int) -> tuple[Box, list[Box]]:
            frame = crops.frame_from(place, width, height, self.policy.square)
            return frame, crops.boxes_in(frame, places, self.policy.area, self.policy.ratio)

        def make(candidate: int) -> Cuts:
            return render(self.source, candidate, choose, self.size, images, self.pixels)

        cuts, failed = or_another(
            index, make, data=self.source, name=lambda i: name_of(self.source, i), key=key
        )
        bad.extend(failed)
        return cuts


def _from(epoch: int, start: int, steps: int) -> Iterator[tuple[int, int]]:
    """(epoch, step) from there on, without end."""
    while True:
        yield from ((epoch, step) for step in range(start, steps))
        epoch, start = epoch + 1, 0
