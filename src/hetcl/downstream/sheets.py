"""Predictions drawn beside the truth: a sheet of images that a person looks at first, with a key to its colours.

H W  of an image     K  classes
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from hetcl.datasets import masks
from hetcl.datasets.annotations import DetectionSet, Prediction, SegmentationSet
from hetcl.downstream.predict import EvaluationContext, label_map
from hetcl.images.channels import drawable
from hetcl.printable import printable
from hetcl.types import BadImage

CELL = 420
"""Width of an image on the sheet, in pixels."""
CONFIDENT = 0.5
"""Detections below this score are not drawn."""
STRIP = 22
"""Height of the line above an image, and of a line of the key."""
GAP = 10
VOID = 255
"""The class of pixels that do not count: they are hatched."""
PAPER, INK = (255, 255, 255), (20, 20, 20)
BACKGROUND = ("background", "_background_", "bg", "unlabeled", "other")
"""A class 0 of such a name is left as in the image; any other is coloured."""

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class KeyEntry:
    """A line of the key."""

    text: str
    color: Color | None
    """None: left as in the image."""
    hatched: bool = False

    @property
    def words(self) -> str:
        """What is written beside the colour."""
        return self.text if self.color is not None or ":" in self.text else f"{self.text} (not coloured)"


def color(label: int) -> Color:
    """A class's colour: neighbours in number are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.618034) % 1.0, 0.75, 0.95)
    return int(255 * red), int(255 * green), int(255 * blue)


def detection_sheet(
    data: DetectionSet, predictions: Mapping[Any, Prediction], images: Sequence[int]
) -> bytes | None:
    """PNG of ``images``, truth on the left and confident detections on the right; None when none can be read."""
    pairs, used = [], set[int]()
    names = [printable(c.name) for c in data.classes]
    for index in images:
        try:
            pixels = drawable(data.image(index))
        except BadImage:
            continue
        truth = data.annotations(index)
        notes = [(names[k], int(k)) for k in truth.labels]
        if len(names) == 1:  # objects are told apart instead of classes
            notes = [(name, i) for i, (name, _) in enumerate(notes)]
        left = drawn(pixels, truth.boxes, notes, truth.segments)
        prediction = predictions.get(truth.image_id)
        right, n, words = pixels, 0, list[tuple[str, int]]()
        if prediction is not None:
            keep = np.flatnonzero(prediction.scores >= CONFIDENT)
            n = len(keep)
            shade = prediction.labels[keep].tolist() if len(names) > 1 else range(n)
            words = [
                (f"{names[prediction.labels[i]]} {prediction.scores[i]:.2f}", s)
                for i, s in zip(keep, shade, strict=True)
            ]
            found = None if prediction.masks is None else [prediction.masks[i] for i in keep]
            right = drawn(pixels, prediction.boxes[keep], words, found)
        used |= {label for _, label in [*notes, *words]}
        titles = (
            f"{_short(truth.name)}: truth, {len(truth.labels)}",
            f"found, {n} with score {CONFIDENT:g} or more",
        )
        pairs.append((left, right, *titles))
    if len(names) == 1:
        return _sheet(pairs, [KeyEntry(f"{names[0]}: each object in a colour of its own", None)])
    return _sheet(pairs, [KeyEntry(names[label], color(label)) for label in sorted(used)])


def segmentation_sheet(
    data: SegmentationSet, model: nn.Module, look: EvaluationContext, images: Sequence[int]
) -> bytes | None:
    """PNG of ``images``, the true class of each pixel on the left and the predicted one on the right."""
    training = model.training
    pairs, used = [], set[int]()
    plain = is_background(data.classes)
    model.eval()
    try:
        for index in images:
            try:
                pixels, truth = data.image(index), data.label_map(index)
            except BadImage:
                continue
            with torch.no_grad():
                image = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
                predicted, pixels = label_map(model, image, look), drawable(pixels)
            right = float(((predicted == truth) & (truth != VOID)).sum() / max(1, (truth != VOID).sum()))
            titles = (
                f"{_short(data.name(index))}: truth",
                f"found, {right:.0%} of the pixels that count right",
            )
            pairs.append((colored(pixels, truth, plain), colored(pixels, predicted, plain), *titles))
            used |= set(np.unique(truth).tolist()) | set(np.unique(predicted).tolist())
    finally:
        model.train(training)
    key = class_key(data.classes, sorted(used - {VOID}))
    return _sheet(pairs, [*key, *[KeyEntry("does not count", (90, 90, 90), hatched=True)] * (VOID in used)])


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 34 else "..." + name[-31:]


