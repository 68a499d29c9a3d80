"""Made-up content of contrast.json."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from hetcl.views.policies import POLICIES


def e(value: float, half: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def report(
    models: dict[str, dict[str, int]],
    *,
    level: dict[str, float] | None = None,
    views: tuple[str, ...] = ("crop", "standard"),
    dims: tuple[int, ...] = (64, 96, 128),
    splits: tuple[float, ...] = (0.5,),
    bins: int = 5,
    gallery: int = 4999,
    ties: float = 0.0,
) -> dict[str, Any]:
    """Models by name with the dimensions of their parts; ``level`` is the top-1 of each full vector."""
    level = level or {name: 0.6 - 0.1 * i for i, name in enumerate(models)}
    results, parts = [], []
    for v in views:
        for name, own in models.items():
            vectors: dict[str, dict[str, int]] = {"full": own}
            if len(own) > 1:
                vectors |= {p: {p: d} for p, d in own.items()}
            for total in dims:
                for split in splits if len(own) > 1 else (0.5,):
                    label = f"pca-{total}" if split == 0.5 else f"pca-{total}@{split:g}"
                    last = round(total * split)
                    shared = (
                        dict(zip(own, (total - last, last), strict=True))
                        if len(own) > 1
                        else dict.fromkeys(own, total)
                    )
                    vectors[label] = {p: d for p, d in shared.items() if d}
            for k, (label, d) in enumerate(vectors.items()):
                top = max(0.0, level[name] - 0.001 * k)
                edges = np.linspace(0, 1, bins + 1).tolist()
                rows = [{"low": 0.0, "high": 0.0, "count": 0, "top1": None}]
                rows += [
                    {"low": a, "high": b, "count": 1000, "top1": e(min(0.98, top * (0.2 + b)))}
                    for a, b in pairwise(edges)
                ]
                results.append(
                    {
                        "model": name,
                        "views": v,
                        "vector": label,
                        "dims": d,
                        "total": sum(d.values()),
                        "variance_kept": None,
                        "top1": e(top),
                        "top5": e(min(0.99, top + 0.1)),
                        "mrr": e(top),
                        "ties": ties,
                        "bins": rows,
                    }
                )
            parts += [
                {
                    "model": name,
                    "views": v,
                    "part": p,
                    "alignment": 0.4,
                    "uniformity": -3.0,
                    "effective_rank": 20.0,
                    "right": 0.8,
                    "wrong": 0.5,
                    "share_right": 0.5,
                    "share_wrong": 0.5,
                    "margin": 0.3,
                }
                for p in own
            ]
    names, differences = list(models), []
    for v in views:
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                for label in ("full", *(f"pca-{t}" for t in dims)):
                    differences.append(
                        {
                            "views": v,
                            "vector": label,
                            "models": [a, b],
                            "top1": e(level[a] - level[b]),
                            "mrr": e(level[a] - level[b]),
                        }
                    )
    return {
        "schema": 1,
        "kind": "hetcl-contrast",
        "data": {
            "data": "photos",
            "description": "5,000 images",
            "fingerprint": "x",
            "images": 5000,
            "left_out": 0,
        },
        "test": {
            "queries": gallery + 1,
            "gallery": gallery,
            "chance": 1 / (gallery + 1),
            "batch": 256,
            "seed": 0,
            "confidence": 0.95,
            "bins": np.linspace(0, 1, bins + 1).tolist(),
        },
        "views": {
            v: {
                "policy": vars(POLICIES[v]),
                "no_overlap": e(0.001, 0.0005),
                "mean_iou": 1.0 if v == "none" else 0.45,
            }
            for v in views
        },
        "models": [
            {
                "name": n,
                "model": n,
                "arch": "a",
                "features": "embedding",
                "size": 48,
                "dims": d,
                "weights": "w",
            }
            for n, d in models.items()
        ],
        "results": results,
        "parts": parts,
        "differences": differences,
        "skipped": [],
        "sentences": [],
    }


HCL, MOCO = {"semantic": 128, "spatial": 144}, {"semantic": 128}
