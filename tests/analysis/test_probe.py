"""The whole probe, on labelled pictures that it can learn; stopped, resumed, given bad input."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hetcl.analysis import probe as module
from hetcl.analysis.labelled import LabelledFeatures, open_parts
from hetcl.analysis.linear import LinearTask
from hetcl.analysis.probe import probe
from hetcl.cli import main
from hetcl.errors import InputError, Stopped, WorkFailed
from tests.analysis.make import write_checkpoint, write_pictures

QUICK: dict[str, Any] = {"workers": 0, "threads": 1, "batch": 8, "device": "cpu", "knn": [3, 20]}


def run(model: Any, data: Any, out: Path, *, resume: bool = False, **more: Any) -> dict[str, Any]:
    return probe(str(model), data=str(data), out=out, resume=resume, overrides=QUICK | more)


def write_classes(folder: Path, count: int, classes: int = 3) -> Path:
    """Classes that differ in colour."""
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng(1000 * c + i)
            pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            pixels[..., c % 3] += 150
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("labelled") / "data", 20)


def test_what_can_be_told_is_told(hcl: Path, data: Path, tmp_path: Path) -> None:
    report = run(hcl, data, tmp_path / "out")
    assert report == json.loads((tmp_path / "out" / "probe.json").read_text())
    assert report["data"]["train_pictures"] == 48
    assert report["data"]["test_pictures"] == 12
    assert report["data"]["chance"] == pytest.approx(1 / 3)
    assert report["knn"]["3"]["top1"]["value"] > 0.9
    assert report["linear"]["kind"] == "lbfgs"
    assert report["linear"]["top1"]["value"] > 0.9
    assert report["linear"]["top1"]["low"] < report["linear"]["top1"]["value"]
    assert report["backbone_unchanged"]
    assert any("kNN of 3" in line for line in report["said"])


def test_test_pictures_are_never_trained_on(data: Path) -> None:
    train, test = open_parts(str(data), folder_classes=True, window=0, holdout=0.3, pictures=0, seed=4)
    names = [{p.sample(i).name for i in range(len(p))} for p in (train, test)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 60
    few, same = open_parts(str(data), folder_classes=True, window=0, holdout=0.3, pictures=5, seed=4)
    assert (len(few), same.fingerprint) == (5, test.fingerprint)


def test_a_validation_part_is_used_where_there_is_one(hcl: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "data" / "train", 8)
    write_classes(tmp_path / "data" / "val", 4)
    report = run(hcl, tmp_path / "data", tmp_path / "out", linear="none")
    assert (report["data"]["train_pictures"], report["data"]["test_pictures"]) == (24, 12)
    assert report["linear"] is None


def test_the_moco_recipe_leaves_the_backbone_alone_and_resumes_to_the_same_bits(
    hcl: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"linear": "moco", "epochs": 3, "lr": 1.0, "knn": []}
    report = run(hcl, data, tmp_path / "whole", **more)
    assert report["linear"]["kind"] == "moco"
    assert report["linear"]["lr"] == pytest.approx(8 / 256)
    whole = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(whole["task"]) == {"fc", "optimizer"}

    step, calls = LinearTask.step, itertools.count()

    def stop(self: LinearTask, *args: Any) -> Any:
        if next(calls) == 8:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args)

    with monkeypatch.context() as m:
        m.setattr(LinearTask, "step", stop)
        with pytest.raises(Stopped, match="--resume"):
            run(hcl, data, tmp_path / "stopped", **more)
    run(hcl, data, tmp_path / "stopped", resume=True, **more)
    again = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in whole["task"]["fc"].items():
        assert torch.equal(value, again["task"]["fc"][name])
    metrics = [(tmp_path / d / "metrics.csv").read_bytes() for d in ("whole", "stopped")]
    assert metrics[0] == metrics[1]


def test_a_backbone_that_moved_is_noticed(
    hcl: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LinearTask.step

    def careless(self: LinearTask, *args: Any) -> Any:
        next(self.pyramid.buffers()).add_(1)
        return step(self, *args)

    monkeypatch.setattr(LinearTask, "step", careless)
    with pytest.raises(WorkFailed, match="backbone has changed"):
        run(hcl, data, tmp_path / "out", linear="moco", epochs=1)


def test_resumed_it_computes_no_features_again(
    hcl: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(hcl, data, tmp_path / "out")
    monkeypatch.setattr(LabelledFeatures, "write", lambda *_: pytest.fail("computed again"))
    second = run(hcl, data, tmp_path / "out", resume=True, knn=[3])
    assert second["knn"]["3"] == first["knn"]["3"]
    assert second["linear"] == first["linear"]


def test_stopped_while_extracting(
    hcl: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract, calls = module.Probe._extract, itertools.count()

    def stop(self: Any, images: Any) -> Any:
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return extract(self, images)

    with monkeypatch.context() as m:
        m.setattr(module.Probe, "_extract", stop)
        with pytest.raises(Stopped, match="--resume"):
            run(hcl, data, tmp_path / "out")
    assert run(hcl, data, tmp_path / "out", resume=True)["data"]["train_pictures"] == 48


def test_features_damaged_on_disk_are_made_again(hcl: Path, data: Path, tmp_path: Path) -> None:
    first = run(hcl, data, tmp_path / "out")
    for folder in (tmp_path / "out" / "features").iterdir():
        (folder / "features.f32").write_bytes(b"x")
    assert run(hcl, data, tmp_path / "out", resume=True)["knn"] == first["knn"]


def test_unusable_pictures_and_missing_classes_are_counted(hcl: Path, tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", 12)
    (data / "class0" / "3.png").write_bytes(b"no picture")
    (data / "class9").mkdir()
    shutil.copy(data / "class0" / "1.png", data / "class9" / "1.png")
    report = run(hcl, data, tmp_path / "out", holdout=0.5)
    assert report["data"]["left_out"] == 1
    assert sum(report["data"]["missing"].values()) == 1
    assert any("have no picture to" in line for line in report["said"])
    with pytest.raises(WorkFailed, match="max_bad"):
        run(hcl, data, tmp_path / "out2", max_bad=0.001, holdout=0.5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"features": "c9"}, "no features named"),
        ({"holdout": 0.001}, "holdout"),
        ({"linear": "ridge"}, "one of none, lbfgs, moco"),
        ({"knn": [0]}, "knn"),
        ({"linear": "moco", "batch": 500}, "fewer than a batch of 500"),
    ],
)
def test_settings_that_cannot_be(
    hcl: Path, data: Path, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run(hcl, data, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_probed(hcl: Path, tmp_path: Path) -> None:
    flat = write_pictures(tmp_path / "flat", 5)
    with pytest.raises(InputError, match="has no labels"):
        run(hcl, flat, tmp_path / "out", folder_classes=False)
    one = write_classes(tmp_path / "one", 6, classes=1)
    with pytest.raises(InputError, match="one class"):
        run(hcl, one, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outs_and_models_that_cannot_be(hcl: Path, data: Path, tmp_path: Path) -> None:
    run(hcl, data, tmp_path / "out", linear="none")
    with pytest.raises(InputError, match="add --resume"):
        run(hcl, data, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="no probe"):
        run(hcl, data, tmp_path / "mine", resume=True)
    with pytest.raises(InputError, match="has no embedding"):
        run("torchvision:resnet18:random", data, tmp_path / "out3", features="embedding")

    def explode(state: dict[str, torch.Tensor]) -> None:
        next(v for k, v in state.items() if k.startswith("pyramid.") and v.ndim == 4).fill_(3e38)

    broken = write_checkpoint(tmp_path / "broken.ckpt", change=explode)
    with pytest.raises(WorkFailed, match="not finite"):
        run(broken, data, tmp_path / "out4")


def test_the_command(hcl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "probe",
        str(hcl),
        "--data",
        "scenes:60",
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "0",
        "--threads",
        "1",
    ]
    assert main([*words, "--features", "embedding"]) == 0
    assert "kNN of 20" in capsys.readouterr().out
