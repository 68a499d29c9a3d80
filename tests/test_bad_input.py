"""A hostile user at the command line: one clear line with the fix, the right status, and nothing lost.

Everything runs in this process through ``hetcl.cli.main``, on a model of 0.4 million weights at 32 pixels.
"""

from __future__ import annotations

import csv
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hetcl.cli import main
from hetcl.runs import checkpoint
from tests.images.make import encoded, folder, pixels, shard

TINY = (
    "--backbone timm:test_resnet --size 32 --batch 8 --groups 2 --spatial.side 4 --spatial.width 8 "
    "--semantic.dim 8 --stage1.epochs 1 --stage2.epochs 1 --threads 1 --workers 0 --device cpu --knn.every 0"
).split()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder to be in, a cache of one's own, and the number of threads put back."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HETCL_CACHE", str(tmp_path.parent / "cache"))
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of both stages on ``scenes:16``; copy it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["pretrain", "--data", "scenes:16", "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture
def run(finished: Path) -> Path:
    """A copy of the finished run, as ``run``."""
    shutil.copytree(finished, "run")
    return Path("run")


class Says:
    """Runs a command and keeps what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = ""

    def __call__(self, *words: str, status: int = 2) -> str:
        """What the command complained of, which must be one line; ``status`` is what it must exit with."""
        assert main(list(words)) == status
        self.out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        if status == 0:
            return err
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("hetcl: ")
        return lines[0].removeprefix("hetcl: ")

    def pretrain(self, *words: str, data: str = "scenes:16", out: str = "new", status: int = 2) -> str:
        """``hetcl pretrain`` with tiny settings; a refusal must not write anything."""
        there = sorted(os.listdir("."))
        said = self("pretrain", "--data", data, "--out", out, *TINY, *words, status=status)
        if status == 2:
            assert sorted(os.listdir(".")) == there, "something was written"
        return said


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Says:
    return Says(capsys)


# ---- data ------------------------------------------------------------------------------------------------------------


def test_data_that_is_not_there(says: Says) -> None:
    folder(Path("photos"), ["a.jpg", "b.jpg"])
    assert "missing does not exist: DATA is a folder of pictures, tar shards" in says.pretrain(data="missing")
    assert "did you mean" in says.pretrain(data="photo")
    assert "photos?" in says.pretrain(data="photo")
    assert "matches no file" in says.pretrain(data="x-{00..04}.tar")
    assert "such as scenes:1000" in says.pretrain(data="scenes:0")
    assert "such as scenes:1000" in says.pretrain(data="scenes:many")
    assert "DATA is empty" in says.pretrain(data="")
    assert "is a single picture: name the folder" in says.pretrain(data="photos/a.jpg")


def test_folders_without_pictures(says: Says) -> None:
    Path("empty").mkdir()
    assert "no pictures in" in says.pretrain(data="empty")
    assert "it holds no files" in says.pretrain(data="empty")
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("hello")
    assert "found 1 x .txt" in says.pretrain(data="texts")


def test_shards_that_are_cut_short_or_none(says: Says) -> None:
    whole = shard(Path("whole.tar"), 12).read_bytes().rstrip(b"\0")  # the end may be padded
    for share in (0, 0.3, 0.5, 0.9):
        cut = Path(f"cut{share}.tar")
        cut.write_bytes(whole[: int(len(whole) * share)])
        assert f"the shard {cut} is cut short" in says.pretrain(data=str(cut))
        assert "copy or download it again" in says.pretrain(data=str(cut))
    Path("text.tar").write_bytes(b"hello" * 1000)
    assert "is not a tar archive" in says.pretrain(data="text.tar")
    Path("packed.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    assert "unpack it once (gzip -d)" in says.pretrain(data="packed.tar.gz")


def test_a_tar_that_ends_behind_a_long_name_is_cut_short(says: Says) -> None:
    import tarfile

    with tarfile.open("pax.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(4):
            Path("a.jpg").write_bytes(encoded(pixels(8, 8, seed=i)))
            tar.add("a.jpg", f"{'x' * 120}{i}.jpg")
    data = Path("pax.tar").read_bytes()
    for blocks in range(1, len(data.rstrip(b"\0")) // 512):
        Path("cut.tar").write_bytes(data[: blocks * 512])
        assert "the shard cut.tar is cut short" in says.pretrain(data="cut.tar")


def test_too_few_pictures(says: Says) -> None:
    folder(Path("one"), ["a.jpg"])
    assert says.pretrain(data="one") == "1 picture in the folder one: too few to contrast; give at least 2"


def test_few_pictures_are_enough(says: Says) -> None:
    folder(Path("tw élve 照片"), [f"{i} ü.jpg" for i in range(3)])
    says.pretrain("--batch", "64", "--accumulate", "2", data="tw élve 照片", out="out ü 照", status=0)
    for told in ("batch 64 -> 3", "groups 2 -> 1", "queue 65536 -> 3, the number of pictures"):
        assert told in says.out
    assert Path("out ü 照/backbone.safetensors").is_file()


def test_labels_that_are_not_there(says: Says) -> None:
    folder(Path("loose"), [f"{i}.jpg" for i in range(8)])
    said = says.pretrain("--stage1.method", "supervised", data="loose")
    assert "has no labels" in said
    assert "--folder_classes true" in said
    assert "do not ask for folder classes" in says.pretrain("--folder_classes", "yes", data="loose")


# ---- pictures --------------------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says it has very many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def spoiled() -> dict[str, str]:
    """The folder ``photos``: 30 good pictures (one a PNG by another name), 5 that cannot be used -> their reasons."""
    folder(Path("photos"), [f"good{i:02}.jpg" for i in range(29)])
    whole = encoded(pixels(60, 50))
    files = {
        "png.jpg": encoded(pixels(), "PNG"),
        "empty.jpg": b"",
        "cut.jpg": whole[: len(whole) // 2],
        "text.jpg": b"hello, no picture",
        "bomb.png": bomb(60_000, 60_000),
        "zeros.jpg": bytes(4000),
    }
    for name, data in files.items():
        Path("photos", name).write_bytes(data)
    Path("photos/folder.jpg").mkdir()
    return {
        "empty.jpg": "the file is empty",
        "cut.jpg": "truncated",
        "text.jpg": "not a picture",
        "bomb.png": "a decompression bomb?",
        "zeros.jpg": "not a picture",
    }


def test_pictures_that_cannot_be_used_are_replaced_counted_and_listed(says: Says) -> None:
    bad = spoiled()
    says.pretrain("--max_bad", "0.5", data="photos", status=0)
    with open("new/bad_pictures.csv", newline="") as f:
        listed = {row["name"]: row["reason"] for row in csv.DictReader(f)}
    assert set(listed) == set(bad)
    assert all(reason in listed[name] for name, reason in bad.items())
    assert "another picture takes its place" in says.out
    assert "5 pictures could not be used: new/bad_pictures.csv lists them" in says.out


def test_replacing_a_picture_changes_no_other_sample() -> None:
    """Views of the pictures that were good all along, with and without five others spoiled."""
    from hetcl.images.sources import open_source
    from hetcl.types import ViewPolicy
    from hetcl.views.loader import ViewLoader

    bad = spoiled()

    def views() -> dict[int, tuple[np.ndarray, np.ndarray]]:
        loader = ViewLoader(open_source("photos"), policy=ViewPolicy(), size=32, batch=7, seed=3, stage="s")
        rows = {}
        for step, batch in enumerate(loader.epoch(1)):
            for i in range(7):
                rows[step * 7 + i] = (
                    int(batch.index[i]),
                    batch.images[:, i].numpy(),
                    batch.colour[:, i].numpy(),
                )
        return rows

    with_bad = views()
    for name in bad:
        Path("photos", name).write_bytes(encoded(pixels(40, 30, seed=99)))
    without = views()
    same = [
        here for here in without
        if with_bad[here][0] == without[here][0] and np.array_equal(with_bad[here][1], without[here][1])
    ]  # fmt: skip
    assert all(np.array_equal(with_bad[i][2], without[i][2]) for i in without), (
        "the draws belong to the place"
    )
    assert len(without) - len(same) == 5


def test_too_many_bad_pictures_stop_the_run_and_resume_goes_on(says: Says) -> None:
    folder(Path("photos"), [f"{i:02}.jpg" for i in range(20)])
    for i in range(5):
        Path(f"photos/bad{i}.jpg").write_text("x")
    said = says.pretrain(data="photos", status=1)
    assert "pictures opened cannot be used, more than max_bad = 10%; new/bad_pictures.csv lists them" in said
    assert "raise max_bad and go on with --resume" in said
    says("pretrain", "--out", "new", "--resume", "--max_bad", "0.5", status=0)
    assert Path("new/backbone.safetensors").is_file()


def test_the_share_counts_pictures_not_attempts(says: Says) -> None:
    """Half of the pictures are bad, so replacements fail too: still half of what was opened."""
    folder(Path("photos"), [f"{i:02}.jpg" for i in range(20)])
    for i in range(20):
        Path(f"photos/bad{i}.jpg").write_text("x")
    says.pretrain("--max_bad", "0.7", data="photos", status=0)


def test_no_usable_picture_at_all(says: Says) -> None:
    Path("photos").mkdir()
    for i in range(9):
        Path(f"photos/{i}.jpg").write_text("x")
    said = says.pretrain(data="photos", status=1)
    assert "in a row cannot be used" in said
    assert "not a picture" in said
    assert "none of 9 pictures can be read" in says("doctor", "--data", "photos", *TINY)


def test_doctor_counts_bad_pictures(says: Says) -> None:
    spoiled()
    says("doctor", "--data", "photos", *TINY, status=0)
    assert "5 of 35 pictures cannot be used" in says.out


# ---- the run folder --------------------------------------------------------------------------------------------------


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


def test_a_full_disk_under_a_checkpoint(finished: Path, says: Says) -> None:
    """``/dev/full`` takes a checkpoint's place. What was there stays; with room again the run ends the same."""
    checkpoints = Path("new/checkpoints")
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.ckpt.part").symlink_to("/dev/full")
    said = says.pretrain(status=1)
    assert "cannot write new/checkpoints/last.ckpt: the disk is full" in said
    assert "make room and go on with --resume" in said
    assert not list(checkpoints.iterdir())
    (checkpoints / "stage1.ckpt.part").symlink_to("/dev/full")
    assert "stage1.ckpt: the disk is full" in says("pretrain", "--out", "new", "--resume", status=1)
    (Path("new") / "backbone.safetensors.part").symlink_to("/dev/full")
    assert "backbone.safetensors: the disk is full" in says("pretrain", "--out", "new", "--resume", status=1)
    says("pretrain", "--out", "new", "--resume", status=0)
    for name in ("backbone.safetensors", "metrics.csv"):
        assert Path("new", name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize("name", ["log.txt", "metrics.csv", "timing.csv", "bad_pictures.csv"])
def test_a_full_disk_under_a_small_file(name: str, says: Says) -> None:
    spoiled()
    says.pretrain("--max_bad", "0.01", data="photos", status=1)  # leaves a run that has just begun
    Path("new", name).unlink()
    Path("new", name).symlink_to("/dev/full")
    said = says("pretrain", "--out", "new", "--resume", "--max_bad", "0.5", status=1)
    assert f"cannot write new/{name}: " in said
    assert "go on with --resume" in said


def test_a_full_disk_under_tensorboard(says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event file is written in this thread: no traceback of another one, no second failure at the end."""
    from hetcl.training import progress

    def divert(path: Any, mode: str) -> Any:
        return open("/dev/full" if "tfevents" in str(path) else path, mode)

    with monkeypatch.context() as full:
        full.setattr(progress, "open", divert, raising=False)
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
        (["--data", "scenes:17"], "does not hold the pictures that the run in run began with"),
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
    for name in ("last", "previous"):
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
        ("--batch 1 --groups 1", "the model of stage1 does not run on 1 picture of 32 pixels"),
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
        ("--init moco:x.pth", "does not read moco weights yet"),
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
