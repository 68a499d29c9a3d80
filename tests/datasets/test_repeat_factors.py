"""LVIS's repeat factors, against a naive loop."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from hetcl.datasets import open_detection
from hetcl.datasets.annotations import DetectionSet
from hetcl.datasets.repeat_factors import repeat_factors
from tests.downstream import layouts


def naive(data: DetectionSet, threshold: float) -> list[float]:
    factors = []
    truths = [data.annotations(i) for i in range(len(data))]
    for truth in truths:
        best = 1.0
        for label in truth.labels.tolist():
            share = sum(label in other.labels.tolist() for other in truths) / len(truths)
            best = max(best, math.sqrt(threshold / share))
        factors.append(best)
    return factors


@pytest.mark.parametrize("threshold", [0.001, 0.3, 0.8])
@pytest.mark.parametrize("kind", ["lvis", "scenes"])
def test_repeat_factors(tmp_path: Path, threshold: float, kind: str) -> None:
    layouts.write_lvis(tmp_path, train=12)
    data = open_detection(f"lvis:{tmp_path}" if kind == "lvis" else "scenes:20@48", "train")
    factors = repeat_factors(data, threshold)
    assert factors.dtype == np.float64
    assert np.allclose(factors, naive(data, threshold), rtol=1e-15, atol=0)
    assert (factors.max() > 1) == (threshold > 0.1)


def test_a_image_without_objects_is_seen_once(tmp_path: Path) -> None:
    layouts.write_coco(tmp_path, train=3, masks=None)
    path = tmp_path / "annotations" / "instances_train2017.json"
    document = layouts.coco_document(
        [(f"{i:012d}.jpg", layouts.scene_of("train", i)) for i in range(3)], None
    )
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != 101]
    layouts.write_json(path, document)
    factors = repeat_factors(open_detection(f"coco:{tmp_path}", "train"), 100.0)
    assert factors[1] == 1
    assert factors[0] > 1
