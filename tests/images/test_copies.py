"""Remote shards on a disk that is too small for them: a few at a time, and no image differs for it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from hetcl.errors import InputError, WorkFailed
from hetcl.images import copies, remote
from hetcl.images.copies import Copies, window_of
from hetcl.images.locks import locked
from hetcl.images.remote import Shard
from hetcl.images.sources import open_source, open_validation
from hetcl.types import Source
from hetcl.views.loader import ViewLoader
from hetcl.views.policies import POLICIES
from tests.images.make import shard
from tests.images.test_remote import Quiet, server  # noqa: F401 (a fixture)

SHARDS, EACH = 12, 5


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Any]:
    """Twelve shards of five images at memory://roll/, and the same ones in tmp_path/here."""
    system = fsspec.filesystem("memory")
    (tmp_path / "here").mkdir()
    for i in range(SHARDS):
        made = shard(tmp_path / "here" / f"x-{i:02d}.tar", EACH, EACH * i)
        system.pipe_file(f"/roll/x-{i:02d}.tar", made.read_bytes())
    yield system
    system.rm("/roll", recursive=True)


@pytest.fixture
def size(memory: Any) -> int:
    sizes = {memory.info(f"/roll/x-{i:02d}.tar")["size"] for i in range(SHARDS)}
    assert len(sizes) == 1
    return sizes.pop()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that this process fetches, in order."""
    names: list[str] = []
    real = remote._transfer

    def transfer(wanted: Shard, to: Path) -> None:
        names.append(wanted.url.rpartition("/")[2])
        real(wanted, to)

    monkeypatch.setattr(remote, "_transfer", transfer)
    return names


def kept(cache: Path) -> int:
    total = 0
    for file in (cache / "rolling").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a worker may evict it or rename it meanwhile
            total += file.stat().st_size if file.suffix in (".tar", ".part") else 0
    return total


def local(tmp_path: Path) -> Source:
    return open_source(str(tmp_path / "here"), cache=tmp_path / "other")


def read(source: Source, order: Any) -> list[bytes]:
    return [source.sample(int(i)).data for i in order]  # type: ignore[misc]


def view_loader(source: Source, **changes: Any) -> ViewLoader:
    keywords: dict[str, Any] = {"policy": POLICIES["hcl"], "size": 8, "batch": 6, "seed": 3, "stage": "a"}
    return ViewLoader(source, **keywords | changes)


def test_few_at_a_time_are_the_same_images(
    memory: Any, size: int, tmp_path: Path, fetched: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    with caplog.at_level(logging.WARNING):
        source = open_source("memory://roll", cache=cache, cache_bytes=5 * size)
    assert len(fetched) == SHARDS  # each once, for the index
    here = local(tmp_path)
    assert source.fingerprint == here.fingerprint
    assert source.classes == here.classes
    assert "12 shards need" in caplog.text
    assert "about 5 of them are kept" in caplog.text
    assert "windows of 15 (3.0 shards)" in caplog.text
    assert source.prefers_window == 3 * EACH
    assert here.prefers_window == 0
    order = list(range(SHARDS * EACH)) + random.Random(0).sample(range(SHARDS * EACH), 30)
    for i in order:
        assert source.sample(i) == here.sample(i)
        assert kept(cache) <= 5 * size
    assert not list((cache / "remote").rglob("*.tar"))
    fetched.clear()
    again = open_source("memory://roll", cache=cache, cache_bytes=5 * size)
    assert not fetched  # the index is kept
    assert again.fingerprint == here.fingerprint


def test_the_least_recently_used_goes_first(
    memory: Any, size: int, tmp_path: Path, fetched: list[str]
) -> None:
    source = open_source("memory://roll", cache=tmp_path / "cache", cache_bytes=5 * size)
    fetched.clear()
    rolling = tmp_path / "cache" / "rolling"
    for age, tar in enumerate(sorted(rolling.glob("*.tar"))):
        os.utime(tar, (1e9 + age, 1e9 + age))
    oldest, second = sorted(rolling.glob("*.tar"))[:2]
    source_of = {tar.read_bytes(): i for i in range(SHARDS) for tar in [tmp_path / "here" / f"x-{i:02d}.tar"]}
    number = source_of[oldest.read_bytes()]
    source.sample(number * EACH)  # used: it stays, the second oldest goes
    assert not fetched
    source.sample(0)
    assert fetched == ["x-00.tar"]
    assert oldest.exists()
    assert not second.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_local_shards_with_the_window(
    server: tuple[str, Path],  # noqa: F811
    memory: Any,
    size: int,
    tmp_path: Path,
    workers: int,
) -> None:
    url, root = server
    for i in range(SHARDS):
        (root / f"x-{i:02d}.tar").write_bytes(memory.cat_file(f"/roll/x-{i:02d}.tar"))
    cache = tmp_path / "cache"
    source = open_source(f"{url}/x-{{00..11}}.tar", cache=cache, cache_bytes=5 * size)
    Quiet.asked.clear()
    window = source.prefers_window
    far, near = view_loader(source, workers=workers), view_loader(local(tmp_path), window=window)
    try:
        for epoch in range(2):
            for a, b in zip(far.epoch(epoch), near.epoch(epoch), strict=True):
                assert torch.equal(a.index, b.index)
                assert torch.equal(a.images, b.images)
                assert kept(cache) <= 5 * size
        # Resumed in the middle, by a process that knows nothing.
        resumed = view_loader(pickle.loads(pickle.dumps(source)), workers=workers, window=window)
        for a, b in zip(resumed.epoch(1, 4), near.epoch(1, 4), strict=True):
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.images, b.images)
        resumed.close()
    finally:
        far.close()
    assert Quiet.asked  # fetched again
    if not workers:  # about once an epoch, not once an image
        assert len(Quiet.asked) < 2.6 * 1.5 * SHARDS
        assert not list(cache.rglob("*.part"))  # (workers end at once; what they leave the next one removes)


def test_the_window_is_a_function_of_the_data(memory: Any, size: int, tmp_path: Path) -> None:
    windows = {
        open_source("memory://roll", cache=tmp_path / "cache", cache_bytes=n * size).prefers_window
        for n in range(5, SHARDS)
    }
    assert windows == {3 * EACH}
    assert (
        open_source("memory://roll", cache=tmp_path / "b", cache_bytes=SHARDS * size).prefers_window == 0
    )  # all
    assert window_of([Shard("", "u", 1 << 30)] * 1000, 1_281_000) == 8 * 1281
    assert window_of([Shard("", "u", 1 << 20)] * 1000, 1_000_000) == 16 * 1000
    assert window_of([Shard("", "u", 1 << 40)] * 1000, 1_000_000) == 1000
    assert window_of([Shard("", "u", 1 << 30)] * 3, 30) == 10


def test_too_small_even_for_that(memory: Any, size: int, tmp_path: Path, fetched: list[str]) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match=r"12 shards need 0\.00 GB, .* too little for the 5 .* HETCL_CACHE"):
        open_source("memory://roll", cache=cache, cache_bytes=5 * size - 1)
    assert not fetched  # refused before everything is read
    small = open_source("memory://roll", cache=cache, cache_bytes=3 * size, window=EACH)
    assert small.prefers_window == EACH
    with pytest.raises(InputError, match=r"for the 4 that are read at a time .* set window to 5 or less"):
        open_source("memory://roll", cache=cache, cache_bytes=3 * size, window=EACH + 1)
    order = np.concatenate([b.index.numpy() for b in view_loader(small).epoch(0)])
    fetched.clear()
    assert read(small, order) == read(local(tmp_path), order)
    assert len(fetched) < 1.6 * SHARDS


def test_disk_that_fills_up(
    memory: Any, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
) -> None:
    """Without a limit of one's own, it is the free space that counts, whoever takes it."""
    cache = tmp_path / "cache"
    disk = copies.SPARE_ROLLING + 8 * size
    monkeypatch.setattr(copies, "SPARE", copies.SPARE_ROLLING)
    monkeypatch.setattr(copies, "free_bytes", lambda folder: disk - kept(cache))
    source = open_source("memory://roll", cache=cache)
    everything = read(local(tmp_path), range(SHARDS * EACH))
    assert read(source, range(SHARDS * EACH)) == everything
    assert kept(cache) == 8 * size
    disk -= 4 * size
    fetched.clear()
    assert read(source, range(SHARDS * EACH)) == everything
    assert kept(cache) == 4 * size
    disk -= 4 * size
    with pytest.raises(
        WorkFailed, match=r"no room for memory://.*x-00\.tar .* more are needed\. What was saved"
    ):
        read(source, range(SHARDS * EACH))


