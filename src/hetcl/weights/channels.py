"""Weights of RGB images made weights of other channels, by timm's rule for ``in_chans``.

The rule (timm's ``adapt_input_conv``): for one channel the weights of red, green and blue are summed, so that a gray
image gives what it gave as RGB; for N channels they are repeated (red, green, blue, red, ...) and multiplied by 3 / N,
so that outputs keep their size. It is applied to the weights that see the image, mostly one convolution.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from hetcl.errors import InputError
from hetcl.types import PixelFormat
from hetcl.weights.facts import InputFacts, input_facts, order_of
from hetcl.weights.names import input_layers
from hetcl.weights.sources import PIXEL_FACTS, Weights

log = logging.getLogger("hetcl.weights")


def adapt_input(weight: Tensor, in_chans: int) -> Tensor:
    """``[out, 3, h, w]`` -> ``[out, in_chans, h, w]`` of the same type, by the module's rule."""
    wide = weight.double()
    if in_chans == 1:
        return wide.sum(dim=1, keepdim=True).to(weight.dtype)
    if in_chans == 3:
        return weight
    repeated = wide.repeat(1, -(-in_chans // 3), 1, 1)[:, :in_chans]
    return (repeated * (3 / in_chans)).to(weight.dtype)


def with_channels(weights: Weights, in_chans: int) -> Weights:
    """Weights for images of ``in_chans`` channels; what the file said of its images goes where channels change.

    Raises:
        InputError: they are of other images than RGB, or nothing in them sees an image of three channels.
    """
    if weights.in_chans == in_chans:
        return weights
    if weights.in_chans != 3:
        raise InputError(
            f"{weights.origin} takes images of {weights.in_chans} channels, and in_chans is {in_chans}: set in_chans "
            f"to {weights.in_chans}; weights of RGB alone are adapted to other channels"
        )
    names = [f"pyramid.{name}" for name in input_layers(str(weights.arch), in_chans)]
    stated = input_facts(weights.facts, str(weights.arch), weights.origin)

    def adapted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = dict(state)
        for name in names:
            if name in out:
                rgb = out[name].flip(1) if stated.channel_order == "BGR" else out[name]
                out[name] = adapt_input(rgb, in_chans)
        return out

    if not names or any(
        weights.query[n].ndim != 4 or weights.query[n].shape[1] != 3 for n in names if n in weights.query
    ):
        raise InputError(
            f"{weights.origin}: nothing in it sees an image of three channels; start from random weights"
        )
    log.info(
        f"{weights.origin}: {', '.join(n.removeprefix('pyramid.') for n in names)} adapted from 3 to {in_chans}"
    )
    facts = {n: v for n, v in weights.facts.items() if n not in PIXEL_FACTS} | {"in_chans": in_chans}
    key = None if weights.key is None else adapted(weights.key)
    return replace(weights, query=adapted(weights.query), key=key, facts=facts)


def settled(
    weights: Weights | None,
    pixels: PixelFormat,
    given: tuple[tuple[float, ...], tuple[float, ...]] = ((), ()),
) -> InputFacts | None:
    """How images are given to a model that begins with these weights; None: mean and std are to be measured.

    Args:
        weights: of as many channels as ``pixels``, once they are adapted.
        given: mean and std that the user asks for; empty: none.
    """
    mean, std = given
    facts = None if weights is None else input_facts(weights.facts, str(weights.arch), weights.origin)
    if mean:
        return InputFacts(mean, std, facts.size if facts else None, order_of(pixels), "set", pixels.top)
    if facts is not None and (facts.source != "assumed" or pixels.channels == 3):
        return replace(facts, pixel_max=pixels.top or facts.pixel_max)
    return None
