"""A run killed at any moment and resumed ends in the same bytes as an undisturbed one; so it does with other workers.

Kills of two kinds: from outside at random moments, and by itself just before the n-th time it touches the run folder
(``processes.py``), which reaches the moments between two writes. ``experiments/kill_resume.py`` does it many times.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from hetcl.cli import main
from hetcl.images.sources import open_source
from hetcl.runs import checkpoint
from tests.pretraining import processes
from tests.pretraining.small import DATA, SMALL, command


def result(out: Path) -> tuple[bytes, bytes]:
    return (out / "backbone.safetensors").read_bytes(), (out / "metrics.csv").read_bytes()


def same_as(undisturbed: Path, out: Path) -> None:
    backbone, metrics = result(out)
    assert metrics.decode() == result(undisturbed)[1].decode()
    assert backbone == result(undisturbed)[0]


def changes_of(path: Path, count: int) -> object:
    """A condition for ``wait_for``: ``path`` was replaced ``count`` times since it was last asked from nothing."""
    seen: set[int] = set()

    def condition() -> bool:
        if path.exists():
            seen.add(path.stat().st_ino)
        return len(seen) > count

    return condition


# ---- SIGKILL -----------------------------------------------------------------------------------------------------


def test_killed_at_random_moments(undisturbed: Path, tmp_path: Path) -> None:
    """Before the first checkpoint, after some steps, right after stage 1, and in stage 2; then to the end."""
    out, said = tmp_path / "run", tmp_path / "said"
    folder = out / "checkpoints"
    moments = [
        lambda: (out / "metrics.csv").exists(),
        changes_of(folder / "last.ckpt", random.choice([0, 2])),  # in the middle of an epoch
        lambda: (folder / "stage1.ckpt").exists(),
        lambda: b"stage2,0,3," in (out / "metrics.csv").read_bytes(),
    ]
    for number, moment in enumerate(moments):
        # Whoever resumes need not know the data or the recipe, and may have other workers.
        resumed = ["pretrain", "--out", str(out), "--resume", "--workers", str(number % 2)]
        process = processes.start(resumed if number else command(out), said)
        assert processes.wait_for(process, moment), said.read_text()  # type: ignore[arg-type]
        time.sleep(random.random() * 0.02)
        assert processes.kill(process) == -signal.SIGKILL
        assert not (out / "backbone.safetensors").exists()
    assert processes.run(["pretrain", "--out", str(out), "--resume"], said) == 0, said.read_text()
    same_as(undisturbed, out)


def test_killed_between_any_two_writes(undisturbed: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    argv, status, deaths = command(out, "--resume"), -9, []
    while status == -9:
        # Far enough to pass the writes of a resumed start and reach the next checkpoint sooner or later.
        deaths.append(random.randint(1, 90))
        status = processes.run(argv, said, die_at=deaths[-1], folder=out)
        assert len(deaths) < 40, deaths
    assert status == 0, (deaths, said.read_text())
    same_as(undisturbed, out)


def test_killed_at_each_of_the_first_writes(tmp_path: Path) -> None:
    """Whatever there is by then, ``--resume`` takes the folder for a run's and gets past where it opens it."""
    said = tmp_path / "said"
    for moment in (2, 3, 4, 5, 7, 9):  # settings half written, no table, one table, no header ...
        out = tmp_path / f"run{moment}"
        argv = command(out, "--knn.every", "0", "--resume")
        assert processes.run(argv, said, die_at=moment, folder=out) == -9, said.read_text()
        assert processes.run(argv, said, die_at=24, folder=out) == -9, (moment, said.read_text())
        assert (out / "metrics.csv").read_bytes().startswith(b"stage,epoch,step,loss")
        assert "training" in (out / "log.txt").read_text()


# ---- signals that ask ------------------------------------------------------------------------------------------------


def step_of(out: Path) -> tuple[str, int, int]:
    state = checkpoint.load(out / "checkpoints" / "last.ckpt")
    return state["stage"], state["epoch"], state["step"]


@pytest.mark.parametrize(
    ("number", "status", "console_script"), [(signal.SIGTERM, 143, True), (signal.SIGINT, 130, False)]
)
def test_a_signal_saves_and_exits(
    number: int, status: int, console_script: bool, undisturbed: Path, tmp_path: Path
) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    argv = command(out, "--checkpoint_every", "0", "--workers", "1")

    def under_way() -> bool:
        return (out / "metrics.csv").is_file() and b"stage1,0,3," in (out / "metrics.csv").read_bytes()

    if console_script:
        with open(said, "w") as log:
            real = subprocess.Popen([sys.executable, "-m", "hetcl.cli", *argv], stdout=log, stderr=log)
        while not under_way():
            assert real.poll() is None, said.read_text()
            time.sleep(0.003)
        real.send_signal(number)
        assert real.wait() == status
    else:
        process = processes.start(argv, said)
        assert processes.wait_for(process, under_way), said.read_text()
        assert processes.kill(process, number) == status
    assert "after saving; go on with --resume" in said.read_text()
    assert step_of(out) >= ("stage1", 0, 3)
    assert not (out / "checkpoints" / "stage2.ckpt").exists()
    assert processes.run(["pretrain", "--out", str(out), "--resume"], said) == 0, said.read_text()
    same_as(undisturbed, out)


