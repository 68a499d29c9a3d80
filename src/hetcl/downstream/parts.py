"""The parts of a data set as a run takes them: opened, under one set of classes, and judged before any work begins.

What cannot give a figure at all is refused; what will give a poor one is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hetcl.datasets import open_detection, open_segmentation
from hetcl.datasets.annotations import DetectionSet, SegmentationSet
from hetcl.downstream.loader import DetectionExamples, Examples, SegmentationExamples, usable
from hetcl.downstream.renamed import VOID, Renamed, names_of, objects_of, under
from hetcl.errors import InputError
from hetcl.images.look import (
    GLANCED,
    SAMPLED,
    Statistics,
    chosen,
    is_deep,
    look,
    refusal,
    warn_of_depth,
)
from hetcl.quantities import count
from hetcl.types import BadImage, OtherPixels, PixelFormat
from hetcl.weights.channels import settled
from hetcl.weights.facts import InputFacts, input_facts, order_of
from hetcl.weights.sources import Weights

NOT_FOUND = "image not found"
"""Under which data sets count images that their files name and that are not there."""
SOME = 32
"""Label maps, spread evenly, that are opened to judge a set."""
FEW = 10
"""Fewer objects than these, and a single one moves the figures by percents."""
FLAGS = {"crowd": "a crowd (iscrowd)", "difficult": "difficult"}
"""Objects that are not scored."""
USUAL = {"train_aug": (10_582, "VOC 2012 with SBD"), "trainval": (16_551, "VOC 2007 and 2012")}
"""How many images VOC's lists name, and of what."""


@dataclass
class JoinedParts:
    """The training and the validation part of a data set, under the classes of the training part."""

    train: Any
    val: Any
    notes: list[str]
    """What a person should know before the work begins."""


def open_part(spec: str, split: str, model: str, *, follow_links: bool = False) -> Any:
    """The part of a data set that ``model`` needs. Raises ``InputError``."""
    opened = open_segmentation if model == "fcn" else open_detection
    return opened(spec, split, follow_links=follow_links)


def look_at_part(data: Any, pixels: PixelFormat, *, most: int = GLANCED, fix: str = "") -> Statistics | None:
    """Read some images of a set as ``pixels`` says, and do so from now on.

    Args:
        most: so many of images that are not RGB of 8 bits.
        fix: as of :func:`look`; without it, it is said what RGB of 8 bits loses of images of more bits.

    Returns:
        statistics of their channels; None of RGB of 8 bits.

    Raises:
        InputError: images of other channels or values.
    """
    data.pixels = pixels
    name = getattr(data, "name", lambda index: data.annotations(index).name)
    if not pixels.rgb:
        return look(len(data), data.image, name, what=data.description, most=most, fix=fix)
    deep: list[bytes] = []
    for index in chosen(len(data), GLANCED):
        try:
            data.image(index)
            if not fix and hasattr(data, "stored") and is_deep(held := data.stored(index)):
                deep.append(held)
        except OtherPixels as error:
            raise InputError(refusal(f"{data.description}, {name(index)}", error, fix)) from None
        except BadImage:
            continue  # counted when it is read
    warn_of_depth(deep)
    return None


def settle_pixels(
    parts: Sequence[Any], weights: Weights, *, in_chans: int, pixel_max: float,
    given: tuple[tuple[float, ...], tuple[float, ...]],
) -> InputFacts:  # fmt: skip
    """How images are given to a model that begins with ``weights``; the parts are read so from now on.

    Args:
        parts: the training part first, by which mean and std are measured where the weights do not say them.
        weights: of as many channels as are wanted.
        in_chans, pixel_max: as the settings have them; 0: as the weights have it.
        given: mean and std that are set; empty: none.

    Raises:
        InputError: images of other channels or values.
    """
    stated = input_facts(weights.facts, str(weights.arch), weights.origin).pixels
    pixels = PixelFormat(in_chans or stated.channels, pixel_max or stated.top)
    if given[0] and len(given[0]) != pixels.channels:
        raise InputError(
            f"settings mean and std have {len(given[0])} values, and images {pixels.channels} channels: give one for "
            "each, or set in_chans"
        )
    facts = settled(weights, pixels, given)
    found, *_ = [look_at_part(part, pixels, most=SAMPLED if facts is None else GLANCED) for part in parts]
    if facts is None:
        assert found is not None
        facts = InputFacts(found.mean, found.std, None, order_of(pixels), "measured", pixels.top)
    return facts


