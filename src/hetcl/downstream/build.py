"""A detector or segmenter from plain words, with a backbone's weights in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hetcl.downstream.models import detector, load_fpn, load_pyramid, segmenter
from hetcl.errors import InputError
from hetcl.weights.facts import InputFacts
from hetcl.weights.sources import Weights

MODEL_WORDS = (
    *(
        "model",
        "neck",
        "norm",
        "min_size",
        "max_size",
        "test_size",
        "anchor_scale",
        "regions",
        "test_proposals",
    ),
    *("score_threshold", "detections", "dilation", "seed"),
)
"""The settings that decide a model."""


def build_model(
    *,
    arch: str,
    model: str,
    neck: str,
    dilation: int,
    min_size: Sequence[int],
    facts: InputFacts,
    **words: Any,
) -> nn.Module:
    """The model with random weights, a function of ``seed``.

    Args:
        arch: of the backbone.
        facts: how the backbone wants its images.
        model, neck, ..., **words: as ``FinetuneSettings`` has them; and ``classes``: K, without the background.

    Raises:
        InputError: a backbone that does not go with them.
    """
    if model == "fcn":
        own = {name: words[name] for name in ("classes", "norm", "seed")}
        return segmenter(arch, dilation=dilation, facts=facts, **own)
    masks = model == "mask-rcnn"
    return detector(arch, neck=neck, masks=masks, min_size=tuple(min_size), facts=facts, **words)


def take_weights(model: nn.Module, weights: Weights, *, fpn: bool) -> None:
    """Load a backbone's weights, and with ``fpn`` the spatial branch's laterals.

    Raises:
        InputError: they do not fit, or there is no spatial branch.
    """
    load_pyramid(model, part(weights.query, "pyramid."))
    if fpn:
        branch = part(weights.query, "branches.spatial.")
        if not branch:
            raise InputError(
                f"inherit_fpn: {weights.origin} has no spatial branch; give a checkpoint of HCL's second stage "
                "(RUN or RUN/checkpoints/stage2.ckpt), or leave inherit_fpn out"
            )
        load_fpn(model, branch)


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def model_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that :func:`build_model` takes."""
    return {name: settings[name] for name in MODEL_WORDS}
