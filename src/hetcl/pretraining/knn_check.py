"""The kNN check: the backbone's kNN accuracy while it trains, where the data has labels; a first sign that it learns.

N images, C channels of C5.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hetcl.analysis.extractor import look
from hetcl.analysis.probe.knn import knn_accuracy
from hetcl.errors import InputError
from hetcl.model.group_norm import group_batch_norm
from hetcl.model.norm_statistics import is_unmeasured, measuring
from hetcl.pretraining.monitors import some_images
from hetcl.types import RGB, PixelFormat, Source
from hetcl.views.central import Central
from hetcl.views.photometric import IMAGENET_MEAN, IMAGENET_STD, Photometric
from hetcl.views.policies import POLICIES

MEASURED = 512
"""Images by which random weights' batch-norm statistics are measured."""


class KnnCheck:
    """Looks for the neighbours of some images among others of the training data.

    Args:
        source: the training data.
        held_out: images to ask about; None: some of the training data's own are kept apart.
        bank: most images to search among.
        queries: most images to ask about.
        k: neighbours that vote.
        size: of the images in pixels.
        batch: most images at a time.
        window: within how many images the data is mixed, 0: anywhere.
        dtype: of the images.
        pixels, mean, std: as what images are read, and how they are given to the backbone.
    """

    def __init__(
        self, source: Source, held_out: Source | None, *, fabric: Fabric, bank: int, queries: int, k: int,
        size: int, batch: int, seed: int, window: int, workers: int, dtype: torch.dtype, channels_last: bool,
        pixels: PixelFormat = RGB, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD,
    ) -> None:  # fmt: skip
        self.source, self.held_out, self.fabric = source, held_out, fabric
        self.bank, self.queries, self.k, self.seed, self.window = bank, queries, k, seed, window
        self.views: dict[str, Any] = {
            "size": size,
            "batch": min(256, batch),
            "workers": workers,
            "pixels": pixels,
        }
        self.photometric = Photometric(POLICIES["none"], mean, std, dtype=dtype)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def accuracy(self, pyramid: nn.Module) -> dict[str, float]:
        """``{"knn": accuracy}`` of the pooled C5; nothing without labels. On the first rank alone."""
        source, seed = self.source, self.seed
        if source.classes is None or self.fabric.global_rank != 0:
            return {}
        queries_from = self.held_out if self.held_out is not None and self.held_out.classes else source
        own = queries_from is source
        n = len(source)
        held = min(self.queries, n // 5 if own else len(queries_from))
        take = min(self.bank, n - held if own else n)
        if held < 1 or take < 1:
            return {}
        near = max(self.window, queries_from.prefers_window) > 0
        order = some_images(source, take + (held if own else 0), seed, "knn", near=near)
        asked = order[take:]
        if not own:
            asked = some_images(queries_from, held, seed, "knn queries", near=near)
        if (
            is_unmeasured(pyramid) and take > 1
        ):  # with such statistics random weights would look worse than they are
            whole = min(take, MEASURED) // self.views["batch"] * self.views["batch"]
            pyramid = group_batch_norm(copy.deepcopy(pyramid), 1)
            with measuring(pyramid):
                self._features(pyramid, source, order[: whole or take])
        bank = self._features(pyramid, source, order[:take])
        asking = self._features(pyramid, queries_from, asked)
        return {"knn": knn_accuracy(*bank, *asking, k=self.k)}

    def _features(self, pyramid: nn.Module, source: Source, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Pooled C5 ``[N, C]`` and labels ``[N]`` of labelled images."""
        features, labels, reason = [], [], ""
        indices = np.sort(indices) if self.window else indices  # one shard after the other
        with contextlib.closing(Central(source, indices, **self.views)) as central:
            for _, views in central.run(range(central.steps)):
                (batch,) = views.values()
                reason = reason or (batch.bad[0].reason if batch.bad else "")
                if len(batch.index):
                    assert batch.label is not None
                    pooled = look(
                        lambda x: pyramid(x)[-1].mean(dim=(2, 3)), batch.images[0], batch.color[0],
                        self.photometric, fabric=self.fabric, layout=self.layout,
                    )  # fmt: skip
                    keep = batch.label >= 0
                    features.append(pooled.float()[keep.to(pooled.device)])
                    labels.append(batch.label[keep].to(pooled.device))
        if not features:
            raise InputError(
                f"{source.description}: none of {len(indices)} images can be used, e.g. {reason}"
            )
        return torch.cat(features), torch.cat(labels)
