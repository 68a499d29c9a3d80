"""The parts of a set before work begins: classes by name, evaluations that cannot mean anything, ``hetcl doctor``."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetcl.cli import main
from hetcl.datasets import open_detection, open_segmentation
from hetcl.downstream.parts import joined, judge, open_part
from hetcl.downstream.renamed import names_of, under
from hetcl.errors import InputError
from hetcl.images.scenes import CLASSES
from tests.downstream.layouts import save_indices, write_coco, write_voc
from tests.downstream.small_sets import Boxes, command

pytestmark = pytest.mark.usefixtures("light")

LIGHT = "timm:test_resnet"
ONCE = "--model faster-rcnn --steps 1 --milestones 1 --warmup 0 --evaluations 1".split()
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "set", train=4, val=3, plain=True)


def change(root: Path, split: str, edit: Edit) -> None:
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def renumber(content: dict[str, Any]) -> None:
    """Other ids in another order; the same names."""
    ids = {c["id"]: 100 - 7 * c["id"] // 3 for c in content["categories"]}
    for category in content["categories"]:
        category["id"] = ids[category["id"]]
    for entry in content["annotations"]:
        entry["category_id"] = ids[entry["category_id"]]


def parts(root: Path, model: str = "faster-rcnn", kind: str = "coco", **words: Any) -> Any:
    spec = f"{kind}:{root}"
    train, val = (open_part(spec, split, model) for split in ("train", "val"))
    return joined(spec, train, val, **({"model": model, "max_bad": 0.1, "detections": 100} | words))


def refused(root: Path, **words: Any) -> str:
    with pytest.raises(InputError) as caught:
        parts(root, **words)
    return str(caught.value)


def last_line(capsys: pytest.CaptureFixture[str], words: list[str], status: int) -> str:
    capsys.readouterr()
    assert main(words) == status
    out, err = capsys.readouterr()
    return (err if status else out).strip().splitlines()[-1]


# ---- classes by name ----


def test_a_part_that_numbers_its_classes_otherwise(coco: Path) -> None:
    before = open_detection(f"coco:{coco}", "val")
    change(coco, "val", renumber)
    found = parts(coco)
    assert names_of(found.val) == names_of(found.train) == CLASSES
    for i in range(3):
        assert found.val.annotations(i).labels.tolist() == before.annotations(i).labels.tolist()
    assert [c.id for c in found.val.classes] == [
        100 - 7 * (3 * i + 1) // 3 for i in range(10)
    ]  # of its own file
    assert not [line for line in found.notes if "class" in line]


def test_both_verbs_take_it(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures, however the validation part numbers its classes."""
    out, again = tmp_path / "run", tmp_path / "again"
    assert main(command(out, f"coco:{coco}", *ONCE, init=LIGHT)) == 0
    change(coco, "val", renumber)
    assert main(command(again, f"coco:{coco}", *ONCE, init=LIGHT)) == 0
    words = ["evaluate", str(out), "--data", f"coco:{coco}", "--out", str(tmp_path / "e"), "--device", "cpu"]
    assert main(words) == 0
    figures = [json.loads((d / "summary.json").read_text())["per_class"] for d in (out, again)]
    assert (
        figures[0] == figures[1] == json.loads((tmp_path / "e" / "evaluation.json").read_text())["per_class"]
    )
    results = json.loads((again / "results.json").read_text())
    ids = {c.id for c in open_detection(f"coco:{coco}", "val").classes}
    assert {entry["category_id"] for entry in results} <= ids
    assert main(["finetune", "--out", str(again), "--resume"]) == 0


def test_capitals_and_spaces_do_not_part_classes(coco: Path) -> None:
    change(coco, "val", lambda d: [c.update(name=f" {c['name'].title()}  ") for c in d["categories"]])
    found = parts(coco)
    assert names_of(found.val) == CLASSES
    assert (
        f"class 'Striped Disc' of the validation part of coco:{coco} is taken for 'striped disc' of its training part"
        in found.notes
    )


def test_two_that_differ_in_capitals_alone_are_not_mixed_up() -> None:
    data = Boxes(3)
    data.classes = (replace(data.classes[0], name="Cat"), replace(data.classes[1], name="cat"))
    found, told = under(data, ("cat", "Cat"), "here", "there")
    assert [c.id for c in found.classes] == [9, 7]
    assert not told
    with pytest.raises(InputError, match=r"there lacks Cat \(\d objects?\), cat"):
        under(data, ("CAT", "dog"), "here", "there")


