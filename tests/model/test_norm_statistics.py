"""Measuring batch norms' statistics against plain sums, and what is measured by itself: random weights."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hetcl.errors import InputError
from hetcl.images.scenes import ScenesSource
from hetcl.model.norm_statistics import is_unmeasured, measuring
from hetcl.model.pyramid import build_pyramid
from hetcl.pretraining import knn_check
from hetcl.pretraining.knn_check import KnnCheck
from hetcl.types import BadImage, Sample


def test_statistics_are_means_over_batches() -> None:
    model = (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5)).double().train()
    )
    assert is_unmeasured(model)
    batches = [torch.randn(n, 3, 5, 5, dtype=torch.float64) for n in (2, 7, 3)]
    with torch.no_grad(), measuring(model):
        for batch in batches:
            model(batch)
    norm: Any = model[1]
    with torch.no_grad():
        seen = [model[0](batch).transpose(0, 1).flatten(1) for batch in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack([s.mean(1) for s in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([s.var(1) for s in seen]).mean(0))
    assert norm.momentum == 0.3
    assert not any(m.training for m in model.modules())
    assert not is_unmeasured(model)


def test_what_needs_no_measuring() -> None:
    assert not is_unmeasured(nn.Sequential(nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False)))
    trained = nn.BatchNorm1d(3).train()
    trained(torch.randn(4, 3))
    assert not is_unmeasured(nn.Sequential(nn.BatchNorm1d(3), trained))


def test_the_knn_check_of_images_that_cannot_be_used_says_why() -> None:
    class Broken(ScenesSource):
        def sample(self, index: int) -> Sample:
            raise BadImage("is gone")

    fabric: Any = SimpleNamespace(global_rank=0)
    check = KnnCheck(
        Broken(20), None, fabric=fabric, bank=9, queries=4, k=3, size=32, batch=4, seed=0, window=0, workers=0,
        dtype=torch.float32, channels_last=False,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"none of 9 images can be used, e\.g\. is gone"):
        check.accuracy(nn.Identity())


def test_the_knn_check_measures_random_weights_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure is that of measured statistics, and what is about to be trained stays as it was."""
    monkeypatch.setattr(knn_check, "MEASURED", 20)
    source = ScenesSource(48)
    fabric: Any = SimpleNamespace(
        global_rank=0, device=torch.device("cpu"), autocast=lambda: torch.autocast("cpu", enabled=False)
    )
    check = KnnCheck(
        source, None, fabric=fabric, bank=30, queries=9, k=3, size=32, batch=8, seed=0, window=0, workers=0,
        dtype=torch.float32, channels_last=False,
    )  # fmt: skip
    pyramid = build_pyramid("timm:test_resnet", seed=0).train()
    before = copy.deepcopy(pyramid.state_dict())
    seen: list[dict[str, torch.Tensor]] = []
    features = check._features

    def watched(p: nn.Module, s: Any, indices: np.ndarray) -> Any:
        seen.append({k: v.clone() for k, v in p.state_dict().items()} | {"n": torch.tensor(len(indices))})
        return features(p, s, indices)

    monkeypatch.setattr(check, "_features", watched)
    check.accuracy(pyramid.eval())
    torch.testing.assert_close(pyramid.state_dict(), before)
    means = [name for name in before if name.endswith("running_mean")]
    assert [int(s["n"]) for s in seen] == [16, 30, 9]  # whole batches are measured
    assert all(bool(seen[1][name].any()) for name in means)
    torch.testing.assert_close(seen[1] | {"n": 0}, seen[2] | {"n": 0})
