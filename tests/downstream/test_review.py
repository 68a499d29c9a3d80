"""What a user's data may look like besides: slivers, objects without masks, classes that are lacking, changed sets."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hetcl.cli import main
from hetcl.datasets import open_detection, open_segmentation
from hetcl.datasets.repeat_factors import repeat_factors
from hetcl.downstream.evaluate import FirstImages
from hetcl.downstream.loader import DetectionExamples, usable
from hetcl.downstream.models.scaling import Scaling
from hetcl.downstream.renamed import under
from hetcl.downstream.report_text import in_words
from hetcl.draws import generator
from hetcl.runs import checkpoint
from tests.downstream.layouts import write_coco, write_voc
from tests.downstream.small_sets import Boxes, command

pytestmark = pytest.mark.usefixtures("light")

LIGHT = "timm:test_resnet"
ONCE = "--model faster-rcnn --steps 1 --milestones 1 --warmup 0 --evaluations 1".split()


def change(root: Path, split: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit a file of annotations in place."""
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def last_line(capsys: pytest.CaptureFixture[str], words: list[str], status: int) -> str:
    capsys.readouterr()
    assert main(words) == status
    out, err = capsys.readouterr()
    return (err if status else out).strip().splitlines()[-1]


def test_a_sliver_is_no_object(tmp_path: Path) -> None:
    root = write_coco(tmp_path, train=1, val=1, size=64, plain=True)

    def sliver(content: dict[str, Any]) -> None:
        for entry in content["annotations"][1:]:
            entry["bbox"] = [63.999, 10, 50, 20]

    change(root, "train", sliver)
    data = open_detection(f"coco:{root}", "train")
    assert usable(data.annotations(0), masks=False).tolist() == [True] + [False] * (
        len(data.annotations(0).boxes) - 1
    )
    made = DetectionExamples(data, np.arange(1), masks=True, min_size=(64,), flip_p=0.0)
    _, target = made(0, generator(0))
    assert len(target["boxes"]) == len(target["masks"]) == 1

    scaling = Scaling((8,), 100, 8, divisible=1).train()
    boxes = torch.tensor([[0.0, 0.0, 1e-5, 5.0], [0.0, 0.0, 10.0, 20.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": torch.zeros(2, 20, 30)}
    _, scaled = scaling.resize(torch.zeros(3, 20, 30), target)
    assert scaled is not None
    assert scaled["labels"].tolist() == [2]
    assert len(scaled["masks"]) == 1


def test_objects_without_a_mask_are_said_and_not_taken_for_background(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "set", train=4, val=2, plain=True)

    def unmask(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            if entry["image_id"] == 100 or entry["id"] % 2:
                del entry["segmentation"]

    change(root, "train", unmask)
    more = "--steps 1 --milestones 1 --warmup 0 --evaluations 1".split()
    assert main(command(tmp_path / "run", f"coco:{root}", *more, init=LIGHT)) == 0
    out = capsys.readouterr().out
    assert "without a box or mask to learn from left out (e.g. " in out
    assert "1 image without objects left out of training" in out

    change(root, "train", lambda content: content.update(annotations=[]))
    words = command(tmp_path / "other", f"coco:{root}", *more, init=LIGHT)
    assert "no training image has an object" in last_line(capsys, words, 2)


def test_the_training_is_kept_when_the_evaluation_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "set", train=2, val=2, plain=True)
    (root / "images" / "val-0.jpg").write_bytes(b"no image")
    out = tmp_path / "run"
    words = command(out, f"coco:{root}", *ONCE, "--checkpoint_every", "0", init=LIGHT)
    assert "more than max_bad = 10%" in last_line(capsys, words, 1)
    state = checkpoint.load(out / "checkpoints" / "last.ckpt")
    assert (state["epoch"], state["step"]) == (0, 1)
    resumed = ["finetune", "--out", str(out), "--resume", "--max_bad", "0.6"]
    assert main(resumed) == 0
    rows = (out / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2
    assert ",loss," in rows[0]


@pytest.mark.parametrize("trained", ["fp32", "bf16"])
def test_an_evaluation_computes_as_the_run_was_trained(trained: str, tmp_path: Path) -> None:
    root, out = write_coco(tmp_path / "set", train=2, val=2, plain=True), tmp_path / "run"
    more = ["--precision", trained, "--score_threshold", "0.01"]
    assert main(command(out, f"coco:{root}", *ONCE, *more, init=LIGHT)) == 0
    words = ["evaluate", str(out), "--data", f"coco:{root}", "--device", "cpu", "--threads", "1", "--out"]
    assert main([*words, str(tmp_path / "alike")]) == 0
    assert (
        main([*words, str(tmp_path / "other"), "--precision", "bf16" if trained == "fp32" else "fp32"]) == 0
    )
    results = [
        (folder / "results.json").read_bytes() for folder in (out, tmp_path / "alike", tmp_path / "other")
    ]
    assert results[0] == results[1] != results[2]
    report = json.loads((tmp_path / "alike" / "evaluation.json").read_text())
    assert report["machine"]["precision"] == trained
    assert f", {trained}\n" in (tmp_path / "alike" / "log.txt").read_text()


def test_missing_images_are_bounded_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_coco(tmp_path / "set", train=2, val=2, plain=True)
    (root / "images" / "val-0.jpg").unlink()
    words = command(tmp_path / "run", f"coco:{root}", *ONCE, init=LIGHT)
    assert "1 of 2 images are missing" in last_line(capsys, words, 2)
    assert main([*words, "--max_bad", "0.5"]) == 0


def test_a_changed_validation_part_is_seen_on_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_coco(tmp_path / "set", train=2, val=2, plain=True), tmp_path / "run"
    assert main(command(out, f"coco:{root}", *ONCE, init=LIGHT)) == 0
    change(root, "val", lambda content: content["annotations"].pop())
    said = last_line(capsys, ["finetune", "--out", str(out), "--resume"], 2)
    assert "does not hold what the run" in said


def test_a_set_that_lacks_classes_is_evaluated_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc, other, out = tmp_path / "voc", tmp_path / "other", tmp_path / "run"
    write_voc(voc, train=2, val=2)
    assert main(command(out, f"voc:{voc}", *ONCE, init=LIGHT)) == 0
    names = [c.name for c in open_detection(f"voc:{voc}", "val").classes]
    write_voc(other, train=2, val=2)
    for xml in other.rglob("*.xml"):
        text = xml.read_text()
        for name in (names[0], names[-1]):
            text = text.replace(f"<name>{name}</name>", f"<name>{names[3]}</name>")
        xml.write_text(text)
    capsys.readouterr()
    words = ["evaluate", str(out), "--data", f"voc:{other}", "--out", str(tmp_path / "e"), "--device", "cpu"]
    assert main(words) == 0
    assert f"has no {names[0]}, {names[-1]}: there is no figure for that" in capsys.readouterr().out
    report = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert report["figures"]["box_ap"] is not None

    data = open_detection(f"voc:{other}", "val")
    again, _ = under(data, names, "here", "there")
    assert [c.name for c in again.classes] == names
    for index in range(len(data)):
        theirs, ours = data.annotations(index).labels, again.annotations(index).labels
        assert [data.classes[i].name for i in theirs] == [names[i] for i in ours]


def test_an_evaluation_that_is_replaced_leaves_nothing_of_itself(tmp_path: Path) -> None:
    voc, out, e = tmp_path / "voc", tmp_path / "run", tmp_path / "e"
    write_voc(voc, train=2, val=3)
    more = "--model fcn --steps 1 --milestones 1 --warmup 0 --evaluations 1".split()
    assert main(command(out, f"voc:{voc}", *more, init=LIGHT)) == 0
    words = ["evaluate", str(out), "--data", f"voc:{voc}", "--out", str(e), "--device", "cpu", "--overwrite"]
    assert main(words) == 0
    assert len(list((e / "label_maps").iterdir())) == 3
    (e / "results.json").write_text("of another run")
    assert main([*words, "--images", "1", "--examples", "0"]) == 0
    assert len(list((e / "label_maps").iterdir())) == 1
    assert sorted(p.name for p in e.iterdir()) == ["evaluation.json", "label_maps", "log.txt"]


def test_pixels_of_other_things_are_not_called_aeroplanes(tmp_path: Path) -> None:
    write_voc(tmp_path, years=("VOC2012",), names=False)
    assert open_segmentation(f"voc:{tmp_path}", "val").classes[:2] == ("class 0", "class 1")


def test_a_part_of_a_set_travels_to_workers() -> None:
    part = pickle.loads(pickle.dumps(FirstImages(Boxes(5), 2)))
    assert (len(part), part.kind) == (2, "coco")


def test_repeat_factors_are_of_the_images_that_are_trained_on() -> None:
    data = Boxes(12)
    chosen = np.array([1, 4, 7])
    labels = [set(data.annotations(int(i)).labels.tolist()) for i in chosen]
    share = [sum(c in found for found in labels) / 3 for c in range(2)]
    factor = [max(1.0, (0.9 / max(f, 1 / 3)) ** 0.5) for f in share]
    wanted = [max((factor[c] for c in found), default=1.0) for found in labels]
    np.testing.assert_allclose(repeat_factors(data, 0.9, images=chosen), wanted)


def test_figures_have_readable_names() -> None:
    names = {
        "accuracy": "accuracy",
        "box_ap50": "box AP50",
        "mask_ap_s": "mask APs",
        "ap": "AP",
        "miou": "mIoU",
    }
    assert {n: in_words(n) for n in names} == names
