"""What an encoder expects of its images: the facts that are lost most often when weights change hands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hetcl.errors import InputError
from hetcl.types import PixelFormat
from hetcl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from hetcl.weights.published import timm_facts

Values = tuple[float, ...]
"""A number for each channel."""
ASSUMED = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
"""Mean and std of each channel of images that are not RGB, where nobody states them: the means of ImageNet's."""


@dataclass(frozen=True)
class InputFacts:
    """How images are given to a backbone: pixels in 0..1, then ``(pixel - mean) / std``."""

    mean: Values
    """Mean of pixels in 0..1, per channel in ``channel_order``."""
    std: Values
    """Likewise."""
    size: int | None
    """Side of the images it was trained with, in pixels; None where nobody says. Other sizes work mostly."""
    channel_order: str
    """``RGB`` or ``BGR``; ``stored``: as the files have them, of other than three channels."""
    source: str
    """Who says so: ``the file``, ``timm's configuration``, ``its training``, ``measured``, or ``assumed``."""
    pixel_max: float = 0.0
    """The stored value that becomes 1; 0: the largest of the files' type."""

    @property
    def pixels(self) -> PixelFormat:
        """As what images are read for it."""
        return PixelFormat(len(self.mean), self.pixel_max)

    @property
    def ours(self) -> bool:
        """Whether that is how hetcl gives images to every encoder that it trains on RGB: ImageNet's mean and std."""
        ours = (self.mean, self.std, self.channel_order) == (IMAGENET_MEAN, IMAGENET_STD, "RGB")
        return ours and not self.pixel_max

    def to_dict(self) -> dict[str, Any]:
        """As headers and settings.yaml hold it, and who says so."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "size": self.size,
            "channels": self.channel_order,
            "source": self.source,
            **pixel_facts(self.pixels),
        }

    @staticmethod
    def from_dict(tree: Mapping[str, Any], origin: str = "settings.yaml") -> InputFacts:
        """What :meth:`to_dict` gave; ImageNet's, assumed, of nothing. Raises as :func:`input_facts`."""
        given = input_facts(tree, "", origin)
        return replace(given, source=str(tree.get("source", given.source)))

    def __str__(self) -> str:
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        kind = self.channel_order if self.pixels.rgb else f"{self.pixels}"
        return f"mean {mean}, std {std}, {kind} ({self.source})"


def pixel_facts(pixels: PixelFormat) -> dict[str, Any]:
    """A pixel format as headers hold it; nothing of RGB of 8 bits."""
    return {} if pixels.rgb else {"in_chans": pixels.channels, "pixel_max": pixels.top}


def order_of(pixels: PixelFormat) -> str:
    """The order of the channels, in a word, as images are read here."""
    return "RGB" if pixels.channels == 3 else "stored"


def view_normalization(pixels: PixelFormat) -> tuple[Values, Values]:
    """Mean and std by which views are made that several encoders share; ``analysis`` brings them to each one's own."""
    return (IMAGENET_MEAN, IMAGENET_STD) if pixels.rgb else ((0.0,), (1.0,))


def input_facts(stated: Mapping[str, Any], arch: str, origin: str) -> InputFacts:
    """The facts of weights.

    Args:
        stated: what the file or the library publishes (``Weights.facts``).
        arch: ``timm:NAME`` has a configuration to ask when ``stated`` is silent.
        origin: for messages.

    Raises:
        InputError: the file says something that cannot be.
    """
    source = "assumed" if stated.get("assumed") is True else "the file"
    if ("mean" in stated) != ("std" in stated):
        raise InputError(f"{origin} states one of mean and std without the other; state both, or neither")
    if "mean" not in stated or "std" not in stated:
        known = timm_facts(arch.partition(":")[2]) if arch.startswith("timm:") else {}
        if "method" in stated:  # hetcl and MoCo train with ImageNet's
            source, known = "its training", {}
        else:
            source = "timm's configuration" if known else "assumed"
        usual: Mapping[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **known}
        if (count := stated.get("in_chans", 3)) != 3:
            source, usual = "assumed", {"mean": (ASSUMED[0],) * count, "std": (ASSUMED[1],) * count}
        stated = {**usual, **stated}
    mean, std, top = _values(stated["mean"]), _values(stated["std"]), stated.get("pixel_max", 0.0)
    size, order = stated.get("size"), stated.get("channels", "RGB" if len(mean or ()) == 3 else "stored")
    sound = mean is not None and std is not None and len(mean) == len(std) == stated.get("in_chans", 3)
    sound = sound and order in (("RGB", "BGR") if len(mean or ()) == 3 else ("stored",))
    sound = sound and isinstance(top, int | float) and 0 <= top < 1e30
    if not sound or mean is None or std is None or min(std) <= 0:
        raise InputError(
            f"{origin}: the mean, std or channel order that it states cannot be; state them anew"
        )
    return InputFacts(
        mean, std, size if isinstance(size, int) and size > 0 else None, order, source, float(top)
    )


def _values(values: Any) -> Values | None:
    """Finite numbers, one for each channel, or None."""
    if isinstance(values, str | bytes):
        return None
    try:
        found = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        return None
    return found if found and all(abs(v) < 1e4 for v in found) else None
