"""One writer for each folder: who comes second is told who is there, and what is left of a dead one bars nobody."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hetcl.errors import InputError
from hetcl.ranks import first_process
from hetcl.runs.folder import RunFolder
from hetcl.runs.lock import FolderLock
from hetcl.runs.resume import check_run

HOLD = """
import os, sys, time
from pathlib import Path
from hetcl.runs.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.hold()
worker = "fork" in sys.argv and os.fork() == 0  # it outlives its parent
if worker or "fork" not in sys.argv:  # whoever is ready last
    os.write(1, b"held\\n")
if worker:
    os.close(1)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of ``tmp_path``."""
    argv = [sys.executable, "-c", HOLD, str(tmp_path), *getattr(request, "param", [])]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def test_who_comes_second_is_told_who_is_there(other: subprocess.Popen[str], tmp_path: Path) -> None:
    for _ in range(2):  # asking takes nothing away
        with pytest.raises(InputError, match=f"is being written by process {other.pid} on ") as refused:
            FolderLock(tmp_path).hold()
    said = str(refused.value)
    assert socket.gethostname() in said
    assert f"since {time.strftime('%Y-')}" in said
    assert str(tmp_path) in said
    assert "\n" not in said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("other", [[], ["fork"]], indirect=True)
def test_a_killed_process_bars_nobody_even_when_its_workers_live(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    other.kill()
    other.wait()
    assert {p.name for p in tmp_path.iterdir()} == {".lock", ".lock.json"}  # left behind
    with FolderLock(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} "):
        FolderLock(tmp_path).hold()
    assert list(tmp_path.iterdir()) == []


def test_it_is_kept_let_go_and_leaves_nothing(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "new")
    with lock:
        assert not (tmp_path / "new").exists()  # a folder that is still to be made
        (tmp_path / "new").mkdir()
        lock.hold()
        lock.hold()
        with pytest.raises(InputError, match="is being written"):
            FolderLock(tmp_path / "new").hold()
    assert list((tmp_path / "new").iterdir()) == []
    with FolderLock(tmp_path / "new"), FolderLock(tmp_path / "new", ".lock-x"):
        pass


@pytest.mark.parametrize("note", [b"", b"\0\0", b"{}", b'{"pid": 1}'])
def test_a_damaged_note_is_no_reason_to_let_in(
    note: bytes, other: subprocess.Popen[str], tmp_path: Path
) -> None:
    (tmp_path / ".lock.json").write_bytes(note)
    with pytest.raises(InputError, match="is being written by another process"):
        FolderLock(tmp_path).hold()


JOBS = {
    "torchrun": {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"},
    "children of one command": {"WORLD_SIZE": "2", "LOCAL_RANK": "1"},
    "SLURM": {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "train"},
}


@pytest.mark.parametrize("job", JOBS)
def test_ranks_of_a_job_share_it(
    job: str, other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in JOBS[job].items():
        monkeypatch.setenv(name, value)
    FolderLock(tmp_path).hold()
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(InputError, match="is being written"):
        FolderLock(tmp_path).hold()


@pytest.mark.parametrize(
    "inherited",
    [
        {"RANK": "1"},
        {"LOCAL_RANK": "3", "WORLD_SIZE": "1"},
        {"SLURM_PROCID": "1"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"},
    ],
)
def test_a_rank_without_others_is_a_process_of_its_own(
    inherited: dict[str, str], other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in inherited.items():
        monkeypatch.setenv(name, value)
    assert first_process()
    with pytest.raises(InputError, match="is being written"):
        FolderLock(tmp_path).hold()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_said(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import filelock

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with caplog.at_level(logging.WARNING), FolderLock(tmp_path):
        pass
    assert "has no locks; see that no second process writes there" in caplog.text


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filelock

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(InputError, match=f"cannot write in {tmp_path}: {os.strerror(number)}"):
        FolderLock(tmp_path).hold()


def test_a_fork_lets_nothing_go(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock:
        if (child := os.fork()) == 0:
            lock.release()
            os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / ".lock").exists()
        with pytest.raises(InputError, match="is being written"):
            FolderLock(tmp_path).hold()


def test_a_lock_is_no_content(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".lock.json").touch()
    check_run(RunFolder(tmp_path), resume=False)
