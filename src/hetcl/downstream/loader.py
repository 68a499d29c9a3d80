"""Batches of images with what is in them, a function of (seed, position) alone.

The stream of training images is endless: pass after pass over the data, each in an order of its own. Neither the
number of workers nor the number of ranks nor where a run was resumed changes which image comes when, its mirror
image or its scale. An image that cannot be used is replaced by another and listed, and nothing else moves.

    N  images     B  in a batch     R  ranks     n  objects of an image     H W  height and width     S  of a crop
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hetcl.datasets import masks
from hetcl.datasets.annotations import Annotations, DetectionSet, SegmentationSet
from hetcl.draws import Key, generator, permute
from hetcl.errors import InputError
from hetcl.types import BadImage, BadRecord
from hetcl.views.loader import TRIES, or_another
from hetcl.views.workers import Pool

MOST_BYTES = 4 << 30
"""Bytes of the masks of an image, at most."""
PADDING = (124, 116, 104)
"""What surrounds an image smaller than its crop: ImageNet's mean colour (of other than RGB the image's own mean)."""
IGNORED = 255
"""Label of pixels that do not count."""
Target = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Images and targets of this rank's share of a step."""

    images: tuple[Tensor, ...]
    """``[C, H, W]`` each: uint8 RGB, or float32 in [0, 1]."""
    targets: tuple[Target, ...]
    """What a detector learns: ``boxes`` float32 ``[n, 4]``, ``labels`` int64 ``[n]`` from 1, ``masks`` uint8
    ``[n, H, W]`` where the data has them, ``short`` int64 (the side to scale to). A segmenter: ``labels`` int64
    ``[H, W]``."""
    bad: tuple[BadRecord, ...] = ()
    """Images that had to be replaced."""

    def to(self, device: torch.device | str) -> Batch:
        """The same on ``device`` (no wait for the copy)."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory."""
        return self._each(lambda t: t.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        targets = tuple({name: change(value) for name, value in t.items()} for t in self.targets)
        return replace(self, images=tuple(map(change, self.images)), targets=targets)


class Stream:
    """Which image comes at each position of the endless stream.

    Args:
        n: images.
        key: what the order is a function of.
        factors: float64 ``[N]`` of at least 1: how often an image comes in a pass, on average (LVIS's repeat factors:
            the fraction is drawn anew for each pass); None: once.
    """

    def __init__(self, n: int, *key: Key, factors: np.ndarray | None = None) -> None:
        self.n, self.key, self.factors = n, key, factors
        self._starts, self._passes = [0], dict[int, np.ndarray]()

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64 positions -> int64 images, the same shape."""
        if self.factors is None:
            passes, places = np.divmod(positions, self.n)
            out = np.empty_like(positions)
            for p in np.unique(passes):
                here = passes == p
                out[here] = permute(places[here], self.n, *self.key, int(p))
            return out
        return np.array([self._repeated(int(p)) for p in positions.ravel()], np.int64).reshape(
            positions.shape
        )

    def _repeated(self, position: int) -> int:
        while self._starts[-1] <= position:
            self._starts.append(self._starts[-1] + len(self._images(len(self._starts) - 1)))
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        images = self._images(number)
        place = permute(np.array([position - self._starts[number]]), len(images), *self.key, number)
        return int(images[int(place[0])])

    def _images(self, number: int) -> np.ndarray:
        """The images of a pass, each as often as it comes; the last two passes are kept."""
        if number not in self._passes:
            assert self.factors is not None
            whole = np.floor(self.factors)
            more = generator(*self.key, number, "repeat").random(self.n) < self.factors - whole
            times = (whole + more).astype(np.int64)
            self._passes = {k: v for k, v in self._passes.items() if k == number - 1}
            self._passes[number] = np.repeat(np.arange(self.n), times)
        return self._passes[number]


class Examples(Protocol):
    """Images as a model is trained on them."""

    description: str

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """For messages."""
        ...

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Target]:
        """An image and its target (see :class:`Batch`). Raises ``BadImage``."""
        ...


class DetectionExamples:
    """Images with boxes, maybe mirrored.

    Args:
        data: where they are.
        images: which of them, int64.
        masks: give those too.
        min_size: short sides, one of which is drawn for each image.
        flip_p: chance of a mirrored image.
    """

    def __init__(
        self, data: DetectionSet, images: np.ndarray, *, masks: bool, min_size: Sequence[int], flip_p: float
    ) -> None:
        self.data, self.images, self.masks = data, images, masks
        self.min_size, self.flip_p = tuple(min_size), flip_p
        self.description = data.description

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.data.annotations(int(self.images[index])).name

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Target]:
        """Crowds are left out, boxes cut to the image, and objects that cannot be learned from are dropped."""
        image = int(self.images[index])
        pixels, truth = self.data.image(image), self.data.annotations(image)
        flip, short = rng.random() < self.flip_p, int(rng.choice(self.min_size))
        height, width = pixels.shape[:2]
        boxes = np.clip(truth.boxes, 0, [width, height, width, height]).reshape(-1, 4)
        keep = usable(truth, masks=self.masks)
        bitmaps = None
        if self.masks:
            bitmaps = _bitmaps(truth.segments, keep, (height, width))
            covered = bitmaps.reshape(len(bitmaps), -1).any(axis=1)
            bitmaps = bitmaps[covered]
            keep[np.flatnonzero(keep)[~covered]] = False
        boxes = boxes[keep]
        if flip:
            pixels = pixels[:, ::-1]
            boxes = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
            bitmaps = None if bitmaps is None else bitmaps[:, :, ::-1]
        target = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.from_numpy(truth.labels[keep].astype(np.int64) + 1),
            "short": torch.tensor(short),
        }
        if bitmaps is not None:
            target["masks"] = torch.from_numpy(np.ascontiguousarray(bitmaps))
        return _tensor(pixels), target


def usable(truth: Annotations, *, masks: bool) -> np.ndarray:
    """Which objects of an image can be learned from: bool ``[n]``.

    No crowds, no boxes with less than a hundredth of a pixel inside the image, and with ``masks`` none without one.
    """
    height, width = truth.size
    boxes = np.clip(truth.boxes, 0, [width, height, width, height]).reshape(-1, 4)
    keep = ~truth.crowd & ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(axis=1)
    if masks:
        found = truth.segments or (None,) * len(keep)
        keep &= np.array([segment is not None for segment in found], bool)
    return keep


def _bitmaps(segments: Any, keep: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 ``[kept, H, W]``; an object without a segment covers nothing. Raises ``BadImage``: too many."""
    if int(keep.sum()) * size[0] * size[1] > MOST_BYTES:
        raise BadImage(
            f"{int(keep.sum()):,} masks of {size[1]} x {size[0]} pixels are more than {MOST_BYTES >> 30} GiB"
        )
    out = np.zeros((int(keep.sum()), *size), np.uint8)
    for row, i in enumerate(np.flatnonzero(keep)):
        if segments is not None and segments[i] is not None:
            out[row] = masks.bitmap(segments[i], size)
    return out


class SegmentationExamples:
    """Crops of images with a class for each pixel: scaled, padded, cut, maybe mirrored.

    Args:
        data: where they are.
        crop: S.
        scale: range of the scale.
        flip_p: chance of a mirrored image.
    """

    def __init__(
        self, data: SegmentationSet, *, crop: int, scale: tuple[float, float], flip_p: float
    ) -> None:
        self.data, self.crop, self.scale, self.flip_p = data, crop, scale, flip_p
        self.description = data.description

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        return self.data.name(index)

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Target]:
        pixels, labels = self.data.image(index), self.data.label_map(index)
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random()
        flip, places = rng.random() < self.flip_p, rng.random(2)
        size = tuple(max(1, round(side * factor)) for side in (pixels.shape[1], pixels.shape[0]))
        image = resized(pixels, size)
        labelled = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
        left, top = (int(p * (max(0, side - self.crop) + 1)) for p, side in zip(places, size, strict=True))
        cut = np.empty((self.crop, self.crop, pixels.shape[2]), pixels.dtype)
        cut[:] = PADDING if pixels.dtype == np.uint8 else pixels.mean((0, 1))
        truth = np.full((self.crop, self.crop), IGNORED, np.uint8)
        seen = image[top : top + self.crop, left : left + self.crop]
        cut[: seen.shape[0], : seen.shape[1]] = seen
        truth[: seen.shape[0], : seen.shape[1]] = np.asarray(labelled)[
            top : top + self.crop, left : left + self.crop
        ]
        if flip:
            cut, truth = cut[:, ::-1], truth[:, ::-1]
        return _tensor(cut), {"labels": torch.from_numpy(truth.astype(np.int64))}


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``[H, W, C]`` -> as wide and high as ``size``, bilinear: uint8 RGB at once, floats channel by channel."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    channels = (Image.fromarray(np.ascontiguousarray(c)) for c in pixels.transpose(2, 0, 1))
    return np.stack([np.asarray(c.resize(size, Image.Resampling.BILINEAR)) for c in channels], axis=2)


