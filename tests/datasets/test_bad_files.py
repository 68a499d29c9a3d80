"""Bad input in the layouts of VOC and Cityscapes: as in ``test_bad_input.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetcl.datasets import open_detection, open_segmentation
from hetcl.errors import InputError
from tests.downstream import layouts

# ---- VOC ----


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return layouts.write_voc(tmp_path / "voc", years=("VOC2007",), devkit=False)


def xml(root: Path, name: str = "100000") -> Path:
    return root / "VOC2007" / "Annotations" / f"{name}.xml"


@pytest.mark.parametrize(
    "text", ["", "no xml", "<annotation><size>", "<html></html>", '<?xml version="1.0" encoding="nope"?><a/>']
)
def test_xml_that_is_no_voc(voc: Path, text: str) -> None:
    xml(voc).write_text(text)
    data = open_detection(f"voc:{voc}", "val")
    assert len(data) == 2
    assert data.skipped.counts == {"XML that is no VOC annotation": 1}
    assert data.skipped.examples["XML that is no VOC annotation"][0].startswith(
        "VOC2007/Annotations/100000.xml: "
    )
    for name in ("100001", "100002"):
        xml(voc, name).write_text(text)
    with pytest.raises(InputError, match=r"no image that can be used; left out 3: XML that is no VOC"):
        open_detection(f"voc:{voc}", "val")


def test_voc_missing_image_and_xml(voc: Path) -> None:
    (voc / "VOC2007" / "JPEGImages" / "000001.jpg").unlink()
    xml(voc, "000002").unlink()
    data = open_detection(f"voc:{voc}", "train")
    assert len(data) == 4
    assert data.skipped.examples == {
        "no annotation file": ["VOC2007/Annotations/000002.xml"],
        "image not found": ["VOC2007/Annotations/000001.xml"],
    }
    assert [data.annotations(i).image_id for i in range(4)] == ["000000", "000003", "000004", "000005"]


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        ("xmin", "nan", "not finite"),
        ("ymax", "inf", "not finite"),
        ("xmin", "left", "bndbox with a value that is no number"),
        ("ymax", "", "bndbox without ymax"),
        ("xmax", "-7", "box of zero or negative size"),
        ("xmin", "999", "box of zero or negative size"),
        ("name", " ", "object without a name"),
    ],
)
def test_voc_objects_that_cannot_be_used(voc: Path, tag: str, value: str, reason: str) -> None:
    path = xml(voc)
    head, tail = path.read_text().split(f"<{tag}>", 1)
    path.write_text(f"{head}<{tag}>{value}<{tail.split('<', 1)[1]}")
    data = open_detection(f"voc:{voc}", "val")
    ((found, examples),) = data.skipped.examples.items()
    assert reason in found
    assert examples == ["VOC2007/Annotations/100000.xml, object 1"]
    assert data.annotations(0).boxes.tolist() == layouts.scene_of("val", 0).boxes.tolist()[1:]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>64</height></size>"])
def test_voc_fractions_one_pixel_and_no_size(voc: Path, size: str) -> None:
    edges = "<xmin>45.70</xmin><ymin>3</ymin><xmax>50.5</xmax><ymax>3</ymax>"
    text = f"<annotation>{size}<object><name>cat</name><bndbox>{edges}</bndbox></object></annotation>"
    xml(voc).write_text(text)
    data = open_detection(f"voc:{voc}", "val")
    truth = data.annotations(0)
    assert truth.boxes.tolist() == [[44.7, 2, 50.5, 3]]
    assert truth.size == (layouts.SIZE, layouts.SIZE)  # from the image itself
    assert data.classes[truth.labels[0]].name == "cat"
    assert data.image(0).shape[:2] == truth.size


def test_voc_lists(voc: Path) -> None:
    lists = voc / "VOC2007" / "ImageSets" / "Main"
    (lists / "test.txt").write_text("100000\n\n100001  \n100000\n")
    with pytest.raises(InputError, match=r"test.txt: 100000 is on lines 1 and 4"):
        open_detection(f"voc:{voc}", "val")
    (lists / "test.txt").write_text("\n")
    with pytest.raises(InputError, match=r"ImageSets/Main/test.txt or val.txt"):
        open_detection(f"voc:{voc}", "val")
    (lists / "test.txt").unlink()
    for name in ("train", "trainval"):
        (lists / f"{name}.txt").unlink()
    with pytest.raises(InputError, match=r"ImageSets/Main/train.txt or trainval.txt"):
        open_detection(f"voc:{voc}", "train")


def test_voc_a_test_list_without_annotations_is_no_validation_split(voc: Path) -> None:
    lists = voc / "VOC2007" / "ImageSets" / "Main"
    (lists / "test.txt").rename(lists / "val.txt")
    (lists / "test.txt").write_text("999999\n")
    assert len(open_detection(f"voc:{voc}", "val")) == 3


def test_voc_pixels_missing_files(voc: Path) -> None:
    (voc / "VOC2007" / "SegmentationClass" / "val_000000.png").unlink()
    (voc / "VOC2007" / "JPEGImages" / "val_000001.jpg").unlink()
    data = open_segmentation(f"voc:{voc}", "val")
    assert [data.name(i) for i in range(len(data))] == ["VOC2007/JPEGImages/val_000002.jpg"]
    assert data.skipped.counts == {"no label map": 1, "image not found": 1}
    (voc / "VOC2007" / "SegmentationClass" / "val_000002.png").unlink()
    with pytest.raises(InputError, match="no image that can be used"):
        open_segmentation(f"voc:{voc}", "val")
    (voc / "VOC2007" / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(InputError, match=r"has no val.txt in ImageSets/Segmentation"):
        open_segmentation(f"voc:{voc}", "val")


def test_voc_too_few_names(voc: Path) -> None:
    (voc / "classes.txt").write_text("background\nthing\n")
    with pytest.raises(InputError, match=r"classes.txt: names 2 classes.*holds the value"):
        open_segmentation(f"voc:{voc}", "val")


# ---- Cityscapes ----


def test_cityscapes_missing_and_damaged_files(tmp_path: Path) -> None:
    layouts.write_cityscapes(tmp_path, val=4)
    gt, images = tmp_path / "gtFine" / "val", tmp_path / "leftImg8bit" / "val"
    (gt / "frankfurt" / "frankfurt_000000_000019_gtFine_instanceIds.png").write_bytes(b"x")
    (gt / "frankfurt" / "frankfurt_000001_000019_gtFine_instanceIds.png").unlink()
    (images / "lindau" / "lindau_000002_000019_leftImg8bit.png").unlink()
    data = open_detection(f"cityscapes:{tmp_path}", "val")
    assert [data.annotations(i).image_id for i in range(len(data))] == ["lindau_000003_000019"]
    assert data.skipped.counts == {
        "instance map that cannot be read": 1,
        "no instanceIds map": 1,
        "image not found": 1,
    }
    assert "frankfurt_000000" in data.skipped.examples["instance map that cannot be read"][0]
    for path in gt.rglob("*instanceIds.png"):
        path.unlink()
    with pytest.raises(
        InputError, match=r"has no leftImg8bit/val/CITY/\*_leftImg8bit.png with gtFine/val/CITY"
    ):
        open_detection(f"cityscapes:{tmp_path}", "val")
