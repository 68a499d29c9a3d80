"""What a model says of every image of a set, each seen once, whatever the number of ranks and workers.

Images go through one at a time, so that no padding of a neighbour changes a figure.

    n  detections     K  classes     H W  of the image as stored
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from hetcl.datasets import masks
from hetcl.datasets.annotations import DetectionSet, Metrics, Prediction, SegmentationSet
from hetcl.downstream.scores import Confusion, score
from hetcl.errors import WorkFailed
from hetcl.ranks import world
from hetcl.training.bad_images import too_many
from hetcl.types import BadImage, BadRecord
from hetcl.views.photometric import in_unit
from hetcl.views.workers import Pool


@dataclass
class EvaluationResult:
    """What came of a pass over a set."""

    predictions: list[Prediction] = field(default_factory=list)
    """What a detector found: one for each usable image, in the set's order."""
    confusion: Confusion | None = None
    """The counts of a segmenter's pixels; None of a detector."""
    bad: list[BadRecord] = field(default_factory=list)
    """Images that could not be used."""


@dataclass(frozen=True)
class EvaluationContext:
    """How to go over a set."""

    fabric: Fabric
    workers: int
    channels_last: bool
    max_bad: float
    """Share of unusable images above which the work stops."""
    advance: Callable[[int, int], None] = lambda done, total: None
    """Called with how many images are done, and of how many."""


def evaluate_on(
    model: nn.Module,
    data: Any,
    look: EvaluationContext,
    keep: Callable[[int, np.ndarray], None] = lambda index, labels: None,
) -> tuple[EvaluationResult, Metrics]:
    """What a model says of every image of a set, and its figures; called on every rank. ``keep`` as of `segment`."""
    if hasattr(data, "label_map"):
        seen = segment(model, data, look, images=range(len(data)), keep=keep)
        assert seen.confusion is not None
        return seen, seen.confusion.metrics(data.classes)
    seen = detect(model, data, look, images=range(len(data)))
    return seen, score(data, seen.predictions)


def detect(
    model: nn.Module, data: DetectionSet, look: EvaluationContext, *, images: Sequence[int] | range
) -> EvaluationResult:
    """Predictions of a detector; on every rank the same, gathered from all.

    Raises:
        WorkFailed: too many unusable images, or a number that is not finite.
    """
    mine: list[tuple[int, Prediction]] = []
    bad: list[BadRecord] = []
    for index, image, answer in answers(model, data, look, images=images):
        truth = data.annotations(index)
        if image is None:
            bad.append(BadRecord(index, truth.name, answer))
        else:
            mine.append((index, prediction_of(answer, truth.image_id, truth.name)))
    every = sorted((pair for pairs in _gathered(mine) for pair in pairs), key=lambda pair: pair[0])
    seen = EvaluationResult(
        [p for _, p in every], None, _all_bad(bad, len(images), look.max_bad, data.description)
    )
    return seen


def prediction_of(output: dict[str, Tensor], image_id: int | str, name: str) -> Prediction:
    """A detector's output for one image (labels from 1) as a :class:`Prediction`; ``name`` for messages."""
    boxes, scores = output["boxes"].double().cpu().numpy(), output["scores"].double().cpu().numpy()
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise WorkFailed(f"the detections of {name} are not finite: the weights are broken")
    order = np.argsort(-scores, kind="stable")
    found = None
    if "masks" in output:
        bitmaps = output["masks"][:, 0].to(torch.uint8).cpu().numpy()
        found = tuple(masks.encode(bitmaps[i]) for i in order)
    return Prediction(image_id, boxes[order], scores[order], output["labels"].cpu().numpy()[order] - 1, found)


def segment(
    model: nn.Module,
    data: SegmentationSet,
    look: EvaluationContext,
    *,
    images: Sequence[int] | range,
    keep: Callable[[int, np.ndarray], None] = lambda index, labels: None,
) -> EvaluationResult:
    """Classes of pixels against the truth: the counts of all ranks together, on every rank.

    Args:
        keep: called on the rank that saw it with an image's number and uint8 ``[H, W]``.

    Raises:
        WorkFailed: too many unusable images.
    """
    confusion = Confusion(len(data.classes))
    bad: list[BadRecord] = []
    for index, image, answer in answers(model, data, look, images=images, maps=True):
        try:
            if image is None:
                raise BadImage(answer)
            truth = data.label_map(index)
        except BadImage as error:
            bad.append(BadRecord(index, data.name(index), str(error)))
            continue
        confusion.add(answer, truth)
        keep(index, answer)
    total = Confusion(len(data.classes))
    for counts in _gathered(confusion.counts):
        total.merge(counts)
    return EvaluationResult([], total, _all_bad(bad, len(images), look.max_bad, data.description))


