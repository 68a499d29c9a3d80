"""Predictions on files: those of ``hetcl evaluate``; drawn where they are; stopped, resumed, grown; what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hetcl.cli import main
from hetcl.datasets.annotations import Prediction
from hetcl.datasets.masks import encode
from hetcl.downstream.prediction_files import draw_detections, file_names
from hetcl.downstream.report_text import meaning
from hetcl.downstream.sheets import color
from hetcl.images.image_files import ImageFiles
from hetcl.images.sources import open_source
from hetcl.runs import checkpoint
from tests.downstream.predicting import CPU, LOW, found, run
from tests.pretraining import processes

pytestmark = pytest.mark.usefixtures("light")


# ---- against hetcl evaluate ------------------------------------------------------------------------------------------


def test_detections_are_those_of_evaluate_and_score_alike(detector: Path, coco: Path, tmp_path: Path) -> None:
    words = ["--device", "cpu", "--threads", "1", "--score_threshold", "0.001"]
    spec = ["evaluate", str(detector), "--data", f"coco:{coco}", "--out", str(tmp_path / "e")]
    assert main([*spec, *words]) == 0
    theirs = json.loads((tmp_path / "e" / "results.json").read_text())
    pattern = str(coco / "images" / "val-*.jpg")
    assert main(["predict", str(detector), pattern, "--out", str(tmp_path / "p"), *words]) == 0
    ours = json.loads((tmp_path / "p" / "predictions.json").read_text())

    truth = COCO(str(coco / "annotations" / "instances_val.json"))
    image_of = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
    class_of = {c["name"]: c["id"] for c in truth.dataset["categories"]}
    images = {image["id"]: image_of[image["file_name"]] for image in ours["images"]}
    classes = {c["id"]: class_of[c["name"]] for c in ours["categories"]}
    assert len(images) == 5
    renamed = [
        {"image_id": images[e["image_id"]], "category_id": classes[e["category_id"]]}
        | {name: e[name] for name in ("bbox", "score", "segmentation")}
        for e in ours["annotations"]
    ]
    assert len(renamed) > 5
    assert sorted(renamed, key=json.dumps) == sorted(theirs, key=json.dumps)
    figures = []
    for entries in (renamed, theirs):
        scored = COCOeval(truth, truth.loadRes(entries), "segm")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
        figures.append(scored.stats.tolist())
    assert figures[0] == figures[1]

    alone = COCO(str(tmp_path / "p" / "predictions.json"))  # a file of COCO's format that stands by itself
    assert len(alone.getAnnIds()) == len(theirs)
    assert alone.annToMask(alone.dataset["annotations"][0]).shape == (64, 64)
    with open(tmp_path / "p" / "predictions.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == len(theirs)
    first = ours["annotations"][0]
    assert float(rows[0]["right"]) == pytest.approx(first["bbox"][0] + first["bbox"][2], abs=0.01)
    assert rows[0]["image"] == "val-0.jpg"


def test_label_maps_are_those_of_evaluate_with_a_palette(segmenter: Path, voc: Path, tmp_path: Path) -> None:
    spec = [
        "evaluate",
        str(segmenter),
        "--data",
        f"voc:{voc}",
        "--out",
        str(tmp_path / "e"),
        "--device",
        "cpu",
    ]
    assert main(spec) == 0
    theirs = {p.name: np.asarray(Image.open(p)) for p in (tmp_path / "e" / "label_maps").glob("*.png")}
    files = [next(voc.rglob(f"JPEGImages/{Path(name).stem}.jpg")) for name in theirs]
    tree = run(segmenter, files, tmp_path / "p")
    names = [c["name"] for c in tree["categories"]]
    assert len(tree["images"]) == len(theirs) == 3
    assert len({e["category_id"] for e in tree["pixels"]}) > 2
    for image in tree["images"]:
        label_map = Image.open(tmp_path / "p" / image["label_map"])
        labels = np.asarray(label_map)
        assert (labels == theirs[Path(image["file_name"]).name.replace(".jpg", ".png")]).all()
        assert label_map.mode == "P"
        shown = np.asarray(label_map.convert("RGB"))
        for k in np.unique(labels):
            assert (shown[labels == k] == tree["categories"][k]["color"]).all()
        counted = {e["category_id"]: e["pixels"] for e in tree["pixels"] if e["image_id"] == image["id"]}
        assert counted == {k: (labels == k).sum() for k in np.unique(labels)}
        assert Image.open(tmp_path / "p" / image["drawn"]).width >= 400
    assert len(names) == len({tuple(c["color"]) for c in tree["categories"]})
    assert Image.open(tmp_path / "p" / "legend.png").height > 20
    lines = (tmp_path / "p" / "predictions.csv").read_text().splitlines()
    assert lines[0] == "image,class,pixels,share"
    assert len(lines) == 1 + len(tree["pixels"])


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_several_at_once_are_as_one_by_one(
    kind: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    one, more = (run(model, photos, tmp_path / str(b), batch=b, workers=b - 1) for b in (1, 2))
    assert one["images"] == more["images"]
    if kind == "segmenter":
        assert one["pixels"] == more["pixels"]
        return
    assert len(one["annotations"]) == len(more["annotations"]) > 4
    for a, b in zip(one["annotations"], more["annotations"], strict=True):
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-2)
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_two_ranks_find_what_one_does(detector: Path, photos: Path, tmp_path: Path) -> None:
    words = ["predict", str(detector), str(photos), *[f"--{k}={v}" for k, v in (CPU | LOW).items()], "--out"]
    said = tmp_path / "said"
    assert processes.run_ranks([*words, str(tmp_path / "two")], said) == [0, 0], said.read_text()
    assert main([*words, str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / d / "predictions.json").read_text()) for d in ("one", "two"))
    assert found(one) == found(two)
    assert not list((tmp_path / "two").glob("progress*"))


# ---- files -----------------------------------------------------------------------------------------------------------


def test_images_are_files_folders_and_patterns_each_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "notes.txt").write_text("x")
    assert ImageFiles([photos]).names == ["0.png", "2.png", "deep/1.png", "deep/3.png"]
    named = [photos / "deep", photos / "2.png", str(photos / "*.png"), photos / "deep" / "1.png"]
    assert ImageFiles(named).names == ["deep/1.png", "deep/3.png", "2.png", "0.png"]
    assert ImageFiles([photos / "deep" / "1.png"]).names == ["1.png"]
    assert ImageFiles([str(photos / "**")], but=photos / "deep").names == ["0.png", "2.png"]
    assert ImageFiles([photos]).aside.words() == "1 .txt (notes.txt)"
    monkeypatch.chdir(photos)
    assert ImageFiles(["0.png", "."]).names == ["0.png", "2.png", "deep/1.png", "deep/3.png"]


def test_what_was_drawn_is_not_looked_at(detector: Path, photos: Path) -> None:
    run(detector, photos, photos / "found")
    assert len(run(detector, photos, photos / "found", resume=True)["images"]) == 4


def test_what_an_earlier_pass_drew_is_not_looked_at(
    detector: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ImageFiles([photos]).names
    run(detector, photos, photos / "found")
    images = ImageFiles([photos])
    assert images.names == names
    assert images.aside.words() == "1 hetcl-predict folder (found)"
    for pattern in ("**", "**/*.*", "*"):
        assert ImageFiles([str(photos / pattern)]).names == names
    assert ImageFiles([str(photos / "found" / "drawn")]).names == [
        "0.jpg",
        "2.jpg",
        "deep/1.jpg",
        "deep/3.jpg",
    ]
    assert ImageFiles([str(photos / "found" / "drawn" / "*.jpg")]).names == ["0.jpg", "2.jpg"]
    monkeypatch.chdir(photos)
    assert ImageFiles(["**"]).names == names
    assert len(open_source(str(photos))) == len(names)
    run(detector, photos, tmp_path / "again")
    (photos / "found" / "predictions.json").unlink()
    assert len(ImageFiles([photos])) == 2 * len(names)


def test_an_image_of_one_pixel_brings_no_warning(
    detector: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for name, size in (("one.png", (1, 1)), ("row.png", (40, 1))):
        Image.new("RGB", size, (9, 8, 7)).save(tmp_path / name)
    run(detector, [tmp_path / "one.png", tmp_path / "row.png"], tmp_path / "p", max_bad=1)
    assert not [str(w.message) for w in recwarn if "writable" in str(w.message)]


def test_files_of_one_name_but_for_the_ending_keep_it() -> None:
    names = ["a.png", "b.png", "b.JPG", "c/a.jpg", "d.e.png", "plain"]
    assert file_names(names, ".jpg") == ["a.jpg", "b.png.jpg", "b.JPG.jpg", "c/a.jpg", "d.e.jpg", "plain.jpg"]


def test_an_image_turned_by_exif_is_upright(detector: Path, photos: Path, tmp_path: Path) -> None:
    turned = Image.open(photos / "2.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    (image,) = run(detector, tmp_path / "turned.jpg", tmp_path / "p")["images"]
    assert (image["width"], image["height"]) == (60, 80)
    drawn = Image.open(tmp_path / "p" / image["drawn"])
    assert drawn.height > drawn.width


@pytest.mark.parametrize("longest", [300, 1000])
def test_boxes_and_masks_are_drawn_where_they_are(longest: int) -> None:
    rng = np.random.default_rng()
    width, height = rng.integers(500, 700, 2).tolist()
    left, top = rng.integers(60, 150, 2).tolist()
    right, bottom = (left + rng.integers(150, 250, 2)).tolist()[0], top + 180
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left : (left + right) // 2] = 1
    one = Prediction(
        0, np.array([[left, top, right, bottom]], float), np.ones(1), np.array([3]), (encode(mask),)
    )
    names = list("abcdef")
    out = draw_detections(np.full((height, width, 3), 120, np.uint8), one, names, longest).astype(int)
    scale = out.shape[1] / width
    assert -3 < max(out.shape) - min(longest, max(width, height)) <= 0
    line = out[round(scale * (top + bottom) / 2), round(scale * right) - 1 : round(scale * right) + 2]
    assert (np.abs(line - color(3)).max(1) < 5).any()
    tinted, plain = (
        out[round(scale * (top + 120)), round(scale * (left + share * (right - left)))]
        for share in (0.25, 0.75)
    )
    assert np.abs(tinted - (0.55 * 120 + 0.45 * np.array(color(3)))).max() < 3
    assert np.abs(plain - 120).max() < 3
    assert np.abs(out[2, 2] - 120).max() < 3


def test_names_that_are_no_text_and_formulas(detector: Path, photos: Path, tmp_path: Path) -> None:
    strange = ["=1+1.png", os.fsdecode(b"\xff.png"), "a\nb.png"]
    for name in strange:
        (photos / name).write_bytes((photos / "0.png").read_bytes())
    tree = run(detector, photos, tmp_path / "p")
    assert {image["file_name"] for image in tree["images"]} > {*strange}
    assert all((tmp_path / "p" / image["drawn"]).is_file() for image in tree["images"])
    with open(tmp_path / "p" / "predictions.csv", newline="", encoding="utf-8") as f:
        told = {row["image"] for row in csv.DictReader(f)}
    assert told >= {"'=1+1.png", "\\udcff.png", "a\\nb.png"}


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_finetune_ends_with_what_its_figure_means_and_the_next_command(detector: Path) -> None:
    *_, meant, done, look, use = (line[20:] for line in (detector / "log.txt").read_text().splitlines())
    assert meant.startswith("box AP 0.")
    assert "of 100 is poor: AP says how many of the objects were found" in meant
    assert done.startswith("done in ")
    assert look.split(": ")[1].strip() == str(detector / "predictions.png")
    verb, *words = use.removeprefix("use it:   hetcl ").split()
    assert (verb, *words) == ("predict", str(detector), "photos/", "--out", "predictions")


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"box_ap": 9.99, "mask_ap": 50.0}, "box AP 10.0 of 100 is poor"),
        ({"box_ap": float("nan"), "mask_ap": 12.0}, "mask AP 12.0 of 100 is fair"),
        ({"box_ap": 30.0}, "box AP 30.0 of 100 is good"),
        ({"miou": 55.5, "pixel_accuracy": 90.0}, "mIoU 55.5 of 100: of the pixels"),
        ({"box_ap": float("nan")}, "nothing could be measured"),
    ],
)
def test_what_a_figure_means(figures: dict[str, float], said: str) -> None:
    assert meaning(figures).startswith(said)


def test_a_run_that_is_not_finished_is_used_and_said(
    detector: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "part"
    shutil.copytree(detector, part)
    last = part / "checkpoints" / "last.ckpt"
    content = checkpoint.load(last)
    checkpoint.save(last, content | {"epoch": 0, "step": 1})
    tree = run(part, photos, tmp_path / "p")
    assert tree["info"]["model"]["trained"] == "1 of 4 steps"
    out = capsys.readouterr().out
    assert f"! this run is not finished; hetcl finetune --out {part} --resume goes on" in out


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_what_is_refused_is_one_line_and_writes_nothing(
    detector: Path, coco: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    (unfinished / "settings.yaml").write_bytes((detector / "settings.yaml").read_bytes())
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.mp4").write_bytes(b"x")
    other = tmp_path / "other"
    other.mkdir()
    (other / "drawn").mkdir()
    (tmp_path / "five").mkdir()
    for i in range(3):
        np.save(tmp_path / "five" / f"{i}.npy", np.zeros((20, 30, 5), np.uint8))
    cases = [
        ([detector, tmp_path / "five", "--out", out], "0.npy: 5 channels, where 3 are read; the run"),
        ([photos, photos, "--out", out], "is no run folder: it has no settings.yaml"),
        ([unfinished, photos, "--out", out], "has no checkpoint yet; let it train first"),
        ([detector, tmp_path / "empty", "--out", out], "no images in"),
        (
            [detector, tmp_path / "texts", "--out", out],
            "(there: 1 .mp4 (a.mp4)); .mp4: take frames out of them",
        ),
        ([detector, tmp_path / "phots", "--out", out], "did you mean"),
        ([detector, str(tmp_path / "*.nef"), "--out", out], "matches no file"),
        ([detector, photos, "--out", other], "holds something that is no set of predictions"),
        ([detector, photos, "--out", photos / "0.png"], "is a file; name a folder for the predictions"),
        ([detector, "--out", out], "IMAGES"),
        ([detector, photos, "--out", out, "--score_threshold", "2"], "setting score_threshold must be -1"),
        ([detector, photos, "--out", out, "--drawn", "-1"], "setting drawn must be 0 or more"),
    ]
    for words, wanted in cases:
        capsys.readouterr()
        assert main(["predict", *map(os.fspath, words)]) == 2
        err = capsys.readouterr().err.strip().splitlines()[-1]
        assert err.startswith("hetcl: ")
        assert wanted in err
        assert not out.exists()
