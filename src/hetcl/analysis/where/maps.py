"""Frozen maps on disk: which features the questions of where need of which images, and the passes that fill them in.

Whole images give levels on a grid (``c4x6``); two crops of an image give what was found of the one in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from hetcl.analysis import feature_pass
from hetcl.analysis.extractor import LEVELS, Extractor
from hetcl.analysis.store import Store
from hetcl.analysis.where import questions
from hetcl.analysis.where.annotated import Both, Located, QuestionImages
from hetcl.analysis.yardstick import Entry
from hetcl.model.frames import sides_of
from hetcl.model.norm_statistics import is_unmeasured
from hetcl.types import ViewPolicy
from hetcl.views.central import Central
from hetcl.views.pairs import Pairs
from hetcl.views.policies import POLICIES
from hetcl.weights.encoder import Encoder

DENSE = {"dense-knn", "dense-linear"}
"""Questions of cells; all levels lie side by side in a cell."""
BOX_LEVELS, BOX_GRID = ("c3", "c4", "c5"), 6
"""The box of the main object is found from each of these levels, on so coarse a grid."""


class Maps:
    """The maps of some encoders for the images that are asked of.

    Args:
        root: the folder of all stores.
        entries: the encoders.
        question_images: the images of each question.
        size: side of the images in pixels.
        grid: side of the grid of cells.
        policy: how the crops of correspondence are drawn.
        key: what all features are a function of, besides (precision, schema).
        seed, batch: of the crops; images at a time.
    """

    def __init__(
        self, root: Path, entries: Sequence[Entry], question_images: QuestionImages, *, size: int, grid: int,
        policy: ViewPolicy, key: Mapping[str, Any], seed: int, batch: int,
    ) -> None:  # fmt: skip
        self.root, self.entries, self.question_images = root, entries, question_images
        self.size, self.grid = size, grid
        self.policy, self.key, self.seed, self.batch = policy, key, seed, batch
        self.boxes = [f"{level}x{BOX_GRID}" for level in BOX_LEVELS]
        self.cells = [f"{level}x{grid}" for level in LEVELS]
        train = question_images.images[0]
        self._measured = {  # random weights: their statistics are those of these images
            id(e.encoder): f"{train.fingerprint} {train.hash} {seed}"
            for e in entries
            if is_unmeasured(e.encoder.pyramid)
        }

    def _store(
        self, entry: Entry, name: str, split: Located, columns: Mapping[str, Any], **more: Any
    ) -> Store:
        key = {
            **self.key,
            "weights": entry.digest,
            "measured": self._measured.get(id(entry.encoder)),
            "arch": entry.encoder.pyramid.arch,
            "features": name,
            "size": self.size,
            "data": split.fingerprint,
            "images": split.hash,
            **more,
        }
        return Store(self.root, f"{entry.name}-{name}", key, columns, images=len(split), batch=self.batch)

    def of_images(self, entry: Entry, feature: str, split: Located) -> Store:
        """A level on a grid, of whole images: the column ``features``, float32 ``[n, C * side * side]``."""
        dim = sum(Extractor(entry.encoder, [feature]).dims(feature).values())
        return self._store(entry, feature, split, {"features": ("float32", (dim,))})

    def of_crops(self, entry: Entry, feature: str) -> Store:
        """What was found of one crop in the other (:func:`questions.matches`), of the images to test on."""
        columns: dict[str, Any] = {name: ("float64", (n,)) for name, n in questions.MATCHED.items()}
        columns |= {"cells": ("int64", ()), "iou": ("float64", ())}
        drawn = {"policy": asdict(self.policy), "seed": self.seed}
        return self._store(entry, f"match-{feature}", self.question_images.images[1], columns, **drawn)

    def matched(self, encoder: Encoder) -> dict[str, int]:
        """Feature -> side of its grid, for correspondence: each level, no finer than the grid, and each map."""
        strides = encoder.pyramid.spec.strides
        sides = [min(self.grid, self.size // stride) for stride in strides]
        levels = {f"{level}x{side}": side for level, side in zip(LEVELS, sides, strict=True) if side > 1}
        return levels | sides_of(encoder.embedding)

    def stores(self, asked: Sequence[str]) -> list[Store]:
        """One store for each split that the questions look at; models share their images."""
        entry = self.entries[0]
        out = [
            self.of_images(entry, names[0], split)
            for both, names in self._needed(asked)
            for split in both
            if names
        ]
        if "correspondence" in asked:
            out.append(self.of_crops(entry, next(iter(self.matched(entry.encoder)))))
        return out

    def passes(
        self, asked: Sequence[str], *, workers: int, pin: bool
    ) -> list[tuple[list[feature_pass.Job], feature_pass.Views]]:
        """What is to be extracted for these questions: for each split the stores that are not whole, and the images."""
        out: list[tuple[list[feature_pass.Job], feature_pass.Views]] = []
        for both, features in self._needed(asked):
            for split in both:
                jobs = [
                    feature_pass.Job(
                        e.encoder, f, POLICIES["none"], self.size, store, ("features",), unit=False
                    )
                    for e in self.entries
                    for f in features
                    if not (store := self.of_images(e, f, split)).finished
                ]
                if jobs:
                    central = Central(
                        split,
                        range(len(split)),
                        size=self.size,
                        batch=self.batch,
                        workers=workers,
                        pin=pin,
                        whole=True,
                    )
                    out.append((jobs, central))
        if "correspondence" in asked:
            jobs = [
                feature_pass.Job(
                    e.encoder,
                    f,
                    self.policy,
                    self.size,
                    store,
                    (),
                    False,
                    partial(questions.matches, side=side),
                )
                for e in self.entries
                for f, side in self.matched(e.encoder).items()
                if not (store := self.of_crops(e, f)).finished
            ]
            if jobs:
                pairs = Pairs(
                    self.question_images.images[1], [self.policy], size=self.size, batch=self.batch, seed=self.seed,
                    workers=workers, pin=pin,
                )  # fmt: skip
                out.append((jobs, pairs))
        return out

    def _needed(self, asked: Sequence[str]) -> Iterator[tuple[Both, list[str]]]:
        """Features of whole images, by the images that they are needed of."""
        boxes = self.boxes if "localization" in asked else []
        cells = self.cells if DENSE & set(asked) else []
        if (
            self.question_images.boxes is self.question_images.cells
            and self.question_images.boxes is not None
        ):
            yield self.question_images.boxes, [*boxes, *cells]
            return
        if self.question_images.boxes is not None and boxes:
            yield self.question_images.boxes, boxes
        if self.question_images.cells is not None and cells:
            yield self.question_images.cells, cells
