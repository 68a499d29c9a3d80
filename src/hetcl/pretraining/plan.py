"""What a run is asked to do, settled before anything is written: new, resumed, and fitted to the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from hetcl.errors import InputError
from hetcl.images.folder_source import FolderSource
from hetcl.images.look import GLANCED, SAMPLED, look_at
from hetcl.images.sources import open_validation
from hetcl.images.subset import why_none, with_labels
from hetcl.methods import METHODS
from hetcl.model.own_backbone import Backbone, copy_of, register_backbone
from hetcl.model.pyramid import OWN, given
from hetcl.runs.folder import RunFolder
from hetcl.runs.resume import Request, RunPlan, refuse_changes, refuse_other, saved_by
from hetcl.settings import MAY_CHANGE as FREE
from hetcl.settings import (
    PretrainSettings,
    StageSettings,
    build_saved,
    check,
    flatten,
    given_in,
    lacked_by_older,
    resolve,
    stages_of,
    to_dict,
)
from hetcl.types import Source
from hetcl.weights.channels import settled
from hetcl.weights.facts import InputFacts
from hetcl.weights.matched import patterns
from hetcl.weights.sources import Weights

MAY_CHANGE = FREE | {"compile", "deterministic"}
"""Settings that a resumed run may have otherwise (bits repeat only for equal device, threads and compile)."""
FIELDS = {
    **{"data": str, "recipe": str, "init": str | None, "allow_partial": list, "fingerprint": str},
    **{"window": int, "hetcl": str, "settings": dict},
}
"""What the settings.yaml of a run holds."""


@dataclass(frozen=True)
class Plan(RunPlan):
    """What a pre-training run was asked to do."""

    FIELDS = FIELDS
    settings: PretrainSettings
    window: int = 0
    """Within how many images the data is mixed, 0: anywhere; of a new run, as the settings say."""


def with_backbone(
    backbone: Backbone | None,
    overrides: Mapping[str, Any] | Sequence[str],
    recipe: str | None,
    known: RunFolder | None,
) -> tuple[Mapping[str, Any] | Sequence[str], Weights | None]:
    """The overrides with the name of a backbone that is given, and its weights where it is a module.

    It is tried with images as the settings say, or as the run ``known`` does.
    """
    if backbone is None:
        return overrides, None
    asked = given_in(PretrainSettings, overrides)
    if "backbone" in asked:
        raise InputError("backbone is given twice, as an argument and among the settings; leave one out")
    if known is None:
        settings = resolve(recipe, overrides)
        images = {"size": settings.size, "in_chans": settings.in_chans}
    else:
        saved = flatten(saved_by(known, None)["settings"])
        images = {n: v for n in ("size", "in_chans") if isinstance(v := saved.get(n), int) and v > 0}
    name = register_backbone(backbone, **images)
    weights = None
    if isinstance(backbone, nn.Module):
        state = {f"pyramid.{n}": v for n, v in copy_of(backbone).state_dict().items()}
        weights = Weights(f"the {type(backbone).__name__} that was given", name, state, None)
    return asked | {"backbone": name}, weights


def new_plan(asked: Request) -> Plan:
    """The plan of a new run. Raises ``InputError`` with every fault of the settings."""
    data, recipe, init, allow_partial, overrides = asked
    if data is None:
        raise InputError("--data is missing: name a folder of images, tar shards or scenes:N")
    if init is not None and not init.strip():
        raise InputError("--init is empty: name weights, or leave it out")
    if allow_partial and init is None:
        raise InputError("--allow-partial is about the weights of --init, and there are none; leave it out")
    settings = resolve(recipe, overrides)
    return Plan(data, recipe or "hcl-r50", init, settings, None, patterns(allow_partial), settings.window)


def resumed_plan(folder: RunFolder, asked: Request) -> Plan:
    """The plan that the folder holds, with what may change from the arguments. Raises on anything else that differs."""
    saved = saved_by(folder, None)
    then = build_saved(
        PretrainSettings, saved["settings"], str(folder.settings), check,
        but=MAY_CHANGE | lacked_by_older(saved["settings"]),
        beside=lambda: folder.check_settings(saved, FIELDS),
    )  # fmt: skip
    refuse_other(folder, saved, {"init": asked.init}, patterns(asked.allow_partial))
    now = resolve(asked.recipe, asked.overrides, then=then)
    if not now.mean:  # measured, and kept
        now = replace(now, mean=then.mean, std=then.std)
    refuse_changes(folder, flatten(to_dict(then)), flatten(to_dict(now)), but=MAY_CHANGE)
    if now.backbone.startswith(f"{OWN}:"):
        given(now.backbone)  # or it would only be missed once the folder is written
    return Plan.of(saved | ({"data": asked.data} if asked.data else {}), now)


def stages_to_train(settings: PretrainSettings, init: str | None) -> dict[str, StageSettings]:
    """The stages of a run, by name, in order; ``init``, a MODEL, takes the place of the first of two."""
    todo = stages_of(settings)
    return {"stage2": todo["stage2"]} if init is not None and len(todo) == 2 else todo


def held_out_of(data: str, settings: PretrainSettings, window: int) -> Source | None:
    """The validation images that the kNN check asks about; None where there are none, or they are trained on."""
    if settings.data_split != "train":
        return None
    held = open_validation(data, folder_classes=settings.folder_classes, window=window)
    return None if held is None else with_labels(held)


def common_window(plan: Plan, source: Source, fabric: Fabric) -> int:
    """The window that every rank uses, also when the disk is too small for all shards on some machines only.

    The order of a run depends on it, so a new run keeps what is found here, and a resumed one what it began with.

    Raises:
        InputError: a run that mixed all images is resumed where only some of the shards fit on the disk.
    """
    wanted = torch.tensor(plan.window or source.prefers_window, device=fabric.device)
    if fabric.world_size > 1:
        wanted = fabric.all_reduce(wanted, reduce_op="max")  # type: ignore[assignment]
    if wanted and not plan.window and plan.known:
        raise InputError(
            f"the run began with all shards of {plan.data} on disk and mixes all their images; the disk is too "
            "small for that here: set HETCL_CACHE to a larger one, or start a new folder"
        )
    return int(wanted)


def settle_pixels(settings: PretrainSettings, source: Source, init: Weights | None) -> PretrainSettings:
    """Settings with the mean and std of images that are not RGB of 8 bits: those of ``init``, else measured.

    Raises:
        InputError: images that do not go with the settings.
    """
    s, pixels = settings, settings.pixels
    found = look_at(source, pixels, most=SAMPLED if not s.mean else GLANCED)
    if pixels.rgb or s.mean:
        return s
    known = settled(init, pixels) or found
    assert known is not None
    order = -1 if isinstance(known, InputFacts) and known.channel_order == "BGR" else 1
    return replace(s, mean=known.mean[::order], std=known.std[::order])


def fit(
    settings: PretrainSettings, source: Source, ranks: int, init: str | None = None
) -> tuple[PretrainSettings, list[str]]:
    """Settings that go with the number of images, and what a person should be told about the stages that train."""
    told = stages_to_train(settings, init)
    s, n, notes = settings, len(source), []
    if n < s.batch:
        whole = s.groups
        batch = n // whole * whole
        if batch < 2 * whole:
            groups = ranks
            batch = n // groups * groups
            if batch < 2 * groups:
                raise InputError(f"{source.description}: too few to contrast; give at least {2 * ranks}")
            notes.append(f"batch-norm groups {s.groups} -> {groups}, since there are only {n} images")
            s = replace(s, groups=groups, accumulate=1)
        notes.append(f"batch {s.batch} -> {batch}, since there are only {n} images")
        s = replace(s, batch=batch)
    if s.groups // ranks % s.accumulate:
        raise InputError(
            f"{s.groups} batch-norm groups over {ranks} devices leave each {s.groups // ranks}, which do not split "
            f"into accumulate = {s.accumulate} pieces; raise groups or lower accumulate"
        )
    for name in ("stage1", "stage2"):
        stage = getattr(s, name)
        if name in told and METHODS[stage.method].laid_back and not stage.views.square:
            notes.append(
                f"{name}: {stage.method} compares places, and where crops lie in images of many shapes tells an image "
                f"by its shape; {name}.views.square true keeps that out"
            )
        if not stage.epochs or METHODS[stage.method].labels or stage.queue <= n:
            continue
        if s.fit_queue:
            if name in told:
                notes.append(
                    f"{name}.queue {stage.queue} -> {n}, the number of images: more would only repeat them"
                )
            s = replace(s, **{name: replace(stage, queue=n)})
        elif name in told:
            notes.append(
                f"{name}.queue of {stage.queue} is longer than the data ({n} images): it holds each several times"
            )
    return s, notes


def check_classes(source: Source, s: PretrainSettings) -> None:
    """Raises ``InputError`` where folders were to be classes and are not."""
    if s.folder_classes and isinstance(source, FolderSource) and source.classes is None:
        raise InputError(
            f"folder_classes is true, but {source.why_no_labels}: move each image into the folder of its class, or "
            "leave folder_classes out"
        )


def check_labels(data: str, source: Source) -> None:
    """Raises ``InputError`` where images have no labels to learn from."""
    if source.classes is None:
        raise InputError(
            f"{data} has no labels, which supervised training needs{why_none(source)}; shards hold them as KEY.cls, a "
            "folder as sub-folders with --folder_classes true"
        )
