"""Run folders, disks, checkpoints and weights that cannot be used: one clear line, and nothing lost."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hetcl.runs import checkpoint
from tests.hostile.conftest import Says, linux
from tests.hostile.test_bad_data import spoiled


def test_folders_that_cannot_be_a_new_run(run: Path, says: Says) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert "holds a run; add --resume to go on with it" in says.pretrain(out="run")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    Path("file").write_text("x")
    assert "--out file is a file; name a folder" in says.pretrain(out="file")
    assert "cannot make the run folder file/run: Not a directory" in says.pretrain(out="file/run")
    Path("full").mkdir()
    Path("full/thesis.doc").write_text("x")
    for more in ((), ("--resume",)):
        assert "--out full is not empty and holds no run" in says.pretrain(*more, out="full")
    assert os.listdir("full") == ["thesis.doc"]
    assert "holds no run" in says.pretrain(out="")
    assert "holds something that is no demo" in says("demo", "--out", "full")
    assert "--out file is a file" in says("demo", "--out", "file")


def test_a_folder_that_cannot_be_written(says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setenv("HETCL_CACHE", os.getcwd())
    said = says.pretrain(out="disc/run")
    assert said == "cannot make the run folder disc/run: Read-only file system; name another with --out"
    assert "Read-only file system" in says("demo", "--out", "disc")


def full(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on the disk is full for files whose names hold ``name``."""
    plain = os.open

    def opened(path: Any, flags: int, *more: Any, **words: Any) -> int:
        return plain("/dev/full", os.O_WRONLY) if name in str(path) else plain(path, flags, *more, **words)

    monkeypatch.setattr(os, "open", opened)


