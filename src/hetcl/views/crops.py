"""Crop rectangles in the plane of the upright original, and cutting them out (worker processes).

A box is (left, top, right, bottom) in pixels of the original, whatever scale the image was decoded at.
V views, S side of a view in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from hetcl.boxes import Box
from hetcl.types import Crops, ViewBatch
from hetcl.views.photometric import FLIP

LARGE = 1_000_000
"""Pixels from which an image may be decoded at a reduced scale. Below it the crops of a 224-pixel view seldom
leave room for a reduction, and little time would be won."""

_resize = torch.ops.aten._upsample_bilinear2d_aa.out
"""What ``torch.nn.functional.interpolate`` calls (bilinear, antialiased); it can write where it is told to."""

TRIES = 10
"""Attempts at a crop before the central fallback (torchvision's ``RandomResizedCrop``)."""


def box_from(
    draws: np.ndarray, width: int, height: int, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random crop with the distribution of torchvision's ``RandomResizedCrop``: the first attempt that fits, or the
    largest central crop whose ratio is within bounds.

    Share of the area uniform in ``area``, logarithm of width over height uniform in that of ``ratio``, place
    uniform.

    Args:
        draws: uniform in [0, 1), ``[tries, 4]``: area, ratio, top, left of each attempt.
        width, height: of the image, in pixels.

    Returns:
        (left, top, right, bottom), integers inside the image.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    # An area of exactly 1 asks for the whole image: an attempt would fit now and then by the rounding of its sides.
    for u_area, u_ratio, u_top, u_left in [] if area[0] >= 1 else draws.tolist():
        target = width * height * (area[0] + (area[1] - area[0]) * u_area)
        aspect = math.exp(low + (high - low) * u_ratio)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(u_top * (height - h + 1)), int(u_left * (width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        w = max(1, min(width, round(height * ratio[1])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def frame_from(draw: float, width: int, height: int, square: bool) -> tuple[int, int, int, int]:
    """The rectangle that all crops of an image are drawn in: the whole of it, or its largest square.

    Args:
        draw: uniform in [0, 1): where the square lies along the longer side.
        width, height: of the image, in pixels.
    """
    side = min(width, height)
    if not square:
        return 0, 0, width, height
    left, top = int(draw * (width - side + 1)), int(draw * (height - side + 1))
    return left, top, left + side, top + side


def boxes_in(
    frame: tuple[int, int, int, int],
    draws: Sequence[np.ndarray],
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> list[Box]:
    """A crop of a frame for each view's draws (:func:`box_from`), in the image's plane."""
    left, top, right, bottom = frame
    boxes = [box_from(d, right - left, bottom - top, area, ratio) for d in draws]
    return [(l + left, t + top, r + left, b + top) for l, t, r, b in boxes]


def crops_of(batch: ViewBatch, view: int) -> Crops:
    """Where a view of each image of a batch was cut, on the batch's device."""
    corner, far = batch.frames.chunk(2, dim=1)
    boxes = (batch.boxes[view] - corner.repeat(1, 2)) / (far - corner).repeat(1, 2)
    flipped = batch.color[view, :, FLIP] > 0
    return Crops(boxes, flipped.to(boxes.device, non_blocking=True))


def centre_box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """The central square that a feature is taken from, in whole pixels.

    Large images: 224/256 of the short side, which is "resize to 256, centre crop 224" at any ``size``. Images
    about as small as ``size`` keep more, so that nothing is enlarged without need: the whole short side up to
    ``size`` pixels, then ``size`` pixels, until 224/256 of the short side is more.
    """
    short = min(width, height)
    side = max(round(short * 224 / 256), min(short, size))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def reduction(width: int, height: int, boxes: Sequence[Box], size: int) -> int:
    """By how much the image may be decoded smaller (1, 2, 4 or 8) such that no crop falls below ``size``.

    Images of less than :data:`LARGE` pixels are decoded in full.
    """
    if width * height < LARGE:
        return 1
    least = min(min(r - l, b - t) for l, t, r, b in boxes)
    return next((k for k in (8, 4, 2) if least >= k * size), 1)


def cut(
    pixels: np.ndarray,
    boxes: Sequence[Box],
    size: int,
    *,
    plane: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cut ``boxes`` out of an image and resize each to ``size`` x ``size``: bilinear with antialiasing, in its type.

    With integer boxes on an image decoded in full this equals torchvision's (v2) ``resized_crop`` of a uint8
    tensor, and that of a PIL image to within 1 of 255 (other roundings of the same filter, in a third of the time).
    On a reduced image boxes are rounded to its pixels, none of which is larger than a pixel of the view.

    Args:
        pixels: uint8 or float32 ``[h, w, C]``, perhaps decoded at a reduced scale.
        boxes: V rectangles in the plane of the original.
        size: S, in pixels.
        plane: (width, height) of the original; None when ``pixels`` is the original.
        out: ``[V, C, S, S]`` to write into, quickest where it is channels last in memory.

    Returns:
        ``[V, C, S, S]`` of the type of ``pixels``.
    """
    h, w, channels = pixels.shape
    sx, sy = (1.0, 1.0) if plane is None else (w / plane[0], h / plane[1])
    if out is None:
        out = np.empty((len(boxes), channels, size, size), pixels.dtype)
    for view, (left, top, right, bottom) in zip(torch.from_numpy(out), boxes, strict=True):
        l, t = min(round(left * sx), w - 1), min(round(top * sy), h - 1)
        r, b = max(l + 1, round(right * sx)), max(t + 1, round(bottom * sy))
        # [1, C, h, w], channels last in memory; the copied first dimension says so to torch.
        part = torch.from_numpy(pixels[None, t:b, l:r].copy()).permute(0, 3, 1, 2)
        _resize(part, (size, size), False, out=view[None])
    return out
