"""The whole probe, on labelled images that it can learn; stopped, killed, resumed, given bad input."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hetcl.analysis import feature_pass
from hetcl.analysis.probe.linear import LinearTask
from hetcl.analysis.probe.parts import open_parts
from hetcl.analysis.probe.run import probe
from hetcl.cli import main
from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.images.sources import open_source
from hetcl.runs import checkpoint
from hetcl.weights.encoder import load_encoder
from tests.analysis.make import write_checkpoint, write_images
from tests.reference import probe as slow

QUICK: dict[str, Any] = {"workers": 0, "threads": 1, "batch": 8, "device": "cpu", "knn": [3, 20]}


def run(model: Any, data: Any, out: Path, *, resume: bool = False, **more: Any) -> dict[str, Any]:
    return probe(str(model), data=str(data), out=out, resume=resume, overrides=QUICK | more)


def write_classes(folder: Path, count: int, classes: int = 3) -> Path:
    """Classes that differ in colour, in part."""
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


def files(out: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in out.rglob("*") if p.is_file()}


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_random_weights_are_probed_with_statistics(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batch norms that were never measured would make them look worse than they are; the same again with --resume."""
    arguments: dict[str, Any] = {"linear": "none", "size": 32, "features": "pooled"}
    reports = []
    for resume in (False, True):
        reports.append(run("timm:test_resnet:random", data, tmp_path / "out", resume=resume, **arguments))
        assert "no batch-norm statistics: measured" in capsys.readouterr().out
    assert "features  of 60 images are here already" in (tmp_path / "out" / "log.txt").read_text()
    assert reports[0]["knn"] == reports[1]["knn"]


@pytest.mark.parametrize("features", ["pooled", "c4x2", "embedding"])
def test_figures_are_those_of_a_slow_probe(features: str, hcl: Path, data: Path, tmp_path: Path) -> None:
    """Features by plain torch from the decoded files, kNN by a double loop."""
    report = run(hcl, data, tmp_path / "out", features=features, linear="none", size=32)
    assert report == json.loads((tmp_path / "out" / "probe.json").read_text())
    assert (report["data"]["train_images"], report["data"]["test_images"]) == (48, 12)
    encoder = load_encoder(str(hcl))
    assert encoder.embedding is not None
    parts = open_parts(str(data), folder_classes=True, window=0, holdout=0.2, images=0, seed=0)
    rows = []
    for part in (parts.train, parts.test):
        found = []
        for i in range(len(part)):
            at = Path(data, open_source(str(data), folder_classes=True).sample(int(part.index[i])).name)
            assert at.parent.name == f"class{part.label(i)}"
            pixels = torch.from_numpy(np.array(Image.open(at))).permute(2, 0, 1)[None]
            # the central 32 / 256 * 224 part, as for ImageNet, at 32 pixels
            side = round(40 * 0.875)
            off = (40 - side) // 2
            pixels = pixels[:, :, off : off + side, off : off + side]
            x = F.interpolate(pixels.float(), size=(32, 32), mode="bilinear", antialias=True).round() / 255
            x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
                [0.229, 0.224, 0.225]
            )[:, None, None]
            with torch.no_grad():
                maps = encoder.pyramid(x)
                whole = {
                    "pooled": maps[3].mean(dim=(2, 3)),
                    "c4x2": F.adaptive_avg_pool2d(maps[2], 2).flatten(1),
                    "embedding": encoder.embedding.concat(encoder.embedding(x)),
                }
            found.append(whole[features][0].numpy())
        rows.append((np.stack(found), part.labels))
    kept = [
        np.load(p / "features.npy")
        for p in sorted((tmp_path / "out" / "features").iterdir(), reverse=True)  # train, test
    ]
    for mine, theirs in zip(kept, rows, strict=True):
        np.testing.assert_allclose(mine, theirs[0], atol=0.05 * np.abs(theirs[0]).max())
    for k in (3, 20):
        hits = slow.knn_hits(kept[0], rows[0][1], kept[1], rows[1][1], k, 0.07)
        assert report["knn"][str(k)]["top1"]["value"] == pytest.approx(sum(hits) / 12)


