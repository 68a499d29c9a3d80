"""What a fine-tuning run is asked to do, settled before anything is written: new, resumed, scaled to its batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hetcl.errors import InputError
from hetcl.runs.folder import RunFolder
from hetcl.runs.resume import refuse_changes, refuse_other, saved_by
from hetcl.settings import MAY_CHANGE as FREE
from hetcl.settings import (
    FinetuneSettings,
    build_saved,
    check_finetune,
    finetune_from_dict,
    flatten,
    given_in,
    resolve_finetune,
    to_dict,
)
from hetcl.weights.matched import patterns

KIND = "hetcl-finetune"
"""What a fine-tuning run's settings.yaml says that it is."""
MAY_CHANGE = FREE | {"follow_links"}
"""Settings that a resumed run may have otherwise."""
FIELDS = {
    **{"init": str, "data": str, "recipe": str | None, "allow_partial": list, "fingerprint": str},
    **{"fingerprint_test": str, "arch": str, "facts": dict, "classes": list, "hetcl": str, "settings": dict},
}
"""What the settings.yaml of a fine-tuning run holds."""


def new_plan(
    init: str | None,
    data: str | None,
    recipe: str | None,
    allow_partial: str | Sequence[str],
    overrides: Mapping[str, Any] | Sequence[str],
) -> dict[str, Any]:
    """The content of settings.yaml of a new run, with settings as an object. Raises ``InputError``."""
    if not init or not init.strip():
        raise InputError("--init is missing: name the backbone, e.g. a run, or torchvision:resnet50:random")
    if not data:
        raise InputError("--data is missing: name a data set, e.g. coco:ROOT, voc:ROOT or scenes:N")
    return {
        "init": init,
        "data": data,
        "recipe": recipe,
        "allow_partial": list(patterns(allow_partial)),
        "settings": resolve_finetune(recipe, overrides),
    }


def resumed_plan(
    folder: RunFolder,
    init: str | None,
    data: str | None,
    recipe: str | None,
    allow_partial: str | Sequence[str],
    overrides: Mapping[str, Any] | Sequence[str],
) -> dict[str, Any]:
    """What the folder holds, with what may change from the arguments. Raises on anything else that differs."""
    saved = saved_by(folder, KIND)
    then = saved_settings(folder, saved)
    refuse_other(folder, saved, {"init": init, "data": data}, patterns(allow_partial))
    base = resolve_finetune(recipe) if recipe is not None else then
    now = finetune_from_dict({**flatten(to_dict(base)), **given_in(FinetuneSettings, overrides)}, "the run")
    refuse_changes(folder, flatten(to_dict(then)), flatten(to_dict(now)), but=MAY_CHANGE)
    return saved | {"settings": now}


def saved_settings(folder: RunFolder, saved: Mapping[str, Any]) -> FinetuneSettings:
    """The settings in what a fine-tuning run's folder holds. Raises ``InputError`` when something is wrong with it."""
    settings = build_saved(
        FinetuneSettings, saved["settings"], str(folder.settings), check_finetune, but=MAY_CHANGE,
        beside=lambda: folder.check_settings(saved, FIELDS),
    )  # fmt: skip
    facts = {"mean": list, "std": list, "size": int | None, "channels": str, "source": str}
    sound = all(
        name in saved["facts"] and isinstance(saved["facts"][name], kind) for name, kind in facts.items()
    )
    if not sound or not all(isinstance(name, str) for name in saved["classes"]):
        raise InputError(f"{folder.settings}: its classes or facts are no longer the run's; put back its own")
    return settings


def scaled(s: FinetuneSettings) -> tuple[FinetuneSettings, list[str]]:
    """The linear rule: the learning rate grows with the batch and the steps shrink, so that as many images are seen.

    Steps are rounded up so that they split evenly over the evaluations.

    Returns:
        the settings that are used, and what a person should know.
    """
    notes = []
    used = s
    if s.base_batch and s.batch != s.base_batch:
        factor = s.batch / s.base_batch
        used = replace(
            s,
            lr=s.lr * factor,
            steps=math.ceil(s.steps / factor),
            milestones=tuple(math.ceil(m / factor) for m in s.milestones),
            warmup=math.ceil(s.warmup / factor),
        )
        notes.append(
            f"batch {s.batch} instead of {s.base_batch}: lr {s.lr:g} -> {used.lr:g}, steps {s.steps:,} -> "
            f"{used.steps:,}, milestones and warm-up alike (the linear rule; base_batch 0 switches it off)"
        )
    whole = -(-used.steps // s.evaluations) * s.evaluations
    if whole != used.steps:
        notes.append(f"steps {used.steps:,} -> {whole:,}, so that they split into {s.evaluations} periods")
    return replace(used, steps=whole), notes


def part_words(s: FinetuneSettings) -> dict[str, Any]:
    """The settings that :func:`joined` takes."""
    return {name: getattr(s, name) for name in ("model", "max_bad", "detections", "train_list")}


def example_words(s: FinetuneSettings) -> dict[str, Any]:
    """The settings that :func:`examples_of` takes."""
    return {name: getattr(s, name) for name in ("model", "min_size", "flip_p", "crop", "scale", "empty")}
