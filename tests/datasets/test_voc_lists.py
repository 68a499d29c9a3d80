"""VOC's lists as people write them: of other systems, with folders, several names a line, flags, comments, CSV."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hetcl.datasets import open_detection, open_segmentation
from hetcl.datasets.annotations import DetectionSet
from hetcl.downstream.parts import JoinedParts, joined
from hetcl.errors import InputError
from tests.downstream import layouts


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A set of one's own: the three folders directly below the root, train 6 and val 3."""
    layouts.write_voc(tmp_path, train=6, val=3, years=("VOC2012",), devkit=False)
    return tmp_path / "VOC2012"


def lists(root: Path, kind: str = "Main") -> Path:
    return root / "ImageSets" / kind


def stems(data: DetectionSet) -> list[str]:
    return [str(data.annotations(i).image_id) for i in range(len(data))]


def refused(root: Path, split: str = "val") -> str:
    with pytest.raises(InputError) as caught:
        open_detection(f"voc:{root}", split)
    return str(caught.value)


@pytest.mark.parametrize(
    "written",
    [
        "\ufeff{0}\r\n{1}\r\n{2}\r\n",
        "{0}\r{1}\r{2}",
        "{0}.jpg\n{1}.jpg\n{2}.JPG\n",
        "{0}\u200b\n  {1}\t\n{2}\n\x1a",
        "JPEGImages/{0}.jpg\nVOC2012/JPEGImages/{1}.jpg\n/home/me/VOC2012/JPEGImages/{2}.jpg\n",
        "JPEGImages\\{0}.jpg\r\n.\\JPEGImages\\{1}.jpg\r\nC:\\VOC\\JPEGImages\\{2}.jpg",
        "{0}  1\n{1} -1\n{2}  0\n",
        "JPEGImages/{0}.jpg Annotations/{0}.xml\n{1}.jpg {1}.xml\n{2}.jpg {2}.xml\n",
        "{0}\n\n{1}\n   \n{2}",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_as_other_systems_write_them(voc: Path, written: str, encoding: str) -> None:
    names = [f"2012_10000{i}" for i in range(3)]
    (lists(voc) / "val.txt").write_bytes(written.format(*names).encode(encoding))
    data = open_detection(f"voc:{voc}", "val")
    assert stems(data) == names
    assert not data.skipped.lines()


def test_lists_with_folders_in_them(voc: Path) -> None:
    """``cam0/val`` and ``cam1/val`` are two images."""
    for camera in ("cam0", "cam1"):
        for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
            (voc / folder / camera).mkdir()
            source = voc / folder / f"2012_10000{camera[-1]}.{ending}"
            (voc / folder / camera / f"val.{ending}").write_bytes(source.read_bytes())
    (lists(voc) / "val.txt").write_text("cam0/val\ncam1\\val.jpg\n")
    data = open_detection(f"voc:{voc}", "val")
    assert stems(data) == ["cam0/val", "cam1/val"]
    assert [data.annotations(i).name for i in range(2)] == [
        "JPEGImages/cam0/val.jpg",
        "JPEGImages/cam1/val.jpg",
    ]
    for i in range(2):
        assert data.annotations(i).boxes.tolist() == layouts.scene_of("val", i).boxes.tolist()


def test_lists_of_pixels_with_folders_in_them(voc: Path) -> None:
    for camera in ("cam0", "cam1"):
        for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            (voc / folder / camera).mkdir()
            (voc / folder / f"val_00000{camera[-1]}.{ending}").rename(voc / folder / camera / f"val.{ending}")
    (lists(voc, "Segmentation") / "val.txt").write_text("cam0/val\ncam1/val\n")
    data = open_segmentation(f"voc:{voc}", "val")
    assert [data.name(i) for i in range(2)] == ["JPEGImages/cam0/val.jpg", "JPEGImages/cam1/val.jpg"]
    assert (data.label_map(1) == layouts.voc_map(layouts.scene_of("val", 1))).all()


def test_two_lines_that_mean_one_image_are_named(voc: Path) -> None:
    (lists(voc) / "val.txt").write_text("cam0/2012_100000\ncam1/2012_100000\n")
    message = refused(voc)
    assert (
        "cam0/2012_100000 (line 1) and cam1/2012_100000 (line 2) both mean the image 2012_100000" in message
    )
    assert "put images and annotations into the same folders below JPEGImages and Annotations" in message


def test_names_with_dots_and_spaces(voc: Path) -> None:
    for new, old in (("1569478414.73587", "2012_100000"), ("my image 1", "2012_100001")):
        (voc / "JPEGImages" / f"{old}.jpg").rename(voc / "JPEGImages" / f"{new}.jpg")
        (voc / "Annotations" / f"{old}.xml").rename(voc / "Annotations" / f"{new}.xml")
    (lists(voc) / "val.txt").write_text("1569478414.73587.jpg\nmy image 1\n")
    assert stems(open_detection(f"voc:{voc}", "val")) == ["1569478414.73587", "my image 1"]


def test_images_in_another_folder_and_of_other_endings(voc: Path) -> None:
    (voc / "JPEGImages").rename(voc / "images")
    for path in list((voc / "images").iterdir()):
        path.rename(path.with_suffix(".JPEG"))
    data = open_detection(f"voc:{voc}", "val")
    assert data.annotations(0).name == "images/2012_100000.JPEG"
    assert data.image(0).shape == (64, 64, 3)


def test_which_list_is_for_validation(voc: Path) -> None:
    """``val`` goes before ``test``, but for VOC 2007 as it is published."""
    root, main = voc, lists(voc)
    (main / "trainval.txt").unlink()
    (main / "test.txt").write_text("2012_000000\n")
    data = open_detection(f"voc:{root}", "val")
    assert stems(data) == [f"2012_10000{i}" for i in range(3)]
    assert data.lists == ("ImageSets/Main/val.txt (3)",)
    assert "(val: ImageSets/Main/val.txt (3))" in data.description

    (main / "val.txt").unlink()
    data = open_detection(f"voc:{root}", "val")
    assert (stems(data), data.lists) == (["2012_000000"], ("ImageSets/Main/test.txt (1)",))
    assert data.skipped.remarks == ["there is no val.txt: test.txt is evaluated on"]


def test_voc_2007_as_published_says_its_lists(tmp_path: Path) -> None:
    layouts.write_voc(tmp_path, train=4, val=2, years=("VOC2007",), devkit=False)
    main = lists(tmp_path / "VOC2007")
    (main / "val.txt").write_text("000003\n")
    data = open_detection(f"voc:{tmp_path}", "val")
    assert data.lists == ("VOC2007/ImageSets/Main/test.txt (2)",)
    assert data.skipped.remarks == [
        "test.txt is evaluated on, as for VOC 2007's figures; val.txt is trained on as a part of trainval"
    ]
    assert open_detection(f"voc:{tmp_path}", "train").lists == ("VOC2007/ImageSets/Main/trainval.txt (4)",)
    (main / "trainval.txt").unlink()
    assert stems(open_detection(f"voc:{tmp_path}", "val")) == ["000003"]


def test_lists_that_are_missing_are_named_with_those_that_are_there(voc: Path) -> None:
    for name in ("train", "trainval", "val"):
        (lists(voc) / f"{name}.txt").unlink()
    assert f"write the names of its images into {voc}/ImageSets/Main/train.txt and val.txt" in refused(voc)
    (lists(voc) / "default.txt").write_text("2012_000000\n")
    assert "there is default.txt: call a list of images to train on train.txt" in refused(voc, "train")


NAMES = [f"2012_10000{i}" for i in range(3)]


@pytest.mark.parametrize("kind", ["Main", "Segmentation"])
@pytest.mark.parametrize("between", [" ", "\t", "\u2028", "\x0c", "\u0085"])
@pytest.mark.parametrize("ending", ["", ".jpg"])
def test_names_on_one_line_are_all_read_and_said(voc: Path, kind: str, between: str, ending: str) -> None:
    names = NAMES if kind == "Main" else [f"val_00000{i}" for i in range(3)]
    (lists(voc, kind) / "val.txt").write_text(between.join(name + ending for name in names), "utf-8")
    data: Any = (open_detection if kind == "Main" else open_segmentation)(f"voc:{voc}", "val")
    assert [Path(data.name(i)).stem for i in range(len(data))] == names
    assert data.skipped.remarks == [
        f"ImageSets/{kind}/val.txt has lines that name several images (1): all of them are read"
    ]


def test_two_names_a_line_in_the_training_list_are_said_there(voc: Path) -> None:
    names = [f"2012_00000{i}" for i in range(6)]
    (lists(voc) / "train.txt").write_text("{} {}\n{} {}\n{}\t{}\n".format(*names))
    data = open_detection(f"voc:{voc}", "train")
    assert stems(data) == names
    assert data.skipped.remarks == [
        "ImageSets/Main/train.txt has lines that name several images (3): all of them are read"
    ]
    assert not open_detection(f"voc:{voc}", "val").skipped.remarks


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{0} cat\n{1} dog\n", "line 1: 'cat' is no image, no map of the image beside it and no flag"),
        ("{0} 7\n", "line 1: '7' is no image"),
        ("{0}\n{1} missing\n", "line 2: 'missing' is no image"),
        ("7 {0}\n", "line 1: '7' is no image"),
        ("- {0}\n- {1}\n", "line 1: '-' is no image"),
        ("{0}.jpg other/{1}_mask.png\n", "line 1: 'other/2012_100001_mask.png' is no image"),
        ("filename,label\n{0},1\n{1},0\n", "line 2: '2012_100000,1' looks like CSV or JSON"),
        ("{0},{1},{2}", "line 1: '2012_100000,2012_100001,2012_100002' looks like CSV or JSON"),
        ("{0}, {1}, {2}", "looks like CSV or JSON"),
        ('["{0}", "{1}"]', "looks like CSV or JSON"),
        ('[\n  "{0}",\n  "{1}"\n]', "line 2: '\"2012_100000\",' looks like CSV or JSON"),
        ("{0} {1}\n{2} {0}\n", "2012_100000 \\(line 1\\)|both mean the image 2012_100000"),
        ("{0} {1}\n{0} {1}\n", "2012_100000 is on lines 1 and 2: keep one of them"),
    ],
)
def test_lines_that_are_no_names_are_refused(voc: Path, written: str, said: str) -> None:
    (lists(voc) / "val.txt").write_text(written.format(*NAMES))
    assert re.search(re.escape(said) if "|" not in said else said, refused(voc))


