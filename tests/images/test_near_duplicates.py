"""Near-duplicates are counted: bursts are found, other images and plain ones are not taken for one another."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from hetcl.images.near_duplicates import _groups, difference_hash, near_duplicates, some_runs
from hetcl.images.scenes import scene
from hetcl.images.sources import open_source


def photo(seed: int) -> Image.Image:
    return Image.fromarray(scene(seed, seed=1, size=160).pixels)


def again(image: Image.Image, seed: int) -> Image.Image:
    """The next image of a burst: a little moved, lighter or darker, and compressed."""
    rng = np.random.default_rng(seed)
    left, top = rng.integers(0, 2, 2).tolist()
    moved = image.crop((left, top, image.width - 2 + left, image.height - 2 + top))
    stream = io.BytesIO()
    ImageEnhance.Brightness(moved).enhance(rng.uniform(0.85, 1.1)).save(stream, "JPEG", quality=60)
    return Image.open(stream)


def digit(seed: int) -> Image.Image:
    """A white stroke on black."""
    pixels = np.zeros((28, 28), np.uint8)
    at = np.random.default_rng(seed).integers(9, 17)
    pixels[6:22, at : at + 3] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(9, 8), (90, 64), (45, 8)])
def test_the_hash_says_which_cell_is_brighter(size: tuple[int, int]) -> None:
    """Against loops over the cells of an image whose sides the grid divides."""
    width, height = size
    for seed in range(20):
        gray = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
        h, w = height // 8, width // 9
        cells = [[gray[y * h : (y + 1) * h, x * w : (x + 1) * w].mean() for x in range(9)] for y in range(8)]
        found = difference_hash(Image.fromarray(gray))
        if found is None:  # large cells of noise are alike
            continue
        for y in range(8):
            for x in range(8):
                step = cells[y][x + 1] - cells[y][x]
                if abs(step) > 1:  # cells are rounded before they are compared
                    assert found[8 * y + x] == (step > 0)


def test_bursts_are_found_and_counted(tmp_path: Path) -> None:
    for i in range(12):
        for k in range(3):
            (photo(i) if k == 0 else again(photo(i), 10 * i + k)).save(tmp_path / f"img-{i:02d}-{k}.jpg")
    (tmp_path / "img-99.jpg").write_bytes(b"no image")
    found = near_duplicates(open_source(str(tmp_path)), 100)
    assert (found.looked, found.plain, found.pairs, found.repeats, found.different) == (36, 0, 35, 24, 12)
    assert found.share == pytest.approx(24 / 35)
    assert found.example == ("img-00-0.jpg", "img-00-1.jpg")


def test_the_same_photo_far_away_is_found_too(tmp_path: Path) -> None:
    for i in range(9):
        photo(i).save(tmp_path / f"{i}.png")
    photo(2).resize((100, 100)).save(tmp_path / "z.jpg")
    found = near_duplicates(open_source(str(tmp_path)), 100)
    assert (found.repeats, found.different, found.example) == (0, 9, ("2.png", "z.jpg"))


def test_scenes_differ_and_plain_images_are_not_compared(tmp_path: Path) -> None:
    assert near_duplicates(open_source("scenes:200"), 200).different == 200
    for i in range(20):
        digit(i).save(tmp_path / f"{i}.png")
    found = near_duplicates(open_source(str(tmp_path)), 100)
    assert (found.plain, found.repeats, found.different, found.example) == (20, 0, 20, None)


@given(st.integers(1, 3000), st.integers(8, 300))
def test_runs_of_neighbours_lie_all_over(n: int, images: int) -> None:
    found = some_runs(n, images)
    assert len(np.unique(found)) == len(found) == (n if n <= images else images // 8 * 8)
    assert found.min() >= 0
    assert found.max() < n
    if n > images:
        assert (found.reshape(-1, 8) == found.reshape(-1, 8)[:, :1] + np.arange(8)).all()


@given(st.integers(1, 12), st.data())
def test_groups_are_those_of_a_slow_search(n: int, data: st.DataObject) -> None:
    one = st.integers(0, n - 1)
    pairs = data.draw(st.lists(st.tuples(one, one), max_size=15))
    labels = list(range(n))
    for _ in range(n):
        for a, b in pairs:
            labels[a] = labels[b] = min(labels[a], labels[b])
    assert _groups(n, [a for a, _ in pairs], [b for _, b in pairs]) == len(set(labels))
