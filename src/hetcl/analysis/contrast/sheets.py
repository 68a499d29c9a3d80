"""Sheets of examples: who was found for whom, in images.

Left half successes, right half failures; a row for each example: the original with both crops drawn on it, the query,
the partner, and what was found. S side of a view in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hetcl.analysis.text import shortened
from hetcl.boxes import Box

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

CELL, GAP, LINE, HEAD = 112, 8, 16, 24
"""Pixels: side of an image, space between, height of a line of text, height of a heading."""
ROW = CELL + LINE + GAP
"""Height of an example."""
RIGHT = 3 * (CELL + GAP) + 4 * GAP
"""Where the failures begin."""
WIDTH = RIGHT + 5 * (CELL + GAP)
INK, QUIET = "#333333", "#777777"
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
    """The other image's view that was found instead; None for a success."""
    found_original: np.ndarray | None
    found_box: Box | None
    iou: float
    right: float
    """Similarity with the partner."""
    wrong: float
    """Similarity with the most similar other view."""


def examples(rows: Sequence[Example], title: str) -> Image.Image:
    """A sheet of the examples, bin by bin, successes at the left. Missing ones are blank and say "none"."""
    bins = list(dict.fromkeys(r.bin for r in rows))
    some = {(b, s): [r for r in rows if r.bin == b and r.success == s] for b in bins for s in (True, False)}
    lines = {b: max(len(some[b, True]), len(some[b, False])) for b in bins}
    head = 2 * GAP + 2 * HEAD + 3 * LINE
    page = Image.new("RGB", (WIDTH, head + sum(HEAD + n * ROW for n in lines.values()) + GAP), "white")
    draw = ImageDraw.Draw(page)
    _heading(draw, title)
    y = head
    for b in bins:
        draw.line((GAP, y, WIDTH - GAP, y), "#cccccc")
        draw.text((GAP, y + 4), b, "black", font(12))
        y += HEAD
        for success, x in ((True, GAP), (False, RIGHT)):
            if not some[b, success]:
                draw.text((x, y + CELL // 2), "none", QUIET, font(12))
            for i, row in enumerate(some[b, success]):
                _one(page, draw, row, x, y + i * ROW)
        y += lines[b] * ROW
    return page


def _heading(draw: ImageDraw.ImageDraw, title: str) -> None:
    """The title, how to read the sheet, and what stands in each column."""
    draw.text((GAP, GAP), fitted(title, font(15), WIDTH - 2 * GAP), "black", font(15))
    how = (
        "Each original shows where its views were cut. IoU: overlap of the two cuts. Similarity: inner product of the "
        "vectors; the most similar view is found."
    )
    draw.text((GAP, GAP + HEAD), how, QUIET, font(11))
    y = GAP + HEAD + LINE + 6
    for x, text, names in (
        (GAP, "found: the partner is the most similar view", ("original", "query", "partner")),
        (
            RIGHT,
            "not found: another image is",
            ("original", "query", "partner", "found instead", "its original"),
        ),
    ):
        draw.text((x, y), text, "black", font(13))
        for i, name in enumerate(names):
            color = {"query": QUERY, "partner": PARTNER, "found instead": FOUND}.get(name)
            place = x + i * (CELL + GAP)
            if color:
                draw.rectangle((place, y + LINE + 9, place + 8, y + LINE + 17), fill=color)
            draw.text((place + (13 if color else 0), y + LINE + 7), name, INK, font(11))


def _one(page: Image.Image, draw: ImageDraw.ImageDraw, row: Example, x: int, y: int) -> None:
    """One example: images side by side, and its figures below."""
    cells = [
        drawn(row.original, [(row.boxes[0], QUERY), (row.boxes[1], PARTNER)]),
        framed(row.query, QUERY),
        framed(row.partner, PARTNER),
    ]
    other = "best other"
    if row.found is not None:
        other = "found instead"
        cells.append(framed(row.found, FOUND))
        if row.found_original is not None and row.found_box is not None:
            cells.append(drawn(row.found_original, [(row.found_box, FOUND)]))
    for i, cell in enumerate(cells):
        page.paste(cell, (x + i * (CELL + GAP), y))
    caption = f"IoU {row.iou:.2f}    similarity: partner {row.right:.2f}, {other} {row.wrong:.2f}"
    draw.text((x, y + CELL + 2), caption, INK, font(11))


def drawn(pixels: np.ndarray, boxes: Sequence[tuple[Box, str]]) -> Image.Image:
    """The original fitted into a cell, with boxes on it, each with a thin dark rim to be seen on any image."""
    scale = CELL / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for box, color in boxes:
        left, top = (min(max(0, round(v * scale)), m - 1) for v, m in zip(box[:2], size, strict=True))
        right, bottom = (min(round(v * scale), m) - 1 for v, m in zip(box[2:], size, strict=True))
        right, bottom = max(left, right), max(top, bottom)
        draw.rectangle((left, top, right, bottom), outline="black", width=3)
        draw.rectangle((left, top, right, bottom), outline=color, width=2)
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(image, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def framed(pixels: np.ndarray, color: str) -> Image.Image:
    """A view in a cell with a frame."""
    cell = Image.fromarray(pixels).resize(
        (CELL, CELL), Image.Resampling.NEAREST if len(pixels) < CELL else Image.Resampling.BICUBIC
    )
    ImageDraw.Draw(cell).rectangle((0, 0, CELL - 1, CELL - 1), outline=color, width=3)
    return cell


def fitted(text: str, font: Font, width: int) -> str:
    """The text, shortened in its middle until it is no wider than ``width`` pixels."""
    longest = len(text)
    while longest > 8 and font.getlength(shortened(text, longest)) > width:
        longest -= 1
    return shortened(text, longest)


@lru_cache
def font(size: int) -> Font:
    return ImageFont.load_default(size)
