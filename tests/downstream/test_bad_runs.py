"""A hostile user of ``hetcl finetune`` and ``hetcl evaluate``: one clear line with the fix, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from hetcl.cli import main
from hetcl.runs.lock import FolderLock
from tests.damage import DAMAGES, spoil
from tests.downstream.layouts import write_coco, write_voc
from tests.downstream.small_sets import command

pytestmark = pytest.mark.usefixtures("light")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("sets") / "coco", train=4, val=2, plain=True)


@pytest.fixture(scope="module")
def run(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of boxes on ``coco``."""
    out = tmp_path_factory.mktemp("runs") / "run"
    more = "--model faster-rcnn --steps 1 --milestones 1 --warmup 0 --evaluations 1".split()
    assert main(command(out, f"coco:{coco}", *more, init="timm:test_resnet")) == 0
    return out


def said(capsys: pytest.CaptureFixture[str], words: list[str], status: int = 2) -> str:
    capsys.readouterr()
    assert main(words) == status
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("hetcl: ")
    return err


def test_what_cannot_be_trained(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = tmp_path / "run", f"coco:{coco}"
    boxes = write_coco(tmp_path / "boxes", train=2, val=2, masks=None)
    cases = [
        (command(out, f"coco:{boxes}"), "has no masks to learn; --model faster-rcnn learns boxes alone"),
        (command(out, data, "--neck", "c4", init="timm:convnext_atto"), "is no ResNet"),
        (command(out, data, "--model", "fcn"), "a data set with a class for each pixel is one of voc:ROOT"),
        (command(out, "coco:nowhere"), "there is no folder nowhere"),
        (command(out, "photos"), "is one of coco:ROOT"),
        (command(out, data, init="nowhere.pth"), "no weights 'nowhere.pth'"),
        (command(out, data, "--inherit_fpn", "true"), "has no spatial branch"),
        (command(out, data, "--devices", "3"), "must be multiples of the 3 devices"),
        (["finetune", "--data", data, "--out", str(out)], "--init is missing"),
        (["finetune", "--init", "torchvision:resnet18", "--out", str(out)], "--data is missing"),
        (command(out, data, "--recipe", "small"), "is one of `hetcl pretrain`"),
    ]
    for words, wanted in cases:
        assert wanted in said(capsys, words)
        assert not out.exists()


def test_an_empty_validation_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_coco(tmp_path / "coco", train=2, val=1, plain=True)
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"images": [], "annotations": []}))
    assert "instances_val.json" in said(capsys, command(tmp_path / "run", f"coco:{root}"))


def test_a_broken_image_is_replaced_listed_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", train=4, val=2, plain=True)
    (root / "images" / "train-1.jpg").write_bytes(b"no image")
    Image.new("RGB", (10, 10)).save(root / "images" / "val-0.jpg")  # of another size than the annotations say
    out = tmp_path / "run"
    more = "--model faster-rcnn --max_bad 0.6".split()
    assert main(command(out, f"coco:{root}", *more, init="timm:test_resnet")) == 0
    assert "train-1.jpg" in (out / "bad_images.csv").read_text()
    assert "another image takes its place" in capsys.readouterr().out
    words = ["evaluate", str(out), "--data", f"coco:{root}", "--out", str(tmp_path / "e"), "--device", "cpu"]
    assert "more than max_bad = 10%" in said(capsys, words, 1)
    assert main([*words, "--max_bad", "0.6"]) == 0
    assert "they count as images in which nothing was found" in capsys.readouterr().out