def test_what_can_be_told_is_told(hcl: Path, data: Path, tmp_path: Path) -> None:
    report = run(hcl, data, tmp_path / "out")
    assert report["data"]["chance"] == pytest.approx(1 / 3)
    assert report["data"]["commonest"] <= 0.75
    assert report["knn"]["3"]["top1"]["value"] > 0.9
    assert report["linear"]["kind"] == "lbfgs"
    e = report["linear"]["top1"]
    assert e["value"] > 0.9
    assert e["low"] < e["value"]
    assert report["linear"]["top5"]["value"] == 1
    assert report["backbone_unchanged"]
    assert report["difference"]["k"] in (3, 20)
    assert any("by guessing 33.3%" in line for line in report["sentences"])
    assert "No difference can be told" in " ".join(report["sentences"])


def test_labels_that_mean_nothing_are_near_chance(hcl: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for c in range(2):
        write_images(data / f"class{c}", 0)
    write_images(data / "all", 60)
    for i, path in enumerate(sorted((data / "all").iterdir())):
        path.rename(data / f"class{i % 2}" / path.name)
    (data / "all").rmdir()
    report = run(hcl, data, tmp_path / "out", holdout=0.5)
    assert report["linear"]["top1"]["low"] < 0.5 < report["linear"]["top1"]["high"] + 0.1
    assert any("No better than guessing" in line for line in report["sentences"])


def test_a_k_above_the_training_images_is_said(hcl: Path, data: Path, tmp_path: Path) -> None:
    report = run(hcl, data, tmp_path / "out", knn=[1000], linear="none")
    assert any("k = 1000: there are only 48 training images" in line for line in report["sentences"])


# ---- which images --------------------------------------------------------------------------------------------------


def test_test_images_are_never_trained_on(data: Path) -> None:
    def parts(images: int, seed: int = 4) -> Any:
        return open_parts(str(data), folder_classes=True, window=0, holdout=0.3, images=images, seed=seed)

    whole = parts(0)
    names = [{p.sample(i).name for i in range(len(p))} for p in (whole.train, whole.test)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 60
    assert whole.held_out
    few = parts(15)
    assert len(few.train) == 15
    assert few.test.hash == whole.test.hash
    assert set(few.train.index) < set(whole.train.index)
    assert parts(0, seed=5).test.hash != whole.test.hash


def test_a_validation_part_is_used_and_shares_the_numbers_of_the_classes(hcl: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_classes(data / "train", 8)
    write_classes(data / "val", 4)
    shutil.rmtree(data / "train" / "class0")
    (data / "train" / "class0").mkdir()
    shutil.copy(data / "train" / "class1" / "0.png", data / "train" / "class0" / "0.png")
    report = run(hcl, data, tmp_path / "out", linear="none", images=12)
    assert (report["data"]["train_images"], report["data"]["test_images"]) == (12, 12)
    assert not report["data"]["held_out"]
    parts = open_parts(str(data), folder_classes=True, window=0, holdout=0.2, images=0, seed=0)
    for part in (parts.train, parts.test):
        for i in range(len(part)):
            assert part.classes is not None
            assert part.sample(i).name.split("/")[-2] == part.classes[part.labels[i]]


def test_unusable_images_and_missing_classes_are_counted_also_when_resumed(hcl: Path, tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", 12)
    for name in ("0", "3", "11"):
        (data / "class0" / f"{name}.png").write_bytes(b"no image")
    (data / "class9").mkdir()
    shutil.copy(data / "class0" / "1.png", data / "class9" / "1.png")
    for resume in (False, True):
        report = run(hcl, data, tmp_path / "out", holdout=0.5, resume=resume)
        assert report["data"]["left_out"] == 3
        assert report["data"]["train_images"] + report["data"]["test_images"] == 34
        assert sum(report["data"]["missing"].values()) == 1
        assert any("3 images could not be used" in line for line in report["sentences"])
    with open(tmp_path / "out" / "bad_images.csv", newline="") as f:
        assert sorted(Path(row["name"]).name for row in csv.DictReader(f)) == ["0.png", "11.png", "3.png"]
    with pytest.raises(WorkFailed, match="max_bad"):
        run(hcl, data, tmp_path / "out2", max_bad=0.001, holdout=0.5)


def test_a_class_of_unusable_images_alone_leaves_nothing_to_tell_apart(hcl: Path, tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", 10, classes=2)
    for path in (data / "class0").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(WorkFailed, match="of 1 of the 2 classes"):
        run(hcl, data, tmp_path / "out", max_bad=1)


# ---- the MoCo recipe -------------------------------------------------------------------------------------------------


def test_the_moco_recipe_killed_at_a_step_and_resumed_ends_in_the_same_bits(
    hcl: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"linear": "moco", "epochs": 4, "lr": 1.0, "knn": []}
    report = run(hcl, data, tmp_path / "whole", **more)
    how = report["linear"]
    assert (how["kind"], how["epochs"], how["batch"]) == ("moco", 4, 8)
    assert how["lr"] == pytest.approx(8 / 256)
    whole = checkpoint.load(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    assert set(whole["task"]) == {"fc", "optimizer"}
    rates = [row.split(",")[-1] for row in (tmp_path / "whole" / "metrics.csv").read_text().splitlines()[2:]]
    assert rates == ["0.03125", "0.03125", "0.03125", "0.003125"]

    step = LinearTask.step
    for stops, end in (([8, 4], "signal"), ([9], "killed")):
        out = tmp_path / end
        for at in stops:
            calls = itertools.count()

            def disturbed(
                self: LinearTask, *args: Any, calls: Any = calls, at: int = at, end: str = end
            ) -> Any:
                if next(calls) == at:
                    if end == "killed":
                        raise SystemExit(9)
                    signal.raise_signal(signal.SIGTERM)
                return step(self, *args)

            with monkeypatch.context() as m:
                m.setattr(LinearTask, "step", disturbed)
                with pytest.raises((Stopped, SystemExit)) as stopped:
                    run(hcl, data, out, resume=out.exists(), **more)
            assert end == "killed" or "--resume" in str(stopped.value)
        again = run(hcl, data, out, resume=True, **more)
        assert again["linear"] == how
        for name, value in whole["task"]["fc"].items():
            assert torch.equal(value, checkpoint.load(out / "checkpoints" / "last.ckpt")["task"]["fc"][name])
        assert (out / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    assert run(hcl, data, tmp_path / "whole", resume=True, **more)["linear"] == how
    with pytest.raises(InputError, match=r"other settings: lr was 1.0, now 2.0"):
        run(hcl, data, tmp_path / "whole", resume=True, **(more | {"lr": 2.0}))


def test_the_moco_recipe_on_fewer_images_than_a_batch(hcl: Path, data: Path, tmp_path: Path) -> None:
    report = run(hcl, data, tmp_path / "out", linear="moco", epochs=2, batch=500)
    assert report["linear"]["batch"] == 48
    assert report["linear"]["lr"] == pytest.approx(30 * 48 / 256)
    assert any("batch 500 -> 48" in line for line in report["sentences"])


def test_an_encoder_that_moved_is_noticed(
    hcl: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = feature_pass.look

    def careless(module: Any, *args: Any, **kwargs: Any) -> Any:
        next(module.encoder.embedding.branches.parameters()).data.add_(1e-3)
        return look(module, *args, **kwargs)

    monkeypatch.setattr(feature_pass, "look", careless)
    with pytest.raises(WorkFailed, match="changed while they were probed"):
        run(hcl, data, tmp_path / "out", linear="none")
    assert not (tmp_path / "out" / "probe.json").exists()


# ---- stopped and resumed ---------------------------------------------------------------------------------------------


def test_resumed_it_computes_no_features_again(
    hcl: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(hcl, data, tmp_path / "out")
    monkeypatch.setattr(feature_pass, "look", lambda *_, **__: pytest.fail("computed again"))
    second = run(hcl, data, tmp_path / "out", resume=True, knn=[3])
    assert second["knn"]["3"] == first["knn"]["3"]
    assert second["linear"] == first["linear"]


def test_stopped_while_looking_it_keeps_what_was_computed(
    hcl: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    shutil.copytree(data, tmp_path / "data", dirs_exist_ok=True)
    (tmp_path / "data" / "class1" / "7.png").write_bytes(b"")
    first = run(hcl, tmp_path / "data", tmp_path / "whole")
    look, calls = feature_pass.look, itertools.count()

    def stop(*args: Any, **kwargs: Any) -> Any:
        if next(calls) in (2, 4):
            signal.raise_signal(signal.SIGINT)
        return look(*args, **kwargs)

    monkeypatch.setattr(feature_pass, "look", stop)
    for at in (24, 40):
        with pytest.raises(Stopped, match=f"stopped after {at} of 60 images; go on with --resume"):
            run(hcl, tmp_path / "data", tmp_path / "out", resume=True)
    again = run(hcl, tmp_path / "data", tmp_path / "out", resume=True)
    assert next(calls) == 8  # 48 + 12 images in batches of 8: each was looked at once
    assert {k: again[k] for k in ("knn", "linear", "data")} == {
        k: first[k] for k in ("knn", "linear", "data")
    }
    for file in (tmp_path / "whole" / "features").rglob("*.npy"):
        assert (
            tmp_path / "out" / "features" / file.parent.name / file.name
        ).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("where", ["objective", "knn"])
def test_stopped_while_classifying(
    where: str, hcl: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hetcl.analysis.probe import knn, linear

    room, name = (linear, "objective") if where == "objective" else (knn, "_unit")
    inner, calls = getattr(room, name), itertools.count()

    def stop(*args: Any) -> Any:
        if next(calls) == 0:
            signal.raise_signal(signal.SIGTERM)
        return inner(*args)

    with monkeypatch.context() as m:
        m.setattr(room, name, stop)
        with pytest.raises(Stopped, match="--resume") as stopped:
            run(hcl, data, tmp_path / "out")
    assert stopped.value.signum == signal.SIGTERM
    assert run(hcl, data, tmp_path / "out", resume=True)["linear"]["top1"]["value"] > 0.9


def test_features_damaged_on_disk_are_made_again(hcl: Path, data: Path, tmp_path: Path) -> None:
    first = run(hcl, data, tmp_path / "out")
    test, train = sorted((tmp_path / "out" / "features").iterdir())
    data_of = (train / "features.npy").read_bytes()
    (train / "features.npy").write_bytes(data_of[:-100] + bytes(100))
    (test / "index.npy").unlink()
    again = run(hcl, data, tmp_path / "out", resume=True)
    assert (again["knn"], again["linear"]) == (first["knn"], first["linear"])
    assert (train / "features.npy").read_bytes() == data_of


def test_features_in_the_blocks_of_an_older_hetcl_are_computed_again(
    hcl: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(hcl, data, tmp_path / "out")
    for folder in (tmp_path / "out" / "features").iterdir():
        shutil.rmtree(folder)
        folder.mkdir()
        np.save(folder / "train-0000.npy", np.zeros((4, 8), np.float32))
        (folder / "train-0000.json").write_text('{"bad": [], "features": 1, "crc32": "00000000"}')
    again = run(hcl, data, tmp_path / "out", resume=True)
    assert (again["knn"], again["linear"]) == (first["knn"], first["linear"])
    assert "of another hetcl or damaged, and is computed again" in caplog.text
    assert not list((tmp_path / "out" / "features").rglob("train-*.npy"))


# ---- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"features": "c9"}, "no features named"),
        ({"holdout": 0.001}, "holdout"),
        ({"linear": "ridge"}, "one of none, lbfgs, moco"),
        ({"knn": [0]}, "knn"),
        ({"linear": "none", "knn": []}, "neither knn nor linear"),
        ({"images": 1}, "one class only"),
        (
            {"ask": "what", "boxes": "boxes.csv", "grid": 4},
            "boxes means something to localization, and what is asked",
        ),
        (
            {"ask": "where", "features": "c4", "knn": [3]},
            "features means something to what, and where is asked",
        ),
        (
            {"ask": "localization", "views": "crop"},
            "views means something to correspondence(.|\\n)*knn means something",
        ),
        ({"epochs": 3}, "epochs is one of --linear moco, and linear is lbfgs"),
    ],
)
def test_settings_that_cannot_be(
    hcl: Path, data: Path, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run(hcl, data, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_probed(hcl: Path, tmp_path: Path) -> None:
    flat = write_images(tmp_path / "flat", 5)
    with pytest.raises(InputError, match="has no labels"):
        run(hcl, flat, tmp_path / "out", folder_classes=False)
    one = write_classes(tmp_path / "one", 6, classes=1)
    with pytest.raises(InputError, match=r"has no labels.*all its images lie in one folder, .*one/class0"):
        run(hcl, one, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outs_and_models_that_cannot_be(hcl: Path, data: Path, tmp_path: Path) -> None:
    run(hcl, data, tmp_path / "out", linear="none")
    with pytest.raises(InputError, match="add --resume"):
        run(hcl, data, tmp_path / "out")
    for name, resume in itertools.product(("thesis.tex", "settings.yaml"), (False, True)):
        mine = tmp_path / name
        mine.mkdir(exist_ok=True)
        (mine / name).write_text("data: x\nsettings: {size: 32}\n")  # (as of a pre-training run)
        before = files(mine)
        with pytest.raises(InputError, match="no probe"):
            run(hcl, data, mine, resume=resume)
        assert files(mine) == before
    with pytest.raises(InputError, match="has no embedding"):
        run("torchvision:resnet18:random", data, tmp_path / "out3", features="embedding")

    def explode(state: dict[str, torch.Tensor]) -> None:
        next(v for k, v in state.items() if k.startswith("pyramid.") and v.ndim == 4).fill_(3e38)

    def nan(state: dict[str, torch.Tensor]) -> None:
        next(v for k, v in state.items() if v.ndim == 4)[0] = float("nan")

    broken = write_checkpoint(tmp_path / "broken.ckpt", change=explode)
    with pytest.raises(WorkFailed, match=r"not finite .*class0/0\.png: the weights are broken$"):
        run(broken, data, tmp_path / "out4")
    with pytest.raises(WorkFailed, match="the weights are broken, or precision bf16 is too coarse for them"):
        run(broken, data, tmp_path / "out6", precision="bf16")
    with pytest.raises(InputError, match="not finite"):
        run(write_checkpoint(tmp_path / "nan.ckpt", change=nan), data, tmp_path / "out5")
    assert not (tmp_path / "out5").exists()


def test_a_probe_that_diverges_says_what_to_do(
    hcl: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LinearTask.step

    def wild(self: LinearTask, *args: Any) -> Any:
        return step(self, *args) | {"loss": torch.tensor(float("inf"))}

    monkeypatch.setattr(LinearTask, "step", wild)
    with pytest.raises(WorkFailed, match="set a lower lr"):
        run(hcl, data, tmp_path / "out", linear="moco", epochs=1)


def test_the_command(hcl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["probe", str(hcl), "--data", "scenes:60", "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main([*words, "--threads", "1", "--features", "embedding"]) == 0
    said = capsys.readouterr().out
    assert "kNN, k = 20" in said
    assert "by guessing 10.0%" in said