def test_a_class_that_is_missing_is_named_with_the_part_that_lacks_it(coco: Path) -> None:
    def only_in_val(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 50, "name": "boat"})
        content["annotations"][0]["category_id"] = 50

    change(coco, "val", only_in_val)
    message = refused(coco)
    assert f"the validation part of coco:{coco} has other classes than its training part" in message
    assert "its training part lacks boat (1 object)" in message
    change(coco, "train", lambda d: d["categories"].append({"id": 1000, "name": "boat"}))
    assert "nothing is annotated as" in parts(coco).notes[-1] or parts(coco).notes


def test_a_class_without_objects_may_be_missing(coco: Path) -> None:
    change(coco, "val", lambda d: d["categories"].append({"id": 50, "name": "boat"}))
    found = parts(coco)
    assert names_of(found.val) == CLASSES
    assert (
        f"its training part does not know the classes boat of the validation part of coco:{coco}"
        in " ".join(found.notes)
    )


def test_a_nameless_class_is_said_with_its_file(coco: Path) -> None:
    change(coco, "val", lambda d: [c.pop("name") for c in d["categories"] if c["id"] == 1])
    data = open_detection(f"coco:{coco}", "val")
    assert data.skipped.remarks == ["instances_val.json: category 1 has no name and is called 'class 1'"]


def test_no_class_in_common(coco: Path) -> None:
    change(coco, "val", lambda d: [c.update(name=f"other {c['id']}") for c in d["categories"]])
    assert "has other classes than its training part, and none in common" in refused(coco)


def test_pixels_by_name(tmp_path: Path) -> None:
    write_voc(tmp_path, years=("VOC2012",), devkit=False)
    data = open_segmentation(f"voc:{tmp_path}", "val")
    before = [data.label_map(i) for i in range(3)]
    names = data.classes[::-1]
    again, told = under(data, names, "here", "there")
    assert again.classes == names
    assert not told
    again = pickle.loads(pickle.dumps(again))
    for i in range(3):
        after = again.label_map(i)
        assert ((after == 255) == (before[i] == 255)).all()
        counted = before[i] != 255
        assert (after[counted] == 10 - before[i][counted]).all()
    with pytest.raises(
        InputError, match=r"name its classes in classes.txt, the first being value 0 \(here 11"
    ):
        under(replace_classes(data), names, "here", "there")


def replace_classes(data: Any) -> Any:
    data.classes = tuple(f"class {i}" for i in range(11))
    return data


def test_a_message_counts_only_what_differs(tmp_path: Path) -> None:
    write_voc(tmp_path, years=("VOC2012",), devkit=False)
    data = open_segmentation(f"voc:{tmp_path}", "val")
    with pytest.raises(InputError) as caught:
        under(replace_classes(data), [f"x{i}" for i in range(11)], "here", "there")
    assert "11, not 11" not in str(caught.value)
    assert "11 classes" not in str(caught.value)


# ---- an evaluation that cannot mean anything ----


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d.update(annotations=[]), "none of its 3 images has an annotation"),
        (lambda d: d.pop("annotations"), "has no list 'annotations'"),
        (
            lambda d: [a.update(iscrowd=1) for a in d["annotations"]],
            "is flagged a crowd (iscrowd), which is not scored",
        ),
        (
            lambda d: [a.update(bbox=[900, 900, 5, 5]) for a in d["annotations"]],
            "no annotation that can be used",
        ),
    ],
)
def test_nothing_to_evaluate_on_is_said_before_the_work_begins(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], edit: Edit, said: str
) -> None:
    change(coco, "val", edit)
    assert said in last_line(capsys, command(tmp_path / "run", f"coco:{coco}", *ONCE, init=LIGHT), 2)
    assert not (tmp_path / "run").exists()


def test_all_difficult(tmp_path: Path) -> None:
    write_voc(tmp_path, train=2, val=2, years=("VOC2012",), devkit=False)
    for path in tmp_path.rglob("*.xml"):
        path.write_text(path.read_text().replace("<difficult>0<", "<difficult>1<"))
    assert "is flagged difficult, which is not scored; no figure can come of it" in refused(
        tmp_path, kind="voc"
    )


