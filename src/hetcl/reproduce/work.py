"""One cell: its verb is called, then its figures are read from what the verb wrote."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hetcl.errors import WorkFailed
from hetcl.reproduce.cells import COMPUTE, Cell, words_of
from hetcl.runs.files import write_atomic
from hetcl.runs.folder import RunFolder
from hetcl.settings import (
    flatten,
    resolve,
    resolve_contrast,
    resolve_finetune,
    resolve_probe,
    to_dict,
)

Figures = dict[str, dict[str, float]]
"""Method -> figure -> value, in percent."""
PLACES = {
    ("localization", "iou", "c4"): "iou",
    ("localization", "found75", "c4"): "found75",
    ("correspondence", "pck1", "c4"): "pck1",
}
"""Question, measure and level of ``where.json`` -> figure."""


def settings_of(cell: Cell, words: Sequence[str]) -> dict[str, Any]:
    """Method -> the settings that a cell has with these words; of all but ``pace`` there is one, ``""``.

    Raises:
        InputError: they cannot be used.
    """
    if cell.verb == "pace":
        return {m: resolve(way.recipe, [*words_of(way.settings), *words]) for m, way in cell.timed.items()}
    made: dict[str, Callable[[], Any]] = {
        "pretrain": lambda: resolve(cell.recipe, words),
        "finetune": lambda: resolve_finetune(cell.recipe, words),
        "contrast": lambda: resolve_contrast(words),
        "probe": lambda: resolve_probe(words),
    }
    return {"": made[cell.verb]()}


def contents(cell: Cell, out: Path) -> dict[str, Any]:
    """All that the figures of a cell are a function of, by dotted name, whatever it is computed on."""
    settings = {m: to_dict(s) for m, s in settings_of(cell, words_of(cell.settings)).items()}
    models = {m: model.removeprefix(f"{out}/") for m, model in cell.models.items()}
    tree = {
        "models": models,
        "data": cell.data,
        "at": list(cell.at),
        "rounds": cell.rounds,
        "settings": settings,
    }
    plain: dict[str, Any] = json.loads(json.dumps(flatten(tree)))
    return {k: v for k, v in plain.items() if k.rpartition(".")[2] not in COMPUTE}


def work(cell: Cell, out: Path, *, quiet: bool) -> Figures:
    """Do a cell, or go on with it; its figures.

    Args:
        out: the folder of the reproduction.
        quiet: the verb keeps its words to its log.

    Raises:
        InputError, WorkFailed, Stopped: as the verb.
    """
    folder = out / cell.key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        return VERBS[cell.verb](cell, folder)


def _pretrain(cell: Cell, folder: Path) -> Figures:
    from hetcl.pretraining.run import pretrain

    init = next(iter(cell.models.values()), None)
    pretrain(data=cell.data, out=folder, recipe=cell.recipe, init=init, resume=True, overrides=cell.words)
    return {}


def _finetune(cell: Cell, folder: Path) -> Figures:
    from hetcl.downstream.finetune import finetune

    ((method, model),) = cell.models.items()
    run: RunFolder = finetune(
        init=model, data=cell.data, out=folder, recipe=cell.recipe, resume=True, overrides=cell.words
    )
    summary = run.read_summary()
    if not summary:
        raise WorkFailed(f"{run.summary} is damaged: remove {run.path}, and give the command again")
    figures = {k: float(v) for k, v in summary["figures"].items() if v is not None}
    found = dict(figures)
    rows = [row for row in run.read_metrics() if any(k in row for k in figures)]
    last = max((float(row["step"]) for row in rows), default=1.0)
    for at in cell.at:
        if at < 1:
            row = min(rows, key=lambda r: abs(float(r["step"]) / last - at))
            found |= {f"{k}@{at:g}": float(row[k]) for k in figures if k in row}
    return {method: found}


def _contrast(cell: Cell, folder: Path) -> Figures:
    from hetcl.analysis.contrast.run import contrast

    report = contrast(
        list(cell.models.values()), data=cell.data, out=folder, resume=True, overrides=cell.words
    )
    named = {m["name"]: m["model"] for m in report["models"] if m["role"] == "model"}
    found: Figures = {method: {} for method in cell.models}
    for row in report["results"]:
        for method in (m for m, model in cell.models.items() if named.get(row["model"]) == model):
            if row["vector"] == "full":
                found[method] |= {"top1": 100 * row["top1"]["value"]} | _by_overlap(row["bins"])
            elif row["vector"].startswith("pca-"):
                found[method][row["vector"]] = 100 * row["top1"]["value"]
    return found


def _by_overlap(bins: list[Mapping[str, Any]]) -> dict[str, float]:
    """Accuracy in bins of overlap that are 0.2 wide, each called by its middle; of 10 pairs and more."""
    found = {}
    for middle in (0.1, 0.3, 0.5, 0.7, 0.9):
        inside = [b for b in bins if b["high"] > 0 and abs((b["low"] + b["high"]) / 2 - middle) < 0.1]
        pairs = sum(b["count"] for b in inside)
        if pairs >= 10:
            found[f"iou-{middle}"] = 100 * sum(b["count"] * b["top1"]["value"] for b in inside) / pairs
    return found


def _probe(cell: Cell, folder: Path) -> Figures:
    from hetcl.analysis.probe.run import probe

    probe(list(cell.models.values()), data=cell.data, out=folder, resume=True, overrides=cell.words)
    report = json.loads((folder / "where.json").read_bytes())
    methods = {m["name"]: method for m in report["models"] for method, model in cell.models.items()
               if m["role"] == "model" and m["model"] == model}  # fmt: skip
    methods |= {m["name"]: "random" for m in report["models"] if m["role"] == "random"}
    found: Figures = {}
    for row in report["results"]:
        figure = PLACES.get((row["question"], row["measure"], row["level"]))
        if figure and row["model"] in methods:
            found.setdefault(methods[row["model"]], {})[figure] = 100 * row["value"]
    return found


def _pace(cell: Cell, folder: Path) -> Figures:
    """How much longer a step of stage 2 takes than one of stage 1: the median over rounds that take turns."""
    from hetcl.pretraining.pace import measure_step
    from hetcl.training.devices import make_fabric

    settings = settings_of(cell, cell.words)
    some = next(iter(settings.values()))
    fabric = make_fabric(device=some.device, devices=1, precision=some.precision, threads=some.threads)
    ratios: dict[str, list[float]] = {method: [] for method in settings}
    for _ in range(cell.rounds):
        first = measure_step(some, some.stage1, fabric=fabric).images_per_second
        for method, s in settings.items():
            ratios[method].append(first / measure_step(s, s.stage2, fabric=fabric).images_per_second)
    folder.mkdir(exist_ok=True)
    write_atomic(
        folder / "pace.json", json.dumps({"stage 2 over stage 1, by round": ratios}, indent=1).encode()
    )
    return {m: {"more_than_stage1": 100 * (statistics.median(values) - 1)} for m, values in ratios.items()}


VERBS: dict[str, Callable[[Cell, Path], Figures]] = {
    "pretrain": _pretrain, "finetune": _finetune, "contrast": _contrast, "probe": _probe, "pace": _pace,
}  # fmt: skip
