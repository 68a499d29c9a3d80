"""The regression from frozen cells to masks, against slow versions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gpu_sections import masks

from hetcl.datasets import open_detection
from hetcl.weights.encoder import load_encoder


@pytest.mark.parametrize("penalty", [0.0, 1e-3, 0.5])
def test_the_sums_give_ridge_regression(penalty: float) -> None:
    n, d, k = 200, 7, 3
    x, y = torch.randn(n, d) @ torch.randn(d, d) + 5, torch.randn(n, k) + 2
    sums = masks.Sums()
    for rows in torch.arange(n).split([1, 60, 139]):
        sums.add(x[rows], y[rows])
    weights, intercept = sums.solve(penalty)
    # Least squares on centred rows, with a row for each weight that pulls it to zero.
    a, b = x.double().numpy(), y.double().numpy()
    pull = np.sqrt(penalty * a.var(axis=0).mean() * n) * np.eye(d)
    expected = np.linalg.lstsq(
        np.vstack([a - a.mean(0), pull]), np.vstack([b - b.mean(0), np.zeros((d, k))]), rcond=None
    )[0]
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(intercept.numpy(), b.mean(0) - a.mean(0) @ expected, rtol=1e-9)


def test_the_score_against_its_definition() -> None:
    said, y = torch.rand(50, 3, dtype=torch.float64), torch.rand(50, 3, dtype=torch.float64)
    y[:, 2] = 0.25  # a class that does not vary says nothing
    score = masks.Score()
    for rows in torch.arange(50).split(20):
        score.add(said[rows], y[rows])
    a, b = said.numpy(), y.numpy()
    r2 = 1 - ((a - b) ** 2).sum(0) / np.maximum(((b - b.mean(0)) ** 2).sum(0), 1e-30)
    found, there = a[:, 0] >= 0.5, b[:, 0] >= 0.5
    figures = score.figures()
    assert figures["r2"] == pytest.approx(r2[0])
    assert figures["r2_classes"] == pytest.approx(r2[1])
    assert figures["iou"] == pytest.approx((found & there).sum() / (found | there).sum())


def test_targets_are_the_share_of_each_cell_that_objects_cover() -> None:
    data = open_detection("scenes:3@64", "train")
    pixels = masks.targets(data, 1)
    cover = masks.cells(torch.nn.functional.adaptive_avg_pool2d(pixels[None], (16, 16))).numpy()
    truth, whole = data.annotations(1), data._draw(1)
    for row, column in ((0, 0), (5, 9), (8, 8), (15, 3)):
        window = whole.masks[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        here = cover[row * 16 + column]
        assert here[0] == pytest.approx(window.any(0).mean())
        for label in range(len(data.classes)):
            mine = window[truth.labels == label]
            assert here[1 + label] == pytest.approx(mine.any(0).mean() if len(mine) else 0.0)


def test_maps_that_know_the_masks_explain_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that draws the objects' cover into its maps is found out; one of noise is not."""
    encoder = load_encoder("timm:test_resnet:random")
    train, test = (open_detection("scenes:40@32", part) for part in ("train", "val"))
    real, seen = masks.targets, []

    def remembered(data: Any, index: int) -> torch.Tensor:
        seen.append(real(data, index))
        return seen[-1]

    def cheat(images: torch.Tensor) -> list[torch.Tensor]:
        here = torch.stack(seen[-len(images) :])
        return [torch.nn.functional.adaptive_avg_pool2d(here, s) * 3 + 1 for s in (8, 4, 2)] + [
            torch.randn(len(images), 5, 1, 1)
        ]

    monkeypatch.setattr(masks, "targets", remembered)
    known = SimpleNamespace(pyramid=SimpleNamespace(to=lambda _: cheat), facts=encoder.facts)
    found = masks.regress(known, train, test, size=32, device=torch.device("cpu"), most=40, batch=16)  # type: ignore[arg-type]
    for level in ("c2", "c3", "c4"):
        assert found[level]["r2"] > 0.99
        assert found[level]["r2_classes"] > 0.99
    assert found["c2"]["iou"] > 0.8, "cells of just half an object may fall on either side"
    assert found["c5"]["r2"] < 0.1
