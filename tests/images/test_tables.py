"""Tables on disk: whole or not there, mapped rather than read, at any size."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetcl.errors import InputError
from hetcl.images import tables
from hetcl.images.folder_source import FolderSource
from hetcl.images.shard_index import RECORD
from hetcl.images.shards import ShardSource
from hetcl.images.sources import open_source
from hetcl.images.tables import TableError, TableFile, TableWriter, cache_folder, strings
from tests.damage import DAMAGES, Damage, spoil
from tests.images.make import create_sparse, folder

HUGE = 100_000_000


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.binary(max_size=40)), numbers=st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_what_is_written_is_read(tmp_path: Path, texts: list[bytes], numbers: list[int]) -> None:
    with TableWriter(tmp_path / "x", {**strings("text"), "number": "<i8"}) as writer:
        for text in texts:
            writer.string("text", text)
        for number in numbers:
            writer.append("number", np.int64(number).tobytes())
        writer.meta["about"] = "é"
        writer.finish()
    table = pickle.loads(pickle.dumps(TableFile(tmp_path / "x")))
    assert list(table.strings("text")) == texts
    assert table["number"].tolist() == numbers
    assert (table.length("text"), table.length("number")) == (len(texts), len(numbers))
    assert table.meta == {"about": "é"}
    assert os.listdir(tmp_path) == ["x"]


def test_unfinished_table_leaves_nothing(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "x", strings("t")) as writer:
        writer.string("t", b"abc")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("cut", [0, 10, 50, -1])
def test_broken_table(tmp_path: Path, cut: int) -> None:
    with TableWriter(tmp_path / "x", strings("t")) as writer:
        writer.string("t", b"abc" * 100)
        writer.finish()
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:cut])
    with pytest.raises(TableError):
        TableFile(tmp_path / "x")
    with pytest.raises(TableError):
        TableFile(tmp_path / "missing")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.sampled_from(DAMAGES), seed=st.integers(0, 2**32))
def test_a_damaged_table_is_made_again_or_says_the_same(tmp_path: Path, damage: Damage, seed: int) -> None:
    with TableWriter(tmp_path / "x", {**strings("t"), "n": "<i8"}) as writer:
        for number in range(300):
            writer.string("t", b"abc")
            writer.append("n", np.int64(number).tobytes())
        writer.meta["about"] = "x"
        writer.finish()
    spoil(tmp_path / "x", damage, seed)
    with suppress(TableError):
        table = TableFile(tmp_path / "x")
        assert list(table.strings("t")) == [b"abc"] * 300
        assert table["n"].tolist() == list(range(300))
        assert table.meta == {"about": "x"}


def test_a_damaged_listing_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETCL_CACHE", str(tmp_path / "cache"))
    folder(tmp_path / "photos", [f"{i}.jpg" for i in range(5)])
    names = [open_source(str(tmp_path / "photos")).sample(i).name for i in range(5)]
    for cached in (tmp_path / "cache").iterdir():
        spoil(cached, DAMAGES[0], seed=1)
    assert [open_source(str(tmp_path / "photos")).sample(i).name for i in range(5)] == names


@contextmanager
def little_memory() -> Iterator[None]:
    """Nothing inside may hold more than 2 MB at any time (numpy's arrays count, its maps do not)."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_hundred_million_images_in_shards(tmp_path: Path) -> None:
    columns = {"image": (RECORD, HUGE), "start": ("<i8", 1), "shard": ("u1", 8), "shard.ends": ("<u8", 1)}
    maps = create_sparse(tmp_path / "huge", columns, {"fingerprint": "f", "classes": 3})
    places = [0, 1, 12_345_678, HUGE // 2, HUGE - 1]
    for i in places:
        maps["image"][i] = (512 + i, 3, 0, i % 3)
    maps["shard"][:] = np.frombuffer(b"/nowhere", np.uint8)
    maps["shard.ends"][:] = 8
    del maps
    with little_memory():
        source = pickle.loads(pickle.dumps(ShardSource(TableFile(tmp_path / "huge"), name="huge")))
        assert len(source) == HUGE
        assert [source.label(i) for i in places] == [i % 3 for i in places]
        assert [int(source.table["image"][i]["offset"]) for i in places] == [512 + i for i in places]
    assert len(pickle.dumps(source)) < 2000


def test_hundred_million_images_in_a_folder(tmp_path: Path) -> None:
    columns = {"path": ("u1", 9 * 5), "path.ends": ("<u8", HUGE)}
    maps = create_sparse(tmp_path / "huge", columns, {"fingerprint": "f"})
    maps["path"][-9:] = np.frombuffer(b"a/last.jp", np.uint8)
    maps["path.ends"][-2:] = (36, 45)
    del maps
    with little_memory():
        source = FolderSource(str(tmp_path), TableFile(tmp_path / "huge"))
        assert len(source) == HUGE
        assert source.path(HUGE - 1) == b"a/last.jp"


def test_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HETCL_CACHE", str(tmp_path / "a" / "b"))
    assert cache_folder() == tmp_path / "a" / "b"
    assert cache_folder(tmp_path / "c") == tmp_path / "c"
    monkeypatch.delenv("HETCL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "hetcl"
    assert not caplog.text


def test_unwritable_cache_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tables.tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("HETCL_CACHE", str(tmp_path / "file" / "cache"))
    root = folder(tmp_path / "d", ["1.jpg"])
    assert len(open_source(str(root))) == 1
    assert "cannot write the cache" in caplog.text
    assert any((tmp_path / "tmp").iterdir())
    monkeypatch.setattr(tables.tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set HETCL_CACHE"):
        open_source(str(root))


@pytest.mark.parametrize("home", [None, ""])
def test_no_home_folder(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "HETCL_CACHE"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cache_folder().parent == tmp_path
    assert "this user has no home folder: listings go to" in caplog.text
    assert not Path("~").exists()


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "d", ["1.jpg"])

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.os, "replace", full)
    with pytest.raises(InputError, match=r"No space left on device.*HETCL_CACHE"):
        open_source(str(root), cache=tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_file()]
