"""Figures of detectors and segmenters, by the rules of each data set, in percent.

    score(data, predictions)          AP of boxes and masks, as COCO, LVIS, VOC or Cityscapes count (``data.kind``)
    Confusion(classes)                mIoU and accuracies of pixels
    results(data, predictions)        predictions in COCO's results format, for other people's tools

Nothing measured (no truths of a kind) is NaN; truths without a single detection are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from hetcl.datasets.annotations import DetectionSet, InstanceMaps, Metrics, Prediction
from hetcl.downstream.scores.cityscapes import score_cityscapes
from hetcl.downstream.scores.coco import score_coco
from hetcl.downstream.scores.images import masked, paired
from hetcl.downstream.scores.results import results
from hetcl.downstream.scores.semantic import Confusion
from hetcl.downstream.scores.voc import score_voc
from hetcl.errors import InputError

__all__ = ["Confusion", "results", "score"]


def score(data: DetectionSet, predictions: Sequence[Prediction]) -> Metrics:
    """Figures by the rules of ``data.kind``; predictions in any order, an image without one counts as empty.

    ======================  ==================================================================================
    ``coco``, ``scenes``    ``box_ap``, ``_ap50``, ``_ap75``, ``_ap_s``, ``_ap_m``, ``_ap_l``; ``mask_...`` likewise
    ``lvis``                the same and ``box_ap_r``, ``_ap_c``, ``_ap_f`` (rare, common, frequent); 300 an image
    ``voc``                 ``box_ap``, ``box_ap50``, ``box_ap75``, at 11 points
    ``cityscapes``          ``mask_ap``, ``mask_ap50``; boxes alone are scored by COCO's rules
    ======================  ==================================================================================

    Masks are scored where the data set has them and the detector gives them.

    Raises:
        InputError: two predictions of one image, one of an image that the set lacks, or one that does not fit it.
    """
    pairs, masks = paired(data, predictions), masked(data, predictions)
    if data.kind in ("coco", "scenes", "lvis"):
        return score_coco(pairs, data.classes, masks, lvis=data.kind == "lvis")
    if data.kind == "voc":
        return score_voc(pairs, data.classes)
    if data.kind == "cityscapes":
        if not masks:
            return score_coco(pairs, data.classes, masks=False)
        return score_cityscapes(pairs, data.classes, cast(InstanceMaps, data).instance_map)
    raise InputError(
        f"data sets of kind {data.kind!r} cannot be scored; use coco, lvis, voc, cityscapes or scenes"
    )
