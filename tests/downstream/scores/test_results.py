"""The results file there and back, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as official

from hetcl.datasets.annotations import Prediction
from hetcl.datasets.packed import PackedDetection
from hetcl.downstream.scores import results, score
from hetcl.errors import InputError
from tests.downstream.scores.random_detections import (
    CLASSES,
    ellipse,
    made,
    random_set,
    read,
    read_back,
    rle,
    said_of,
    truth_of,
    truths_of,
)

BOX = [10.0, 20.0, 40.0, 60.0]


def small(masks: bool = True) -> tuple[PackedDetection, Prediction]:
    """One image of 100 by 80 pixels, with one owl."""
    size = (100, 80)
    mask = (rle(ellipse(BOX, size)),)
    data = made([truth_of(5, size, boxes=[BOX], labels=[3], segments=mask), truth_of(6)])
    return data, said_of(5, [BOX], [0.5], [3], mask if masks else None)


def test_an_entry_is_as_coco_has_it() -> None:
    data, said = small()
    (entry,) = json.loads(json.dumps(results(data, [said])))
    segmentation = entry.pop("segmentation")
    assert entry == {"image_id": 5, "category_id": 90, "bbox": [10.0, 20.0, 30.0, 40.0], "score": 0.5}
    assert segmentation["size"] == [100, 80]
    assert (official.decode(segmentation) == ellipse(BOX, (100, 80))).all()


def test_boxes_without_masks_have_no_segmentation() -> None:
    data, said = small(masks=False)
    assert "segmentation" not in results(data, [said])[0]


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_there_and_back(seed: int, masks: bool) -> None:
    raw, predictions = random_set(seed)
    predictions = [p if masks else replace(p, masks=None) for p in predictions]
    data = read(raw)
    entries = json.loads(json.dumps(results(data, predictions)))
    back = {p.image_id: p for p in read_back(data, entries)}
    stated = list(dict.fromkeys(entry["image_id"] for entry in entries))
    assert stated == [t.image_id for t in truths_of(data) if t.image_id in back]
    assert len(back) == len(predictions) == len(data) - 1
    for said in predictions:
        again = back[said.image_id]
        np.testing.assert_allclose(again.boxes, said.boxes, rtol=0, atol=1e-12)
        assert (again.scores.tolist(), again.labels.tolist()) == (said.scores.tolist(), said.labels.tolist())
        assert again.masks == (tuple(said.masks) if said.masks is not None else None)
    figures = score(data, predictions).figures
    assert score(data, list(back.values())).figures == pytest.approx(figures, abs=1e-10, nan_ok=True)


def test_no_entries_are_no_detections() -> None:
    data, _ = small()
    assert score(data, []).figures["mask_ap"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "no such image"),
        ({"boxes": np.zeros((2, 4))}, "do not match"),
        ({"scores": np.array([np.nan])}, "NaN"),
        ({"boxes": np.full((1, 4), np.inf)}, "NaN or infinite"),
        ({"labels": np.array([len(CLASSES)])}, "labels must be 0 to 3"),
        ({"labels": np.array([-1])}, "labels must be 0 to 3"),
        ({"masks": ()}, "0 masks for 1 boxes"),
        ({"masks": (rle(np.zeros((80, 100))),)}, "a mask of size"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    data, said = small()
    for use in (score, results):
        with pytest.raises(InputError, match=message):
            use(data, [replace(said, **change)])


def test_a_image_twice_is_refused() -> None:
    data, said = small()
    with pytest.raises(InputError, match="image 5 has two predictions"):
        score(data, [said, said])
    with pytest.raises(InputError, match=r"5\.jpg: image id 5 is used twice"):
        score(made([data.annotations(0), data.annotations(0)]), [said])


def test_masks_for_some_images_are_refused() -> None:
    data, said = small()
    with pytest.raises(InputError, match="some predictions have masks"):
        score(data, [said, said_of(6, [[0, 0, 5, 5]], [0.5])])


def test_an_unknown_kind_is_refused() -> None:
    data, said = small()
    data.kind = "oxford"
    with pytest.raises(InputError, match="oxford"):
        score(data, [said])
