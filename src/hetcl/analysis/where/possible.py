"""What can be asked of some images, and at which size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetcl.analysis.where.annotated import Located, QuestionImages, size_of
from hetcl.errors import InputError
from hetcl.quantities import count
from hetcl.types import BadImage
from hetcl.weights.encoder import Encoder

QUESTIONS = ("correspondence", "localization", "dense-knn", "dense-linear")
LEAST = 20
"""Images that a regression needs at the least."""
LOOKED_AT = 16
"""Images whose size is looked at."""


def possible(wanted: Sequence[str], images: QuestionImages, data: str) -> tuple[list[str], list[str]]:
    """The questions that the data can answer, and why others are left out.

    Raises:
        InputError: the data lacks what was asked for by name, or has fewer than two images to test on.
    """
    lacking = {}
    if images.boxes is None:
        lacking["localization"] = (
            "has no boxes; name an annotated set (coco:ROOT ...) or a file of boxes with --boxes"
        )
    elif len(images.boxes[0]) < LEAST:
        lacking["localization"] = (
            f"has {count(len(images.boxes[0]), 'image')} to fit, and a regression needs {LEAST}; give more"
        )
    if images.cells is None:
        why = (
            "has no classes of pixels; name a set with masks (coco:ROOT, voc:ROOT, cityscapes:ROOT, scenes:N)"
        )
        lacking |= dict.fromkeys(("dense-knn", "dense-linear"), why)
    for name in wanted:
        if name in lacking:
            raise InputError(f"ask {name}: {data} {lacking[name]}")
    if len(images.images[1]) < 2:
        raise InputError(f"{data}: one image to test on says nothing; raise test_images or holdout")
    left_out = [f"{q} is left out: {data} {why}" for q, why in lacking.items() if "regression" in why]
    return [q for q in (wanted or QUESTIONS) if q not in lacking], left_out


def size_and_grid(images: Located, encoders: Sequence[Encoder], size: int, grid: int) -> tuple[int, int]:
    """Side of the images in pixels and of the grid of cells, as they were set or else by default.

    By default images have the size that the models were trained at, 160 at least, but no more than they have; a cell
    has 8 pixels.

    Args:
        size, grid: as they were set; 0: by default.

    Raises:
        InputError: a cell would be smaller than a pixel.
    """
    sizes = []
    for i in range(min(LOOKED_AT, len(images))):
        try:
            sizes.append(size_of(images.sample(i)))
        except BadImage:
            continue
    have = -(-int(np.median([max(s) for s in sizes])) // 32) * 32 if sizes else 160
    size = size or max(32, min(have, max(160, *(e.size or 160 for e in encoders))))
    grid = grid or size // 8
    if grid > size:
        raise InputError(f"setting grid {grid} makes cells smaller than a pixel at {size} pixels; lower it")
    short = int(np.median([min(s) for s in sizes])) if sizes else grid
    if short < grid:
        raise InputError(
            f"the images have about {count(short, 'pixel')} along their short side, and a grid of {grid} x {grid} "
            "makes cells smaller than a pixel; give larger images, or lower grid"
        )
    return size, grid