@pytest.mark.skipif(sys.platform != "linux", reason="terminals as Linux has them")
def test_a_closed_terminal_saves(undisturbed: Path, tmp_path: Path) -> None:
    """Its window is closed while a run shows its bar there: nobody hears the last words, and nothing is lost."""
    import fcntl
    import termios

    out, said = tmp_path / "run", tmp_path / "said"
    ours, theirs = os.openpty()
    real = subprocess.Popen(
        [sys.executable, "-m", "hetcl.cli", *command(out, "--checkpoint_every", "0", "--stage1.epochs", "2")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    while not ((out / "metrics.csv").is_file() and b"stage1,0,3," in (out / "metrics.csv").read_bytes()):
        assert real.poll() is None
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 1 << 16)
        time.sleep(0.003)
    os.close(ours)
    assert real.wait(60) == 128 + signal.SIGHUP
    assert step_of(out) >= ("stage1", 0, 3)
    assert processes.run(["pretrain", "--out", str(out), "--resume"], said) == 0, said.read_text()
    same_as(undisturbed, out)


# ---- what changes nothing -------------------------------------------------------------------------------------------


def test_the_number_of_workers_changes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert processes.run(command(out, "--workers", "2"), tmp_path / "said") == 0
    same_as(undisturbed, out)


def test_shards_and_a_folder_of_the_same_images_give_the_same_run(tmp_path: Path) -> None:
    scenes, folder = open_source("scenes:18"), tmp_path / "images"
    folder.mkdir()
    with tarfile.open(tmp_path / "a-0.tar", "w") as first, tarfile.open(tmp_path / "a-1.tar", "w") as second:
        for i in range(18):
            stream = io.BytesIO()
            Image.fromarray(scenes.sample(i).data).save(stream, "jpeg", quality=90)
            (folder / f"{i:04}.jpg").write_bytes(stream.getvalue())
            member = tarfile.TarInfo(f"{i:04}.jpg")
            member.size = len(stream.getvalue())
            (first if i < 7 else second).addfile(member, io.BytesIO(stream.getvalue()))
    outs = [tmp_path / "of_folder", tmp_path / "of_shards"]
    for out, data in zip(outs, (str(folder), str(tmp_path / "a-{0..1}.tar")), strict=True):
        argv = command(out, "--stage1.epochs", "1", "--stage2.epochs", "1", data=data)
        assert processes.run(argv, tmp_path / "said") == 0, (tmp_path / "said").read_text()
    assert result(outs[0]) == result(outs[1])


# ---- the words of --resume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["missing", "empty"])
def test_resume_without_a_run_starts_afresh(there: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    if there == "empty":
        out.mkdir()
    argv = command(out, "--resume", "--stage1.epochs", "1", "--stage2.epochs", "0", "--knn.every", "0")
    assert processes.run(argv, tmp_path / "said") == 0, (tmp_path / "said").read_text()
    assert (out / "backbone.safetensors").exists()


def test_resume_of_a_finished_run_changes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    before = result(undisturbed)
    argv = command(undisturbed, "--resume", "--workers", "1")
    assert processes.run(argv, tmp_path / "said") == 0, (tmp_path / "said").read_text()
    assert result(undisturbed) == before


def files(out: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--resume", "--stage2.lr", "0.5"], "stage2.lr was 0.05, now 0.5"),
        (["--resume", "--recipe", "demo"], "backbone was timm:test_resnet, now"),
        (["--resume", "--data", "scenes:28"], "does not hold what the run"),
        (["--resume", "--init", "torchvision:resnet18:random"], "began with random weights"),
        ([*SMALL, "--data", DATA], "add --resume"),
    ],
    ids=["settings", "recipe", "data", "init", "without --resume"],
)
def test_resume_with_something_else_is_refused(
    words: Sequence[str], named: str, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(undisturbed)
    assert main(["pretrain", "--out", str(undisturbed), *words]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert len(said.splitlines()) == 1
    assert files(undisturbed) == before


def test_a_checkpoint_of_another_backbone_is_refused(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "settings.yaml").write_bytes((undisturbed / "settings.yaml").read_bytes())
    state = checkpoint.load(undisturbed / "checkpoints" / "last.ckpt")
    checkpoint.save(out / "checkpoints" / "last.ckpt", {**state, "arch": "timm:resnet10t"})
    before = files(out)
    assert main(["pretrain", "--out", str(out), "--resume"]) == 2
    assert "is of the backbone timm:resnet10t" in capsys.readouterr().err
    assert files(out) == before


def test_a_last_checkpoint_that_is_cut_short_gives_way_to_the_one_before(
    undisturbed: Path, tmp_path: Path
) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    process = processes.start(command(out), said)
    assert processes.wait_for(process, lambda: (out / "checkpoints" / "stage1.ckpt").exists())
    processes.kill(process)
    last = out / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    assert processes.run(["pretrain", "--out", str(out), "--resume"], said) == 0, said.read_text()
    same_as(undisturbed, out)
