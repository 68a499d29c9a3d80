"""The folder that ``--out`` names: what it holds, who may write it, and when that is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hetcl.errors import InputError
from hetcl.runs.lock import FolderLock
from hetcl.runs.output import claim, held_in, reserved, write_report


def test_a_lock_is_no_content_and_a_file_no_folder(tmp_path: Path) -> None:
    assert held_in(tmp_path / "new") == set()
    for name in (".lock", ".lock.json", "log.txt"):
        (tmp_path / name).touch()
    assert held_in(tmp_path) == {"log.txt"}
    with pytest.raises(InputError, match=r"log\.txt is a file; name a place"):
        held_in(tmp_path / "log.txt", "a place")


def test_a_folder_is_looked_at_first_and_again_once_it_is_locked(tmp_path: Path) -> None:
    out, seen = tmp_path / "a" / "b", list[bool]()

    def check() -> None:
        seen.append((out / ".lock").exists())

    with reserved(FolderLock(out), check) as lock:
        assert not out.exists()
        claim(lock, check, lambda: (out / "inside").mkdir())
        with pytest.raises(InputError, match="is being written by"), reserved(FolderLock(out), check):
            pass
    assert seen == [False, True, True]
    assert held_in(out) == {"inside"}


def test_a_folder_that_may_not_be_written_is_left_alone(tmp_path: Path) -> None:
    def refuse() -> None:
        raise InputError("taken")

    prepared: list[int] = []
    with pytest.raises(InputError, match="taken"):
        claim(FolderLock(tmp_path), refuse, lambda: prepared.append(1))
    assert not prepared
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"cannot make the folder .*file/below: Not a directory; name another"
    ):
        claim(FolderLock(tmp_path / "file" / "below"), lambda: None)


def test_a_report_holds_no_number_that_json_lacks(tmp_path: Path) -> None:
    write_report(tmp_path / "r.json", {"b": 1, "a": [0.5]})
    assert list(json.loads((tmp_path / "r.json").read_text())) == ["b", "a"]
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path / "r.json", {"b": float("nan")})