def test_train_and_held_out_shards_share_the_disk(memory: Any, size: int, tmp_path: Path) -> None:
    for i in range(4):
        memory.pipe_file(f"/both/val-{i}.tar", memory.cat_file(f"/roll/x-{i:02d}.tar"))
        memory.pipe_file(f"/both/train-{i}.tar", memory.cat_file(f"/roll/x-{i + 4:02d}.tar"))
    cache, here = tmp_path / "cache", local(tmp_path)
    train = open_source("memory://both", cache=cache, cache_bytes=3 * size)
    held = open_validation("memory://both", cache=cache, cache_bytes=3 * size)
    assert held is not None
    for i in range(4 * EACH):
        assert held.sample(i).data == here.sample(i).data
        assert train.sample(i).data == here.sample(i + 4 * EACH).data
        assert kept(cache) <= 3 * size
    memory.rm("/both", recursive=True)


def test_room_for_all_takes_over_what_is_there(
    memory: Any, size: int, tmp_path: Path, fetched: list[str]
) -> None:
    cache = tmp_path / "cache"
    some = open_source("memory://roll", cache=cache, cache_bytes=5 * size)
    fetched.clear()
    every = open_source("memory://roll", cache=cache)
    assert every.prefers_window == 0
    assert len(fetched) == SHARDS - 5
    assert kept(cache) == 0
    assert read(every, range(SHARDS * EACH)) == read(some, range(SHARDS * EACH))
    # And somebody removes them.
    fetched.clear()
    for path in (cache / "remote").rglob("*.tar"):
        path.unlink()
    fresh = pickle.loads(pickle.dumps(every))
    assert read(fresh, range(EACH)) == read(local(tmp_path), range(EACH))
    assert fetched == ["x-00.tar"]


