"""Brings predictions and truths together, image by image.

n  objects or detections of an image     K  classes     H W  height and width in pixels
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetcl.datasets.annotations import Annotations, DetectionSet, Prediction
from hetcl.errors import InputError

Pair = tuple[Annotations, Prediction]


def paired(data: DetectionSet, predictions: Sequence[Prediction]) -> list[Pair]:
    """Every image of the set, in its order, with what was said of it (nothing: an empty prediction).

    Raises:
        InputError: an image twice, an unknown image, or a prediction that does not fit its image.
    """
    truths = by_id(data)
    predicted: dict[int | str, Prediction] = {}
    for prediction in predictions:
        name = prediction.image_id
        if name not in truths:
            raise InputError(
                f"prediction of image {name!r}: the data set has no such image; is it another data set?"
            )
        if name in predicted:
            raise InputError(f"image {name!r} has two predictions; give each image once")
        predicted[name] = _checked(prediction, truths[name], len(data.classes))
    return [(truth, predicted.get(name, empty(name))) for name, truth in truths.items()]


def by_id(data: DetectionSet) -> dict[int | str, Annotations]:
    """Image id -> truth, in the set's order. Raises ``InputError`` for an id that two images share."""
    truths: dict[int | str, Annotations] = {}
    for index in range(len(data)):
        truth = data.annotations(index)
        if truth.image_id in truths:
            raise InputError(f"{truth.name}: image id {truth.image_id!r} is used twice; ids must be unique")
        truths[truth.image_id] = truth
    return truths


def masked(data: DetectionSet, predictions: Sequence[Prediction]) -> bool:
    """Whether masks are to be scored: the set has them, and so do the predictions (if there is any detection).

    Raises:
        InputError: some detections have masks and others none.
    """
    kinds = {p.masks is not None for p in predictions if len(p.boxes)}
    if len(kinds) == 2:
        raise InputError("some predictions have masks and others have none; give masks for all or for none")
    wanted = kinds.pop() if kinds else all(p.masks is not None for p in predictions)
    return data.has_masks and wanted


def empty(image_id: int | str, masks: bool = True) -> Prediction:
    """No detections."""
    return Prediction(
        image_id, np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64), () if masks else None
    )


def _checked(prediction: Prediction, truth: Annotations, classes: int) -> Prediction:
    """The prediction as float64 and int64 arrays, or ``InputError``."""
    where = f"prediction of image {prediction.image_id!r}"
    boxes, scores = (np.asarray(values, dtype=np.float64) for values in (prediction.boxes, prediction.scores))
    labels, n = np.asarray(prediction.labels, dtype=np.int64), len(scores)
    if boxes.shape != (n, 4) or scores.shape != (n,) or labels.shape != (n,):
        raise InputError(
            f"{where}: {boxes.shape} boxes, {scores.shape} scores and {labels.shape} labels do not match"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise InputError(f"{where}: NaN or infinite boxes or scores; has the training diverged?")
    if n and not (labels.min() >= 0 and labels.max() < classes):
        raise InputError(f"{where}: labels must be 0 to {classes - 1}, not {labels.min()} to {labels.max()}")
    if prediction.masks is not None:
        if len(prediction.masks) != n:
            raise InputError(f"{where}: {len(prediction.masks)} masks for {n} boxes")
        for mask in prediction.masks:
            if tuple(mask["size"]) != tuple(truth.size):
                raise InputError(
                    f"{where}: a mask of size {mask['size']}, but the image is {list(truth.size)} (H, W)"
                )
    return Prediction(prediction.image_id, boxes, scores, labels, prediction.masks)
