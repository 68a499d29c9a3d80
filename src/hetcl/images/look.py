"""A first look at some images: whether they go with a pixel format, and the mean and std of their channels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hetcl.draws import permute
from hetcl.errors import InputError
from hetcl.images.channels import largest, stored
from hetcl.images.decode import MAX_PIXELS, open_image
from hetcl.types import RGB, BadImage, OtherPixels, PixelFormat, Sample, Source

log = logging.getLogger(__name__)
SAMPLED = 256
"""Images by which mean and std are measured, drawn at random."""
GLANCED = 16
"""Images of which only the headers are looked at, where RGB of 8 bits is read."""
LOW_SHARE = 0.25
"""Share of the top that values must reach, or most levels of the type are not used."""


@dataclass
class Statistics:
    """Mean and std of each channel over all pixels looked at, each image of equal weight."""

    images: int = 0
    sums: Any = 0.0
    squares: Any = 0.0

    def add(self, pixels: np.ndarray) -> None:
        """An image, float32 ``[H, W, C]`` in [0, 1]."""
        values = pixels.reshape(-1, pixels.shape[2])
        self.sums = self.sums + values.mean(0, dtype=np.float64)
        self.squares = self.squares + np.square(values, dtype=np.float64).mean(0)
        self.images += 1

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, in six digits."""
        return _rounded(self.sums / self.images)

    @property
    def std(self) -> tuple[float, ...]:
        """Of each channel, in six digits; 1 of a channel that never changes."""
        spread = np.sqrt(np.maximum(self.squares / self.images - np.square(self.sums / self.images), 0))
        return _rounded(np.where(spread > 1e-6, spread, 1.0))


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{v:.6g}") for v in values.tolist())


def look(
    count: int, read: Callable[[int], np.ndarray], name: Callable[[int], str], *, what: str, fix: str = "",
    near: bool = False, most: int = SAMPLED,
) -> Statistics:  # fmt: skip
    """Statistics of some of ``count`` images.

    Args:
        read: an image by number, float32 ``[H, W, C]`` in [0, 1]; raises ``BadImage``.
        name: what to call it.
        what: of what the images are, for messages.
        fix: what to do where they do not go with the pixel format; without it the setting is named that takes them.
        near: the first ones, where reading anywhere would be slow.
        most: of so many.

    Raises:
        InputError: an image has other channels or values, or none can be read.
    """
    found, first = Statistics(), ""
    for index in chosen(count, most, near=near):
        try:
            found.add(read(index))
        except OtherPixels as error:
            raise InputError(refusal(f"{what}, {name(index)}", error, fix)) from None
        except BadImage as error:
            first = first or f"{name(index)}: {error}"
    if not found.images:
        raise InputError(f"{what}: none of the images looked at can be used, e.g. {first}")
    return found


def refusal(name: str, error: OtherPixels, fix: str) -> str:
    """The line for an image that does not go with the pixel format."""
    fix = fix or (f"set {error.fix}, or put such images apart" if error.fix else "convert such images")
    return f"{name}: {error}; {fix}"


def chosen(count: int, most: int, *, near: bool = False) -> list[int]:
    """Some of ``count`` images, always the same ones, in order."""
    some = np.arange(min(count, most))
    return sorted(some.tolist() if near else permute(some, count, "look").tolist())


def look_at(source: Source, pixels: PixelFormat, *, fix: str = "", most: int = SAMPLED) -> Statistics | None:
    """As :func:`look`, of a source. Of RGB of 8 bits only some headers are read, and there are no statistics."""
    near = bool(source.prefers_window)
    if pixels.rgb:
        if not near:
            _glance(source, fix)
        return None

    def read(index: int) -> np.ndarray:
        return open_image(source.sample(index), pixels=pixels).pixels()

    return look(len(source), read, source.name, what=source.description, fix=fix, near=near, most=most)


def _glance(source: Source, fix: str) -> None:
    """The headers of some images that are to be read as RGB of 8 bits; says so where they hold more."""
    deep = []
    for index in chosen(len(source), GLANCED):
        try:
            sample = source.sample(index)
            deep += [sample.data] if is_deep(sample) else []
        except OtherPixels as error:
            raise InputError(refusal(f"{source.description}, {source.name(index)}", error, fix)) from None
        except BadImage:
            continue  # counted when it is read
    warn_of_depth(deep)


def is_deep(sample: Sample | bytes) -> bool:
    """Whether an image is gray of more than 8 bits, by its header. Raises ``BadImage``."""
    return bool(getattr(open_image(sample), "deep", False))


def warn_of_depth(deep: Iterable[bytes | np.ndarray]) -> None:
    """Say what is lost of such images, of which the bytes are given, by reading them as RGB of 8 bits."""
    depth = Depth()
    for data in deep:
        depth.add(data)
    for line in depth.lines(RGB):
        log.warning("%s", line)


def channel_words(pixels: PixelFormat, mean: Iterable[float], std: Iterable[float]) -> str:
    """A pixel format with the mean and std of its channels, for people."""
    both = (", ".join(f"{v:.4g}" for v in values) for values in (mean, std))
    return f"{pixels}; mean {next(both)}; std {next(both)}"


@dataclass
class Depth:
    """The types of the values in files that are looked at, and the greatest value of each."""

    seen: dict[str, float] = field(default_factory=dict)

    def add(self, data: bytes | np.ndarray) -> None:
        """A file's bytes; what cannot be read has no say."""
        try:
            values, _ = stored(data, MAX_PIXELS)
            name = values.dtype.name
            self.seen[name] = max(self.seen.get(name, 0.0), float(values.max()))
        except BadImage:
            return

    def lines(self, pixels: PixelFormat) -> Iterable[str]:
        """What is lost of them by reading them as ``pixels``, a line for each type."""
        for name, high in self.seen.items():
            if name == "uint8" or not high:
                continue
            top = largest(np.dtype(name))
            if pixels == RGB and name in ("uint16", "int32"):
                levels = f"values up to {high:,.0f} of {top:,.0f} become {int(high // 257) + 1} levels of 256"
                yield (
                    f"images of more than 8 bits are read as 8 bits: {levels}; set pixel_max to the largest value of "
                    f"the data, such as {_whole(high)} (and in_chans to 1 for gray), to keep them"
                )
            elif not pixels.top and top > 1 and high < LOW_SHARE * top:
                yield (
                    f"values of {name} reach {high:,.0f} of {top:,.0f} alone: set pixel_max to the largest value of "
                    f"the data, such as {_whole(high)}, so that they fill [0, 1]"
                )


def _whole(high: float) -> int:
    """The largest value of so many bits as ``high`` takes."""
    return (1 << max(1, int(high).bit_length())) - 1
