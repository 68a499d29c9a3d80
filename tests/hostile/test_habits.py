"""What people's own files, machines and habits do to the commands: splits, labels, homes, and resuming otherwise."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hetcl.pretraining import doctor
from tests.hostile.conftest import TINY, Says
from tests.images.make import encoded, folder, pixels, shard, tar

PROBE = "torchvision:resnet18:random --size 32 --workers 0 --threads 1 --batch 8 --knn 3 --device cpu".split()


def classes(root: Path, count: int, names: str = "abc", first: int = 0) -> None:
    """Class folders of small images whose colour tells the class."""
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            noise = np.random.default_rng([c, i]).integers(0, 60, (24, 24, 3), dtype=np.uint8)
            noise[..., c % 3] += 150
            Image.fromarray(noise).save(root / name / f"{i}.png")


def found(out: str = "probe") -> dict:
    """What a probe used: how many images to train and to test on, and the rest as it says."""
    data = json.loads(Path(out, "probe.json").read_text())["data"]
    return data | {part: int(data[part].split()[0]) for part in ("train", "test")}


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Training", "Validation"), ("in/TRAIN", "in/Val")]
)
def test_a_probe_tells_classes_not_splits(train: str, test: str, says: Says) -> None:
    classes(Path("d", train), 5)
    classes(Path("d", test), 3, first=5)
    says("probe", *PROBE, "--data", "d", "--out", "probe", status=0)
    data = found()
    assert (data["train"], data["test"], data["classes"], data["held_out"]) == (15, 9, 3, False)
    assert "d has splits: train is" in says.err


def test_pretraining_leaves_test_images_alone(says: Says) -> None:
    classes(Path("d/train"), 4)
    classes(Path("d/test"), 4)
    says.pretrain(data="d", status=0)
    summary = json.loads(Path("new/summary.json").read_text())
    assert summary["data"]["images"] == 12
    assert "in the folder d/train" in summary["data"]["description"]
    says.pretrain("--data_split", "all", data="d", out="all", status=0)
    assert json.loads(Path("all/summary.json").read_text())["data"]["images"] == 24


def test_the_knn_check_asks_about_the_validation_images_never_the_test_images(says: Says) -> None:
    for split, count in (("train", 6), ("test", 2)):
        classes(Path("d", split), count)
    knn = ("--folder_classes", "true", "--recipe", "smoke")
    says("doctor", "--data", "d", *knn, status=0)
    assert "kNN check asks about a part of the training images" in says.out
    classes(Path("d/val"), 3)
    says("doctor", "--data", "d", *knn, status=0)
    assert "kNN check asks about 9 of 9 images in 3 classes in the folder d/val" in says.out


def test_a_test_part_can_be_asked_for(says: Says) -> None:
    classes(Path("d/train"), 5)
    classes(Path("d/val"), 2)
    classes(Path("d/test"), 3)
    says("probe", *PROBE, "--data", "d", "--out", "probe", status=0)
    assert found()["test"] == 6
    says("probe", *PROBE, "--data", "d", "--out", "test", "--test_split", "test", status=0)
    assert found("test")["test"] == 9
    said = says("probe", *PROBE, "--data", "d/train", "--out", "no", "--test_split", "test")
    assert "test_split test: d/train has no labelled images" in said


def test_a_validation_part_without_labels_is_said_and_test_takes_its_place(says: Says) -> None:
    classes(Path("d/train"), 5)
    folder(Path("d/val"), [f"{i}.jpg" for i in range(4)])
    classes(Path("d/test"), 2)
    says("probe", *PROBE, "--data", "d", "--out", "probe", status=0)
    assert found()["test"] == 6
    assert (
        "the images for val have no labels (4 of 4 images do not lie in the folder of a class (a, b, c))"
        in says.err
    )


def test_domains_are_refused_by_a_probe_and_warned_of_elsewhere(
    says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    for domain in ("amazon", "webcam"):
        classes(Path("d", domain), 4)
        for old, new in zip("abc", ("cat", "dog", "eft"), strict=True):
            Path("d", domain, old).rename(Path("d", domain, new))
    for path in Path("d").rglob("*.png"):
        Image.open(path).resize((40, 40)).save(path)
    same = (
        "d: amazon/, webcam/ hold folders of the same names (cat, dog, eft), as splits, domains or folds do"
    )
    said = says("probe", *PROBE, "--data", "d", "--out", "probe")
    assert said.startswith(f"{same} and classes do not: name one of them (--data d/amazon)")
    assert not Path("probe").exists()
    says("probe", *PROBE, "--data", "d/amazon", "--out", "probe", status=0)
    assert found()["classes"] == 3
    says("probe", *PROBE, "--data", "d", "--data_split", "all", "--out", "all", status=0)
    assert found("all")["classes"] == 2
    quiet = ("--stage1.queue", "16", "--stage2.queue", "16")
    monkeypatch.setattr(doctor, "too_few", lambda *_, **__: "")
    monkeypatch.setattr(doctor, "REPEATED", 0.0)  # the domains hold the same images
    says("doctor", "--data", "d", *TINY, *quiet, "--folder_classes", "true", status=0)
    assert f"! {same}" in says.out
    assert "nothing else to object to" in says.out
    says.pretrain(data="d", status=0)
    assert f"{same}; all of them are read: to keep one apart, name one of them" in says.err


def test_links_in_a_tar_put_no_image_on_both_sides(says: Says) -> None:
    """What tar makes of a folder without duplicates: ``b/x.jpg`` is a hard link to ``a/x.jpg``."""
    with tarfile.open("x.tar", "w") as out:
        for part in "ab":
            for i in range(12):
                image, label = tarfile.TarInfo(f"{part}/{i:02}.jpg"), tarfile.TarInfo(f"{part}/{i:02}.cls")
                data = encoded(pixels(24, 24, seed=i)) if part == "a" else b""
                image.size, label.size = len(data), 1
                if part == "b":
                    image.type, image.linkname = tarfile.LNKTYPE, f"a/{i:02}.jpg"
                out.addfile(image, io.BytesIO(data))
                out.addfile(label, io.BytesIO(b"%d" % (i % 2)))
    says("probe", *PROBE, "--data", "x.tar", "--out", "probe", status=0)
    data = found()
    assert data["train"] + data["test"] == 12
    assert "12 links in x.tar to images that are there under another name too" in says.err


# ---- labels ----------------------------------------------------------------------------------------------------------


def unlabelled_one(path: Path, count: int = 18) -> Path:
    """A shard of two classes, one image of which has no label."""
    members = []
    for i in range(count):
        members.append((f"{i:03}.jpg", encoded(pixels(24, 24, seed=i))))
        if i != 5:
            members.append((f"{i:03}.cls", b"%d" % (i % 2)))
    return tar(path, members)


def test_one_missing_label_costs_one_image(says: Says) -> None:
    unlabelled_one(Path("x.tar"))
    says("probe", *PROBE, "--data", "x.tar", "--out", "probe", status=0)
    data = found()
    assert (data["train"] + data["test"], data["unlabelled"]) == (17, 1)
    assert "without a label: 1 of 18 images in x.tar" in says.err


def test_training_with_labels_leaves_images_without_one_out(says: Says) -> None:
    unlabelled_one(Path("x.tar"))
    words = ("--stage1.method", "supervised", "--knn.every", "1", "--knn.k", "1")
    says.pretrain(*words, data="x.tar", status=0)
    assert "18 images in 2 classes (1 without a label)" in says.out
    assert json.loads(Path("new/summary.json").read_text())["knn"] is not None
    says("doctor", "--data", "x.tar", *TINY, "--stage1.method", "supervised", status=0)
    assert "1 of 18 images have no label: they are left out of the kNN check and of supervised" in says.out


def test_a_flat_folder_is_not_blamed_for_what_nobody_asked(says: Says) -> None:
    folder(Path("d"), [f"{i}.jpg" for i in range(6)])
    said = says("probe", *PROBE, "--data", "d", "--out", "probe")
    assert said.startswith("d has no labels, which a probe needs (all its images lie in one folder, d/)")
    assert "asked for" not in said


# ---- what doctor foretells -------------------------------------------------------------------------------------------


def test_doctor_says_what_training_will_do(says: Says) -> None:
    classes(Path("d/Train"), 4)
    classes(Path("d/Test"), 2)
    (Path("d") / "raw.zip").write_bytes(b"PK\x03\x04")
    Path("d/Train/a/empty.png").write_bytes(b"")
    says("doctor", "--data", "d", *TINY, status=0)
    for line in (
        "d has splits: train is Train/ (13 images); test is Test/ (6 images). Read here: train",
        "left aside in d: 1 .zip (raw.zip); .zip: unpack them",
        "13 images in the folder d/Train",
        "1 of 13 images cannot be used, e.g. Train/a/empty.png: the file is empty",
        "kNN check none: knn.every is 0",
        "no labels: no kNN check while training",
    ):
        assert line in says.out, line
    shutil.rmtree("d/Train/a")
    says("doctor", "--data", "d", *TINY, "--knn.every", "1", status=0)
    assert "kNN check none: no labels (its sub-folders (b, c ...) are not taken for classes" in says.out


# ---- resuming --------------------------------------------------------------------------------------------------------


def test_another_batch_is_judged_by_the_groups_of_the_run(run: Path, says: Says) -> None:
    """The run has 2 groups; the default recipe has 8, which would not divide 12."""
    said = says("pretrain", "--out", "run", "--resume", "--batch", "12")
    assert "batch was 8, now 12" in said
    assert "groups" not in said
    said = says("pretrain", "--out", "run", "--resume", "--batch", "7")
    assert "a batch of 7 does not split into 2 batch-norm groups" in said


# ---- homes -----------------------------------------------------------------------------------------------------------


def test_the_home_folder_in_every_argument(
    finished: Path, says: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    folder(home / "photos", [f"{i}.jpg" for i in range(9)])
    shard(home / "x-0.tar", 9)
    shard(home / "x-1.tar", 9, 9)
    shutil.copytree(finished, home / "run")
    (home / "tiny.yaml").write_text("batch: 8\n")
    (home / "views.yaml").write_text("flip_p: 1.0\n")
    monkeypatch.setenv("HOME", str(home))
    words = [w for w in TINY if w != "--batch"]
    words.remove("8")
    says(
        "pretrain", "--data=~/photos", "--out=~/new", "--recipe=~/tiny.yaml", "--init=~/run", *words, status=0
    )
    assert yaml.safe_load((home / "new/settings.yaml").read_text())["data"] == str(home / "photos")
    says("pretrain", "--out=~/new", "--resume", status=0)
    for data in ("~/x-{0..1}.tar", "~/x-0.tar,~/x-1.tar", "~/x-*.tar"):
        says("doctor", "--data", data, *TINY, status=0)
        assert "18 images in 2 classes in 2 shards" in says.out
    says("probe", "~/run", "--data", "~/x-0.tar", "--out=~/probe", *PROBE[1:], status=0)
    views = ("--views", "~/views.yaml", "--examples", "0", *PROBE[1:7])
    says(
        "contrast",
        "~/new/checkpoints/stage2.ckpt",
        "--data",
        "~/photos",
        "--out=~/contrast",
        *views,
        status=0,
    )
    says("export", "~/run", "--format", "timm", "--out=~/weights.pth", status=0)
    says(
        "probe", "timm:test_resnet:~/weights.pth", "--data", "~/x-0.tar", "--out=~/two", *PROBE[1:], status=0
    )
    said = says("finetune", "--init", "~/run", "--data", "coco:~/nothing", "--out=~/detector")
    assert f"there is no folder {home}/nothing" in said
    assert not Path("~").exists()
    assert {"new", "probe", "contrast", "weights.pth", "two"} <= set(os.listdir(home))


def test_the_home_folder_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hetcl.images.sources import open_source
    from hetcl.pretraining.run import pretrain

    folder(tmp_path / "photos", [f"{i}.jpg" for i in range(9)])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_source("~/photos")) == 9
    run = pretrain(data=Path("~/photos"), out=Path("~/run"), overrides=TINY)
    assert run.backbone == tmp_path / "run/backbone.safetensors"
    assert not Path("~").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("pretrain", "--data", "~/photos", "--out", "new", *TINY),
        ("pretrain", "--data", "photos", "--out", "~/new", *TINY),
        ("probe", "~/run", "--data", "photos", "--out", "new"),
        ("finetune", "--init", "torchvision:resnet18:random", "--data", "coco:~/coco", "--out", "new"),
    ],
)
def test_no_home_folder(words: tuple[str, ...], says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody(monkeypatch)
    classes(Path("photos"), 3)
    assert "this user has no home folder; set HOME, or write the whole path" in says(*words)
    assert not Path("~").exists()


def test_everything_works_without_a_home_folder(
    says: Says, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nobody(monkeypatch)
    monkeypatch.delenv("HETCL_CACHE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    classes(Path("photos"), 4)
    says.pretrain(data="photos", status=0)
    assert f"this user has no home folder: caches go to {tmp_path}/hetcl-{os.getuid()}" in says.err
    assert list((tmp_path / f"hetcl-{os.getuid()}").rglob("folder-*.table"))
    assert not Path("~").exists()


def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user without HOME and without an entry in passwd."""

    def unknown(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile goes again
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", unknown)
