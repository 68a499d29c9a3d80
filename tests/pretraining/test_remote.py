"""A run over remote shards on a disk that is too small for them ends in the bytes of a local run with its window."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from hetcl.cli import main
from hetcl.images import copies, remote
from hetcl.images.remote import Shard
from hetcl.pretraining import doctor
from tests.images.make import shard
from tests.pretraining.small import command

SHARDS, EACH, WINDOW = 8, 4, 8
DATA = "memory://pretrain"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Shards at DATA and in tmp_path/here, and a cache on a disk of ``disk["shards"]`` shards."""
    system = fsspec.filesystem("memory")
    (tmp_path / "here").mkdir()
    for i in range(SHARDS):
        made = shard(tmp_path / "here" / f"x-{i}.tar", EACH, EACH * i)
        system.pipe_file(f"/pretrain/x-{i}.tar", made.read_bytes())
    size = made.stat().st_size
    cache, has = tmp_path / "cache", {"shards": 5}

    def free(_: Path) -> int:
        used = sum(f.stat().st_size for f in cache.rglob("*.*") if f.suffix in (".tar", ".part"))
        return copies.SPARE_ROLLING + has["shards"] * size - used

    monkeypatch.setenv("HETCL_CACHE", str(cache))
    monkeypatch.setattr(copies, "free_bytes", free)
    monkeypatch.setattr(copies, "SPARE", copies.SPARE_ROLLING)
    yield has
    system.rm("/pretrain", recursive=True)


def left(out: Path) -> tuple[bytes, bytes]:
    return (out / "backbone.safetensors").read_bytes(), (out / "metrics.csv").read_bytes()


def test_same_bytes_as_a_local_run_and_resumed_on_another_disk(
    disk: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    local, far = tmp_path / "local", tmp_path / "far"
    assert main(command(local, "--window", str(WINDOW), data=str(tmp_path / "here"))) == 0
    capfd.readouterr()
    real, fetched = remote._transfer, []

    def transfer(wanted: Shard, to: Path) -> None:
        real(wanted, to)
        fetched.append(wanted.url)
        if len(fetched) == SHARDS + 6:  # in the first epoch, after the index
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(remote, "_transfer", transfer)
    assert main(command(far, data=DATA)) == 143
    said = capfd.readouterr().err
    assert said.count("! 8 shards need 0.00 GB") == 1
    assert f"windows of {WINDOW} (2.0 shards)" in said
    assert yaml.safe_load((far / "settings.yaml").read_text())["window"] == WINDOW
    disk["shards"] = 100  # now all of them fit, and the order stays
    assert main(command(far, "--resume", data=DATA)) == 0
    assert left(far) == left(local)
    assert len(fetched) >= SHARDS + 6


def test_a_run_that_mixed_everything_is_not_resumed_where_that_is_impossible(
    disk: dict[str, int], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk["shards"] = 100
    out: Any = tmp_path / "run"
    assert main(command(out, data=DATA)) == 0
    kept = left(out)
    disk["shards"] = 5
    monkeypatch.setenv("HETCL_CACHE", str(tmp_path / "cache" / "new"))
    (tmp_path / "cache" / "remote").rename(tmp_path / "gone")
    assert main(command(out, "--resume", data=DATA)) == 2
    assert "mixes all their images; the disk is too small" in capfd.readouterr().err
    assert left(out) == kept


def test_doctor_looks_at_few_shards(
    disk: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    real: Any = remote._transfer
    fetched: list[str] = []
    monkeypatch.setattr(
        remote, "_transfer", lambda wanted, to: (fetched.append(wanted.url), real(wanted, to))
    )
    monkeypatch.setattr(doctor, "SAMPLES", 3)
    assert main(["doctor", "--data", DATA, *command(tmp_path)[5:]]) == 0
    out = capfd.readouterr()
    assert "images are mixed within windows of 8 only" in out.out
    assert "data      ! 8 shards need" in out.out
    assert len(fetched) <= SHARDS + 2