def drawn(
    pixels: np.ndarray, boxes: np.ndarray, words: Sequence[tuple[str, int]], segments: Any, width: int = CELL
) -> np.ndarray:
    """An image with masks, boxes and words on it; words that find no free place are left out.

    Args:
        pixels: uint8 ``[H, W, 3]``.
        boxes, segments: of each object, in its pixels; segments None where there are none.
        words: of each object what to write, and the number of its colour.
        width: of the drawing, in pixels; lines and letters grow with it.
    """
    out = pixels.astype(np.float32) if segments is not None else pixels
    height = pixels.shape[0]
    for i, (_, label) in enumerate(words):
        if segments is not None and segments[i] is not None:
            here = masks.bitmap(segments[i], pixels.shape[:2]).astype(bool)
            out[here] = 0.55 * out[here] + 0.45 * np.array(color(label), np.float32)
    scale = width / pixels.shape[1]
    size = (width, max(1, round(height * scale)))
    image = Image.fromarray(out.astype(np.uint8)).resize(size, Image.Resampling.LANCZOS)
    draw, font = ImageDraw.Draw(image), _font(max(13, width // 64))
    seen = [
        (text, label, (left, top, right, bottom))
        for (text, label), (left, top, right, bottom) in zip(words, (boxes * scale).tolist(), strict=True)
        if right > left and bottom > top
    ]
    for _, label, box in seen:
        draw.rectangle(box, outline=color(label), width=max(2, width // 400))
    taken: list[Box] = []
    for text, label, box in seen:
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        place = free_place((right - left + 2, bottom - top + 2), box, image.size, taken)
        if place is not None:
            draw.rectangle((*place[:2], place[2] - 1, place[3] - 1), fill=color(label))
            draw.text((place[0] + 1 - left, place[1] + 1 - top), text, fill=INK, font=font)
            taken.append(place)
    return np.asarray(image)


def free_place(
    size: tuple[float, float], box: Box, image: tuple[int, int], taken: Iterable[Box]
) -> Box | None:
    """Where a word of ``size`` (width, height) goes: above its box, in its corners, below it, else down along it.

    Args:
        box: what it belongs to.
        image: width and height; the place lies within, as far as the word fits.
        taken: places that it must not cover.

    Returns:
        left, top, right, bottom; None when every place is taken.
    """
    width, height = size
    left, top, right, bottom = box
    heights = [(left, top - height), (left, top), (right - width, top - height), (right - width, top)]
    heights += [
        (left, bottom - height),
        (right - width, bottom - height),
        (left, bottom),
        (right - width, bottom),
    ]
    steps = range(1, max(1, int((bottom - top) // max(height, 1))))
    heights += [(left, top + step * height) for step in steps]
    for x, y in heights:
        x, y = min(max(x, 0.0), max(0.0, image[0] - width)), min(max(y, 0.0), max(0.0, image[1] - height))
        place = (x, y, x + width, y + height)
        if not any(
            place[0] < o[2] and o[0] < place[2] and place[1] < o[3] and o[1] < place[3] for o in taken
        ):
            return place
    return None


def colored(pixels: np.ndarray, labels: np.ndarray, plain: bool) -> np.ndarray:
    """An image under the colours of its classes, class 0 not where ``plain``; what does not count is hatched."""
    out = pixels.astype(np.float32)
    for label in np.unique(labels):
        if label != VOID and not (plain and label == 0):
            here = labels == label
            out[here] = 0.45 * out[here] + 0.55 * np.array(color(int(label)), np.float32)
    void, period = (
        labels == VOID,
        max(2, round(8 * labels.shape[1] / CELL)),
    )  # as wide on the sheet for any size
    out[void] = np.where(_hatch(labels.shape, period)[void][:, None], 90.0, 220.0)
    return out.astype(np.uint8)


def _hatch(shape: tuple[int, ...], period: int) -> np.ndarray:
    """Stripes that repeat every ``period`` pixels, bool ``[H, W]``."""
    return (np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % period) < period / 2


def _sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray, str, str]], key: Sequence[KeyEntry]) -> bytes | None:
    """Two pairs in a row, each with a line above; the key on top."""
    if not pairs:
        return None
    heights = [max(1, round(CELL * left.shape[0] / left.shape[1])) for left, *_ in pairs]
    rows = [heights[i : i + 2] for i in range(0, len(heights), 2)]
    width = 2 * min(2, len(pairs)) * (CELL + GAP) + GAP
    places, head = _key_places(key, width)
    sheet = Image.new("RGB", (width, head + sum(max(row) + STRIP + GAP for row in rows) + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(14)
    for entry, (x, y) in zip(key, places, strict=True):
        _draw_entry(sheet, draw, entry, x, y)
    top = GAP + head
    for row, start in zip(rows, range(0, len(pairs), 2), strict=True):
        for i, (left, right, *titles) in enumerate(pairs[start : start + 2]):
            for k, (pixels, title) in enumerate(zip((left, right), titles, strict=True)):
                x = GAP + (2 * i + k) * (CELL + GAP)
                draw.text((x, top + 3), title, fill=INK, font=font)
                image = Image.fromarray(pixels).resize((CELL, row[i]), Image.Resampling.LANCZOS)
                sheet.paste(image, (x, top + STRIP))
        top += max(row) + STRIP + GAP
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def is_background(names: Sequence[str]) -> bool:
    """Whether the first class is the background, which is not coloured."""
    return names[0].strip().lower() in BACKGROUND


def class_key(names: Sequence[str], labels: Iterable[int]) -> list[KeyEntry]:
    """The key to the colours of some classes of pixels."""
    plain = is_background(names)
    return [KeyEntry(printable(names[k]), None if plain and k == 0 else color(k)) for k in labels]


def keyed(pixels: np.ndarray | None, key: Sequence[KeyEntry], width: int = CELL) -> np.ndarray:
    """An image under the key to its colours; without an image the key alone, so wide."""
    width = width if pixels is None else pixels.shape[1]
    places, head = _key_places(key, width)
    sheet = Image.new("RGB", (width, head + GAP + (0 if pixels is None else pixels.shape[0])), PAPER)
    draw = ImageDraw.Draw(sheet)
    for entry, (x, y) in zip(key, places, strict=True):
        _draw_entry(sheet, draw, entry, x, y)
    if pixels is not None:
        sheet.paste(Image.fromarray(pixels), (0, head + GAP))
    return np.asarray(sheet)


def _key_places(key: Sequence[KeyEntry], width: int) -> tuple[list[tuple[int, int]], int]:
    """The upper left corner of each entry, from left to right and down, and the height of all."""
    places, x, y = [], GAP, GAP
    for entry in key:
        wide = STRIP + round(_font(14).getlength(entry.words)) + 2 * GAP
        if x > GAP and x + wide > width:
            x, y = GAP, y + STRIP
        places.append((x, y))
        x += wide
    return places, y + STRIP if key else 0


def _draw_entry(sheet: Image.Image, draw: ImageDraw.ImageDraw, entry: KeyEntry, x: int, y: int) -> None:
    side = STRIP - 6
    if entry.hatched:
        stripes = np.where(_hatch((side, side), 8)[..., None], 90, 220).astype(np.uint8)
        sheet.paste(Image.fromarray(np.repeat(stripes, 3, axis=2)), (x, y + 2))
    if entry.words != entry.text or entry.color is not None:
        fill = None if entry.hatched else entry.color
        draw.rectangle((x, y + 2, x + side, y + 2 + side), fill=fill, outline=INK)
    draw.text((x + STRIP, y + 3), entry.words, fill=INK, font=_font(14))


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
