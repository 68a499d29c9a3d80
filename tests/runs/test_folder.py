"""Run folders: tables that can be cut back, small files written wholly."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from hetcl.errors import InputError, WorkFailed
from hetcl.runs.folder import RunFolder, Table, write_atomic


def test_settings_come_back_and_broken_ones_are_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(InputError, match=r"no settings\.yaml"):
        run.read_settings()
    tree = {"data": "bär", "settings": {"lr": 1e-4, "area": [0.2, 1.0]}, "init": None}
    for name in ("bär", "\u202egpj.x"):  # the second reverses what follows it
        run.write_settings(tree | {"data": name})
        assert (name in run.settings.read_text("utf-8")) == (name == "bär")
        assert run.read_settings() == tree | {"data": name}
    for broken in ("a: [", "just words", "\x00"):
        run.settings.write_text(broken)
        with pytest.raises(InputError, match=r"settings\.yaml"):
            run.read_settings()


def test_a_table_is_cut_back_to_where_a_checkpoint_left_it(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv", ("a", "b"))
    table.cut(0)
    table.append({"a": 1, "b": 0.1 + 0.2})
    size = table.size()
    table.append({"a": 2})
    table.cut(size)
    assert table.path.read_text() == "a,b\n1,0.3\n"
    table.append({"b": "x,y"})
    assert table.path.read_text() == 'a,b\n1,0.3\n,"x,y"\n'
    table.cut(0)
    assert table.path.read_text() == "a,b\n"


def test_a_line_cut_short_is_dropped_and_a_lost_table_begins_anew(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv", ("a", "b"))
    table.path.write_text("a,b\n1,2\n3,")
    table.cut(None)
    assert table.path.read_text() == "a,b\n1,2\n"
    for there in (None, "", "a,"):  # shorter than the checkpoint says: never filled up with zeros
        table.path.unlink(missing_ok=True)
        if there is not None:
            table.path.write_text(there)
        table.cut(500)
        assert table.path.read_text() == "a,b\n"


def test_metrics_come_back_as_numbers(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_metrics() == []
    table = Table(run.metrics, ("stage", "step", "loss", "knn"))
    table.cut(0)
    table.append({"stage": "stage1", "step": 3, "loss": 0.25})
    assert run.read_metrics() == [{"stage": "stage1", "step": 3.0, "loss": 0.25}]


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_old_file(
    broken: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "x", b"old")

    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(broken, full)
    with pytest.raises(WorkFailed, match=r"cannot write .*x: the disk is full; .*--resume"):
        write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]