@linux
def test_a_full_disk_under_a_checkpoint(finished: Path, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there stays; with room again the run ends the same."""
    checkpoints = Path("new/checkpoints")
    with monkeypatch.context() as disk:
        full(disk, "last.ckpt.part")
        said = says.pretrain(status=1)
    assert "cannot write new/checkpoints/last.ckpt: the disk is full" in said
    assert "make room and go on with --resume" in said
    assert not list(checkpoints.iterdir())
    for name in ("stage1.ckpt", "backbone.safetensors"):
        with monkeypatch.context() as disk:
            full(disk, f"{name}.part")
            assert f"{name}: the disk is full" in says("pretrain", "--out", "new", "--resume", status=1)
    says("pretrain", "--out", "new", "--resume", status=0)
    for name in ("backbone.safetensors", "metrics.csv"):
        assert Path("new", name).read_bytes() == (finished / name).read_bytes()


@linux
@pytest.mark.parametrize("name", ["log.txt", "metrics.csv", "timing.csv", "bad_images.csv"])
def test_a_full_disk_under_a_small_file(name: str, says: Says) -> None:
    spoiled()
    says.pretrain("--max_bad", "0.01", data="photos", status=1)  # leaves a run that has just begun
    Path("new", name).unlink()
    Path("new", name).symlink_to("/dev/full")
    said = says("pretrain", "--out", "new", "--resume", "--max_bad", "0.5", status=1)
    assert f"cannot write new/{name}: " in said
    assert "go on with --resume" in said


@linux
def test_a_full_disk_under_tensorboard(says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event file is written in this thread: no traceback of another one, no second failure at the end."""
    with monkeypatch.context() as disk:
        full(disk, "tfevents")
        said = says.pretrain(status=1)
    assert "cannot write new/tensorboard/events.out.tfevents." in said
    assert "the disk is full" in said
    says("pretrain", "--out", "new", "--resume", status=0)
    assert any(p.stat().st_size for p in Path("new/tensorboard").iterdir())


def test_tensorboard_reads_what_was_written(finished: Path) -> None:
    """Numbers and steps as in metrics.csv, read by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    with open(finished / "metrics.csv", newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["loss"]]
    for row in rows:
        shown = {e.step: e.value for e in events.Scalars(f"{row['stage']}/loss")}
        assert shown[int(row["step"])] == pytest.approx(float(row["loss"]), rel=1e-6)
    assert len(rows) == 2


# ---- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--stage1.lr", "0.5"], "stage1.lr was 0.03, now 0.5"),
        (["--spatial.side", "5"], "spatial.side was 4, now 5"),
        (["--backbone", "timm:test_convnext"], "backbone was timm:test_resnet, now timm:test_convnext"),
        (
            ["--recipe", "small"],
            "more. Leave them as they were (or leave --recipe out), or start a new folder",
        ),
        (["--data", "scenes:17"], "does not hold what the run in run began with"),
        (["--data", "missing"], "missing does not exist"),
        (["--init", "torchvision:resnet18"], "the run in run began with random weights; leave it out"),
        (["--stage1.epoch", "3"], "unknown setting 'stage1.epoch'"),
    ],
)
def test_a_resume_with_something_else_is_refused(more: list[str], said: str, run: Path, says: Says) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert said in says("pretrain", "--out", "run", "--resume", *more)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not hold the settings of a run"),
        ("a: [", "cannot read run/settings.yaml"),
        ("settings: 5", "does not hold the settings of a run"),
        (
            "settings: {batch: eight}\ndata: x\nrecipe: y",
            "setting batch in run/settings.yaml must be a whole number",
        ),
        ("settings: {batchx: 8}\ndata: x\nrecipe: y", "unknown setting 'batchx' in run/settings.yaml"),
        ("settings: {batch: 8, groups: 2}", "run/settings.yaml lacks 'data'"),
    ],
)
def test_settings_of_a_run_that_were_spoiled(text: str, said: str, run: Path, says: Says) -> None:
    (run / "settings.yaml").write_text(text)
    assert said in says("pretrain", "--out", "run", "--resume")


def test_a_run_that_lost_files(finished: Path, run: Path, says: Says) -> None:
    resume = ("pretrain", "--out", "run", "--resume")
    (run / "checkpoints/last.ckpt").write_bytes((run / "checkpoints/last.ckpt").read_bytes()[:5000])
    (run / "checkpoints/stage1.ckpt").unlink()
    (run / "backbone.safetensors").unlink()
    says(*resume, status=0)
    assert "last.ckpt cannot be read; run/checkpoints/previous.ckpt takes its place" in says.out
    assert (run / "backbone.safetensors").read_bytes() == (finished / "backbone.safetensors").read_bytes()
    (run / "metrics.csv").write_text("")
    says(*resume, status=0)
    assert "run/metrics.csv has lost rows" in says.out
    (run / "settings.yaml").unlink()
    assert "holds no run" in says(*resume)


def test_checkpoints_that_cannot_be_read(run: Path, says: Says) -> None:
    for name in ("last", "previous", "stage1", "stage2"):
        (run / f"checkpoints/{name}.ckpt").write_bytes(b"PK\x03\x04")
    said = says("pretrain", "--out", "run", "--resume")
    assert "cannot read checkpoint run/checkpoints/last.ckpt" in said
    assert "start a new folder" in said


def test_a_checkpoint_of_another_backbone(run: Path, says: Says) -> None:
    path = run / "checkpoints/last.ckpt"
    checkpoint.save(path, checkpoint.load(path) | {"arch": "torchvision:resnet18"})
    before = path.read_bytes()
    said = says("pretrain", "--out", "run", "--resume")
    assert "is of the backbone torchvision:resnet18, this run's is timm:test_resnet" in said
    assert path.read_bytes() == before


# ---- models, weights, devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--backbone torchvision:reset50", "no such model in torchvision; did you mean resnet50"),
        ("--backbone jax:resnet50", "'jax' is not a library"),
        ("--backbone timm:vit_tiny_patch16_224", "has no maps of strides 4, 8, 16 and 32"),
        ("--backbone timm:test_resnet.nope", "Invalid pretrained tag (nope)"),
        ("--batch 1 --groups 1", "the model of stage1 does not run on 1 image of 32 pixels"),
        ("--backbone timm:test_resnet.nope", "backbone 'timm:test_resnet.nope'"),
        ("--size 100000", "out of memory (tried to allocate 240000000000 bytes)"),
        ("--semantic.dim 100000000000", "out of memory"),
        ("--devices 3", "must be multiples of the 3 devices"),
        ("--init nowhere.pth", "no weights 'nowhere.pth': give a run folder"),
        ("--init torchvision:resnet18", "does not fit timm:test_resnet: "),
        ("--init torchvision:resnet18", "set backbone to torchvision:resnet18"),
        (
            "--init torchvision:resnet18:IMAGENET1K_V7",
            "neither a file nor a weights name of torchvision's resnet18",
        ),
        ("--init torchvision:resnet81", "did you mean resnet18"),
        ("--init moco:x.pth", "moco:x.pth: there is no file 'x.pth'"),
    ],
)
def test_models_that_cannot_be(more: str, said: str, says: Says) -> None:
    assert said in says.pretrain(*more.split())


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_devices_that_are_not_there(device: str, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "set device to auto or cpu" in says.pretrain("--device", device)


def test_weights_of_a_file_that_is_no_good(run: Path, says: Says) -> None:
    Path("empty.pth").write_bytes(b"")
    assert "cannot read empty.pth as weights: the file is empty" in says.pretrain("--init", "empty.pth")
    (run / "checkpoints/cut.ckpt").write_bytes((run / "checkpoints/last.ckpt").read_bytes()[:3000])
    assert "it is damaged, cut short" in says.pretrain("--init", "run/checkpoints/cut.ckpt")
    Path("folder").mkdir()
    assert "is no run folder" in says.pretrain("--init", "folder")


def test_weights_that_fit_take_the_place_of_stage_1(run: Path, says: Says) -> None:
    for init in ("run", "run/checkpoints/stage1.ckpt", "run/backbone.safetensors"):
        shutil.rmtree("new", ignore_errors=True)
        says.pretrain("--init", init, status=0)
        assert f"--init {init} takes the place of stage 1" in says.out
        assert not Path("new/checkpoints/stage1.ckpt").exists()


def test_a_loss_that_is_not_finite_stops_the_run(says: Says) -> None:
    said = says.pretrain("--stage1.lr", "1e20", "--stage1.epochs", "3", status=1)
    assert "not finite" in said
    assert "lower stage1.lr" in said
