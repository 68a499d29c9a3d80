"""What frozen maps know of where things are: ridge regression from the cells of C2..C5 to the masks, in closed form.

A row is a cell of a level's map; its features are the map's channels there, its targets the share of the cell that
objects cover: of any class first, then of each class. Only sums of products are kept, so no number of images is too
many. Shapes: B images, S side of a map, D channels, K targets, n rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hetcl.datasets.annotations import DetectionSet
from hetcl.datasets.masks import bitmap
from hetcl.downstream.models.scaling import normalized
from hetcl.types import BadImage
from hetcl.weights.encoder import Encoder

LEVELS = ("c2", "c3", "c4", "c5")
PENALTY = 1e-3
"""Of the squared weights, relative to the features' mean variance."""
OBJECT = 0.5
"""Share of a cell that must be covered for it to count as an object's."""


@dataclass
class Sums:
    """Sums over rows that decide a linear map with an intercept; float64."""

    n: int = 0
    x: Any = 0.0
    """``[D]``."""
    y: Any = 0.0
    """``[K]``."""
    xx: Any = 0.0
    """``[D, D]``."""
    xy: Any = 0.0
    """``[D, K]``."""

    def add(self, x: Tensor, y: Tensor) -> None:
        """More rows: ``[n, D]`` and ``[n, K]``."""
        x, y = x.double(), y.double()
        self.n += len(x)
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
        self.xx, self.xy = self.xx + x.t() @ x, self.xy + x.t() @ y

    def solve(self, penalty: float = PENALTY) -> tuple[Tensor, Tensor]:
        """Weights ``[D, K]`` and intercept ``[K]`` that minimise the mean squared error plus the penalty."""
        x, y = self.x / self.n, self.y / self.n
        covariance = self.xx / self.n - torch.outer(x, x)
        ridge = penalty * covariance.diagonal().mean() * torch.eye(len(x), dtype=x.dtype, device=x.device)
        weights = torch.linalg.solve(covariance + ridge, self.xy / self.n - torch.outer(x, y))
        return weights, y - x @ weights


@dataclass
class Score:
    """How well targets are met on rows that were not fitted."""

    n: int = 0
    error: Any = 0.0
    """Summed squared error, ``[K]``; with it, the sums of targets and of their squares."""
    y: Any = 0.0
    square: Any = 0.0
    both: int = 0
    """Cells that are an object's in truth and prediction; ``either``: in one of them."""
    either: int = 0

    def add(self, stated: Tensor, y: Tensor) -> None:
        """More rows: ``[n, K]`` both."""
        self.n += len(y)
        self.error = self.error + (stated - y).square().sum(0)
        self.y, self.square = self.y + y.sum(0), self.square + y.square().sum(0)
        found, there = stated[:, 0] >= OBJECT, y[:, 0] >= OBJECT
        self.both += int((found & there).sum())
        self.either += int((found | there).sum())

    def figures(self) -> dict[str, float]:
        """Share of the variance explained: of any object, and on average of the classes that occur; IoU of cells."""
        variance = self.square - self.y.square() / self.n
        explained = 1 - self.error / variance
        classes = explained[1:][variance[1:] > 0]
        return {
            "r2": float(explained[0]),
            "r2_classes": float(classes.mean()) if len(classes) else float("nan"),
            "iou": self.both / max(1, self.either),
        }


@dataclass
class Regression:
    """One level: what was summed, then what was found."""

    sums: Sums = field(default_factory=Sums)
    score: Score = field(default_factory=Score)


def regress(
    encoder: Encoder,
    train: DetectionSet,
    test: DetectionSet,
    *,
    size: int,
    device: torch.device,
    most: int,
    batch: int = 64,
) -> dict[str, dict[str, float]]:
    """Fit on the first ``most`` images of ``train``, score on those of ``test``; figures by level.

    Images and masks are squeezed to ``size x size``.
    """
    pyramid = encoder.pyramid.to(device)
    levels = {name: Regression() for name in LEVELS}
    for rows in _rows(pyramid, encoder, train, size, device, most, batch):
        for name, (x, y) in rows.items():
            levels[name].sums.add(x, y)
    solved = {name: level.sums.solve() for name, level in levels.items()}
    for rows in _rows(pyramid, encoder, test, size, device, most, batch):
        for name, (x, y) in rows.items():
            weights, intercept = solved[name]
            levels[name].score.add(x.double() @ weights + intercept, y.double())
    return {name: level.score.figures() for name, level in levels.items()}


Rows = dict[str, tuple[Tensor, Tensor]]
"""Features and targets by level."""


@torch.no_grad()
def _rows(
    pyramid: Any, encoder: Encoder, data: DetectionSet, size: int, device: torch.device, most: int, batch: int
) -> Iterator[Rows]:
    count = min(most, len(data))
    for start in range(0, count, batch):
        images, covers = [], []
        for index in range(start, min(start + batch, count)):
            try:
                image = torch.from_numpy(np.ascontiguousarray(data.image(index).transpose(2, 0, 1)))
            except BadImage:
                continue
            images.append(F.interpolate(image[None].float() / 255, (size, size), mode="area")[0])
            covers.append(F.interpolate(targets(data, index)[None], (size, size), mode="area")[0])
        x = normalized(torch.stack(images).to(device), encoder.facts)
        y = torch.stack(covers).to(device)
        yield {
            name: (cells(level.float()), cells(F.adaptive_avg_pool2d(y, level.shape[-2:])))
            for name, level in zip(LEVELS, pyramid(x), strict=True)
        }


def targets(data: DetectionSet, index: int) -> Tensor:
    """Pixels of any object, then of each class: float ``[1 + K, H, W]`` of 0 and 1."""
    truth = data.annotations(index)
    out = torch.zeros(1 + len(data.classes), *truth.size)
    for label, segment in zip(truth.labels.tolist(), truth.segments or (), strict=True):
        if segment is not None:
            mask = torch.from_numpy(bitmap(segment, truth.size)).bool()
            out[0][mask] = out[1 + label][mask] = 1.0
    return out


def cells(maps: Tensor) -> Tensor:
    """``[B, D, S, S]`` -> ``[B S S, D]``."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
