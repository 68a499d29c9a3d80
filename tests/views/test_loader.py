"""Batches as a function of (seed, stage, epoch, position): workers, ranks, restarts and bad images change nothing."""

from __future__ import annotations

import os
import pickle
import signal
import tarfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.errors import InputError, WorkFailed
from hetcl.images.decode import open_image
from hetcl.images.sources import open_source
from hetcl.types import BadImage, Sample, Source, ViewBatch
from hetcl.views import crops
from hetcl.views.central import Central
from hetcl.views.loader import ViewLoader
from hetcl.views.order import PIECES, Order
from hetcl.views.pairs import Pairs
from hetcl.views.photometric import NOTHING
from hetcl.views.policies import POLICIES
from tests.images.make import encoded, pixels


class Images:
    """A source in memory; the images of ``bad`` cannot be read, those of ``broken`` cannot be decoded."""

    def __init__(
        self,
        n: int,
        *,
        side: int = 12,
        labels: bool = True,
        bad: Iterable[int] = (),
        broken: Iterable[int] = (),
        starts: list[int] | None = None,
        deadly: int | None = None,
    ) -> None:
        self.n, self.side, self.bad, self.broken = n, side, frozenset(bad), frozenset(broken)
        self.starts, self.deadly, self.prefers_window = starts, deadly, 0
        self.classes = ("even", "odd") if labels else None
        self.fingerprint, self.description = "test", f"{n} images of a test"

    def __len__(self) -> int:
        return self.n

    def sample(self, index: int) -> Sample:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self.bad:
            raise BadImage("gone")
        data: bytes | np.ndarray = b"nonsense"
        if index not in self.broken:
            data = pixels(self.side + index % 5, self.side, seed=index)
        return Sample(data, self.label(index), f"{index}.jpg")

    def label(self, index: int) -> int | None:
        return None if self.classes is None else index % 2

    def blocks(self) -> np.ndarray | None:
        return None if self.starts is None else np.array(self.starts, np.int64)


def loader(source: Source, **changes: object) -> ViewLoader:
    keywords: dict[str, object] = {
        "policy": POLICIES["moco-v2"],
        "size": 8,
        "batch": 6,
        "seed": 1,
        "stage": "a",
    }
    return ViewLoader(source, **(keywords | changes))  # type: ignore[arg-type]


def same(a: ViewBatch, b: ViewBatch) -> bool:
    tensors = ("images", "boxes", "frames", "color", "index")
    assert (a.label is None) == (b.label is None)
    return (
        all(torch.equal(getattr(a, t), getattr(b, t)) for t in tensors)
        and (a.label is None or torch.equal(a.label, b.label))
        and a.bad == b.bad
    )


def all_same(a: Iterable[ViewBatch], b: Iterable[ViewBatch]) -> bool:
    return all(same(x, y) for x, y in zip(a, b, strict=True))


# ---- order ----