def joined(
    spec: str,
    train: Any,
    val: Any,
    *,
    model: str,
    max_bad: float,
    detections: int,
    train_list: str = "",
) -> JoinedParts:
    """Both parts under one set of classes, judged.

    Args:
        spec: DATASET, for messages.
        train, val: as ``open_part`` gave them.
        model: ``mask-rcnn``, ``faster-rcnn`` or ``fcn``.
        max_bad: share of the images that may be missing.
        detections: most detections of an image.
        train_list: VOC's list that the recipe's source trains on; another is told.

    Raises:
        InputError: images that are missing, classes that differ, nothing to evaluate on.
    """
    for data in (train, val):
        check_missing(data, max_bad)
    here, there = f"the validation part of {spec}", "its training part"
    val, notes = under(val, names_of(train), here, there)
    notes += judge(val, here, model=model, detections=detections)
    notes += _shared(train, val) + _list(train, train_list)
    notes += _judge_maps(train, f"the training part of {spec}") if model == "fcn" else _not_in(train, val)
    return JoinedParts(train, val, notes)


def check_missing(data: DetectionSet | SegmentationSet, max_bad: float) -> None:
    """Raises ``InputError`` when more images of a set are missing than may be unusable."""
    gone = data.skipped.counts.get(NOT_FOUND, 0)
    if gone > max_bad * (len(data) + gone):
        example = data.skipped.examples[NOT_FOUND][0]
        raise InputError(
            f"{data.description}: {gone} of {len(data) + gone} images are missing (e.g. {example}), more than "
            f"max_bad = {max_bad:.0%}; put them there, or raise max_bad"
        )


def judge(data: Any, what: str, *, model: str, detections: int) -> list[str]:
    """What figures on a set will be worth; ``what`` names it in messages.

    Raises:
        InputError: no figure can come of it.
    """
    if model == "fcn":
        return _judge_maps(data, what) + _one(data, what)
    if data.kind == "scenes":
        return []
    total, flags, scored = 0, dict.fromkeys(FLAGS, 0), np.zeros(len(data), np.int64)
    for index in range(len(data)):
        truth = data.annotations(index)
        total += len(truth.labels)
        scored[index] = (~(truth.crowd | truth.difficult)).sum()
        for name in flags:
            flags[name] += int(getattr(truth, name).sum())
    if not scored.sum():
        raise InputError(f"{what}: {_nothing(data, total, flags)}; no figure can come of it")
    notes = _one(data, what)
    if scored.sum() < FEW and not notes:
        notes.append(f"{what} has {count(int(scored.sum()), 'object')} alone: each moves the figures by much")
    if flags["crowd"] > total / 2:
        notes.append(
            f"{flags['crowd']:,} of {total:,} annotations of {what} are flagged iscrowd, which is neither learned nor "
            "scored: some tools set it for every mask; set it to 0 where one object is meant"
        )
    over = int((scored > detections).sum())
    if over:
        notes.append(
            f"{count(over, 'image')} of {what} {'hold' if over > 1 else 'holds'} more objects than detections "
            f"({detections}), up to {scored.max()}: those beyond count as missed; raise detections (and test_proposals)"
        )
    if model == "mask-rcnn" and not data.has_masks:
        notes.append(f"{what} has no masks: there will be figures of boxes alone")
    return notes


def _one(data: Any, what: str) -> list[str]:
    if len(data) > 1:
        return []
    return [f"{what} has one image alone: figures on it say little of others"]


def _nothing(data: Any, total: int, flags: dict[str, int]) -> str:
    """Why there is nothing to score."""
    if not total:
        left_out = "; ".join(data.skipped.lines())
        return f"none of its {count(len(data), 'image')} has an annotation" + f" ({left_out})" * bool(
            left_out
        )
    names = " or ".join(FLAGS[name] for name, n in flags.items() if n)
    return f"each of its {count(total, 'object')} is flagged {names}, which is not scored"


