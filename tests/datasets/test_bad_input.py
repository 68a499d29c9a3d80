"""Bad input, JSON and specs: refused with one line that names file and id, or left out and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hetcl.datasets import open_detection, open_segmentation
from hetcl.datasets.annotations import DetectionSet
from hetcl.errors import InputError
from tests.downstream import layouts

NAN, INF = float("nan"), float("inf")
FILE = "instances_val2017.json"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return layouts.write_coco(tmp_path / "coco", train=1, val=3, masks="polygons")


def changed(root: Path, change: Callable[[dict[str, Any]], None]) -> DetectionSet:
    """Open the validation split after a change of its document."""
    path = root / "annotations" / FILE
    document = json.loads(path.read_text())
    change(document)
    layouts.write_json(path, document)
    return open_detection(f"coco:{root}", "val")


def refused(root: Path, change: Callable[[dict[str, Any]], None]) -> str:
    with pytest.raises(InputError) as caught:
        changed(root, change)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- specs, folders, files ----


@pytest.mark.parametrize("spec", ["coco", "coco:", "imagenet:x", "", "scene:10"])
def test_unknown_spec(spec: str) -> None:
    with pytest.raises(InputError, match="coco:ROOT, lvis:ROOT, voc:ROOT, cityscapes:ROOT, or scenes:N"):
        open_detection(spec, "train")


@pytest.mark.parametrize(
    "spec",
    ["scenes:", "scenes:0", "scenes:-3", "scenes:x", "scenes:5@", "scenes:5@7", "scenes:5@99999", "scenes:_"],
)
def test_bad_scenes(spec: str) -> None:
    for opened in (open_detection, open_segmentation):
        with pytest.raises(InputError, match=spec):
            opened(spec, "train")


def test_no_pixels_in_coco(coco: Path) -> None:
    with pytest.raises(InputError, match="one of voc:ROOT, cityscapes:ROOT, or scenes:N"):
        open_segmentation(f"coco:{coco}", "train")


@pytest.mark.parametrize("kind", ["coco", "lvis", "voc", "cityscapes"])
def test_missing_folder(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=f"there is no folder {tmp_path / 'nowhere'}"):
        open_detection(f"{kind}:{tmp_path / 'nowhere'}", "train")


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("coco", "annotations/instances_val2017.json nor annotations/instances_val.json"),
        ("lvis", "lvis_v0.5_val.json nor annotations/lvis_v0.5_val.json nor lvis_v1_val.json"),
        ("voc", "no Annotations in VOCdevkit/VOC2007"),
        ("cityscapes", "no leftImg8bit/val"),
    ],
)
def test_empty_folder(tmp_path: Path, kind: str, wanted: str) -> None:
    with pytest.raises(InputError) as caught:
        open_detection(f"{kind}:{tmp_path}", "val")
    assert wanted in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_empty_folder_of_pixels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ImageSets/Segmentation"):
        open_segmentation(f"voc:{tmp_path}", "val")
    with pytest.raises(InputError, match="leftImg8bit/val"):
        open_segmentation(f"cityscapes:{tmp_path}", "val")


def test_unknown_split(coco: Path) -> None:
    with pytest.raises(ValueError, match="split='test'"):
        open_detection(f"coco:{coco}", "test")


# ---- JSON ----


def test_json_cut_short(coco: Path) -> None:
    path = coco / "annotations" / FILE
    path.write_text(path.read_text()[:700])
    with pytest.raises(
        InputError, match=rf"{FILE}: cut short or damaged at line 1, column \d+ \(character \d+"
    ):
        open_detection(f"coco:{coco}", "val")


@pytest.mark.parametrize("text", [b"", b"\xff\xfe{}", b"[" * 100_000, b"9" * 5000])
def test_json_damaged(coco: Path, text: bytes) -> None:
    (coco / "annotations" / FILE).write_bytes(text)
    with pytest.raises(InputError, match=FILE):
        open_detection(f"coco:{coco}", "val")


def test_json_that_is_no_object(coco: Path) -> None:
    (coco / "annotations" / FILE).write_text("[]")
    with pytest.raises(InputError, match=f"{FILE}: holds a list, not a JSON object"):
        open_detection(f"coco:{coco}", "val")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_json_without_a_list(coco: Path, key: str) -> None:
    assert f"{FILE}: has no list '{key}'" in refused(coco, lambda d: d.pop(key))
    assert f"{FILE}: has no list '{key}'" in refused(coco, lambda d: d.update({key: {}}))


def test_duplicate_ids(coco: Path) -> None:
    message = refused(coco, lambda d: d["images"][2].update(id=100))
    assert "'000000000500.jpg' and '000000000502.jpg' both have the id 100" in message
    assert FILE in message


def test_duplicate_annotation_ids(coco: Path) -> None:
    message = refused(coco, lambda d: d["annotations"][4].update(id=1))
    assert f"{FILE}: annotations[0] and annotations[4] both have the id 1" in message


def test_duplicate_categories(coco: Path) -> None:
    message = refused(coco, lambda d: d["categories"][1].update(id=28))
    assert "both have the id 28" in message
    assert FILE in message


@pytest.mark.parametrize("key", [None, [1], 1.5])
def test_ids_of_another_kind(tmp_path: Path, coco: Path, key: object) -> None:
    assert "images[1] has no number or text as id" in refused(coco, lambda d: d["images"][1].update(id=key))


def test_two_categories_of_one_name_are_told_apart(coco: Path) -> None:
    data = changed(coco, lambda d: [c.update(name="same") for c in d["categories"] if c["id"] in (1, 4)])
    assert [c.name for c in data.classes][:2] == ["same (1)", "same (4)"]
    assert data.skipped.remarks == [f"{FILE}: 2 categories are called 'same': they are told apart by id"]


def test_ids_may_be_text(coco: Path) -> None:
    def text(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image["id"] = f"im{image['id']}"
        for annotation in document["annotations"]:
            annotation.update(id=f"an{annotation['id']}", image_id=f"im{annotation['image_id']}")

    data = changed(coco, text)
    assert data.annotations(1).image_id == "im101"
    assert data.annotations(0).ids[0] == "an1"


def test_empty_validation_set(coco: Path) -> None:
    assert f"{FILE}: lists no images" in refused(coco, lambda d: d.update(images=[], annotations=[]))
    assert f"{FILE}: lists no categories" in refused(coco, lambda d: d.update(categories=[]))


def test_image_without_annotations_is_kept(coco: Path) -> None:
    data = changed(
        coco, lambda d: d.update(annotations=[a for a in d["annotations"] if a["image_id"] != 101])
    )
    truth = data.annotations(1)
    assert len(data) == 3
    assert truth.boxes.shape == (0, 4)
    assert truth.labels.shape == truth.crowd.shape == truth.areas.shape == (0,)
    assert truth.segments == ()
    assert truth.ids == ()
    assert data.annotations(2).labels.tolist() == layouts.scene_of("val", 2).labels.tolist()


def test_no_annotations_at_all(coco: Path) -> None:
    data = changed(coco, lambda d: d.update(annotations=[]))
    assert len(data) == 3
    assert not data.has_masks


# ---- images ----


def test_missing_images(coco: Path) -> None:
    (coco / "val2017" / "000000000501.jpg").unlink()
    data = open_detection(f"coco:{coco}", "val")
    assert len(data) == 2
    assert data.skipped.counts == {"image not found": 1}
    assert data.skipped.examples["image not found"] == [f"{FILE}, image 101 (000000000501.jpg)"]
    assert data.annotations(1).image_id == 102
    assert data.annotations(1).boxes.tolist() == layouts.scene_of("val", 2).boxes.tolist()
    for path in (coco / "val2017").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=rf"none of its images is in val2017/.*{coco}.*000000000500.jpg"):
        open_detection(f"coco:{coco}", "val")


def test_files_are_not_asked_for_one_by_one(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    scanned: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(os.fspath(path)) or scandir(path))
    open_detection(f"coco:{coco}", "val")
    assert scanned == [str(coco / "val2017")]


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"height": -5},
        {"width": None},
        {"width": "sixty"},
        {"height": 63.5},
        {"height": NAN},
        {"height": INF},
        {"width": 10**30},
    ],
)
def test_images_without_a_size_have_that_of_their_file(coco: Path, change: dict[str, Any]) -> None:
    data = changed(coco, lambda d: d["images"][0].update(change))
    assert data.annotations(0).size == (layouts.SIZE, layouts.SIZE)
    assert data.skipped.lines() == [
        "kept 1: image without a usable width and height: its file's are taken "
        f"(e.g. {FILE}, 000000000500.jpg)"
    ]


def test_images_without_size_or_name(coco: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["images"][0]["file_name"] = 7
        document["images"][1]["width"] = 0

    (coco / "val2017" / "000000000501.jpg").write_bytes(b"no image")
    data = changed(coco, change)
    assert len(data) == 1
    assert data.skipped.lines() == [
        "left out 2: image without a usable file_name, width and height "
        f"(e.g. {FILE}, image 100, {FILE}, image 101 (val2017/000000000501.jpg))"
    ]


@pytest.mark.parametrize("name", ["nul\0.jpg", "\ud800.jpg", "", "/", "../../x.jpg", "x" * 5000])
def test_names_that_no_file_has(coco: Path, name: str) -> None:
    data = changed(coco, lambda d: d["images"][0].update(file_name=name))
    assert data.skipped.counts == {"image not found": 1}


# ---- annotations ----


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"category_id": 2}, "annotation of an unknown category"),
        ({"category_id": "2"}, "annotation of an unknown category"),
        ({"category_id": True}, "annotation of an unknown category"),
        ({"category_id": [1]}, "annotation of an unknown category"),
        ({"image_id": 7}, "annotation of an unknown image"),
        ({"image_id": None}, "annotation of an unknown image"),
        ({"bbox": [5, 5, 0, 10]}, "box of zero or negative size"),
        ({"bbox": [5, 5, 10, 0]}, "box of zero or negative size"),
        ({"bbox": [5, 5, -4, 10]}, "box of zero or negative size"),
        ({"bbox": [64, 5, 10, 10]}, "box outside its image"),
        ({"bbox": [5, 64, 10, 10]}, "box outside its image"),
        ({"bbox": [-10, 5, 10, 10]}, "box outside its image"),
        ({"bbox": [5, -10, 10, 10]}, "box outside its image"),
        ({"bbox": [NAN, 5, 10, 10]}, "box with a coordinate that is not finite or beyond 1,000,000 pixels"),
        ({"bbox": [5, 5, 10, NAN]}, "box with a coordinate that is not finite or beyond 1,000,000 pixels"),
        ({"bbox": [5, INF, 10, 10]}, "box with a coordinate that is not finite or beyond 1,000,000 pixels"),
        ({"bbox": [5, 5, 10**400, 1]}, "box with a coordinate that is not finite or beyond 1,000,000 pixels"),
        ({"bbox": [1, 2, 3]}, "annotation without a bbox of four numbers"),
        ({"bbox": None, "segmentation": []}, "annotation without a bbox of four numbers"),
        ({"bbox": ["one", 2, 3, 4]}, "annotation without a bbox of four numbers"),
        ({"bbox": [True, 2, 3, 4]}, "annotation without a bbox of four numbers"),
        ({"segmentation": {"size": [64, 63], "counts": [64 * 63]}}, "mask of another size than its image"),
        ({"segmentation": {"size": [64, 64], "counts": [64]}}, "run lengths that do not fill their image"),
        ({"segmentation": "x"}, "segmentation that is neither polygons nor run lengths"),
    ],
)
def test_annotations_that_cannot_be_used(coco: Path, change: dict[str, Any], reason: str) -> None:
    before = open_detection(f"coco:{coco}", "val").annotations(0)
    after = changed(coco, lambda d: d["annotations"][1].update(change))
    assert after.skipped.counts == {reason: 1}
    assert after.skipped.examples[reason][0].startswith(f"{FILE}, annotation 2")
    assert after.annotations(0).ids == (before.ids[0], *before.ids[2:])
    assert after.annotations(0).boxes.tolist() == [before.boxes.tolist()[0], *before.boxes.tolist()[2:]]


@pytest.mark.parametrize("entry", [7, [], None])
def test_annotations_that_are_no_objects(coco: Path, entry: object) -> None:
    data = changed(coco, lambda d: d["annotations"].append(entry))
    (example,) = data.skipped.examples["annotation that is no JSON object"]
    assert example.startswith(f"{FILE}, annotations[")


@pytest.mark.parametrize("number", [None, [3], True])
def test_annotations_without_an_id_are_kept(coco: Path, number: object) -> None:
    before = open_detection(f"coco:{coco}", "val").annotations(0)
    data = changed(coco, lambda d: [a.update(id=number) for a in d["annotations"]])
    assert data.annotations(0).boxes.tolist() == before.boxes.tolist()
    assert data.annotations(0).ids[0] == "[0]"
    assert "annotation without a number or text as id" in data.skipped.kept


def test_polygons_are_dropped_one_by_one(coco: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        square = [1, 1, 9, 1, 9, 9]
        document["annotations"][0]["segmentation"] = [[1, 1, 5, 5], square, [1, 1, NAN, 1, 5, 5]]
        document["annotations"][1]["segmentation"] = [[1, 1, 5, 5]]

    data = changed(coco, change)
    assert data.skipped.counts == {
        "polygon with fewer than 3 points": 2,
        "polygon with a coordinate that is not finite or beyond 1,000,000 pixels": 1,
        "annotation without a usable polygon": 1,
    }
    assert data.skipped.examples["annotation without a usable polygon"] == [
        f"{FILE}, annotation 2 of 000000000500.jpg"
    ]
    truth = data.annotations(0)
    assert truth.ids[:2] == (1, 3)
    assert truth.segments is not None
    assert len(truth.segments[0]) == 1  # type: ignore[arg-type]


def test_a_box_that_reaches_out_and_a_small_one_are_kept(coco: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["annotations"][0].update(bbox=[-5.25, 60, 8, 300])
        document["annotations"][1].update(bbox=[63.5, 63.5, 0.5, 0.5], area=NAN)

    truth = changed(coco, change).annotations(0)
    assert truth.boxes[:2].tolist() == [[-5.25, 60, 2.75, 360], [63.5, 63.5, 64, 64]]
    assert truth.areas[1] == 0.25  # the box's, where the file gives none


def test_an_annotation_without_a_segment_among_others(coco: Path) -> None:
    data = changed(coco, lambda d: d["annotations"][0].pop("segmentation"))
    assert data.has_masks
    assert data.annotations(0).segments[0] is None  # type: ignore[index]
    assert data.annotations(0).segments[1] is not None  # type: ignore[index]


def test_nothing_can_be_used(coco: Path) -> None:
    message = refused(coco, lambda d: [a.update(category_id=999) for a in d["annotations"]])
    assert f"{FILE}: no annotation that can be used; left out 1" in message
    assert "annotation of an unknown category" in message


def test_lvis_unknown_negative(tmp_path: Path) -> None:
    layouts.write_lvis(tmp_path)
    path = tmp_path / "lvis_v0.5_val.json"
    document = json.loads(path.read_text())
    document["images"][0]["neg_category_ids"] = [4, 5]
    layouts.write_json(path, document)
    data = open_detection(f"lvis:{tmp_path}", "val")
    assert data.annotations(0).negative == (1,)
    assert data.skipped.counts == {"unknown category in neg_category_ids": 1}
