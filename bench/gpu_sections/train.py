"""The evidence run: both stages and a MoCo-v2 twin of equal length, for the minutes there are; then what they learned.

ResNet-18 at 64 pixels, the recipe ``small`` at a batch of 256: the queues hold as many steps as there. How many epochs
come from the rate that a few seconds of training reach, so that both runs and the tests fit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hetcl
from gpu_sections import masks
from gpu_sections.loader import paced
from gpu_sections.section import Section
from gpu_sections.stages import fabric_on, precision_for, stage_of
from hetcl.datasets import open_detection
from hetcl.images.sources import open_source
from hetcl.runs.folder import RunFolder
from hetcl.training.devices import chosen_kernels, workers_of
from hetcl.views.loader import ViewLoader
from hetcl.views.policies import POLICIES
from hetcl.weights.encoder import load_encoder

FIGURES = (
    "loss",
    "accuracy_queue",
    "accuracy_batch",
    "semantic_accuracy_batch",
    "spatial_accuracy_batch",
    "knn",
    "lr",
)
"""Of metrics.csv, in the learning curve."""


@dataclass(frozen=True)
class Scale:
    """Sizes of the runs and of what follows them."""

    backbone: str
    size: int
    batch: int
    groups: int
    queues: tuple[int, int]
    """Of the stages: 8 and 32 steps."""
    data: str
    """Where no shards are given."""
    scenes: str
    """With masks, where no set is given."""
    tested: int
    """Images of the contrastive test, the probes and the masks."""
    reserve: float
    """Seconds for the tests."""
    start: float
    """Seconds that a run takes besides training."""


FULL = Scale("torchvision:resnet18", 64, 256, 8, (2048, 8192), "scenes:20000", "scenes:1500@64", 4000, 40, 8)
TOY = Scale("timm:test_resnet", 32, 16, 2, (32, 64), "scenes:64", "scenes:8@32", 64, 0, 0)
MOST = 200
"""Epochs of a run, at most."""


def run(section: Section) -> None:
    """Rate, both runs, then the tests of each."""
    scale = TOY if section.toy else FULL
    data = section.shards or scale.data
    found: dict[str, Any] = {}

    def calibrate() -> dict[str, Any]:
        found["rate"], images = rate(section, scale, data)
        left = section.left - scale.reserve - 2 * scale.start
        epochs = 2 if section.toy else int(0.75 * left * found["rate"] / (2 * images))
        if epochs < 2:
            raise RuntimeError(f"{left:.0f} s are too few for two epochs of {images} images in both runs")
        found["epochs"] = min(MOST, epochs)
        return {"images_per_second": found["rate"], "images": images, "epochs": found["epochs"]}

    if not section.attempt("rate", calibrate, cap=25):
        return
    epochs = found["epochs"]
    second = max(1, epochs // 3)
    runs = {"hcl": (epochs - second, second), "moco-v2 twin": (epochs, 0)}
    models: dict[str, str] = {}
    for name, stages in runs.items():
        out = section.work / name.replace(" ", "-")
        if section.attempt(
            name, lambda s=stages, o=out: trained(section, scale, data, o, s), cap=section.left
        ):
            models[name] = str(out)
    models["random weights"] = f"{scale.backbone}:random"
    for name, model in models.items():
        section.attempt(
            f"probe of {name}", lambda m=model, n=name: probed(section, scale, data, m, n), cap=30
        )
    for name, model in models.items():
        section.attempt(f"masks from {name}", lambda m=model: regressed(section, scale, m), cap=20)
    section.attempt("contrastive test", lambda: contrasted(section, scale, data, models), cap=40)


def rate(section: Section, scale: Scale, data: str) -> tuple[float, int]:
    """Images a second of stage 2 from the data, and how many images there are."""
    source = open_source(data, folder_classes=True)
    loader = ViewLoader(
        source, policy=POLICIES["hcl"], size=scale.size, batch=scale.batch, seed=0, stage="rate",
        workers=workers_of(-1), pin=section.device.type == "cuda",
    )  # fmt: skip
    fabric = fabric_on(section.device, precision_for(section.device))
    stage = stage_of(
        "stage 2", fabric=fabric, loader=loader, backbone=scale.backbone, size=scale.size, batch=scale.batch,
        groups=scale.groups, queue=scale.queues[1], spatial={"side": scale.size // 16, "width": 64},
    )  # fmt: skip

    def batches() -> Any:
        epoch = 0
        while True:
            yield from stage.batches(epoch, 0)
            epoch += 1

    seconds = 0.2 if section.toy else 4.0
    numbers = iter(range(10**9))
    with contextlib.closing(stage), chosen_kernels(deterministic=False):
        found = paced(batches(), lambda b: stage.step(b, next(numbers)), section.device, seconds)
    return found["images_per_second"], len(source)


def trained(section: Section, scale: Scale, data: str, out: Path, stages: tuple[int, int]) -> dict[str, Any]:
    """One run through ``hetcl.pretrain``, and its learning curve."""
    epochs = sum(stages)
    began = time.monotonic()
    folder = hetcl.pretrain(
        data=data,
        out=out,
        recipe="small",
        overrides={
            "backbone": scale.backbone, "size": scale.size, "batch": scale.batch, "groups": scale.groups,
            "spatial": {"side": max(2, scale.size // 8)}, "device": section.device.type, "folder_classes": True,
            "stage1": {"epochs": stages[0], "lr": 0.15, "queue": scale.queues[0]},
            "stage2": {"epochs": stages[1], "lr": 0.03, "queue": scale.queues[1]},
            "knn": {"every": max(1, epochs // 8), "bank": 5000, "queries": 1000},
            "compile": False,
            "log_every": 10**6,
        },
    )  # fmt: skip
    seconds = time.monotonic() - began
    curve = [
        {k: row[k] for k in ("stage", "epoch", "step", *FIGURES) if k in row} for row in folder.read_metrics()
    ]
    images = len(open_source(data, folder_classes=True))
    return {"epochs": list(stages), "images_per_second": epochs * images / seconds, "curve": curve}


def probed(section: Section, scale: Scale, data: str, model: str, name: str) -> dict[str, Any]:
    """kNN and linear probe through ``hetcl.probe``."""
    report = hetcl.probe(
        model,
        data=data,
        out=section.work / f"probe-{name.replace(' ', '-')}",
        overrides={
            "knn": [20],
            "size": scale.size,
            "images": scale.tested,
            "device": section.device.type,
            "workers": workers_of(-1),
        },
    )
    return {"knn": report["knn"], "linear": report["linear"]}


def regressed(section: Section, scale: Scale, model: str) -> dict[str, Any]:
    """Frozen maps against masks."""
    train, test = (open_detection(section.masks or scale.scenes, part) for part in ("train", "val"))
    levels = masks.regress(
        load_encoder(model), train, test, size=scale.size, device=section.device, most=scale.tested
    )
    return {"levels": levels, "data": train.description}


def contrasted(section: Section, scale: Scale, data: str, models: Mapping[str, str]) -> dict[str, Any]:
    """The contrastive test through ``hetcl.contrast``, of all runs on the same views."""
    runs = [m for m in models.values() if RunFolder(m).settings.is_file()]
    report = hetcl.contrast(
        runs,
        data=data,
        out=section.work / "contrast",
        overrides={
            "images": scale.tested, "gallery": max(8, scale.tested // 2), "dims": [16] if section.toy else [16, 64],
            "examples": 0, "size": scale.size, "device": section.device.type, "workers": workers_of(-1),
        },
    )  # fmt: skip
    keys = ("model", "views", "vector", "top1")
    return {"results": [{k: row[k] for k in keys} for row in report["results"]]}