def _judge_maps(data: Any, what: str) -> list[str]:
    """Some label maps: whether they can be used, and hold more than one class and void. Raises ``InputError``."""
    if data.kind == "scenes":
        return []
    chosen = range(0, len(data), max(1, len(data) // SOME))
    seen, faults = np.zeros(256, np.int64), []
    for index in chosen:
        try:
            seen += np.bincount(data.label_map(index).reshape(-1), minlength=256)[:256]
        except BadImage as error:
            faults.append(str(error))
    if len(faults) == len(chosen):
        raise InputError(f"{what}: none of the {len(chosen)} label maps looked at can be used ({faults[0]})")
    notes = []
    if faults:
        notes.append(
            f"{what}: {len(faults)} of {len(chosen)} label maps looked at cannot be used, e.g. {faults[0]}"
        )
    classes = np.flatnonzero(seen[:VOID])
    if not len(classes):
        raise InputError(
            f"{what}: its label maps hold the value 255 alone, which does not count; no figure can come of it"
        )
    if len(classes) == 1:
        names = names_of(data)
        void = " and 255, which does not count" if seen[VOID] else ""
        alone = f"the {len(chosen) - len(faults)} label maps looked at hold the class {names[classes[0]]!r} alone{void}"
        if void and len(chosen) == len(data) and len(names) > 1:
            raise InputError(f"{what}: {alone}; no figure can come of it")
        notes.append(f"{what}: {alone}")
    return notes


def _shared(train: Any, val: Any) -> list[str]:
    """Images that stand in both parts."""
    if train.kind == "scenes":
        return []
    both = {train.name(i) for i in range(len(train))} & {val.name(i) for i in range(len(val))}
    if not both:
        return []
    return [
        f"{count(len(both), 'image')} of {len(val):,} in the validation part {'is' if len(both) == 1 else 'are'} in "
        f"the training part too (e.g. {min(both)}): figures on them flatter"
    ]


def _not_in(train: Any, val: Any) -> list[str]:
    """Classes that are annotated in one part alone."""
    if train.kind == "scenes":
        return []
    names, counts = names_of(train), [objects_of(data) for data in (train, val)]
    unlearned = [name for name, n in zip(names, counts[0], strict=True) if not n]
    unseen = [name for name, n in zip(names, counts[1], strict=True) if not n]
    notes = []
    if unlearned and len(unlearned) < len(names):
        notes.append(f"nothing is annotated as {_few(unlearned)} in the training part: it cannot be learned")
    without = set(unlearned)
    known = {names[i] for i in val.labels if i >= 0} if isinstance(val, Renamed) else set(names)
    unseen = [name for name in unseen if name in known and name not in without]
    if unseen:
        notes.append(
            f"nothing is annotated as {_few(unseen)} in the validation part: there is no figure for that"
        )
    return notes


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _list(train: Any, wanted: str) -> list[str]:
    """Another list of VOC's than the recipe's source trains on, or a shorter one."""
    lists = getattr(train, "lists", ())
    usual = USUAL.get(wanted, (0, ""))
    same = all(f"/{wanted}.txt" in name.lower().replace("trainaug", "train_aug") for name in lists)
    if not wanted or not lists or (same and len(train) >= 0.9 * usual[0]):
        return []
    images = f" ({usual[0]:,} images: {usual[1]})" if usual[0] else ""
    return [
        f"the recipe's source trains on the list {wanted}{images}; here it is {', '.join(lists)}: figures will not "
        "compare with the source's"
    ]


def examples_of(
    train: Any,
    spec: str,
    *,
    model: str,
    min_size: Sequence[int],
    flip_p: float,
    crop: int,
    scale: tuple[float, float],
    empty: bool,
) -> tuple[Examples, list[str]]:
    """The images to train on, and what a person should know; settings as ``FinetuneSettings`` has them.

    Raises:
        InputError: there is nothing to learn from.
    """
    if model == "fcn":
        return SegmentationExamples(train, crop=crop, scale=scale, flip_p=flip_p), []
    notes, masks = [], model == "mask-rcnn"
    learned, objects, useless = learnable(train, masks=masks)
    if not objects:
        crowds = sum(len(train.annotations(index).labels) for index in range(len(train)))
        why = f": each of {count(crowds, 'annotation')} is flagged iscrowd" * bool(crowds)
        raise InputError(f"{spec}: no training image has an object{why}; check the annotations")
    if masks and not train.has_masks:
        raise InputError(
            f"{spec} has no masks to learn; --model faster-rcnn learns boxes alone (tiny-faster-rcnn-fpn is such a "
            "recipe)"
        )
    if useless:
        notes.append(
            f"{count(len(useless), 'object')} of the training part without a box or mask to learn from left out "
            f"(e.g. {', '.join(useless[:3])})"
        )
    images = np.arange(len(train)) if empty else np.flatnonzero(learned)
    if not len(images):
        raise InputError(f"{spec}: nothing in it can be learned from ({useless[0]}, for one)")
    if len(images) < len(train):
        notes.append(
            f"{count(len(train) - len(images), 'image')} without objects left out of training "
            "(set empty to true to keep them)"
        )
    return DetectionExamples(train, images, masks=masks, min_size=min_size, flip_p=flip_p), notes


def learnable(data: Any, *, masks: bool) -> tuple[np.ndarray, int, list[str]]:
    """Which images of a detection set hold an object to learn from.

    Returns:
        bool ``[N]``; how many objects there are, crowds aside; and those without a box or a mask to learn from.
    """
    learned, objects, useless = np.zeros(len(data), bool), 0, list[str]()
    for index in range(len(data)):
        truth = data.annotations(index)
        keep = usable(truth, masks=masks)
        learned[index] = keep.any()
        objects += int((~truth.crowd).sum())
        useless += [f"{truth.name}, annotation {truth.ids[i]}" for i in np.flatnonzero(~keep & ~truth.crowd)]
    return learned, objects, useless
