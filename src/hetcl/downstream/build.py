"""A detector or segmenter from plain words, with a backbone's weights in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hetcl.downstream.models import detector, load_fpn, load_pyramid, segmenter
from hetcl.errors import InputError
from hetcl.weights.facts import InputFacts, input_facts
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
    norm: str,
    classes: int,
    facts: InputFacts,
    min_size: Sequence[int],
    max_size: int,
    test_size: int,
    anchor_scale: float,
    regions: int,
    test_proposals: int,
    score_threshold: float,
    detections: int,
    dilation: int,
    seed: int,
) -> nn.Module:
    """The model with random weights, a function of ``seed``.

    Args:
        arch: of the backbone.
        classes: K, without the background.
        facts: how the backbone wants its images.
        model, neck, norm, ...: as ``FinetuneSettings`` has them.

    Raises:
        InputError: a backbone that does not go with them.
    """
    given: dict[str, Any] = {"classes": classes, "norm": norm, "seed": seed, "facts": facts}
    if model == "fcn":
        return segmenter(arch, dilation=dilation, **given)
    return detector(
        arch,
        neck=neck,
        masks=model == "mask-rcnn",
        min_size=tuple(min_size),
        max_size=max_size,
        test_size=test_size,
        anchor_scale=anchor_scale,
        regions=regions,
        test_proposals=test_proposals,
        score_threshold=score_threshold,
        detections=detections,
        **given,
    )


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


def facts_tree(facts: InputFacts) -> dict[str, Any]:
    """What a run's settings.yaml holds of ``facts``."""
    return {
        "mean": list(facts.mean),
        "std": list(facts.std),
        "size": facts.size,
        "channels": facts.channel_order,
        "source": facts.source,
    }


def facts_from(tree: Mapping[str, Any] | None) -> InputFacts:
    """The other way round; assumed ones where there is no tree."""
    given = input_facts(tree or {}, "", "settings.yaml")
    return replace(given, source=str(tree["source"])) if tree else given
