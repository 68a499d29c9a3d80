"""Scenes are functions of their key, and their boxes, masks and classes agree with the image."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from hetcl.errors import InputError
from hetcl.images.scenes import CLASSES, DOMINANT, label_of, scene
from hetcl.images.sources import open_source, open_validation
from hetcl.types import Source


def test_same_key_same_scene() -> None:
    a, b = scene(7, seed=3), scene(7, seed=3)
    assert a.pixels.tobytes() == b.pixels.tobytes()
    assert (a.masks == b.masks).all()
    assert a.pixels.tobytes() != scene(8, seed=3).pixels.tobytes()
    assert a.pixels.tobytes() != scene(7, seed=4).pixels.tobytes()


@pytest.mark.parametrize("size", [33, 96, 160])
def test_boxes_masks_and_labels_agree(size: int) -> None:
    for index in range(40):
        s = scene(index, seed=1, size=size)
        n = len(s.labels)
        assert s.pixels.shape == (size, size, 3)
        assert s.pixels.dtype == np.uint8
        assert s.masks.shape == (n, size, size)
        assert s.boxes.shape == (n, 4)
        assert s.masks.sum(0).max() <= 1
        assert ((s.labels >= 0) & (s.labels < len(CLASSES))).all()
        for (x0, y0, x1, y1), mask in zip(s.boxes.astype(int), s.masks, strict=True):
            assert mask.sum() == mask[y0:y1, x0:x1].sum() >= 12
            inside = mask[y0:y1, x0:x1]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_the_first_object_dominates_and_gives_the_class() -> None:
    several = 0
    for index in range(100):
        s = scene(index, seed=0)
        area = s.masks.sum((1, 2))
        assert area[0] == area.max()
        assert area[0] > 0.5 * (DOMINANT[0] * 96) ** 2
        assert s.labels[0] == label_of(index, seed=0)
        several += len(area) > 1
        if len(area) > 1:
            assert area[0] > 1.3 * area[1:].max()
    assert several > 90


def test_classes_places_and_pixels_vary() -> None:
    drawn = [scene(i, seed=0) for i in range(200)]
    assert len({int(s.labels[0]) for s in drawn}) == len(CLASSES)
    middles = np.array([(s.boxes[0, :2] + s.boxes[0, 2:]) / 2 for s in drawn])
    assert middles.std(0).min() > 8
    assert np.array([s.pixels.std() for s in drawn]).min() > 10


def test_objects_stand_out_from_the_ground() -> None:
    """An object's pixels differ from the ground around it."""
    gaps = []
    for index in range(50):
        s = scene(index, seed=5)
        ground = s.pixels[~s.masks.any(0)].astype(float)
        gaps.append(np.abs(s.pixels[s.masks[0]].mean(0) - ground.mean(0)).max())
    assert np.median(gaps) > 25


def test_larger_size_shows_the_same_things() -> None:
    small, large = scene(2, seed=0, size=96), scene(2, seed=0, size=192)
    assert (small.labels == large.labels).all()
    assert np.abs(small.boxes * 2 - large.boxes).max() <= 4


def test_source() -> None:
    source = open_source("scenes:500")
    held = open_validation("scenes:500")
    assert isinstance(source, Source)
    assert held is not None
    assert len(source) == 500
    assert len(held) == 100
    assert source.classes == held.classes == CLASSES
    assert source.blocks() is None
    sample = source.sample(3)
    assert isinstance(sample.data, np.ndarray)
    assert sample.label == source.label(3) == scene(3, seed=0).labels[0]
    other = held.sample(3)
    assert isinstance(other.data, np.ndarray)
    assert other.data.tobytes() != sample.data.tobytes()
    assert source.fingerprint != held.fingerprint != open_source("scenes:501").fingerprint
    assert pickle.loads(pickle.dumps(source)).sample(3).data.tobytes() == sample.data.tobytes()


@pytest.mark.parametrize(("count", "held"), [(1, 50), (250, 50), (1000, 200), (5000, 1000), (10**9, 1000)])
def test_held_out_count(count: int, held: int) -> None:
    source = open_validation(f"scenes:{count}")
    assert source is not None
    assert len(source) == held


@pytest.mark.parametrize("text", ["scenes:0", "scenes:abc", "scenes:", "scenes:-4", "scenes:1.5", "scenes:²"])
def test_bad_counts(text: str) -> None:
    with pytest.raises(InputError, match="1 or more"):
        open_source(text)
