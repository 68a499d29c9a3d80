"""What a fine-tuning run is asked to do, settled before anything is written: new, resumed, scaled to its batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hetcl.errors import InputError
from hetcl.runs.folder import RunFolder
from hetcl.runs.resume import Request, RunPlan, refuse_changes, refuse_other, saved_by
from hetcl.settings import MAY_CHANGE as FREE
from hetcl.settings import (
    FinetuneSettings,
    build_saved,
    check_finetune,
    finetune_from_dict,
    flatten,
    given_in,
    lacked_by_older,
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


@dataclass(frozen=True)
class FinetunePlan(RunPlan):
    """What a fine-tuning run was asked to do, and what it found when it began."""

    FIELDS = FIELDS
    init: str
    settings: FinetuneSettings
    fingerprint_test: str | None = None
    arch: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """How images are given to ``init``."""


def new_plan(asked: Request) -> FinetunePlan:
    """The plan of a new run. Raises ``InputError``."""
    data, recipe, init, allow_partial, overrides = asked
    if not init or not init.strip():
        raise InputError("--init is missing: name the backbone, e.g. a run, or torchvision:resnet50:random")
    if not data:
        raise InputError("--data is missing: name a data set, e.g. coco:ROOT, voc:ROOT or scenes:N")
    allowed = patterns(allow_partial)
    return FinetunePlan(data, recipe, init, resolve_finetune(recipe, overrides), allow_partial=allowed)


def resumed_plan(folder: RunFolder, asked: Request) -> FinetunePlan:
    """The plan that the folder holds, with what may change from the arguments. Raises on anything else that differs."""
    saved = saved_by(folder, KIND)
    then = saved_settings(folder, saved)
    refuse_other(folder, saved, {"init": asked.init, "data": asked.data}, patterns(asked.allow_partial))
    base = resolve_finetune(asked.recipe) if asked.recipe is not None else then
    given = given_in(FinetuneSettings, asked.overrides)
    now = finetune_from_dict({**flatten(to_dict(base)), **given}, "the run")
    refuse_changes(folder, flatten(to_dict(then)), flatten(to_dict(now)), but=MAY_CHANGE)
    return FinetunePlan.of(saved, now)


def saved_settings(folder: RunFolder, saved: Mapping[str, Any]) -> FinetuneSettings:
    """The settings in what a fine-tuning run's folder holds. Raises ``InputError`` when something is wrong with it."""
    settings = build_saved(
        FinetuneSettings, saved["settings"], str(folder.settings), check_finetune,
        but=MAY_CHANGE | lacked_by_older(saved["settings"]),
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
