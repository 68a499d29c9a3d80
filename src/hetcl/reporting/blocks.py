"""What a page is made of, ready to be laid out: text, tables, images. Charts are in ``charts.py``. Free of torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

QUALITY = 75
"""Quality of WebP: 1.7 kB for 96 x 96 pixels."""


@dataclass(frozen=True)
class Text:
    """Paragraphs, or the items of a list."""

    lines: Sequence[str]
    style: str = "p"
    """``p``, ``list``, ``note`` (small)."""
    block: str = "text"


@dataclass(frozen=True)
class Grid:
    """A table; numbers come as text."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    folded: bool = False
    """Behind a line that opens it."""
    block: str = "table"


@dataclass(frozen=True)
class Picture:
    """An image as a data URI."""

    title: str
    alt: str
    data: str
    width: int
    height: int
    block: str = "picture"


@dataclass
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: list[Any] = field(default_factory=list)


def picture(title: str, alt: str, image: Image.Image, widest: int = 1200) -> Picture:
    """An image as WebP, made smaller where it is wider than ``widest`` pixels."""
    if image.width > widest:
        image = image.resize(
            (widest, max(1, round(image.height * widest / image.width))), Image.Resampling.LANCZOS
        )
    page = io.BytesIO()
    image.convert("RGB").save(page, "WEBP", quality=QUALITY, method=6)
    data = f"data:image/webp;base64,{base64.b64encode(page.getvalue()).decode()}"
    return Picture(title, alt, data, image.width, image.height)