def test_evaluate_says_it_too(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, e = tmp_path / "run", tmp_path / "e"
    assert main(command(out, f"coco:{coco}", *ONCE, init=LIGHT)) == 0
    words = ["evaluate", str(out), "--data", f"coco:{coco}", "--out", str(e), "--device", "cpu"]
    change(coco, "val", lambda d: d.update(annotations=[a for a in d["annotations"] if a["image_id"] != 100]))
    assert "the first 1 image of the validation part" in last_line(capsys, [*words, "--images", "1"], 2)
    change(coco, "val", lambda d: d.update(annotations=[]))
    assert "none of its 3 images has an annotation" in last_line(capsys, words, 2)
    assert not e.exists()


def test_figures_of_little_worth_are_told(coco: Path) -> None:
    change(coco, "val", lambda d: d.update(images=d["images"][:1], annotations=d["annotations"][:1]))
    told = " ".join(parts(coco).notes)
    assert f"the validation part of coco:{coco} has one image alone" in told
    assert "in the validation part: there is no figure for that" in told
    change(
        coco, "train", lambda d: d.update(annotations=[a for a in d["annotations"] if a["category_id"] != 1])
    )
    assert (
        "nothing is annotated as striped disc in the training part: it cannot be learned" in parts(coco).notes
    )


def test_images_in_both_parts_are_told(coco: Path) -> None:
    train = (coco / "annotations" / "instances_train.json").read_text()
    (coco / "annotations" / "instances_val.json").write_text(train)
    assert (
        "4 images of 4 in the validation part are in the training part too (e.g. images/train-0.jpg): figures on "
        "them flatter" in parts(coco).notes
    )


def test_more_objects_than_detections_are_told(coco: Path) -> None:
    most = max(len(open_detection(f"coco:{coco}", "val").annotations(i).labels) for i in range(3))
    assert not [line for line in parts(coco, detections=most).notes if "detections" in line]
    told = " ".join(parts(coco, detections=most - 1).notes)
    assert f"more objects than detections ({most - 1}), up to {most}: those beyond count as missed" in told


def test_mostly_crowds_are_told(coco: Path) -> None:
    change(coco, "val", lambda d: [a.update(iscrowd=1) for a in d["annotations"][1:]])
    told = " ".join(parts(coco).notes)
    assert (
        "are flagged iscrowd, which is neither learned nor scored: some tools set it for every mask" in told
    )


def test_masks_for_training_alone_are_told(coco: Path) -> None:
    change(coco, "val", lambda d: [a.pop("segmentation") for a in d["annotations"]])
    assert "has no masks: there will be figures of boxes alone" in " ".join(parts(coco, "mask-rcnn").notes)


def test_label_maps_that_give_no_figure(tmp_path: Path) -> None:
    write_voc(tmp_path, years=("VOC2012",), devkit=False)
    maps = sorted((tmp_path / "VOC2012" / "SegmentationClass").glob("val_*"))
    for path in maps:
        save_indices(path, np.where(np.eye(64) > 0, 255, 3).astype(np.uint8))
    assert "hold the class 'striped-triangle' alone and 255, which does not count" in refused(
        tmp_path, model="fcn", kind="voc"
    )
    for path in maps:
        save_indices(path, np.full((64, 64), 3, np.uint8))
    told = parts(tmp_path, "fcn", "voc").notes
    assert "the 3 label maps looked at hold the class 'striped-triangle' alone" in " ".join(told)
    for path in maps:
        save_indices(path, np.full((64, 64), 255, np.uint8))
    assert "its label maps hold the value 255 alone" in refused(tmp_path, model="fcn", kind="voc")
    save_indices(maps[0], np.zeros((64, 32), np.uint8))
    save_indices(maps[1], np.eye(64).astype(np.uint8))
    assert (
        f"the validation part of voc:{tmp_path}: 1 of 3 label maps looked at cannot be used, e.g. "
        "VOC2012/SegmentationClass/val_000000.png: 32 x 64 pixels, its image 64 x 64"
    ) in parts(tmp_path, "fcn", "voc").notes


def test_the_scenes_are_not_looked_through() -> None:
    class Unread(Boxes):
        def annotations(self, index: int) -> Any:
            raise AssertionError

    unread = Unread(50)
    unread.kind = "scenes"
    assert judge(unread, "scenes", model="faster-rcnn", detections=1) == []


def test_proposals_are_adjustable_in_evaluation(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(command(out, f"coco:{coco}", *ONCE, init=LIGHT)) == 0
    words = ["evaluate", str(out), "--data", f"coco:{coco}", "--device", "cpu", "--score_threshold", "0"]
    most = []
    for proposals in ("1", "20"):
        e = tmp_path / proposals
        more = ["--test_proposals", proposals, "--detections", "100", "--examples", "0", "--out", str(e)]
        assert main([*words, *more]) == 0
        found = [entry["image_id"] for entry in json.loads((e / "results.json").read_text())]
        most.append(max(found.count(image) for image in set(found)))
    assert most[0] <= len(CLASSES) < most[1]  # a region gives at most a detection of each class


def test_label_maps_of_several_folders_are_kept_apart(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", train=2, val=2, years=("VOC2012",), devkit=False)
    root = tmp_path / "voc" / "VOC2012"
    for camera in ("cam0", "cam1"):
        for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            (root / folder / camera).mkdir()
            (root / folder / f"val_00000{camera[-1]}.{ending}").rename(
                root / folder / camera / f"val.{ending}"
            )
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("cam0/val\ncam1/val\n")
    out, e = tmp_path / "run", tmp_path / "e"
    more = "--model fcn --steps 1 --milestones 1 --warmup 0 --evaluations 1".split()
    assert main(command(out, f"voc:{tmp_path / 'voc'}", *more, init=LIGHT)) == 0
    words = ["evaluate", str(out), "--data", f"voc:{tmp_path / 'voc'}", "--out", str(e), "--device", "cpu"]
    assert main(words) == 0
    maps = sorted(path.relative_to(e / "label_maps").as_posix() for path in (e / "label_maps").rglob("*.png"))
    assert maps == ["cam0/val.png", "cam1/val.png"]


# ---- lists ----


def test_another_list_than_the_recipe_s_source_trains_on(tmp_path: Path) -> None:
    root = write_voc(tmp_path, years=("VOC2012",), devkit=False)
    told = parts(tmp_path, "fcn", "voc", train_list="train_aug").notes
    assert (
        "the recipe's source trains on the list train_aug (10,582 images: VOC 2012 with SBD); here it is "
        "VOC2012/ImageSets/Segmentation/train.txt (6): figures will not compare with the source's" in told
    )
    assert not [line for line in parts(tmp_path, "fcn", "voc").notes if "list" in line]
    folder = root / "VOC2012" / "ImageSets" / "Segmentation"
    (folder / "train.txt").rename(folder / "train_aug.txt")
    told = parts(tmp_path, "fcn", "voc", train_list="train_aug").notes  # but a short one
    assert "here it is VOC2012/ImageSets/Segmentation/train_aug.txt (6)" in " ".join(told)


def test_the_command_says_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_voc(tmp_path / "voc", train=2, val=2, years=("VOC2012",), devkit=False)
    more = "--model fcn --steps 1 --milestones 1 --warmup 0 --evaluations 1 --batch 2 --base_batch 2".split()
    words = command(tmp_path / "run", f"voc:{tmp_path / 'voc'}", "--recipe", "voc-fcn-r50", *more, init=LIGHT)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "(train: VOC2012/ImageSets/Segmentation/train.txt (2))" in out
    assert "(val: VOC2012/ImageSets/Segmentation/val.txt (2))" in out
    assert "! the recipe's source trains on the list train_aug (10,582 images" in out
    assert "training  1 step of 2 images" in out


# ---- doctor ----


def doctor(capsys: pytest.CaptureFixture[str], spec: str, *more: str, status: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    words = [
        "--recipe",
        "tiny-mask-rcnn-fpn",
        "--init",
        f"{LIGHT}:random",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    assert main(["doctor", "--data", spec, *words, *more]) == status
    out, err = capsys.readouterr()
    return out, err


def test_doctor_says_what_fine_tuning_would(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = doctor(capsys, f"coco:{coco}", "--detections", "2")
    assert f"train     {open_detection(f'coco:{coco}', 'train').description}" in out
    assert f"test      {open_detection(f'coco:{coco}', 'val').description}" in out
    assert "mask-rcnn, neck fpn, 450 steps of 4 images; each of 4 images is seen about 450 times" in out
    assert "! 3 images of the validation part" in out
    assert re.search(
        r"time      about .+ for 450 steps of 4 images, 3 evaluations\nmemory    about 0\.\d GB", out
    )
    assert not (coco / "annotations" / "run").exists()


def test_doctor_names_every_reason_and_not_the_first_alone(
    coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(coco, "train", lambda d: d.update(annotations=[]))
    change(coco, "val", lambda d: d.update(annotations=[]))
    out, err = doctor(capsys, f"coco:{coco}", status=2)
    assert "test      3 images, 0 objects" in out
    assert err.splitlines() == [
        f"hetcl: the validation part of coco:{coco}: none of its 3 images has an annotation; no figure can come of "
        "it",
        f"hetcl: coco:{coco}: no training image has an object; check the annotations",
    ]


def test_doctor_of_pixels_and_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_voc(tmp_path / "voc", train=2, val=2)
    out, _ = doctor(capsys, f"voc:{tmp_path / 'voc'}", "--model", "fcn")
    assert "with pixels in 11 classes" in out
    for path in (tmp_path / "voc").rglob("Annotations"):
        path.rename(path.with_name("other"))
    _, err = doctor(capsys, f"voc:{tmp_path / 'voc'}", status=2)
    assert "has a class for each pixel: judge it with --model fcn" in err
    _, err = doctor(capsys, f"coco:{tmp_path / 'nowhere'}", status=2)
    assert err.count("there is no folder") == 1


def test_doctor_of_scenes_goes_by_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["doctor", "--data", "scenes:20@64", "--recipe", "tiny-fcn", "--init", f"{LIGHT}:random"]) == 0
    )
    assert "20 built-in scenes of 64 pixels (train)" in capsys.readouterr().out
    assert main(["doctor", "--recipe", "tiny-fcn"]) == 2
    assert "--data is missing" in capsys.readouterr().err