# ---- processes ----


def _read(source: Source, seed: int) -> list[bytes]:
    order = [random.Random(seed).randrange(SHARDS * EACH) for _ in range(40)]
    return read(source, order)


def test_many_processes_and_a_cache_of_three_shards(memory: Any, size: int, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = open_source("memory://roll", cache=cache, cache_bytes=3 * size, window=EACH)
    here = local(tmp_path)
    with get_context("fork").Pool(6) as pool:
        results = [pool.apply_async(_read, (source, seed)) for seed in range(6)]
        assert [r.get(60) for r in results] == [_read(here, seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda seed: _read(source, seed), range(6)))
    assert found == [_read(here, seed) for seed in range(6)]
    assert kept(cache) <= 3 * size
    assert not list(cache.rglob("*.part"))


def test_one_fetches_while_others_wait(
    memory: Any, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
) -> None:
    source = open_source("memory://roll", cache=tmp_path / "cache", cache_bytes=5 * size)
    fetched.clear()
    slow, real = threading.Event(), remote._transfer

    def transfer(wanted: Shard, to: Path) -> None:
        slow.wait(0.2)
        real(wanted, to)

    monkeypatch.setattr(remote, "_transfer", transfer)
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: source.sample(0).data, range(8)))) == 1
    assert fetched == ["x-00.tar"]


def test_a_reader_outlives_the_copy(memory: Any, size: int, tmp_path: Path) -> None:
    store = Copies(tmp_path / "cache", size)
    first, second = remote.locate(["memory://roll/x-00.tar", "memory://roll/x-01.tar"], tmp_path / "cache")
    with store.open(first) as file:
        begun = file.read(100)
        store.open(second).close()
        assert not list((tmp_path / "cache" / "rolling").glob(f"{first.name}.tar"))
        assert begun + file.read() == memory.cat_file("/roll/x-00.tar")


