"""Whether the images are of the size that their annotations are of, judged by some headers before any is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hetcl.datasets.annotations import Skipped
from hetcl.datasets.files import near
from hetcl.errors import InputError
from hetcl.images.decode import FORMATS

SOME = 50
"""So many images, spread evenly, are looked at."""
_TURNED = (5, 6, 7, 8)
"""EXIF orientations whose upright image has its sides exchanged."""


def check_sizes(
    root: Path,
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    source: str,
    skipped: Skipped,
    slack: int = 0,
) -> None:
    """Compare headers with annotated sizes (H, W), which may be off by ``slack`` pixels.

    Raises:
        InputError: more than half of the images, and at least three, have another size; or theirs with sides exchanged.
    """
    step = max(1, len(names) // SOME)
    seen, wrong, exchanged, example = 0, 0, 0, ""
    for name, size in zip(names[::step], sizes[::step], strict=True):
        found = stored(root, name)
        if found is None:
            continue
        seen += 1
        if any(near(one, size, slack) for one in found):
            continue
        wrong += 1
        exchanged += size[::-1] in found
        example = (
            example or f"{name} is {found[0][1]} x {found[0][0]} pixels, annotated as {size[1]} x {size[0]}"
        )
    if not wrong:
        return
    notes = (
        f"{wrong} of {seen} images looked at have another size than their annotations say (e.g. {example})"
    )
    if wrong >= 3 and wrong > seen / 2:
        fix = (
            "width and height are exchanged in the annotations: exchange them back"
            if exchanged > wrong / 2
            else "put back the images that were annotated, or scale the annotations"
        )
        raise InputError(f"{source}: {notes}; {fix}")
    skipped.remark(f"{notes}: such images are not used")


def stored(root: Path, name: str) -> list[tuple[int, int]] | None:
    """Height and width as stored and, where EXIF turns the image, upright; None where it cannot be read."""
    try:
        with Image.open(root / name, formats=FORMATS) as image:
            size = image.height, image.width
            if (
                image.format == "PNG" and "exif" not in image.info
            ):  # Pillow would decode it, to look behind the pixels
                return [size]
            return [size, size[::-1]] if image.getexif().get(0x0112) in _TURNED else [size]
    except Exception:  # a damaged file may fail in any way
        return None
