"""What an encoder expects of its images: the facts that are lost most often when weights change hands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hetcl.errors import InputError
from hetcl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from hetcl.weights.published import timm_facts

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class InputFacts:
    """How images are given to a backbone: pixels / 255, then ``(pixel - mean) / std``."""

    mean: Triple
    """Mean of pixels in 0..1, per channel in ``channel_order``."""
    std: Triple
    """Likewise."""
    size: int | None
    """Side of the images it was trained with, in pixels; None where nobody says. Other sizes work mostly."""
    channel_order: str
    """``RGB`` or ``BGR``."""
    source: str
    """Who says so: ``the file``, ``timm's configuration``, ``its training``, or ``assumed``."""

    @property
    def ours(self) -> bool:
        """Whether that is how hetcl gives images to every encoder that it trains: ImageNet's mean and std, RGB."""
        return (self.mean, self.std, self.channel_order) == (IMAGENET_MEAN, IMAGENET_STD, "RGB")

    def to_dict(self) -> dict[str, Any]:
        """As headers and settings.yaml hold it, and who says so."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "size": self.size,
            "channels": self.channel_order,
            "source": self.source,
        }

    @staticmethod
    def from_dict(tree: Mapping[str, Any], origin: str = "settings.yaml") -> InputFacts:
        """What :meth:`to_dict` gave; ImageNet's, assumed, of nothing. Raises as :func:`input_facts`."""
        given = input_facts(tree, "", origin)
        return replace(given, source=str(tree.get("source", given.source)))

    def __str__(self) -> str:
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}, {self.channel_order} ({self.source})"


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
        stated = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **known, **stated}
    mean, std = _triple(stated["mean"]), _triple(stated["std"])
    size, order = stated.get("size"), stated.get("channels", "RGB")
    if mean is None or std is None or min(std) <= 0 or order not in ("RGB", "BGR"):
        raise InputError(
            f"{origin}: the mean, std or channel order that it states cannot be; state them anew"
        )
    return InputFacts(mean, std, size if isinstance(size, int) and size > 0 else None, order, source)


def _triple(values: Any) -> Triple | None:
    """Three finite numbers, or None."""
    if isinstance(values, str | bytes):
        return None
    try:
        a, b, c = (float(v) for v in values)
    except (TypeError, ValueError):
        return None
    return (a, b, c) if all(abs(v) < 1e4 for v in (a, b, c)) else None
