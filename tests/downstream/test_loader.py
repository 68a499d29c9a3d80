"""Which image comes when, mirrored and cut: equal to slow versions, and a function of (seed, position) alone."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.datasets import masks
from hetcl.datasets.annotations import Skipped
from hetcl.datasets.maps import MapSet
from hetcl.downstream.loader import (
    Batch,
    DetectionExamples,
    SegmentationExamples,
    Stream,
    TargetLoader,
)
from hetcl.draws import generator
from hetcl.errors import InputError
from tests.downstream.small_sets import Boxes


def examples(data: Boxes, *, flip_p: float = 0.5, with_masks: bool = True) -> DetectionExamples:
    return DetectionExamples(data, np.arange(len(data)), masks=with_masks, min_size=(48, 64), flip_p=flip_p)


def same(a: Batch, b: Batch) -> bool:
    return (
        len(a.images) == len(b.images)
        and all(map(torch.equal, a.images, b.images))
        and all(
            x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
            for x, y in zip(a.targets, b.targets, strict=True)
        )
        and a.bad == b.bad
    )


# ---- the stream ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 40), seed=st.integers(0, 5))
def test_each_pass_has_every_image_once(n: int, seed: int) -> None:
    stream = Stream(n, seed, "x")
    seen = stream(np.arange(3 * n)).reshape(3, n)
    assert (np.sort(seen, axis=1) == np.arange(n)).all()
    assert (stream(np.array([2 * n, 1])) == [seen[2, 0], seen.ravel()[1]]).all()


def test_passes_have_orders_of_their_own() -> None:
    first, second = Stream(50, 0)(np.arange(100)).reshape(2, 50)
    assert (first != second).any()
    assert (Stream(50, 1)(np.arange(50)) != first).any()


def test_images_come_as_often_as_their_factor_says() -> None:
    factors = np.array([1.0, 1.0, 2.5, 4.0])
    stream = Stream(4, 3, factors=factors)
    passes = 400
    expected = passes * factors.sum()
    seen = np.bincount(stream(np.arange(int(expected))), minlength=4) / passes
    np.testing.assert_allclose(seen, factors, atol=0.1)
    assert (stream(np.array([1000, 5, 1000]))[[0, 2]] == stream(np.array([1000]))[0]).all()


def test_a_pass_repeats_whole_parts_exactly() -> None:
    stream = Stream(3, 0, factors=np.array([2.0, 1.0, 3.0]))
    for row in stream(np.arange(24)).reshape(4, 6):
        assert np.bincount(row).tolist() == [2, 1, 3]


# ---- images with boxes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip_p", [0.0, 1.0])
def test_boxes_and_masks_follow_the_image(flip_p: float) -> None:
    data = Boxes(12, seed=4)
    made = examples(data, flip_p=flip_p)
    for index in range(12):
        image, target = made(index, generator(0, index))
        pixels, truth = data.image(index), data.annotations(index)
        if flip_p:
            pixels = np.fliplr(pixels)
        assert (image.numpy().transpose(1, 2, 0) == pixels).all()
        width = pixels.shape[1]
        keep = [i for i, s in enumerate(truth.segments or ()) if s is not None and masks.decode(s).any()]
        assert target["labels"].tolist() == [int(truth.labels[i]) + 1 for i in keep]
        for row, i in enumerate(keep):
            left, top, right, bottom = np.clip(truth.boxes[i], 0, [width, len(pixels)] * 2)
            wanted = [width - right, top, width - left, bottom] if flip_p else [left, top, right, bottom]
            assert target["boxes"][row].tolist() == wanted
            drawn = masks.decode(truth.segments[i])  # type: ignore[index,arg-type]
            assert (target["masks"][row].numpy() == (np.fliplr(drawn) if flip_p else drawn)).all()
        assert int(target["short"]) in (48, 64)


def test_crowds_are_no_objects_to_learn() -> None:
    data = Boxes(3, seed=4, crowd=True)
    _, target = examples(data, with_masks=False)(2, generator(0))
    assert len(target["boxes"]) == len(data.annotations(2).boxes) - 1
    assert "masks" not in target


# ---- images with classes of pixels ---------------------------------------------------------------------------------


class Maps(MapSet):
    """The product's own set, but for its images: a pixel's colour tells its class, to be compared after cutting."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__("voc", ("a", "b", "c"), Path("nowhere"), [("0.png", "0.png")], "made up", Skipped())
        self.height, self.width = height, width

    def label_map(self, index: int) -> np.ndarray:
        return ((np.arange(self.height)[:, None] // 8 + np.arange(self.width) // 8) % 3).astype(np.uint8)

    def image(self, index: int) -> np.ndarray:
        return np.repeat(self.label_map(index)[..., None] * np.uint8(100), 3, axis=2)


@pytest.mark.parametrize("size", [(30, 200), (200, 30), (300, 300), (20, 20)])
def test_crops_keep_pixels_and_classes_together(size: tuple[int, int]) -> None:
    made = SegmentationExamples(Maps(*size), crop=64, scale=(1.0, 1.0), flip_p=0.5)
    for draw in range(10):
        image, target = made(0, generator(draw))
        labels = target["labels"]
        assert image.shape == (3, 64, 64)
        assert labels.shape == (64, 64)
        known = labels != 255
        assert known.sum() == min(64, size[0]) * min(64, size[1])
        assert (image[0][known].long() == 100 * labels[known]).all()
        assert (torch.tensor([124, 116, 104], dtype=torch.uint8) == image[:, ~known].T).all()


def test_scaled_images_have_scaled_classes() -> None:
    made = SegmentationExamples(Maps(64, 64), crop=128, scale=(2.0, 2.0), flip_p=0.0)
    image, target = made(0, generator(0))
    wanted = torch.from_numpy(Maps(64, 64).label_map(0).repeat(2, 0).repeat(2, 1).astype(np.int64))
    assert torch.equal(target["labels"], wanted)
    middle = slice(4, 12)  # inside a patch, where bilinear changes nothing
    assert (image[0, middle, middle] == 100 * target["labels"][middle, middle]).all()


# ---- batches ---------------------------------------------------------------------------------------------------------


def loader(data: Boxes, **more: int) -> TargetLoader:
    return TargetLoader(examples(data), Stream(len(data), 0), batch=4, seed=0, **more)


def test_workers_and_the_place_of_the_start_change_nothing() -> None:
    whole = list(loader(Boxes(10)).steps(0, 6))
    many = loader(Boxes(10), workers=2)
    assert all(same(a, b) for a, b in zip(whole, many.steps(0, 6), strict=True))
    assert all(same(a, b) for a, b in zip(whole[4:], many.steps(4, 6), strict=True))
    many.close()
    one = loader(Boxes(10))
    assert same(next(one.steps(5, 6)), whole[5])


def test_ranks_share_the_batch() -> None:
    whole = list(loader(Boxes(10)).steps(0, 3))
    parts = [list(loader(Boxes(10), rank=r, ranks=2).steps(0, 3)) for r in range(2)]
    for step, batch in enumerate(whole):
        images = [image for part in parts for image in part[step].images]
        assert all(map(torch.equal, images, batch.images))
    with pytest.raises(InputError, match="does not split over 3 processes"):
        loader(Boxes(10), ranks=3)


def test_a_broken_image_is_replaced_and_nothing_else_moves() -> None:
    good, data = list(loader(Boxes(10)).steps(0, 5)), Boxes(10, bad=(3,))
    broken = list(loader(data).steps(0, 5))
    found = [record for batch in broken for record in batch.bad]
    assert {(r.index, r.name, r.reason) for r in found} == {(3, "3.jpg", "is broken")}
    positions = Stream(10, 0)(np.arange(20)).reshape(5, 4)
    for step in range(5):
        for row in range(4):
            equal = torch.equal(good[step].images[row], broken[step].images[row])
            assert equal == (positions[step, row] != 3)


def test_data_without_a_usable_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"times, no image could be used, from \d\.jpg \(is broken\)"):
        next(loader(Boxes(4, bad=(0, 1, 2, 3))).steps(0, 1))


def test_the_stream_has_no_end() -> None:
    assert len(list(islice(loader(Boxes(4)).steps(1000, 2000), 3))) == 3