def test_folders_that_hold_something_else(
    run: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"coco:{coco}"
    assert "add --resume to go on with it" in said(capsys, command(run, data))
    assert "the run in" in said(capsys, ["finetune", "--out", str(run), "--resume", "--data", "scenes:8"])
    assert "lr was 0.01, now 0.5" in said(capsys, ["finetune", "--out", str(run), "--resume", "--lr", "0.5"])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    assert "holds something that is no evaluation" in said(
        capsys, ["evaluate", str(run), "--data", data, "--out", str(tmp_path / "photos")]
    )
    assert "is no run folder" in said(capsys, ["evaluate", str(tmp_path), "--data", data, "--out", "e"])
    words = [
        "evaluate",
        str(run),
        "--data",
        data,
        "--out",
        str(tmp_path / "e"),
        "--device",
        "cpu",
        "--images",
        "1",
    ]
    assert main(words) == 0
    report = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert report["data"]["images"] == 1
    assert "add --overwrite" in said(capsys, words)
    assert main([*words, "--overwrite"]) == 0


def test_other_classes_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc = write_voc(tmp_path / "voc", train=2, val=1)
    words = ["evaluate", str(run), "--data", f"voc:{voc}", "--out", str(tmp_path / "e")]
    err = said(capsys, words)
    assert "has other classes than" in err
    assert "it lacks" in err
    assert not (tmp_path / "e").exists()


def test_a_fine_tuned_run_is_no_encoder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = said(capsys, ["export", str(run), "--format", "timm", "--out", str(tmp_path / "b.pth")])
    assert "holds a detector or segmenter; its backbone is the backbone.safetensors" in err
    words = [
        "export",
        str(run / "backbone.safetensors"),
        "--format",
        "timm",
        "--out",
        str(tmp_path / "b.pth"),
    ]
    assert main(words) == 0


def test_broken_runs(run: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    words = ["evaluate", str(copy), "--data", f"coco:{coco}", "--out", str(tmp_path / "e")]
    tree = yaml.safe_load((copy / "settings.yaml").read_text())
    (copy / "settings.yaml").write_text(
        yaml.safe_dump(tree | {"settings": tree["settings"] | {"model": "mask-rcnn"}})
    )
    assert "does not fit" in said(capsys, words)
    (copy / "settings.yaml").write_text(yaml.safe_dump({k: v for k, v in tree.items() if k != "classes"}))
    assert "lacks classes" in said(capsys, words)
    (copy / "settings.yaml").write_text(yaml.safe_dump(tree))
    for file in (copy / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    assert "cannot read checkpoint" in said(capsys, words)
    for file in (copy / "checkpoints").iterdir():
        file.unlink()
    assert "has no checkpoint yet" in said(capsys, words)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"hetcl": "99.0.0"}, "was written by a newer hetcl"),
        ({"classes": "cat"}, "classes cannot be 'cat'"),
        ({"classes": [1, 2]}, "its classes or facts are no longer the run's"),
        ({"facts": {}}, "its classes or facts are no longer the run's"),
        ({"arch": 3}, "arch cannot be 3"),
        ({"fingerprint_test": None}, "fingerprint_test cannot be None"),
        ({"settings": {"lr": "fast"}}, "setting lr in"),
        ({"settings": {"anchor_scale": ...}}, "lacks"),
        ({"settings": {"clip_grad": ...}}, "lacks the setting clip_grad"),
    ],
)
def test_settings_of_a_run_that_were_spoiled(
    changes: dict[str, Any],
    wanted: str,
    run: Path,
    coco: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    tree = yaml.safe_load((copy / "settings.yaml").read_text())
    for name, value in changes.items():
        tree[name] = tree[name] | value if name == "settings" else value
    tree["settings"] = {k: v for k, v in tree["settings"].items() if v is not ...}
    (copy / "settings.yaml").write_text(yaml.safe_dump(tree))
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    for words in (
        ["evaluate", str(copy), "--data", f"coco:{coco}", "--out", str(tmp_path / "e")],
        ["finetune", "--out", str(copy), "--resume"],
    ):
        err = said(capsys, words)
        assert wanted in err
        assert "settings.yaml" in err
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "e").exists()


def test_a_damaged_checkpoint_gives_way_aloud(
    run: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    spoil(copy / "checkpoints" / "last.ckpt", DAMAGES[0], seed=1)
    words = ["evaluate", str(copy), "--data", f"coco:{coco}", "--out", str(tmp_path / "e"), "--device", "cpu"]
    assert main(words) == 0
    assert "last.ckpt cannot be read" in capsys.readouterr().err
    assert main(["finetune", "--out", str(copy), "--resume"]) == 0
    assert "previous.ckpt takes its place" in capsys.readouterr().out
    for name in ("backbone.safetensors", "metrics.csv"):
        assert (copy / name).read_bytes() == (run / name).read_bytes()


def test_a_run_without_checkpoints_is_not_begun_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints")
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    assert "has no checkpoint to go on from" in said(capsys, ["finetune", "--out", str(copy), "--resume"])
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_folders_that_are_being_written_are_refused(
    run: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["evaluate", str(run), "--data", f"coco:{coco}", "--out", str(tmp_path), "--overwrite"],
        command(tmp_path, f"coco:{coco}", "--resume"),
    ):
        with FolderLock(tmp_path):
            assert f"{tmp_path} is being written by process" in said(capsys, words)
