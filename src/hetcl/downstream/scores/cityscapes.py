"""AP of instances by the rules of cityscapesScripts (``evalInstanceLevelSemanticLabeling.py``), without distances.

    H W  height and width in pixels     p  detections of one class in an image     g  objects of one class in an image
    u  instance ids of an image        T  IoU thresholds

An instance id is the class's id times 1,000 plus a running number; below 1,000 it is a class's id: stuff, or a group
that nobody told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from hetcl.datasets.annotations import Category, Metrics, Rle
from hetcl.downstream.scores.images import Pair
from hetcl.errors import InputError

THRESHOLDS = np.arange(0.5, 1.0, 0.05)  # as cityscapesScripts writes it: 0.6 is 0.6000000000000001
SMALLEST = 100
"""Pixels of an object that must be found; smaller ones are ignored."""

VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""Ids of classes that are left out of the evaluation (``ignoreInEval`` in ``helpers/labels.py``; maps cannot hold the
licence plates' -1). Caravans and trailers are void only as groups, since the comparison is with instance ids, in
cityscapesScripts too."""


@dataclass(frozen=True)
class Scene:
    """One class in one image."""

    scores: np.ndarray
    """float64 ``[p]``."""
    sizes: np.ndarray
    """int64 ``[p]``: pixels of each detection, all above zero."""
    void: np.ndarray
    """int64 ``[p]``: how many of them are void."""
    objects: np.ndarray
    """int64 ``[g]``: pixels of each object."""
    groups: np.ndarray
    """bool ``[g]``."""
    shared: np.ndarray
    """int64 ``[p, g]``: pixels that detection and object share."""


def score_cityscapes(
    pairs: list[Pair], classes: tuple[Category, ...], instance_map: Callable[[int], np.ndarray]
) -> Metrics:
    """``mask_ap`` and ``mask_ap50``, means over the classes that have an object.

    Args:
        pairs: In the data set's order; the predictions have masks.
        classes: ``id`` is Cityscapes' label id (24 person ... 33 bicycle).
        instance_map: Index of an image -> int ``[H, W]`` of instance ids, as in ``*_gtFine_instanceIds.png``. It alone
            knows what is void.
    """
    scenes: list[list[Scene]] = [[] for _ in classes]
    for index, pair in enumerate(pairs):
        ids = instance_map(index)
        if ids.shape != tuple(pair[0].size):
            raise InputError(
                f"{pair[0].name}: instance ids of {ids.shape} pixels, but the image has {pair[0].size}"
            )
        for of_class, scene in zip(scenes, _scenes(ids, pair, classes), strict=True):
            of_class.append(scene)
    table = np.array([[_average_precision(of_class, t) for t in THRESHOLDS] for of_class in scenes]) * 100
    present = table[~np.isnan(table).any(axis=1)]
    means = present.mean(axis=0) if len(present) else np.full(len(THRESHOLDS), np.nan)
    per_class = {
        category.name: {"mask_ap": float(row.mean()), "mask_ap50": float(row[0])}
        for category, row in zip(classes, table, strict=True)
    }
    return Metrics({"mask_ap": float(means.mean()), "mask_ap50": float(means[0])}, per_class)


def _scenes(ids: np.ndarray, pair: Pair, classes: tuple[Category, ...]) -> list[Scene]:
    """What each class has in an image; ``ids`` ``[H, W]``."""
    _, predicted = pair
    flat = ids.ravel(order="F")  # column by column, as run lengths are
    sizes = np.bincount(flat)
    counted = [np.bincount(flat[_covered(mask)], minlength=len(sizes)) for mask in predicted.masks or ()]
    known = np.flatnonzero(sizes)  # [u]
    shared = np.array(counted, dtype=np.int64).reshape(len(counted), len(sizes))[:, known]  # [detections, u]
    sizes = sizes[known]
    filled = shared.sum(axis=1) > 0
    void = shared[:, np.isin(known, VOID)].sum(axis=1)
    scenes = []
    for label, category in enumerate(classes):
        mine = filled & (predicted.labels == label)
        ours = np.where(known < 1000, known, known // 1000) == category.id
        table = shared[mine]
        scenes.append(
            Scene(
                predicted.scores[mine],
                table.sum(axis=1),
                void[mine],
                sizes[ours],
                known[ours] < 1000,
                table[:, ours],
            )
        )
    return scenes


def _covered(mask: Rle) -> np.ndarray:
    """bool ``[W * H]``, column by column."""
    return coco_mask.decode(mask).ravel(order="F") > 0


def _average_precision(scenes: list[Scene], threshold: float) -> float:
    """AP of a class at one IoU, 0..1; NaN where there is no object to find."""
    true_scores: list[float] = []
    false_scores: list[float] = []
    objects = 0
    for scene in scenes:
        hits = _iou(scene) > threshold  # above 0.5: a detection hits at most one object
        wanted = ~scene.groups & (scene.objects >= SMALLEST)
        objects += int(wanted.sum())
        for column in np.flatnonzero(wanted):
            scores = np.sort(scene.scores[hits[:, column]])
            true_scores += scores[-1:].tolist()
            false_scores += scores[:-1].tolist()  # found before by a better one
        # A small group counts twice, as in cityscapesScripts.
        weights = scene.groups.astype(np.int64) + (scene.objects < SMALLEST)
        ignored = (scene.void + scene.shared @ weights) / scene.sizes
        false_scores += scene.scores[~hits.any(axis=1) & (ignored <= threshold)].tolist()
    if not objects:
        return float("nan")
    return _area(np.array(true_scores), np.array(false_scores), objects)


def _iou(scene: Scene) -> np.ndarray:
    """float64 ``[p, g]``."""
    return scene.shared / (scene.sizes[:, None] + scene.objects[None] - scene.shared)


def _area(true_scores: np.ndarray, false_scores: np.ndarray, objects: int) -> float:
    """Area under precision over recall, one point for each score that occurs, and the point (recall 0, precision 1).

    Each precision counts for half the distance between the recalls of its two neighbours; the first and the last recall
    are their own neighbours, and beyond the last lies 0.
    """
    steps = np.unique(np.concatenate([true_scores, false_scores]))  # lowest first
    found = len(true_scores) - np.searchsorted(np.sort(true_scores), steps)
    false = len(false_scores) - np.searchsorted(np.sort(false_scores), steps)
    precision = np.append(found / (found + false), 1.0)
    recall = np.append(found / objects, 0.0)
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ (around[:-2] - around[2:]) / 2)