def _tensor(pixels: np.ndarray) -> Tensor:
    """``[H, W, C]`` -> ``[C, H, W]``."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


class TargetLoader:
    """Training batches from any step on.

    Args:
        examples: images with targets.
        stream: which comes when.
        batch: B, over all ranks; rank r yields its contiguous slice of B / R.
        seed: what mirroring and scale are a function of, with the position.
        workers: processes that read; 0 reads here. Changes nothing but speed.
        pin: batches in page-locked memory, for a GPU.

    Raises:
        InputError: a batch that does not split over the ranks.
    """

    def __init__(
        self, examples: Examples, stream: Stream, *, batch: int, seed: int, rank: int = 0, ranks: int = 1,
        workers: int = 0, pin: bool = False,
    ) -> None:  # fmt: skip
        if batch % ranks:
            raise InputError(
                f"a batch of {batch} does not split over {ranks} processes; choose a multiple of {ranks}"
            )
        self.examples, self.stream, self.batch, self.key = examples, stream, batch, (seed, "finetune")
        self._share = slice(rank * (batch // ranks), (rank + 1) * (batch // ranks))
        self._pool = Pool(self._step, workers, pin)
        self._next = -1

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps ``start`` to ``stop``; workers go on to what comes after.

        Raises:
            InputError: no usable image could be found to replace a bad one.
            WorkFailed: a worker died.
        """
        if self._next != start or not self._pool.running:
            self._pool.restart((0, step) for step in _from(start))
        for step in range(start, stop):
            self._next = -1
            batch = next(self._pool)
            self._next = step + 1
            yield batch

    def close(self) -> None:
        """Stop the workers."""
        self._pool.close()

    def _step(self, _: int, step: int) -> Batch:
        """The local batch: what the workers compute."""
        positions = np.arange(step * self.batch, (step + 1) * self.batch)[self._share]
        made = [self._one(int(p), int(i)) for p, i in zip(positions, self.stream(positions), strict=True)]
        pairs, bad = zip(*made, strict=True)
        images, targets = zip(*pairs, strict=True)
        return Batch(images, targets, tuple(record for records in bad for record in records))

    def _one(self, position: int, index: int) -> tuple[tuple[Tensor, Target], list[BadRecord]]:
        """The image at a position, or the one that takes its place; and those that could not be used."""
        key = (*self.key, position)
        return or_another(
            index,
            lambda i: self.examples(i, generator(*key)),
            data=self.examples,
            name=self.examples.name,
            key=key,
        )


def _from(step: int) -> Iterator[int]:
    while True:
        yield step
        step += 1


def first_usable(examples: Examples, seed: int) -> Any:
    """The first usable image and its target, for a dry run. Raises ``InputError``."""
    reason = ""
    for index in range(min(TRIES, len(examples))):
        try:
            return examples(index, generator(seed, "trial", index))
        except BadImage as error:
            reason = reason or f"{examples.name(index)}: {error}"
    raise InputError(
        f"{examples.description}: none of the first images can be used ({reason}); check the data"
    )