def test_a_map_of_another_name_is_no_image(voc: Path) -> None:
    (voc / "SegmentationClass" / "val_000000.png").rename(voc / "SegmentationClass" / "mask_0.png")
    (lists(voc, "Segmentation") / "val.txt").write_text("val_000000.jpg mask_0.png\n")
    with pytest.raises(InputError, match=r"line 1: 'mask_0.png' is no image"):
        open_segmentation(f"voc:{voc}", "val")


def test_names_that_look_like_flags_comments_and_paths_with_spaces(voc: Path) -> None:
    """``0 1`` in every line is an image and its flag; an image may have a name of several words."""
    for new, old in (("0", NAMES[0]), ("1", NAMES[1]), ("#a 1", NAMES[2])):
        for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
            (voc / folder / f"{old}.{ending}").rename(voc / folder / f"{new}.{ending}")

    def read(text: str) -> list[str]:
        (lists(voc) / "val.txt").write_text(text)
        return stems(open_detection(f"voc:{voc}", "val"))

    assert read("0 1\n") == ["0"]
    assert read("0 1\n1 -1\n#a 1\n") == ["0", "1", "#a 1"]
    assert read("# my list\n#0\n0\n\n# 1\n") == ["0"]
    assert read("/my own/set no 2/JPEGImages/0.jpg\nC:\\my set\\1.jpg\n") == ["0", "1"]


