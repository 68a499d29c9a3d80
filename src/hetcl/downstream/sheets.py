"""Predictions drawn beside the truth: a sheet of pictures that a person looks at first.

H W  of a picture     K  classes
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from hetcl.downstream import masks
from hetcl.downstream.objects import DetectionSet, Prediction, SegmentationSet
from hetcl.downstream.predict import Look, label_map
from hetcl.types import BadPicture

CELL = 420
"""Width of a picture on the sheet, in pixels."""
CONFIDENT = 0.5
"""Detections below this score are not drawn."""
STRIP = 22
"""Height of the line above a picture."""
PAPER, INK = (255, 255, 255), (20, 20, 20)


def colour(label: int) -> tuple[int, int, int]:
    """A class's colour: neighbours in number are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.618034) % 1.0, 0.75, 0.95)
    return int(255 * red), int(255 * green), int(255 * blue)


def detection_sheet(
    data: DetectionSet, predictions: Mapping[Any, Prediction], pictures: Sequence[int]
) -> bytes | None:
    """PNG of ``pictures``, truth on the left and confident detections on the right; None when none can be read."""
    pairs = []
    for index in pictures:
        try:
            pixels = data.picture(index)
        except BadPicture:
            continue
        truth = data.truth(index)
        names = [c.name for c in data.classes]
        told = [(names[k], k) for k in truth.labels]
        if len(names) == 1:  # objects are told apart instead of classes
            told = [(name, i) for i, (name, _) in enumerate(told)]
        left = _drawn(pixels, truth.boxes, told, truth.segments)
        said = predictions.get(truth.image_id)
        right, n = pixels, 0
        if said is not None:
            keep = np.flatnonzero(said.scores >= CONFIDENT)
            n = len(keep)
            shade = said.labels[keep].tolist() if len(names) > 1 else range(n)
            words = [
                (f"{names[said.labels[i]]} {said.scores[i]:.2f}", s) for i, s in zip(keep, shade, strict=True)
            ]
            found = None if said.masks is None else [said.masks[i] for i in keep]
            right = _drawn(pixels, said.boxes[keep], words, found)
        pairs.append(
            (
                left,
                right,
                f"{_short(truth.name)}: truth, {len(truth.labels)}",
                f"found, {n} with score 0.5 or more",
            )
        )
    return _sheet(pairs)


def segmentation_sheet(
    data: SegmentationSet, model: nn.Module, look: Look, pictures: Sequence[int]
) -> bytes | None:
    """PNG of ``pictures``, the true class of each pixel on the left and the predicted one on the right."""
    training = model.training
    pairs = []
    model.eval()
    try:
        for index in pictures:
            try:
                pixels, truth = data.picture(index), data.label_map(index)
            except BadPicture:
                continue
            with torch.no_grad():
                image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
                said = label_map(model, image, look)
            right = float(((said == truth) & (truth != 255)).sum() / max(1, (truth != 255).sum()))
            titles = f"{_short(data.name(index))}: truth", f"found, {right:.0%} of the pixels right"
            pairs.append((_coloured(pixels, truth), _coloured(pixels, said), *titles))
    finally:
        model.train(training)
    return _sheet(pairs)


def _short(name: str) -> str:
    return name if len(name) <= 34 else "..." + name[-31:]


def _drawn(
    pixels: np.ndarray, boxes: np.ndarray, words: Sequence[tuple[str, int]], segments: Any
) -> np.ndarray:
    """A picture with masks, boxes and words on it."""
    out = pixels.astype(np.float32)
    height, width = pixels.shape[:2]
    for i, (_, label) in enumerate(words):
        if segments is not None and segments[i] is not None:
            here = masks.bitmap(segments[i], (height, width)).astype(bool)
            out[here] = 0.55 * out[here] + 0.45 * np.array(colour(label), np.float32)
    image = Image.fromarray(out.astype(np.uint8))
    draw, line = ImageDraw.Draw(image), max(1, round(max(height, width) / 300))
    font = _font(max(9, round(13 * width / CELL)))
    for (text, label), box in zip(words, boxes, strict=True):
        left, top, right, bottom = (float(v) for v in box)
        if right <= left or bottom <= top:
            continue
        draw.rectangle((left, top, right, bottom), outline=colour(label), width=line)
        place = max(0.0, left), max(0.0, top - font.size - 3)
        draw.rectangle(draw.textbbox(place, text, font=font), fill=colour(label))
        draw.text(place, text, fill=INK, font=font)
    return np.asarray(image)


def _coloured(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A picture under the colours of its classes; class 0 and pixels that do not count stay as they are."""
    out = pixels.astype(np.float32)
    for label in np.unique(labels):
        if label not in (0, 255):
            here = labels == label
            out[here] = 0.45 * out[here] + 0.55 * np.array(colour(int(label)), np.float32)
    return out.astype(np.uint8)


def _sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray, str, str]]) -> bytes | None:
    """Two pairs in a row, each with a line above."""
    if not pairs:
        return None
    heights = [max(1, round(CELL * left.shape[0] / left.shape[1])) for left, *_ in pairs]
    gap, rows = 10, [heights[i : i + 2] for i in range(0, len(heights), 2)]
    columns = 2 * min(2, len(pairs))
    sheet = Image.new(
        "RGB", (columns * (CELL + gap) + gap, sum(max(row) + STRIP + gap for row in rows) + gap), PAPER
    )
    draw, font = ImageDraw.Draw(sheet), _font(14)
    top = gap
    for row, start in zip(rows, range(0, len(pairs), 2), strict=True):
        for i, (left, right, *titles) in enumerate(pairs[start : start + 2]):
            for k, (pixels, title) in enumerate(zip((left, right), titles, strict=True)):
                x = gap + (2 * i + k) * (CELL + gap)
                draw.text((x, top + 3), title, fill=INK, font=font)
                image = Image.fromarray(pixels).resize((CELL, row[i]), Image.Resampling.LANCZOS)
                sheet.paste(image, (x, top + STRIP))
        top += max(row) + STRIP + gap
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
