"""The pass for offline testing: the same crops whatever else is asked for, every image once, bad ones left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.draws import generator
from hetcl.images.decode import open_image
from hetcl.images.sources import open_source
from hetcl.types import Source, ViewBatch, ViewPolicy
from hetcl.views import crops
from hetcl.views.pairs import STAGE, Pairs
from hetcl.views.policies import POLICIES
from tests.analysis.make import write_images

CROP, STANDARD, WHOLE = POLICIES["crop"], POLICIES["standard"], POLICIES["none"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(str(write_images(tmp_path_factory.mktemp("pairs") / "data", 23)))


def collect(
    pairs: Pairs, policy: ViewPolicy, size: int, steps: list[int] | None = None
) -> dict[int, ViewBatch]:
    """By image, a batch of one."""
    out = {}
    for _, batches in pairs.run(range(pairs.steps) if steps is None else steps):
        b = batches[policy, size]
        for row, index in enumerate(b.index.tolist()):
            assert index not in out
            one = slice(row, row + 1)
            out[index] = replace(
                b,
                images=b.images[:, one],
                boxes=b.boxes[:, one],
                color=b.color[:, one],
                frames=b.frames[one],
                index=b.index[one],
            )
    pairs.close()
    return out


def equal(a: dict[int, ViewBatch], b: dict[int, ViewBatch], *names: str) -> None:
    assert a.keys() == b.keys()
    for index in a:
        for name in names:
            assert torch.equal(getattr(a[index], name), getattr(b[index], name)), (index, name)


@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 30), workers=st.sampled_from([0, 0, 1]), window=st.sampled_from([0, 4]))
def test_batch_workers_and_order_change_nothing(
    source: Source, batch: int, workers: int, window: int
) -> None:
    one = collect(Pairs(source, [CROP], size=32, batch=23, seed=5), CROP, 32)
    other = collect(
        Pairs(source, [CROP], size=32, batch=batch, seed=5, workers=workers, window=window), CROP, 32
    )
    assert len(one) == 23
    equal(one, other, "images", "boxes", "color", "frames")


def test_company_changes_nothing_and_cuts_are_shared(source: Source) -> None:
    alone = collect(Pairs(source, [STANDARD], size=40, batch=8, seed=1), STANDARD, 40)
    pairs = Pairs(source, [CROP, STANDARD, WHOLE], size=[32, 40], batch=8, seed=1)
    _, batches = next(iter(pairs.run([0])))
    assert batches[CROP, 40].images.data_ptr() == batches[STANDARD, 40].images.data_ptr()
    assert set(batches) == {(p, s) for p in (CROP, STANDARD, WHOLE) for s in (32, 40)}
    company = collect(pairs, STANDARD, 40)
    equal(alone, company, "images", "boxes", "color")
    equal(alone, collect(Pairs(source, [CROP], size=32, batch=8, seed=1), CROP, 32), "boxes")


def test_cuts_are_shared_across_the_process_boundary_too(source: Source) -> None:
    pairs = Pairs(source, [CROP, STANDARD], size=32, batch=8, seed=1, workers=1)
    _, batches = next(iter(pairs.run([1])))
    assert batches[CROP, 32].images.data_ptr() == batches[STANDARD, 32].images.data_ptr()
    pairs.close()


def test_views_are_those_of_a_slow_path(source: Source) -> None:
    for index, batch in collect(Pairs(source, [CROP], size=32, batch=8, seed=3), CROP, 32).items():
        image = open_image(source.sample(index))
        for view in range(2):
            rng = generator(3, STAGE, index, view)
            rng.random(9)  # the colour draws come first
            rng.permutation(4)
            box = crops.box_from(
                rng.random((crops.TRIES, 4)), image.width, image.height, CROP.area, CROP.ratio
            )
            assert tuple(batch.boxes[view, 0].tolist()) == box
            expected = crops.cut(image.pixels(), [box], 32)[0]
            np.testing.assert_array_equal(batch.images[view, 0].numpy(), expected)


def test_a_subset_of_steps_and_rendering_again_give_the_same(source: Source) -> None:
    whole = collect(Pairs(source, [STANDARD], size=32, batch=5, seed=2), STANDARD, 32)
    pairs = Pairs(source, [STANDARD], size=32, batch=5, seed=2)
    assert pairs.steps == 5
    some = collect(pairs, STANDARD, 32, [4, 1])
    assert len(some) == 3 + 5
    equal(some, {i: whole[i] for i in some}, "images", "boxes", "color")
    for index in list(whole)[:3]:
        again = pairs.render([index], STANDARD, 32)
        equal({index: again}, {index: whole[index]}, "images", "boxes", "color", "index")


def test_some_images_are_the_first_of_the_order(source: Source) -> None:
    pairs = Pairs(source, [CROP], size=32, batch=4, seed=2, images=10)
    order = np.concatenate([pairs.indices(s) for s in range(pairs.steps)])
    assert len(order) == len(set(order.tolist())) == 10
    every = Pairs(source, [CROP], size=32, batch=23, seed=2).indices(0)
    np.testing.assert_array_equal(order, every[:10])
    assert not np.array_equal(every, Pairs(source, [CROP], size=32, batch=23, seed=3).indices(0))


def test_unusable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", 9)
    for name in ("0002", "0005"):
        (folder / f"{name}.png").write_bytes(b"not an image")
    source = open_source(str(folder))
    whole = collect(
        Pairs(open_source(str(write_images(tmp_path / "good", 9))), [CROP], size=32, batch=4, seed=0),
        CROP,
        32,
    )
    pairs, bad = Pairs(source, [CROP], size=32, batch=1, seed=0), []
    empty = 0
    for _, batches in pairs.run(range(pairs.steps)):
        bad += batches[CROP, 32].bad
        empty += not len(batches[CROP, 32].index)
    assert sorted(Path(r.name).stem for r in bad) == ["0002", "0005"]
    assert empty == 2
    some = collect(Pairs(source, [CROP], size=32, batch=4, seed=0), CROP, 32)
    assert len(some) == 7
    equal(some, {i: whole[i] for i in some}, "images", "boxes")