def test_images_that_are_missing_are_counted_by_their_names(voc: Path) -> None:
    text = f"{NAMES[0]}\ngone.jpg away.jpg\nlost 1\nJPEGImages/off.jpg Annotations/off.xml\n"
    (lists(voc) / "val.txt").write_text(text)
    data = open_detection(f"voc:{voc}", "val")
    assert data.skipped.counts == {"no annotation file": 4}
    assert data.skipped.examples["no annotation file"] == [
        f"Annotations/{name}.xml" for name in ("gone", "away", "lost")
    ]


def test_lists_in_capitals(voc: Path) -> None:
    (lists(voc) / "val.txt").rename(lists(voc) / "Val.TXT")
    data = open_detection(f"voc:{voc}", "val")
    assert (stems(data), data.lists) == (NAMES, ("ImageSets/Main/Val.TXT (3)",))


def test_images_in_train_and_val_stay_in_train_and_are_told(voc: Path) -> None:
    names = [f"2012_00000{i}" for i in range(6)]
    (lists(voc) / "train.txt").write_text("\n".join(names))
    (lists(voc) / "val.txt").write_text("\n".join(names[:2]))
    words: dict[str, Any] = {"model": "faster-rcnn", "max_bad": 0.1, "detections": 100}

    def both() -> JoinedParts:
        return joined("voc", *(open_detection(f"voc:{voc}", split) for split in ("train", "val")), **words)

    parts = both()
    assert (len(parts.train), len(parts.val)) == (6, 2)
    assert any(
        line.startswith("2 images of 2 in the validation part are in the training") for line in parts.notes
    )
    (lists(voc) / "val.txt").write_text("\n".join(names))
    assert any(
        line.startswith("6 images of 6 in the validation part are in the training") for line in both().notes
    )


@pytest.mark.parametrize("kind", ["Main", "Segmentation"])
def test_trainval_without_val(voc: Path, kind: str) -> None:
    folder, opened = lists(voc, kind), open_detection if kind == "Main" else open_segmentation
    names = (folder / "train.txt").read_text().split() + (folder / "val.txt").read_text().split()
    (folder / "train.txt").unlink()
    (folder / "trainval.txt").write_text("\n".join(names))
    data: Any = opened(f"voc:{voc}", "train")
    assert data.lists == (f"ImageSets/{kind}/trainval.txt (6 of 9: the others are in val.txt too)",)
    assert len(data) == 6
    (folder / "val.txt").write_text("\n".join(names))
    with pytest.raises(InputError, match=r"trainval.txt \(0 of 9: all are in val.txt too\)"):
        opened(f"voc:{voc}", "train")
    assert len(opened(f"voc:{voc}", "val")) == 9