def label_map(model: nn.Module, image: Tensor, look: EvaluationContext) -> np.ndarray:
    """``[C, H, W]`` as read -> the likeliest class of each pixel, uint8 ``[H, W]``."""
    return _label_maps(model, [image], look)[0]


def _label_maps(model: nn.Module, images: Sequence[Tensor], look: EvaluationContext) -> Sequence[np.ndarray]:
    """Likewise, of images of one size."""
    batch = torch.stack([in_unit(image.to(look.fabric.device)) for image in images])
    if look.channels_last:
        batch = batch.contiguous(memory_format=torch.channels_last)
    with look.fabric.autocast():
        logits = model(batch)
    return logits.argmax(dim=1).to(torch.uint8).cpu().numpy()


def _detections(
    model: nn.Module, images: Sequence[Tensor], look: EvaluationContext
) -> list[dict[str, Tensor]]:
    """What a detector gives for images of one size."""
    with look.fabric.autocast():
        return model([in_unit(image.to(look.fabric.device)) for image in images])


# ---- the pass ------------------------------------------------------------------------------------------------------


def answers(
    model: nn.Module, data: Any, look: EvaluationContext, *, images: Sequence[int] | range, maps: bool = False,
    batch: int = 1,
) -> Iterator[tuple[int, Tensor | None, Any]]:  # fmt: skip
    """This rank's share of ``images`` in order, each with what a model says of it.

    Args:
        data: gives ``image(index)``, as ``DetectionSet``.
        maps: the model is a segmenter.
        batch: images that follow each other and have one size go through together, so many at most. There is no
            padding, so only rounding depends on it.

    Yields:
        number, ``[C, H, W]`` as read and a detector's output (:func:`prediction_of`) or the class of each pixel, uint8
        ``[H, W]``; of an image that cannot be used number, None and why not.
    """
    ask = _label_maps if maps else _detections
    waiting: list[tuple[int, Tensor]] = []

    def asked() -> Iterator[tuple[int, Tensor | None, Any]]:
        if waiting:
            with torch.no_grad():
                found = ask(model, [image for _, image in waiting], look)
            yield from ((*pair, answer) for pair, answer in zip(waiting, found, strict=True))
            waiting.clear()

    with _evaluating(model):
        for index, found in _images(_Read(data), look, images):
            if waiting and (isinstance(found, str) or found.shape != waiting[0][1].shape):
                yield from asked()
            if isinstance(found, str):
                yield index, None, found
                continue
            waiting.append((index, found))
            if len(waiting) == batch:
                yield from asked()
        yield from asked()


class _Read:
    """An image as ``[C, H, W]``, or why not: what the workers compute."""

    def __init__(self, data: DetectionSet | SegmentationSet) -> None:
        self.data = data

    def __call__(self, _: int, index: int) -> Tensor | str:
        try:
            return torch.from_numpy(np.array(self.data.image(index).transpose(2, 0, 1), order="C"))
        except BadImage as error:
            return str(error)


def _images(
    read: _Read, look: EvaluationContext, images: Sequence[int] | range
) -> Iterator[tuple[int, Tensor | str]]:
    """This rank's share: ``(number, uint8 [3, H, W] or why it cannot be used)``."""
    rank, ranks = look.fabric.global_rank, look.fabric.world_size
    mine = list(images)[rank::ranks]
    pool = Pool(read, min(look.workers, len(mine)), pin=False)
    try:
        pool.restart((0, index) for index in mine)
        for done, index in enumerate(mine):
            yield index, next(pool)
            look.advance(min(len(images), (done + 1) * ranks), len(images))
    finally:
        pool.close()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, a model in eval mode; outside, as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _gathered(mine: Any) -> list[Any]:
    """Every rank's object, in order of rank."""
    if world()[1] == 1:
        return [mine]
    out: list[Any] = [None] * world()[1]
    dist.all_gather_object(out, mine)
    return out


def _all_bad(bad: list[BadRecord], images: int, max_bad: float, description: str) -> list[BadRecord]:
    """Unusable images of all ranks. Raises ``WorkFailed`` when they are too many."""
    every = sorted((r for records in _gathered(bad) for r in records), key=lambda r: r.index)
    if len(every) > max_bad * images:
        first = f"the first is {every[0].name} ({every[0].reason})"
        raise WorkFailed(f"{description}: {too_many(len(every), f'{images} images', max_bad, first)}")
    return every