@settings(deadline=None)
@given(
    st.integers(1, 400),
    st.integers(0, 150),
    st.lists(st.integers(0, 399), max_size=8) | st.none(),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_every_image_comes_once_an_epoch(
    n: int, window: int, starts: list[int] | None, seed: int, epoch: int
) -> None:
    blocks = None if starts is None else np.array(sorted(s for s in starts if s < n), np.int64)
    order = Order(n, seed, "s", window=window, blocks=blocks)
    whole = order.indices(epoch, np.arange(n))
    assert np.array_equal(np.sort(whole), np.arange(n))
    some = np.random.default_rng(seed).integers(0, n, 10)
    assert np.array_equal(order.indices(epoch, some), whole[some])


@pytest.mark.parametrize("blocks", [None, np.arange(0, 10_000, 250)])
def test_a_window_keeps_reads_near_each_other_and_still_mixes(blocks: np.ndarray | None) -> None:
    window = 1600
    order = Order(10_000, 7, window=window, blocks=blocks)
    first = order.indices(0, np.arange(window))
    runs = 1 + int((np.diff(np.sort(first)) > 1).sum())
    assert runs <= PIECES + 2
    assert np.ptp(first) > 5000  # from all over the source
    assert (np.abs(np.diff(first)) > 1).mean() > 0.9  # and in no order
    assert not np.array_equal(first, order.indices(1, np.arange(window)))


@pytest.mark.parametrize("window", [0, 8192])
def test_an_order_of_a_billion_is_not_stored(window: int) -> None:
    n = 10**9
    first = Order(n, 1, window=window).indices(3, np.arange(n - 256, n))
    assert len(np.unique(first)) == 256
    assert first.min() >= 0
    assert first.max() < n


# ---- batches ----


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 8), st.integers(1, 3), st.sampled_from([0, 1, 5, 16]), st.booleans()
)
def test_no_image_is_dropped_and_ranks_take_slices(
    n: int, share: int, ranks: int, window: int, shards: bool
) -> None:
    batch = share * ranks
    source = Images(n, side=4, starts=[0, n // 3, n // 2] if shards else None)
    if n < batch:
        with pytest.raises(InputError, match="batch"):
            loader(source, batch=batch, size=2)
        return
    common = {"batch": batch, "size": 2, "window": window}
    whole = list(loader(source, **common).epoch(2))
    assert len(whole) == -(-n // batch) == loader(source, **common).steps_per_epoch
    came = torch.cat([b.index for b in whole])
    assert torch.equal(came[:n].sort().values, torch.arange(n))
    assert torch.equal(came[n:], came[: len(came) - n])  # completed from the start of the epoch
    parts = [list(loader(source, **common, rank=r, ranks=ranks).epoch(2)) for r in range(ranks)]
    for step, batch_ in enumerate(whole):
        for name, dim in (
            ("images", 1),
            ("boxes", 1),
            ("color", 1),
            ("frames", 0),
            ("index", 0),
            ("label", 0),
        ):
            joined = torch.cat([getattr(part[step], name) for part in parts], dim)
            assert torch.equal(joined, getattr(batch_, name))


def test_shapes_and_meaning() -> None:
    batch = next(iter(loader(Images(20)).epoch(0)))
    assert batch.images.shape == (2, 6, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.boxes.shape == (2, 6, 4)
    assert batch.boxes.dtype == batch.frames.dtype == batch.color.dtype == torch.float32
    assert batch.index.dtype == torch.int64
    assert batch.label is not None
    assert torch.equal(batch.label, batch.index % 2)
    for row, index in enumerate(batch.index.tolist()):
        image = pixels(12 + index % 5, 12, seed=index)
        assert batch.frames[row].tolist() == [0, 0, image.shape[1], image.shape[0]]
        boxes = [tuple(int(v) for v in box) for box in batch.boxes[:, row].tolist()]
        assert np.array_equal(batch.images[:, row].numpy(), crops.cut(image, boxes, 8))
    assert not torch.equal(batch.boxes[0], batch.boxes[1])
    assert not torch.equal(batch.color[0], batch.color[1])
    assert next(iter(loader(Images(20, labels=False)).epoch(0))).label is None
    assert next(iter(loader(Images(20), views=1).epoch(0))).images.shape[0] == 1


def test_seed_stage_and_epoch_each_give_other_batches() -> None:
    source = Images(24)
    base = next(iter(loader(source).epoch(0)))
    for other in (
        loader(source, seed=2).epoch(0),
        loader(source, stage="b").epoch(0),
        loader(source).epoch(1),
    ):
        batch = next(iter(other))
        assert not torch.equal(base.index, batch.index)
        assert not torch.equal(base.color, batch.color)
    views = []
    for epoch in range(2):
        batch = next(iter(loader(source, batch=24).epoch(epoch)))
        views.append(batch.color[:, batch.index.argsort()])
    assert (views[0] != views[1]).any(-1).all()  # of the same images


def test_the_next_epoch_is_prepared_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    there = loader(Images(12), workers=1)
    starts = []
    restart = there._pool.restart
    monkeypatch.setattr(there._pool, "restart", lambda items: (starts.append(1), restart(items)))
    for epoch in range(3):
        list(there.epoch(epoch))
    list(there.epoch(3, 1))
    assert len(starts) == 2
    there.close()


def test_workers_restarts_and_the_random_state_change_nothing() -> None:
    source = Images(40, bad=[3, 11], broken=[20])
    here, there = loader(source), loader(source, workers=2)
    expected = {e: list(here.epoch(e)) for e in range(3)}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert all_same(there.epoch(0), expected[0])
    pids = {p.pid for p in there._pool._processes()}
    assert len(pids) == 2
    assert all_same(there.epoch(1), expected[1])  # prepared ahead
    assert all_same(there.epoch(2, 4), expected[2][4:])  # started afresh
    half = there.epoch(0)
    next(half), next(half)
    assert all_same(there.epoch(0, 2), expected[0][2:])  # taken up where it was left
    assert all_same(there.epoch(0, 1), expected[0][1:])
    assert {p.pid for p in there._pool._processes()} == pids
    assert torch.equal(torch.get_rng_state(), before)
    there.close()
    assert all_same(here.epoch(1, 3), expected[1][3:])
    assert all_same(there.epoch(1, 5), expected[1][5:])  # workers are started again
    there.close()


def test_shards_and_a_folder_of_the_same_images_give_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    names = [f"{i:03}.jpg" for i in range(9)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(encoded(pixels(30 + i, 25, seed=i)))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in names:
            tar.add(folder / name, name)
    one = open_source(str(folder), cache=tmp_path / "cache")
    two = open_source(str(tmp_path / "shard.tar"), cache=tmp_path / "cache")
    for epoch in range(2):
        assert all_same(loader(one, batch=4).epoch(epoch), loader(two, batch=4, workers=1).epoch(epoch))


# ---- bad images ----


def test_bad_images_are_replaced_and_nothing_else_moves() -> None:
    bad, broken = {2, 9, 17}, {5, 6}
    clean = list(loader(Images(30)).epoch(0))
    spoilt = list(loader(Images(30, bad=bad, broken=broken)).epoch(0))
    reported = {}
    for a, b in zip(clean, spoilt, strict=True):
        reported |= {r.index: r for r in b.bad}
        for row, index in enumerate(a.index.tolist()):
            if index in bad | broken:
                assert b.index[row].item() not in bad | broken
                assert b.label is not None
                assert b.label[row] == b.index[row] % 2
                assert torch.equal(a.color[:, row], b.color[:, row])
            else:
                assert b.index[row] == index
                assert torch.equal(a.images[:, row], b.images[:, row])
                assert torch.equal(a.boxes[:, row], b.boxes[:, row])
    assert set(reported) == bad | broken
    assert reported[5].name == "5.jpg"
    assert "not an image" in reported[5].reason
    assert reported[9].reason == "gone"
    again = list(loader(Images(30, bad=bad, broken=broken)).epoch(0))
    assert all_same(spoilt, again)
    others = torch.cat([b.index for b in loader(Images(30, bad=bad, broken=broken)).epoch(1)])
    assert len(set(others.tolist())) >= 25


@pytest.mark.parametrize("workers", [0, 1])
def test_when_nothing_is_usable_one_line_says_so(workers: int) -> None:
    with pytest.raises(InputError, match="drawn 50 times, no image could be used") as caught:
        next(iter(loader(Images(10, bad=range(10)), workers=workers).epoch(0)))
    assert "\n" not in str(caught.value)


def test_images_above_the_limit_of_pixels_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetcl.views.loader.open_image", partial(open_image, max_pixels=100))
    with pytest.raises(InputError, match=r"no image could be used.*pixels"):
        next(iter(loader(_Encoded(10)).epoch(0)))


class _Encoded(Images):
    def sample(self, index: int) -> Sample:
        return Sample(encoded(pixels(20, 20, seed=index)), 0, f"{index}.jpg")


def test_a_batch_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(InputError, match="set the batch to 5 or less"):
        loader(Images(5))
    with pytest.raises(InputError, match="multiple of 4"):
        loader(Images(50), ranks=4)
    with pytest.raises(InputError):
        loader(Images(50), batch=0)


def test_a_worker_that_is_killed_stops_the_work_with_one_line() -> None:
    dying = loader(Images(40, deadly=7), workers=2)
    with pytest.raises(WorkFailed, match="memory ran out") as caught:
        list(dying.epoch(0))
    assert "\n" not in str(caught.value)
    assert not dying._pool.running


def test_workers_leave_signals_to_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.getsignal(signal.SIGCHLD)
    source = Images(40)
    there = loader(source, workers=1)
    stream = there.epoch(0)
    first = next(stream)
    for process in there._pool._processes():
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    assert all_same([first, *stream], loader(source).epoch(0))
    assert signal.getsignal(signal.SIGCHLD) == before
    processes = there._pool._processes()
    there.close()
    assert not any(p.is_alive() for p in processes)


@pytest.mark.parametrize("workers", [0, 2])
def test_views_stay_in_the_layout_of_resizing(workers: int) -> None:
    """Channels last, also when a worker hands them over."""
    batch = next(loader(Images(30), workers=workers).epoch(0))
    assert batch.images.dtype == torch.uint8
    for view in batch.images:
        assert view.is_contiguous(memory_format=torch.channels_last)


# ---- features ----


@pytest.mark.parametrize("workers", [0, 2])
def test_central_views_of_any_steps_in_any_order(workers: int) -> None:
    source = Images(30, bad=[4, 10, 11, 12, 13], broken=[29])
    indices = [*range(0, 14), 28, 29]
    central = Central(source, indices, size=8, batch=4, workers=workers)
    assert (central.images, central.steps) == (16, 4)
    found = [(step, *views.values()) for step, views in central.run([1, 0, 3, 2])]
    central.close()
    assert [step for step, _ in found] == [1, 0, 3, 2]
    batches = [batch for _, batch in sorted(found, key=lambda pair: pair[0])]
    assert [b.index.tolist() for b in batches] == [[0, 1, 2, 3], [5, 6, 7], [8, 9], [28]]
    assert [[r.index for r in b.bad] for b in batches] == [[], [4], [10, 11], [12, 13, 29]]
    for batch in batches:
        count = len(batch.index)
        assert batch.images.shape == (1, count, 3, 8, 8)
        assert (batch.color == torch.from_numpy(NOTHING)).all()
        assert batch.label is not None
        assert torch.equal(batch.label, batch.index % 2)
        for row, index in enumerate(batch.index.tolist()):
            image = pixels(12 + index % 5, 12, seed=index)
            box = crops.centre_box(image.shape[1], image.shape[0], 8)
            assert batch.boxes[0, row].tolist() == list(box)
            assert np.array_equal(batch.images[:, row].numpy(), crops.cut(image, [box], 8))


def test_a_step_of_central_views_may_hold_no_image() -> None:
    views = dict(Central(Images(6, bad=[2, 3]), range(6), size=8, batch=2).run(range(3)))
    batches = [batch for step in views for batch in views[step].values()]
    assert [b.index.tolist() for b in batches] == [[0, 1], [], [4, 5]]
    assert [[r.index for r in b.bad] for b in batches] == [[], [2, 3], []]
    assert not list(Central(Images(8), [], size=8, batch=2).run(range(0)))


# ---- sent to workers ----


def test_what_computes_can_be_sent_to_a_worker_while_it_runs() -> None:
    """Where processes are spawned it is pickled, with the pool that belongs to it."""
    source, how = Images(12), {"size": 8, "batch": 4}
    central, pairs = Central(source, range(12), **how), Pairs(source, [POLICIES["crop"]], seed=0, **how)
    view_loader = loader(source)
    for stream in (central.run([0, 1]), pairs.run([0, 1]), view_loader.epoch(0)):
        next(stream)
    for one in (central, pairs, view_loader):
        there = pickle.loads(pickle.dumps(one))
        a, b = one._step(0, 1), there._step(0, 1)
        assert torch.equal(a.index, b.index)
        if isinstance(a, ViewBatch):
            assert torch.equal(a.images, b.images)
