"""Folders as the verbs leave them, written by hand in no time: a run of each fate, and tests of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetcl.pretraining.monitors import columns
from hetcl.runs.folder import RunFolder
from hetcl.runs.table import Table
from hetcl.settings import resolve, to_dict

MACHINE = {"hetcl": "0.1.0", "commit": "abc123", "torch": "2", "device": "CPU, 1 thread"}
HOSTILE = "</script><img src=x onerror=hacked()>\"'&"
"""A name that would do something, were it not escaped."""


def row(stage: str, step: int, right: float, *, uniformity: float = -2.0, **more: Any) -> dict[str, Any]:
    """A row of metrics.csv with the figures that every stage has; ``knn`` and parts' besides."""
    common = {"loss": 5.0, "chance": 6.9, "queue_filled": 1.0, "accuracy_queue": right / 2, "lr": 0.1}
    common |= {"accuracy_batch": right, "alignment": 0.5, "uniformity": uniformity}
    return {"stage": stage, "epoch": step // 100, "step": step, **common, **more}


def parts(semantic: float, spatial: float) -> dict[str, float]:
    """Accuracies within the batch of both parts alone, and how they are spread."""
    out = {"semantic_accuracy_batch": semantic, "spatial_accuracy_batch": spatial}
    return out | {"semantic_uniformity": -1.5, "spatial_uniformity": -3.0}


FATES: dict[str, list[dict[str, Any]]] = {
    "good": [
        {"stage": "stage1", "epoch": 0, "step": 0, "knn": 0.10},
        *(row("stage1", 100 * i, 0.1 + 0.05 * i) for i in range(1, 5)),
        *(row("stage2", 100 * i, 0.3 + 0.1 * i, **parts(0.3, 0.4)) for i in range(1, 5)),
        {"stage": "stage2", "epoch": 4, "step": 400, "knn": 0.40},
    ],
    "fell": [
        {"stage": "stage1", "epoch": 0, "step": 0, "knn": 0.40},
        *(row("stage1", 100 * i, 0.1 + 0.05 * i) for i in range(1, 5)),
        *(row("stage2", 100 * i, 0.3 + 0.1 * i, **parts(0.3, 0.4)) for i in range(1, 5)),
        {"stage": "stage2", "epoch": 4, "step": 400, "knn": 0.10},
    ],
    "level": [
        {"stage": "stage1", "epoch": 0, "step": 0, "knn": 0.10},
        *(row("stage1", 100 * i, 0.21 + 0.001 * i) for i in range(1, 5)),
        *(row("stage2", 100 * i, 0.21, **parts(0.21, 0.2)) for i in range(1, 5)),
        {"stage": "stage2", "epoch": 4, "step": 400, "knn": 0.11},
    ],
    "collapsed": [
        *(row("stage1", 100 * i, 0.03, uniformity=-0.00001) for i in range(1, 5)),
        *(row("stage2", 100 * i, 0.03, uniformity=-0.001, **parts(0.03, 0.03)) for i in range(1, 5)),
    ],
    "half": [row("stage1", 100 * i, 0.1 + 0.05 * i) for i in range(1, 3)],
    "new": [{"stage": "stage1", "epoch": 0, "step": 0, "knn": 0.10}],
}
"""What metrics.csv holds of a run with four epochs a stage."""


def make_run(path: Path, fate: str, **changes: Any) -> Path:
    """A run of pre-training; those that ended have a summary."""
    run, init = RunFolder(path), changes.pop("init", None)
    run.path.mkdir(parents=True)
    overrides = {"stage1.epochs": 4, "stage2.epochs": 4, "batch": 32, "log_every": 100, **changes}
    tree = {"data": "scenes:1000", "recipe": "small", "init": init, "hetcl": "0.1.0"}
    run.write_settings(tree | {"settings": to_dict(resolve("small", overrides))})
    table = Table(run.metrics, columns(["moco-v2", "hcl"]))
    for line in FATES[fate]:
        table.append(line)
    Table(run.timing, ("stage", "step", "images_per_second")).append(
        {"stage": "stage1", "step": 100, "images_per_second": 50.0}
    )
    run.log.write_text("2026-11-27 00:00:00 ! mind the queue\n")
    if fate not in ("half", "new"):
        run.write_summary({"data": {"images": 1000}, "machine": MACHINE})
    return path


def figure(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def write(path: Path, name: str, tree: Mapping[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(json.dumps(tree))
    return path


def make_contrast(path: Path, run: Path, *, status: str = "learned", name: str | None = None) -> Path:
    """A contrastive test of ``run``, its random weights and its stage 1."""
    name = name or run.name
    pooled, random, before = f"{name} pooled", "random pooled", f"{name} stage 1 pooled"
    models = [
        {"name": name, "model": str(run), "role": "model", "of": name},
        {"name": pooled, "model": str(run), "role": "backbone", "of": name},
        {"name": random, "model": "random", "role": "random", "of": "random"},
        {
            "name": before,
            "model": f"{run}/checkpoints/stage1.ckpt",
            "role": "before",
            "of": f"{name} stage 1",
        },
    ]
    bins = [{"low": i / 4, "high": (i + 1) / 4, "count": 50, "top1": figure(0.2 * i + 0.1)} for i in range(4)]
    tops = {(name, "full"): 0.5, (name, "semantic"): 0.4, (name, "pca-64"): 0.45, (pooled, "full"): 0.3}
    tops |= {(random, "full"): 0.1, (before, "full"): 0.2}
    results = [
        {
            "model": m,
            "views": "crop",
            "vector": v,
            "total": 64,
            "top5": figure(t + 0.1),
            "mrr": figure(t),
            "bins": bins,
        }
        | {"top1": figure(t)}
        for (m, v), t in tops.items()
    ]
    verdict = {
        "model": name,
        "status": status,
        "judged": pooled,
        "yardstick": random,
        "needed": None,
        "line": "a line",
    }
    part = {"model": name, "views": "crop", "part": "semantic", "alignment": 0.2, "uniformity": -2.0}
    difference = {"views": "crop", "vector": "full", "top1": figure(0.1), "mrr": figure(0.1)}
    return write(
        path,
        "contrast.json",
        {
            "kind": "hetcl-contrast",
            "verdict": [verdict],
            "sentences": ["It learned.", f"{name} is ahead."],
            "data": {"data": "scenes:300"},
            "test": {"gallery": 299},
            "views": {"crop": {}},
            "models": models,
            "results": results,
            "differences": [
                difference | {"models": [pooled, random]},
                difference | {"models": [pooled, before]},
            ],
            "parts": [part | {"effective_rank": 20.0, "margin": 0.1}],
            "machine": MACHINE,
        },
    )


def make_where(path: Path, run: Path, *, against_random: float = 0.1) -> Path:
    """A probe of places of ``run``: its box against random weights and stage 1."""
    name, before = run.name, f"{run.name} stage 1"
    box = {"question": "localization", "measure": "iou", "level": "c4"}
    return write(
        path,
        "where.json",
        {
            "kind": "hetcl-where",
            "sentences": ["It finds boxes."],
            "data": {"data": "scenes:300"},
            "models": [
                {"name": name, "model": str(run), "role": "model"},
                {"name": before, "model": f"{run}/checkpoints/stage1.ckpt", "role": "before"},
                {"name": "random", "model": "random", "role": "random"},
            ],
            "results": [box | {"model": m, "images": 600} | figure(0.5) for m in (name, before, "random")],
            "differences": [
                box | {"first": name, "second": "random"} | figure(against_random),
                box | {"first": name, "second": before} | figure(0.01),
            ],
            "machine": MACHINE,
        },
    )


def make_what(path: Path) -> Path:
    """A probe of labels."""
    return write(
        path,
        "probe.json",
        {
            "kind": "hetcl-probe",
            "sentences": ["Labels are found."],
            "model": {"name": "good", "model": "good"},
            "data": {"data": "scenes:300", "chance": 0.1, "commonest": 0.12, "test_images": 100},
            "knn": {"20": {"top1": figure(0.3)}},
            "linear": {"kind": "lbfgs", "top1": figure(0.4), "top5": figure(0.7)},
            "machine": MACHINE,
        },
    )


def make_detector(path: Path, init: Path, *, label: str = "cat") -> Path:
    """A run of fine-tuning that has ended."""
    run = RunFolder(path)
    run.path.mkdir(parents=True)
    tree = {"kind": "hetcl-finetune", "init": str(init), "data": "coco:mine", "recipe": "tiny-mask-rcnn-fpn"}
    run.write_settings(tree | {"hetcl": "0.1.0", "settings": {"model": "mask-rcnn", "steps": 10, "lr": 0.01}})
    table = Table(run.metrics, ("stage", "epoch", "step", "loss", "loss_mask", "box_ap", "lr"))
    for step in (5, 10):
        table.append(
            {"stage": "finetune", "epoch": 0, "step": step, "loss": 9.0 / step, "loss_mask": 1.0, "lr": 0.1}
        )
    table.append({"stage": "finetune", "epoch": 1, "step": 10, "box_ap": 31.0})
    figures = {"box_ap": 31.0, "box_ap_l": None}
    classes = {label: figures, "dog": figures}
    run.write_summary(
        {"figures": figures, "per_class": classes, "data": {"test": "50 images"}, "machine": MACHINE}
    )
    return path


def make_evaluation(path: Path, run: Path) -> Path:
    """An evaluation of a detector."""
    figures = {"box_ap": 30.0}
    tree = {"kind": "hetcl-evaluation", "run": str(run), "figures": figures, "per_class": {"cat": figures}}
    return write(
        path,
        "evaluation.json",
        tree | {"data": {"data": "coco:mine", "description": "50 images"}, "machine": MACHINE},
    )


def make_reproduction(path: Path, *, label: str = "HCL") -> Path:
    """Two claims of a table, one confirmed and one that was not run."""
    ours = {"values": [1.0, 2.0, 1.5], "mean": 1.5, "low": 0.3, "high": 2.7}
    column = {"task": "coco-fpn-1x", "figure": "box_ap"}
    claims = [
        {"text": f"{label} is above MoCo-v2", "paper": 0.8, "ours": ours, "verdict": "confirmed"},
        {"text": "Stage 1 helps", "paper": 0.5, "ours": None, "verdict": "not run"},
    ]
    claims = [{"condition": "above 0", **claim} for claim in claims]
    rows = [
        {"method": "hcl", "label": label, "paper": [40.0], "ours": [ours], "why_not": [""]},
        {"method": "moco-v1-ig", "label": "MoCo-v1", "paper": [38.9], "ours": [None], "why_not": ["not published"]},
    ]  # fmt: skip
    table = {
        "name": "table1", "title": "COCO", "source": "Table 1", "note": "A note.", "columns": [column], "rows": rows,
        "claims": claims,
    }  # fmt: skip
    cell = {"key": "pretrain/hcl-seed0", "command": "hetcl pretrain", "seconds_of_the_last_process": 3.0}
    tree = {
        "schema": 1, "kind": "hetcl-reproduction", "scale": "mini", "about": "miniature", "seeds": 3,
        "changes": ["smaller"], "data": {"images": "photos"}, "weights": {"moco-v2": "moco:x.pth"},
        "experiments": [table], "cells": [cell], "failed": {"pretrain/x": "no room"}, "cost": None,
        "machine": MACHINE,
    }  # fmt: skip
    return write(path, "reproduction.json", tree)
