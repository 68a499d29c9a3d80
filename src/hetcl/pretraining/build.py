"""A stage's encoder and its task, from the settings: what a run trains, and what ``doctor`` times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from hetcl.methods import METHODS, branch_words
from hetcl.model.build import build_embedding
from hetcl.model.momentum import MomentumPair
from hetcl.model.queue import KeyQueue
from hetcl.pretraining import stages
from hetcl.settings import PretrainSettings, StageSettings
from hetcl.types import ViewBatch
from hetcl.views.loader import ViewLoader
from hetcl.views.photometric import IMAGENET_MEAN, IMAGENET_STD, Photometric
from hetcl.weights.facts import InputFacts, order_of, pixel_facts

DTYPES = {"fp64": torch.float64}
"""Type of weights and views by ``precision``; float32 where it is not named."""


def build_model(settings: PretrainSettings, stage: StageSettings, classes: int | None) -> nn.Module:
    """The encoder that a stage trains, on the CPU, with the run's random weights.

    Args:
        classes: how many the data has, for supervised training.
    """
    s, words = settings, branch_words(settings)
    return build_embedding(
        stage.method, s.backbone, seed=s.seed, classes=classes, words=words, in_chans=s.in_chans
    )


def normalization(settings: PretrainSettings) -> dict[str, tuple[float, ...]]:
    """Mean and std of a run's images: those that are set or were measured, else ImageNet's."""
    return {"mean": settings.mean or IMAGENET_MEAN, "std": settings.std or IMAGENET_STD}


def image_facts(settings: PretrainSettings) -> dict[str, Any]:
    """How a run's images are given to its encoder, as checkpoints and headers hold it."""
    given: dict[str, Any] = {name: list(values) for name, values in normalization(settings).items()}
    return given | {"channels": order_of(settings.pixels), **pixel_facts(settings.pixels)}


def given_otherwise(facts: InputFacts, settings: PretrainSettings) -> bool:
    """Whether images are given to the encoder in another way than to the weights, of these facts, it begins with."""
    here, pixels = normalization(settings), settings.pixels
    same = (facts.mean, facts.std) == (here["mean"], here["std"]) and facts.channel_order == order_of(pixels)
    return not same or facts.pixels != pixels


def build_task(
    settings: PretrainSettings,
    name: str,
    stage: StageSettings,
    model: nn.Module,
    *,
    fabric: Fabric,
    loader: ViewLoader,
    start_key: Callable[[nn.Module], object] = lambda key: None,
    evaluate: stages.Evaluate = lambda pyramid: {},
    on_bad: Callable[[ViewBatch], None] = lambda batch: None,
) -> stages.Contrast | stages.Supervised:
    """The task of a stage, with ``model`` on the device.

    Args:
        start_key: gives the key encoder weights of its own; without it, it starts as the query's copy.
        evaluate, on_bad: see :class:`stages.Contrast`.
    """
    s, dtype = settings, DTYPES.get(settings.precision, torch.float32)
    if s.compile:
        torch.compiler.reset()  # graphs of models before count towards a limit, behind which it would stay eager
    groups = max(1, s.groups // fabric.world_size)
    common: dict[str, Any] = {
        "fabric": fabric,
        "loader": loader,
        "photometric": Photometric(stage.views, **normalization(s), dtype=dtype),
        "evaluate": evaluate,
        "on_bad": on_bad,
        "config": stages.StageConfig(
            epochs=stage.epochs, batch=s.batch, lr=stage.lr, sgd_momentum=stage.sgd_momentum,
            weight_decay=stage.weight_decay, seed=s.seed, accumulate=s.accumulate, channels_last=s.channels_last,
            knn_every=s.knn.every,
        ),
    }  # fmt: skip

    def place(module: Any) -> Any:
        module = module.to(fabric.device, dtype)
        return module.to(memory_format=torch.channels_last) if s.channels_last else module

    if METHODS[stage.method].labels:
        model = place(model)
        if s.compile:
            model.compile()
        return stages.Supervised(name, model=model, groups=groups, **common)
    pair = MomentumPair(model, momentum=stage.key_momentum, groups=groups)
    start_key(pair.key)
    pair = place(pair)
    if s.compile:
        pair.query.compile()
        pair.key.compile()
    queue = KeyQueue(stage.queue, model.dims, seed=s.seed)  # type: ignore[arg-type]
    return stages.Contrast(
        name,
        pair=pair,
        queue=queue.to(fabric.device, dtype),
        temperature=stage.temperature,
        mask_own=s.mask_own,
        batch_negatives=s.batch_negatives,
        laid_back=METHODS[stage.method].laid_back,
        **common,
    )
