"""hetcl: pre-train vision backbones that know where things are.

``hetcl.pretrain(data=..., out=..., recipe=...)`` does what the command does; the parts for one's own loop are here too.
Everything is loaded on first use, so that ``import hetcl`` costs nothing.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "pretrain": "hetcl.pretraining.run",
    "contrast": "hetcl.analysis.contrast.run",
    "probe": "hetcl.analysis.probe.run",
    "embed": "hetcl.analysis.embed",
    "export": "hetcl.weights.exporters",
    "export_predictor": "hetcl.downstream.predictor_graph",
    "finetune": "hetcl.downstream.finetune",
    "evaluate": "hetcl.downstream.evaluate",
    "predict": "hetcl.downstream.predictions",
    "report": "hetcl.reporting.page",
    "reproduce": "hetcl.reproduce.run",
    "load_finetuned": "hetcl.downstream.trained",
    "load_backbone": "hetcl.weights.sources",
    "Embedding": "hetcl.model.embedding",
    "SemanticBranch": "hetcl.model.branches",
    "SpatialBranch": "hetcl.model.branches",
    "MomentumPair": "hetcl.model.momentum",
    "KeyQueue": "hetcl.model.queue",
    "info_nce": "hetcl.model.infonce",
    "build_pyramid": "hetcl.model.pyramid",
    "register_backbone": "hetcl.model.own_backbone",
}
__all__ = ["__version__", *_HOME]

if "torch" not in sys.modules:
    # OpenMP's threads sleep while they wait for each other, unless the user has said how they should wait: awake they
    # take the time of the very thread that they wait for (bench/busy.py). Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from hetcl.analysis.contrast.run import contrast as contrast
    from hetcl.analysis.embed import embed as embed
    from hetcl.analysis.probe.run import probe as probe
    from hetcl.downstream.evaluate import evaluate as evaluate
    from hetcl.downstream.finetune import finetune as finetune
    from hetcl.downstream.predictions import predict as predict
    from hetcl.downstream.predictor_graph import export_predictor as export_predictor
    from hetcl.downstream.trained import load_finetuned as load_finetuned
    from hetcl.model.branches import SemanticBranch as SemanticBranch
    from hetcl.model.branches import SpatialBranch as SpatialBranch
    from hetcl.model.embedding import Embedding as Embedding
    from hetcl.model.infonce import info_nce as info_nce
    from hetcl.model.momentum import MomentumPair as MomentumPair
    from hetcl.model.own_backbone import register_backbone as register_backbone
    from hetcl.model.pyramid import build_pyramid as build_pyramid
    from hetcl.model.queue import KeyQueue as KeyQueue
    from hetcl.pretraining.run import pretrain as pretrain
    from hetcl.reporting.page import report as report
    from hetcl.reproduce.run import reproduce as reproduce
    from hetcl.weights.exporters import export as export
    from hetcl.weights.sources import load_backbone as load_backbone


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hetcl' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
