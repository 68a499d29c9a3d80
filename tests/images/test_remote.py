"""Remote shards: copied once to local disk, whole or not at all."""

from __future__ import annotations

import functools
import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from hetcl.errors import InputError
from hetcl.images import remote
from hetcl.images.sources import open_source, open_validation
from tests.images.make import shard


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and counts what is asked of it."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    pytest.importorskip("aiohttp")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "served"
    root.mkdir()
    Quiet.asked.clear()
    http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}", root
    http.shutdown()
    http.server_close()


def read(source: object, count: int) -> list[bytes]:
    return [source.sample(i).data for i in range(count)]  # type: ignore[attr-defined]


def test_http(server: tuple[str, Path], tmp_path: Path) -> None:
    url, root = server
    for i in range(2):
        shard(root / f"x-{i}.tar", 3, 3 * i)
    (root / "classes.json").write_text('["cat", "dog"]')
    cache = tmp_path / "cache"
    source = open_source(f"{url}/x-{{0..1}}.tar", cache=cache)
    local = open_source(str(root / "x-{0..1}.tar"), cache=cache)
    assert read(source, 6) == read(local, 6)
    assert source.classes == ("cat", "dog")
    assert source.fingerprint == local.fingerprint
    Quiet.asked.clear()
    assert len(open_source(f"{url}/x-{{0..1}}.tar", cache=cache)) == 6
    assert not [path for path in Quiet.asked if path.endswith(".tar")]  # not fetched again
    assert not list(cache.rglob("*.part"))


def test_http_missing(server: tuple[str, Path], tmp_path: Path) -> None:
    url, root = server
    shard(root / "x-0.tar")
    with pytest.raises(InputError, match=r"x-1\.tar does not exist"):
        open_source(f"{url}/x-{{0..1}}.tar", cache=tmp_path / "cache")


def test_unreachable_server(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(InputError, match="cannot reach"):
        open_source("http://127.0.0.1:9/x.tar", cache=tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    for name, first in (("train-0", 0), ("train-1", 3), ("val-0", 6)):
        system.pipe_file(f"/bucket/{name}.tar", shard(tmp_path / "made.tar", 3, first).read_bytes())
    yield system
    system.rm("/bucket", recursive=True)


def test_remote_folder(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    source = open_source("memory://bucket", cache=tmp_path / "cache")
    held = open_validation("memory://bucket/", cache=tmp_path / "cache")
    assert len(source) == 6
    assert held is not None
    assert len(held) == 3
    memory.pipe_file("/empty/x.txt", b"x")
    with pytest.raises(InputError, match=r"no \.tar shards"):
        open_source("memory://empty", cache=tmp_path / "cache")


def test_remote_folders_of_shards(tmp_path: Path) -> None:
    """The name of a bucket says nothing of its shards; folders in it do."""
    system = fsspec.filesystem("memory")
    try:
        for name, first in (("Train/0", 0), ("Train/1", 3), ("Test/0", 6)):
            system.pipe_file(f"/val-bucket/{name}.tar", shard(tmp_path / "made.tar", 3, first).read_bytes())
        assert len(open_source("memory://val-bucket", cache=tmp_path / "cache")) == 6
        assert len(open_source("memory://val-bucket", split="test", cache=tmp_path / "cache")) == 3
        assert len(open_source("memory://val-bucket", split="all", cache=tmp_path / "cache")) == 9
        system.pipe_file("/train-bucket/x_test_0.tar", shard(tmp_path / "made.tar", 2).read_bytes())
        system.pipe_file("/train-bucket/x_0.tar", shard(tmp_path / "made.tar", 3).read_bytes())
        assert len(open_source("memory://train-bucket", cache=tmp_path / "cache")) == 3
    finally:
        system.rm("/val-bucket", recursive=True)
        system.rm("/train-bucket", recursive=True)


def test_changed_remote_is_fetched_again(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    assert len(open_source("memory://bucket/val-0.tar", cache=tmp_path / "cache")) == 3
    memory.pipe_file("/bucket/val-0.tar", shard(tmp_path / "made.tar", 5).read_bytes())
    assert len(open_source("memory://bucket/val-0.tar", cache=tmp_path / "cache")) == 5


def test_broken_download_leaves_nothing(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0,))

    def half(self: object, path: str, local: str, **kwargs: object) -> None:
        Path(local).write_bytes(memory.cat_file(path)[:1000])

    monkeypatch.setattr(type(memory), "get_file", half)
    with pytest.raises(InputError, match="broke off after 1,000 of"):
        open_source("memory://bucket/val-0.tar", cache=tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".tar", ".part")]


def test_kept_copy_serves_when_the_server_is_gone(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read(open_source("memory://bucket/val-0.tar", cache=tmp_path / "cache"), 3)

    def gone(self: object, path: str, **kwargs: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(type(memory), "info", gone)
    assert read(open_source("memory://bucket/val-0.tar", cache=tmp_path / "cache"), 3) == expected
    with pytest.raises(InputError, match="cannot reach memory://bucket/train-0"):
        open_source("memory://bucket/train-0.tar", cache=tmp_path / "cache")


def test_disk_too_small(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 5, 5))
    with pytest.raises(InputError, match=r"2 shards need 0\.00 GB, .* name fewer shards"):
        open_source("memory://bucket", cache=tmp_path / "cache")