def test_what_is_held_stays(memory: Any, size: int, tmp_path: Path) -> None:
    store = Copies(tmp_path / "cache", size)
    first, second = remote.locate(["memory://roll/x-00.tar", "memory://roll/x-01.tar"], tmp_path / "cache")
    done = threading.Event()

    def other() -> None:
        store.open(second).close()
        done.set()

    with store.held(first) as path:
        thread = threading.Thread(target=other)
        thread.start()
        assert not done.wait(0.3)
        assert path.exists()
    thread.join(10)
    assert done.is_set()
    assert not path.exists()


def test_what_a_killed_process_left_makes_room(memory: Any, size: int, tmp_path: Path) -> None:
    store = Copies(tmp_path / "cache", size)
    first, second = remote.locate(["memory://roll/x-00.tar", "memory://roll/x-01.tar"], tmp_path / "cache")
    for left in (first, second):
        (store.rolling / f"{left.name}.{size}.part").write_bytes(b"half")
    store.open(first).close()
    assert [f.name for f in store.rolling.iterdir() if f.suffix != ".lock"] == [f"{first.name}.tar"]


def test_locks(tmp_path: Path) -> None:
    with locked(tmp_path / "a") as mine:
        assert mine
        with locked(tmp_path / "a", wait=False) as other:
            assert not other
        with locked(tmp_path / "b", wait=False) as third:
            assert third
    with locked(tmp_path / "a", wait=False) as again:
        assert again


# ---- transfers that fail ----


def failing(monkeypatch: pytest.MonkeyPatch, system: Any, times: int, error: Exception) -> Callable[[], int]:
    """Let the next ``times`` transfers fail; gives how many were tried."""
    real, tried = type(system).get_file, itertools.count()
    seen = [0]

    def get_file(self: Any, path: str, to: str, **more: Any) -> None:
        seen[0] += 1
        if next(tried) < times:
            Path(to).write_bytes(b"half")
            raise error
        real(self, path, to, **more)

    monkeypatch.setattr(type(system), "get_file", get_file)
    return lambda: seen[0]


def test_transfers_are_tried_three_times(
    memory: Any, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source("memory://roll", cache=tmp_path / "cache", cache_bytes=5 * size)
    failing(monkeypatch, memory, 2, ConnectionError("reset by peer"))
    assert source.sample(0).data == local(tmp_path).sample(0).data
    assert caplog.text.count("cannot fetch memory://") == 2
    assert "reset by peer): trying again" in caplog.text
    tried = failing(monkeypatch, memory, 1000, ConnectionError("reset by peer"))
    with pytest.raises(WorkFailed, match=r"cannot fetch memory://.*x-01\.tar in 3 tries .*reset.*--resume"):
        source.sample(EACH)
    assert tried() == 3
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(InputError, match=r"cannot fetch memory://.*x-00\.tar in 3 tries"):
        open_source("memory://roll", cache=tmp_path / "fresh", cache_bytes=5 * size)


def test_a_failure_in_a_worker_stops_the_run(
    memory: Any, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source("memory://roll", cache=tmp_path / "cache", cache_bytes=5 * size)
    failing(monkeypatch, memory, 1000, ConnectionError("reset by peer"))
    loader = view_loader(source, workers=2)
    try:
        with pytest.raises(WorkFailed, match="cannot fetch memory://"):
            list(loader.epoch(0))  # and no image takes the place of another
    finally:
        loader.close()


def test_a_shard_that_changes_or_goes_while_a_run_reads(memory: Any, size: int, tmp_path: Path) -> None:
    source = open_source("memory://roll", cache=tmp_path / "cache", cache_bytes=5 * size)
    memory.pipe_file("/roll/x-00.tar", shard(tmp_path / "new.tar", EACH, 900).read_bytes())
    with pytest.raises(WorkFailed, match=r"x-00\.tar has changed"):
        source.sample(0)
    memory.rm_file("/roll/x-01.tar")
    with pytest.raises(WorkFailed, match=r"x-01\.tar does not exist any more"):
        source.sample(EACH)


def test_damaged_shards_are_named_by_their_address(memory: Any, size: int, tmp_path: Path) -> None:
    whole = memory.cat_file("/roll/x-03.tar")
    memory.pipe_file("/roll/x-03.tar", whole[:-9000])
    with pytest.raises(InputError, match=r"shard memory://\S*roll/x-03\.tar is cut short"):
        open_source("memory://roll", cache=tmp_path / "cache", cache_bytes=5 * size)
