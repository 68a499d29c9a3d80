"""Layouts of annotation tools: those in COCO's format are read, of the others the file and the fix are named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from hetcl.datasets import open_detection, open_segmentation
from hetcl.errors import InputError
from tests.downstream import layouts


def place(root: Path, parts: dict[str, tuple[str, str]]) -> Path:
    """Write parts of a set: name of a part -> (file of annotations, folder of images), relative to ``root``.

    Parts have 3, 2 and 1 images, ``{part}-{i}.jpg``.
    """
    for (part, (file, folder)), count in zip(parts.items(), (3, 2, 1), strict=False):
        listed = []
        for i in range(count):
            drawn = layouts.scene_of("val" if "val" in part.lower() else "train", i)
            layouts.save(root / folder / f"{part}-{i}.jpg", drawn.pixels)
            listed.append((f"{part}-{i}.jpg", drawn))
        layouts.write_json(root / file, layouts.coco_document(listed, "polygons"))
    return root


def lengths(root: Path) -> tuple[int, int]:
    return tuple(len(open_detection(f"coco:{root}", split)) for split in ("train", "val"))  # type: ignore[return-value]


LAYOUTS = {
    "roboflow": ("train/_annotations.coco.json", "train", "valid/_annotations.coco.json", "valid"),
    "capitals": ("Train/_annotations.coco.json", "Train", "Valid/_annotations.coco.json", "Valid"),
    "cvat": (
        *("annotations/instances_Train.json", "images/Train"),
        *("annotations/instances_Validation.json", "images/Validation"),
    ),
    "fiftyone": ("train/labels.json", "train/data", "validation/labels.json", "validation/data"),
    "labelme2coco": ("train/annotations.json", "train/JPEGImages", "val/annotations.json", "val/JPEGImages"),
    "short names": ("annotations/train.json", "images", "annotations/val.json", "images"),
    "beside": ("train.json", "", "val.json", ""),
    "tokens": ("coco_train.json", "images", "coco_dev.json", "images"),
    "2014": (
        *("annotations/instances_train2014.json", "train2014"),
        *("annotations/instances_val2014.json", "val2014"),
    ),
    "folders": (
        *("training/annotations/instances.json", "training/images"),
        *("validation/annotations/instances.json", "validation/images"),
    ),
}


@pytest.mark.parametrize("tool", LAYOUTS)
def test_layouts_in_coco_s_format(tmp_path: Path, tool: str) -> None:
    train, train_images, val, val_images = LAYOUTS[tool]
    place(tmp_path, {"train": (train, train_images), "val": (val, val_images)})
    assert lengths(tmp_path) == (3, 2)
    data = open_detection(f"coco:{tmp_path}", "val")
    assert Path(data.annotations(1).name).name == "val-1.jpg"
    assert data.annotations(1).boxes.tolist() == layouts.scene_of("val", 1).boxes.tolist()


def test_a_file_in_utf_16_is_recognised(tmp_path: Path) -> None:
    place(tmp_path, {"train": ("train/_annotations.coco.json", "train")})
    path = tmp_path / "train" / "_annotations.coco.json"
    path.write_bytes(path.read_text().encode("utf-16"))
    assert len(open_detection(f"coco:{tmp_path}", "train")) == 3


def test_a_part_for_testing_stands_in_for_validation_and_is_said(tmp_path: Path) -> None:
    parts = ("train", "valid", "test")
    place(tmp_path, {part: (f"{part}/_annotations.coco.json", part) for part in parts})
    assert not open_detection(f"coco:{tmp_path}", "val").skipped.remarks
    shutil.rmtree(tmp_path / "valid")
    data = open_detection(f"coco:{tmp_path}", "val")
    assert len(data) == 1
    assert data.skipped.remarks == [
        "_annotations.coco.json: there is no part for validation; that for testing is taken"
    ]


def test_the_published_names_go_first(tmp_path: Path) -> None:
    layouts.write_coco(tmp_path, train=2, val=1, plain=True)
    place(tmp_path, {"train": ("train/_annotations.coco.json", "train")})
    assert lengths(tmp_path) == (2, 1)


def test_two_files_for_a_part_are_not_guessed_at(tmp_path: Path) -> None:
    place(tmp_path, {"train": ("train_a.json", ""), "val": ("train_b.json", "")})
    with pytest.raises(
        InputError, match=r"train_a.json and train_b.json may all be the annotations of train"
    ):
        open_detection(f"coco:{tmp_path}", "train")


def said(root: Path, kind: str = "coco") -> str:
    with pytest.raises(InputError) as caught:
        open_detection(f"{kind}:{root}", "train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


FOUND: dict[str, tuple[str, Any, str]] = {
    "labelme": ("a.json", {"version": "5", "shapes": [], "imagePath": "a.jpg"}, "found a.json: LabelMe's"),
    "label studio": (
        "project.json",
        [{"id": 1, "annotations": [{"completed_by": 1, "result": []}]}],
        "found project.json: Label Studio's own JSON: export it there as COCO",
    ),
    "via": (
        "via.json",
        {"_via_settings": {}, "_via_img_metadata": {}},
        "found via.json: a project of the VGG",
    ),
    "datumaro": ("annotations/default.json", {"categories": {}, "items": []}, "Datumaro's own JSON"),
    "supervisely": ("meta.json", {"classes": [], "projectType": "images"}, "found meta.json: Supervisely's"),
    "createml": (
        "train/_annotations.createml.json",
        [{"image": "a.jpg", "annotations": [{"label": "a", "coordinates": {}}]}],
        "CreateML's JSON",
    ),
    "detectron2": ("train.json", [{"file_name": "a.jpg", "annotations": []}], "detectron2's list of images"),
    "captions": (
        "annotations/captions_train2017.json",
        {"images": [], "annotations": [{"caption": "a"}]},
        "take the file instances_... of the same set",
    ),
    "keypoints": (
        "annotations/person_keypoints_train2017.json",
        {"images": [{"file_name": "a"}], "annotations": []},
        "of another kind by its name: take instances_...",
    ),
    "cvat, one part": (
        "annotations/instances_default.json",
        {"images": [{"file_name": "a"}], "annotations": []},
        "names no part: split it into annotations/instances_train.json and annotations/instances_val.json",
    ),
    "label studio's coco": (
        "result.json",
        {"images": [{"file_name": "a"}], "annotations": []},
        "found result.json, which is in COCO's format and names no part: split it",
    ),
    "yolo": ("data.yaml", "train: a\nnc: 1\nnames: [a]\n", "found data.yaml: YOLO's layout"),
    "darknet": ("train/a.txt", "0 0.5 0.5 0.1 0.2\n", "found train/a.txt: YOLO's annotations"),
    "cvat": (
        "annotations.xml",
        '<?xml version="1.0"?><annotations><image id="0"></image></annotations>',
        "found annotations.xml: CVAT's own XML: export it there as 'COCO 1.0'",
    ),
    "voc, loose": (
        "train/a.xml",
        "<annotation><object><bndbox></bndbox></object></annotation>",
        "found train/a.xml, in VOC's format: put XML files into Annotations/",
    ),
    "csv": (
        "train/_annotations.csv",
        "filename,class\n",
        "found train/_annotations.csv: export or convert it",
    ),
    "packed": ("set.zip", "PK", "found set.zip: unpack it"),
}


@pytest.mark.parametrize("tool", FOUND)
def test_other_tools_are_named_with_the_fix(tmp_path: Path, tool: str) -> None:
    file, content, wanted = FOUND[tool]
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert wanted in said(tmp_path)


def test_the_documents_split_one_file_for_all(tmp_path: Path) -> None:
    place(tmp_path, {"train": ("result.json", "images")})
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    named: dict[str, Any] = {}
    exec(text.split("```python")[1].split("```")[0], named)
    named["split"](str(tmp_path), "result.json")
    assert lengths(tmp_path) == (2, 1)
    assert open_detection(f"coco:{tmp_path}", "val").annotations(0).name == "images/train-0.jpg"


def test_a_set_of_another_kind_or_a_folder_further_down_is_named(tmp_path: Path) -> None:
    layouts.write_voc(tmp_path / "voc", train=1, val=1)
    layouts.write_cityscapes(tmp_path / "city", train=2, val=2)
    layouts.write_lvis(tmp_path / "lvis", train=1, val=1)
    layouts.write_coco(tmp_path / "up" / "coco", train=1, val=1)
    assert f"name it voc:{tmp_path}/voc/VOCdevkit" in said(tmp_path / "voc")
    assert f"name it cityscapes:{tmp_path}/city" in said(tmp_path / "city")
    assert f"name it lvis:{tmp_path}/lvis" in said(tmp_path / "lvis")
    assert f"it lies in coco: name it coco:{tmp_path}/up/coco" in said(tmp_path / "up")
    assert f"name it cityscapes:{tmp_path}/city" in said(tmp_path / "city", "voc")
    assert f"name it voc:{tmp_path}/voc/VOCdevkit" in said(tmp_path / "voc", "lvis")


def test_a_part_that_is_missing_beside_the_other(tmp_path: Path) -> None:
    place(tmp_path, {"val": ("valid/_annotations.coco.json", "valid")})
    assert said(tmp_path).endswith(
        "; it has valid/_annotations.coco.json alone, of the other part: put that of train beside it as "
        "annotations/instances_train.json, or into a folder train/ with its images, or split the one that is there "
        "(docs/data.md shows how)"
    )


@pytest.mark.parametrize("tool", LAYOUTS)
def test_a_set_in_coco_s_format_under_another_name_or_a_folder_too_deep(tmp_path: Path, tool: str) -> None:
    train, train_images, val, val_images = LAYOUTS[tool]
    root = place(tmp_path / "my set", {"train": (train, train_images), "val": (val, val_images)})
    fix = f"name it coco:{root}"
    for kind in ("voc", "lvis", "cityscapes"):
        assert said(root, kind).endswith(fix)
    for spec in (str(root), f"Coco:{root}", f"coco : {root}", f"roboflow:{root}"):
        with pytest.raises(InputError, match=f"is one of coco:ROOT.*{re.escape(fix)}$"):
            open_detection(spec, "train")
        with pytest.raises(InputError, match=r"or scenes:N$"):
            open_segmentation(spec, "train")
    if train.count("/") and "annotations/" not in train:
        assert said(root / train.split("/")[0]).endswith(fix)


def test_the_folder_of_annotations_is_not_the_set(tmp_path: Path) -> None:
    layouts.write_coco(tmp_path, train=1, val=1, plain=True)
    assert said(tmp_path / "annotations").endswith(
        f"; if they lie beside that folder, name it coco:{tmp_path}"
    )


def test_a_part_alone_a_folder_too_deep(tmp_path: Path) -> None:
    place(tmp_path, {"train": ("train/_annotations.coco.json", "train")})
    wanted = "in COCO's format, of the part train alone: put annotations of val beside it, or split it"
    for message in (said(tmp_path / "train"), said(tmp_path, "voc")):
        assert wanted in message
        assert message.endswith(f"name it coco:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "fix"), [("set.zip", "unpack it"), ("instances_train.json", "name the folder")]
)
def test_a_file_in_place_of_the_folder(tmp_path: Path, name: str, fix: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    message = said(tmp_path / name)
    assert f"{name} is a file; {fix}" in message
    with pytest.raises(InputError, match="is a file"):
        open_segmentation(f"voc:{tmp_path / name}", "val")


def test_whose_json_stands_where_annotations_should(tmp_path: Path) -> None:
    layouts.write_coco(tmp_path, train=1, val=1, plain=True)
    path = tmp_path / "annotations" / "instances_train.json"
    path.write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]))
    assert "it looks like detections in COCO's results format" in said(tmp_path)
    path.write_text(json.dumps({"images": [], "categories": []}))
    assert "has no list 'annotations': a part for testing has none" in said(tmp_path)


def test_cityscapes_maps_of_another_kind(tmp_path: Path) -> None:
    layouts.write_cityscapes(tmp_path, train=2, val=2)
    for path in tmp_path.rglob("*_gtFine_*.png"):
        if "labelIds" in path.name:
            path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
        else:
            path.unlink()
    wanted = "its maps are labelTrainIds: take labelIds, instanceIds of gtFine_trainvaltest.zip"
    assert said(tmp_path, "cityscapes").endswith(wanted)
    with pytest.raises(InputError, match=wanted):
        open_segmentation(f"cityscapes:{tmp_path}", "val")
