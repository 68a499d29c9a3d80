"""Sheets of predictions: a key to the colours, void told from class 0, words that do not cover each other."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from PIL import Image

from hetcl.datasets.annotations import Prediction, Skipped
from hetcl.downstream import sheets
from hetcl.downstream.predict import EvaluationContext
from tests.downstream.small_sets import Boxes

VOID = sheets.VOID


class Maps:
    """Two gray images: class 0 above, void in the middle, class 1 below."""

    kind, fingerprint, description, skipped = "voc", "made up", "made up", Skipped()

    def __init__(self, first: str) -> None:
        self.classes = (first, "b", "c")

    def __len__(self) -> int:
        return 2

    def name(self, index: int) -> str:
        return f"{index}.png"

    def image(self, index: int) -> np.ndarray:
        return np.full((60, 60, 3), 128, np.uint8)

    def label_map(self, index: int) -> np.ndarray:
        return np.repeat(np.array([0, VOID, 1], np.uint8), 20)[:, None].repeat(60, 1)


class Model(torch.nn.Module):
    """Says class 0 everywhere."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, *images.shape[2:])


def segmented(first: str) -> np.ndarray:
    look = EvaluationContext(Fabric(accelerator="cpu"), 0, False, 0.1)
    sheet = sheets.segmentation_sheet(Maps(first), Model(), look, range(2))
    assert sheet is not None
    return np.asarray(Image.open(io.BytesIO(sheet)))


def cell(sheet: np.ndarray, column: int) -> np.ndarray:
    """The first row's image in a column, without its edge."""
    top, left = sheet.shape[0] - sheets.GAP - sheets.CELL, sheets.GAP + column * (sheets.CELL + sheets.GAP)
    return sheet[top + 5 : top + sheets.CELL - 5, left + 5 : left + sheets.CELL - 5]


def has(pixels: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((pixels == color).all(-1).any())


def test_class_0_is_told_from_void() -> None:
    sheet = segmented("background")
    truth, found = cell(sheet, 0), cell(sheet, 1)
    third = len(truth) // 3
    above, middle, below = (truth[i * third + 30 : (i + 1) * third - 30] for i in range(3))
    assert (above == 128).all()  # the background is as in the image
    assert set(np.unique(middle)) >= {90, 220}  # void is striped
    assert (below.reshape(-1, 3) == np.uint8(0.45 * 128 + 0.55 * np.array(sheets.color(1)))).all()
    assert (found == 128).all()


def test_a_class_0_that_is_something_is_colored() -> None:
    above = cell(segmented("road"), 0)[:100]
    assert (above.reshape(-1, 3) == np.uint8(0.45 * 128 + 0.55 * np.array(sheets.color(0)))).all()


def test_the_key_shows_what_is_on_the_sheet() -> None:
    sheet = segmented("road")
    head = sheet[: sheet.shape[0] - sheets.GAP - sheets.CELL - sheets.STRIP]
    assert has(head, sheets.color(0))
    assert has(head, sheets.color(1))
    assert not has(head, sheets.color(2))  # not on the sheet
    assert has(head, (90, 90, 90))  # void


def test_the_key_of_boxes() -> None:
    data = Boxes(4)
    said: dict[Any, Prediction] = {
        i: Prediction(i, np.array([[5.0, 5, 20, 20]]), np.array([0.9]), np.array([1])) for i in range(4)
    }
    sheet = sheets.detection_sheet(data, said, range(4))
    assert sheet is not None
    head = np.asarray(Image.open(io.BytesIO(sheet)))[: sheets.GAP + sheets.STRIP]
    used = {int(k) for i in range(4) for k in data.annotations(i).labels} | {1}
    assert [has(head, sheets.color(k)) for k in range(2)] == [k in used for k in range(2)]
    data.classes = data.classes[:1]
    assert sheets.detection_sheet(data, {}, []) is None


boxes = st.tuples(*[st.floats(-20, 400)] * 4).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]) + 1, max(v[1], v[3]) + 1)
)


@given(st.lists(boxes, max_size=40), st.floats(10, 120), st.floats(8, 16))
def test_words_do_not_cover_each_other(found: list[Any], width: float, height: float) -> None:
    taken: list[Any] = []
    for box in found:
        place = sheets.free_place((width, height), box, (420, 300), taken)
        if place is None:
            continue
        left, top, right, bottom = place
        assert left >= 0
        assert top >= 0
        assert right <= 420 + 1e-9
        assert bottom <= 300 + 1e-9
        assert (right - left, bottom - top) == pytest.approx((width, height))
        for other in taken:
            assert left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom
        taken.append(place)
    assert not found or taken
