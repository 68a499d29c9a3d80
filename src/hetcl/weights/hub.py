"""The form in which model hubs keep a model: a folder of weights, ``config.json`` and a ``README.md`` with a header.

timm reads it from disk (``local-dir:FOLDER``) and from the Hugging Face Hub (``hf-hub:USER/NAME``) alike. The rest of
the README is the card of every export (``cards.py``). Free of torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from hetcl.weights.cards import Facts

WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"
PARTS = (WEIGHTS, CONFIG, README)
"""The files of the folder; the card is put there last."""


def config(facts: Facts, name: str, features: int, published: Mapping[str, Any]) -> bytes:
    """``config.json`` as timm reads it: the architecture without a classifier, and how images are given to it.

    Args:
        name: timm's, without a tag.
        features: numbers after pooling, for readers.
        published: timm's own configuration of the architecture; where the size is fixed it is the one there.
    """
    fixed = bool(published.get("fixed_input_size"))
    size = published["input_size"][-1] if fixed or not facts.size else facts.size
    kept = ("interpolation", "crop_pct", "first_conv", "classifier")
    about = {key: published[key] for key in kept if published.get(key) is not None}
    about |= {
        "input_size": [facts.in_chans, size, size],
        "fixed_input_size": fixed,
        "mean": list(facts.mean),
        "std": list(facts.std),
        "num_classes": 0,
        "license": "other",
    }
    tree = {"architecture": name, "num_classes": 0, "num_features": features, "pretrained_cfg": about}
    if facts.in_chans != 3:
        tree["model_args"] = {"in_chans": facts.in_chans}
    return (json.dumps(tree, indent=2) + "\n").encode()


def header(name: str, facts: Facts, run: Mapping[str, Any] | None) -> str:
    """The YAML in front of the README, by which hubs list a model; what is not known is left out.

    Args:
        name: of the folder.
        run: as ``writers.run_of`` gives it.
    """
    import yaml

    run = run or {}
    data = PurePath(str(run.get("data") or "")).name
    named = bool(re.fullmatch(r"[\w.-]+", data)) and ":" not in str(run.get("data"))
    tree: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "license": "other",
        "license_name": "terms-of-the-weights-owner",
        "tags": [
            *(
                "timm",
                "image-feature-extraction",
                "self-supervised-learning",
                "contrastive-learning",
                "hetcl",
            ),
            *dict.fromkeys(facts.method),
        ],
    }
    if named:
        tree["datasets"] = [data]
    if isinstance(run.get("knn"), int | float):
        tree["metrics"] = ["accuracy"]
        found = {
            "type": "accuracy",
            "name": "kNN top-1 of frozen features",
            "value": round(100 * run["knn"], 2),
        }
        result = {
            "task": {"type": "image-feature-extraction"},
            "dataset": {"name": data if named else "the run's own", "type": data if named else "unnamed"},
            "metrics": [found],
        }
        tree["model-index"] = [{"name": name, "results": [result]}]
    return f"---\n{yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)}---\n\n"
