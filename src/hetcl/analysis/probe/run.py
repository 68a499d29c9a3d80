"""``hetcl probe``: the entry, for what frozen features know of labels (``what.py``) and of places (``analysis/where``).

The order: is ``--out`` free, or a probe's to be resumed; which of the two is asked; then the probe itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hetcl import __version__
from hetcl.analysis.probe.what import KIND, Probe
from hetcl.analysis.where.annotated import LAYOUTS
from hetcl.analysis.where.possible import QUESTIONS
from hetcl.analysis.where.run import Where
from hetcl.errors import InputError
from hetcl.runs.folder import RunFolder
from hetcl.runs.output import claim, held_in, reserved
from hetcl.runs.resume import changes, check_own
from hetcl.settings import ProbeSettings, resolve_probe, to_dict

LINEAR = ("model", "data", "epochs", "lr", "batch", "seed", "window", "size", "features")
"""What a linear probe by SGD is a function of, and what a resumed one must have as it was."""
MEANT = {
    **dict.fromkeys(("features", "linear", "epochs", "lr", "folder_classes"), ("what",)),
    **dict.fromkeys(("test_images", "grid"), QUESTIONS),
    "boxes": ("localization",),
    "views": ("correspondence",),
    "cells": ("dense-knn", "dense-linear"),
    "knn": ("what", "dense-knn"),
}
"""Setting -> the questions that it means anything to; set with others alone it is refused."""


def probe(
    models: str | Sequence[str],
    *,
    data: str,
    out: str | Path,
    resume: bool = False,
    allow_partial: str | Sequence[str] = (),
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> dict[str, Any]:
    """What frozen features know: of labels (*what*), or of places (*where*); ``out/probe.json``, ``out/where.json``.

    What: kNN and linear accuracy on labelled images. Where: correspondence of two crops, the main object's box, and
    the class of each cell, beside random weights of the same architecture.

    Args:
        models: a MODEL; of where several, which are compared on the same images.
        data: labelled images (shards with ``KEY.cls``, a folder whose sub-folders are classes, ``scenes:N``); for where
            an annotated set (``coco:ROOT``, ``voc:ROOT`` ...), ``scenes:N``, or any images.
        out: the folder to write.
        resume: use the features that are in ``out`` already, and go on with a linear probe by SGD.
        allow_partial: globs of keys that may be missing, unknown or of another shape (missing weights stay random);
            anything else that does not fit is refused.
        overrides: settings by name, as a mapping or as command-line words.

    Returns:
        the content of ``probe.json`` or ``where.json`` (docs/probe.md describes both).

    Raises:
        InputError: unusable arguments, model or data; nothing has been written then.
        WorkFailed: the work began and could not go on.
        Stopped: a signal came; what was computed is kept.
    """
    folder = RunFolder(out)
    models = [models] if isinstance(models, str | os.PathLike) else list(models)
    models, data = [os.fspath(model) for model in models], os.fspath(data)
    with reserved(folder.lock, lambda: _check_out(folder, resume)):
        settings = resolve_probe(overrides)
        asked = _asked(settings, models, data)
        _check_meant(settings, ["what"] if asked is None else asked or QUESTIONS)

        def begin() -> None:
            _begin(folder, resume, models[0] if asked is None else models, data, settings)

        if asked is None:
            return Probe(models[0], data, folder, begin, settings, allow_partial, resume=resume).go()
        return Where(models, data, folder, begin, settings, asked, allow_partial).go()


def _asked(settings: ProbeSettings, models: Sequence[str], data: str) -> list[str] | None:
    """None: what. Else where: its questions by name, none for all that the data can answer. Raises ``InputError``."""
    asked = [name.strip() for name in settings.ask]
    if unknown := [name for name in asked if name not in ("auto", "what", "where", *QUESTIONS)]:
        raise InputError(f"ask {unknown[0]}: there are auto, what, where, {', '.join(QUESTIONS)}")
    where = set(asked) - {"auto", "what"}
    if "what" in asked and (where or len(models) > 1):
        raise InputError(
            "what is asked of one MODEL, and alone; ask where in another command (--resume in the same folder)"
        )
    if "what" in asked:
        return None
    if not where:
        annotated = data.startswith(tuple(f"{name}:" for name in LAYOUTS if name != "scenes"))
        if not (annotated or settings.boxes or len(models) > 1):
            return None
    return [] if "where" in where else sorted(where, key=QUESTIONS.index)


def _called(questions: Sequence[str]) -> str:
    return "where" if len(questions) == len(QUESTIONS) else " and ".join(questions)


def _check_meant(settings: ProbeSettings, asked: Sequence[str]) -> None:
    """Raises ``InputError`` for settings that the questions asked would pass over in silence."""
    plain = ProbeSettings()
    changed = [name for name in MEANT if getattr(settings, name) != getattr(plain, name)]
    faults = [
        f"setting {name} means something to {_called(MEANT[name])}, and {_called(asked)} is asked: leave it "
        "out, or name the questions (--ask)"
        for name in changed
        if not set(asked) & set(MEANT[name])
    ]
    if "what" in asked and settings.linear != "moco":
        faults += [
            f"setting {name} is one of --linear moco, and linear is {settings.linear}: leave it out"
            for name in changed
            if name in ("epochs", "lr")
        ]
    if faults:
        raise InputError("\n".join(faults))


def _begin(
    folder: RunFolder, resume: bool, model: str | Sequence[str], data: str, settings: ProbeSettings
) -> None:
    """Make the folder and save what was asked. Raises ``InputError`` for another linear probe by SGD than is there."""
    if settings.linear == "moco" and folder.settings.is_file() and any(folder.checkpoints.glob("*.ckpt")):
        then = folder.read_settings()
        held = {"model": then.get("model"), "data": then.get("data"), **then.get("settings", {})}
        now = {"model": model, "data": data, **to_dict(settings)}
        differ = changes(held, {name: now[name] for name in LINEAR if name in held})
        if held.get("linear") == "moco" and differ:
            raise InputError(
                f"{folder.path} holds a linear probe by SGD of other settings: {', '.join(differ)}; set them back, or "
                "name a new --out"
            )
    claim(folder.lock, lambda: _check_out(folder, resume))
    tree = {"kind": KIND, "model": model, "data": data, "hetcl": __version__, "settings": to_dict(settings)}
    folder.write_settings(tree)


def _check_out(folder: RunFolder, resume: bool) -> None:
    """Raises ``InputError`` unless the folder is free, or a probe's and to be resumed."""
    held = held_in(folder.path) - {"log.txt"}
    ours = folder.settings.is_file() and folder.read_settings().get("kind") == KIND
    foreign = bool(held) and not ours and held != {"settings.yaml.part"}
    if ours:
        folder.check_kinds()
    check_own(folder.path, "a probe", foreign=foreign, again=ours and not resume)
