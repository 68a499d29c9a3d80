"""A detector or segmenter from plain words, with a backbone's weights in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hetcl.downstream.models import detector, load_fpn, load_pyramid, segmenter
from hetcl.errors import InputError
from hetcl.weights.facts import InputFacts
from hetcl.weights.sources import Weights


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
