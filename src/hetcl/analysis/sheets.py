"""Sheets of examples: who was found for whom, in pictures.

Left half successes, right half failures; a row for each example: the original with both crops drawn on it, the query,
the partner, and what was found. S side of a view in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

CELL, GAP, LINE, HEAD = 108, 8, 14, 22
"""Pixels: side of a picture, space between, height of a line of text, height of a heading."""
QUERY, PARTNER, FOUND = "#E69F00", "#0072B2", "#D55E00"
"""Colours of the frames, told apart by people with any kind of colour vision."""


@dataclass(frozen=True)
class Example:
    """One query and what came of it."""

    bin: str
    success: bool
    original: np.ndarray
    """uint8 ``[H, W, 3]``."""
    boxes: tuple[Box, Box]
    """Crops of query and partner on the original."""
    query: np.ndarray
    """uint8 ``[S, S, 3]``."""
    partner: np.ndarray
    found: np.ndarray | None
    """The other picture's view that was found instead; None for a success."""
    found_original: np.ndarray | None
    found_box: Box | None
    iou: float
    right: float
    """Similarity with the partner."""
    wrong: float
    """Similarity with the most similar other view."""


def examples(rows: Sequence[Example], title: str) -> Image.Image:
    """A sheet of the examples, bin by bin."""
    bins = list(dict.fromkeys(r.bin for r in rows))
    half = 3 * (CELL + GAP), 5 * (CELL + GAP)
    width = GAP + half[0] + 2 * GAP + half[1]
    height_of = {
        b: max(1, *(sum(r.bin == b and r.success == s for r in rows) for s in (True, False))) for b in bins
    }
    row_height = CELL + LINE + GAP
    height = HEAD + 3 * LINE + GAP + sum(HEAD + n * row_height for n in height_of.values()) + GAP
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    font, bold = _font(11), _font(14)
    right = GAP + half[0] + 2 * GAP
    draw.text((GAP, GAP), title, "black", bold)
    y = HEAD + GAP
    for x, text, names in (
        (GAP, "found", ("original", "query", "partner")),
        (right, "not found", ("original", "query", "partner", "found instead", "its original")),
    ):
        draw.text((x, y), text, "black", bold)
        for i, name in enumerate(names):
            colour = {"query": QUERY, "partner": PARTNER, "found instead": FOUND}.get(name, "#555555")
            draw.text((x + i * (CELL + GAP), y + LINE + 4), name, colour, font)
    y += 2 * LINE + 8
    for b in bins:
        draw.line((GAP, y + 4, width - GAP, y + 4), "#cccccc")
        draw.text((GAP, y + 7), b, "black", font)
        y += HEAD
        for success, x in ((True, GAP), (False, right)):
            some = [r for r in rows if r.bin == b and r.success == success]
            if not some:
                draw.text((x, y + CELL // 2), "none", "#888888", font)
            for i, row in enumerate(some):
                _one(page, draw, font, row, x, y + i * row_height)
        y += height_of[b] * row_height
    return page


def _one(page: Image.Image, draw: ImageDraw.ImageDraw, font: Font, row: Example, x: int, y: int) -> None:
    """One example: pictures side by side, and its figures below."""
    cells = [
        _drawn(row.original, [(row.boxes[0], QUERY), (row.boxes[1], PARTNER)]),
        _framed(row.query, QUERY),
        _framed(row.partner, PARTNER),
    ]
    said = f"IoU {row.iou:.2f}   similarity: partner {row.right:.2f}, best other {row.wrong:.2f}"
    if row.found is not None:
        cells.append(_framed(row.found, FOUND))
        if row.found_original is not None and row.found_box is not None:
            cells.append(_drawn(row.found_original, [(row.found_box, FOUND)]))
        said = f"IoU {row.iou:.2f}   similarity: partner {row.right:.2f}, found instead {row.wrong:.2f}"
    for i, cell in enumerate(cells):
        page.paste(cell, (x + i * (CELL + GAP), y))
    draw.text((x, y + CELL + 1), said, "#333333", font)


def _drawn(pixels: np.ndarray, boxes: Sequence[tuple[Box, str]]) -> Image.Image:
    """The original fitted into a cell, with boxes on it."""
    scale = CELL / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for box, colour in boxes:
        left, top, right, bottom = (round(v * scale) for v in box)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2)
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(picture, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def _framed(pixels: np.ndarray, colour: str) -> Image.Image:
    """A view in a cell with a frame."""
    cell = Image.fromarray(pixels).resize(
        (CELL, CELL), Image.Resampling.NEAREST if len(pixels) < CELL else Image.Resampling.BICUBIC
    )
    ImageDraw.Draw(cell).rectangle((0, 0, CELL - 1, CELL - 1), outline=colour, width=3)
    return cell


def _font(size: int) -> Font:
    return ImageFont.load_default(size)
