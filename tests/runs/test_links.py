"""Links, hard links and leftovers where hetcl writes its files: nothing is written through them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hetcl.errors import WorkFailed
from hetcl.images.locks import locked
from hetcl.paths import appending, create
from hetcl.runs import checkpoint
from hetcl.runs.files import write_atomic
from hetcl.runs.lock import FolderLock
from hetcl.runs.table import Table
from hetcl.training.progress import Reporter

WORDS = b"not yours"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(WORDS)
    return path


def checkpointed(folder: Path) -> Path:
    checkpoint.save(folder / "last.ckpt", {"w": torch.zeros(2)})
    checkpoint.save(folder / "last.ckpt", {"w": torch.ones(2)}, keep_previous=True)
    assert checkpoint.load(folder / "previous.ckpt")["w"].sum() == 0
    return folder / "last.ckpt"


def tabled(folder: Path) -> Path:
    table = Table(folder / "metrics.csv", ["step", "loss"])
    table.cut(None)
    for step in range(2):
        table.append({"step": step, "loss": 0.5})
    assert [row["step"] for row in table.read()] == [0, 1]
    return folder / "metrics.csv"


def held(folder: Path) -> Path:
    with FolderLock(folder) as lock:
        lock.hold()
        assert not (folder / ".lock").is_symlink()
        assert not (folder / ".lock.json").is_symlink()
    return folder / "nothing"


def cached(folder: Path) -> Path:
    with locked(folder / "x.lock") as mine:
        assert mine
    return folder / "x.lock"


def logged(folder: Path) -> Path:
    Reporter(folder / "log.txt", quiet=False).note("a line")
    return folder / "log.txt"


def atomic(folder: Path) -> Path:
    write_atomic(folder / "summary.json", b"{}")
    return folder / "summary.json"


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (checkpointed, ["last.ckpt", "last.ckpt.part", "previous.ckpt", "previous.ckpt.part"]),
        (tabled, ["metrics.csv"]),
        (held, [".lock", ".lock.json", ".lock.json.part"]),
        (cached, ["x.lock"]),
        (logged, ["log.txt"]),
        (atomic, ["summary.json", "summary.json.part"]),
    ],
)
@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link"])
def test_nothing_is_written_through(
    write: Callable[[Path], Path], names: list[str], kind: str, tmp_path: Path, victim: Path
) -> None:
    for name in names:
        folder = tmp_path / f"run {name}"
        folder.mkdir()
        if kind == "hard link":
            if not name.endswith(".part"):  # a plain file of ours, for all that can be known
                continue
            os.link(victim, folder / name)
        else:
            (folder / name).symlink_to(victim if kind == "link" else tmp_path / "nowhere")
        done = write(folder)
        assert not done.is_symlink()
        assert victim.read_bytes() == WORDS
        assert not (tmp_path / "nowhere").exists()
        assert not list(folder.glob("*.part"))


def test_a_device_may_be_linked_to(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to(os.devnull)
    with appending(tmp_path / "log.txt") as f:
        f.write(b"x")
    assert (tmp_path / "log.txt").is_symlink()


def test_rows_behind_a_link_are_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    elsewhere = tabled(tmp_path)
    before = elsewhere.read_bytes()
    (tmp_path / "run" / "metrics.csv").symlink_to(elsewhere)
    table = Table(tmp_path / "run" / "metrics.csv", ["step", "loss"])
    table.cut(None)
    table.append({"step": 2, "loss": 0.5})
    assert [row["step"] for row in table.read()] == [0, 1, 2]
    assert elsewhere.read_bytes() == before


def test_a_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert atomic(tmp_path / "run").read_bytes() == b"{}"
    assert (tmp_path / "disk" / "summary.json").is_file()


def test_what_cannot_be_removed_is_said(tmp_path: Path) -> None:
    (tmp_path / "summary.json.part").mkdir()
    with pytest.raises(WorkFailed, match=r"cannot write .*summary\.json: "):
        atomic(tmp_path)
    assert (tmp_path / "summary.json.part").is_dir()


def test_whoever_puts_it_back_for_ever_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, unlink = tmp_path / "a", Path.unlink

    def again(self: Path, *, missing_ok: bool = False) -> None:
        unlink(self, missing_ok=missing_ok)
        self.symlink_to(tmp_path / "nowhere")

    monkeypatch.setattr(Path, "unlink", again)
    with pytest.raises(FileExistsError):
        create(path)
    assert not (tmp_path / "nowhere").exists()


def test_new_files_have_the_rights_of_others(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    create(tmp_path / "ours").close()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    shutil.rmtree(tmp_path)
