"""What people's own programs make of COCO's format: ids as text, paths of another machine, missing fields."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hetcl.datasets import open_detection
from hetcl.datasets.annotations import DetectionSet
from hetcl.datasets.masks import bitmap, encode
from hetcl.errors import InputError
from tests.downstream import layouts

SIZE = (48, 64)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return layouts.write_coco(tmp_path / "coco", train=2, val=3, masks="polygons", plain=True)


def changed(root: Path, change: Callable[[dict[str, Any]], None], *, encoding: str = "utf-8") -> DetectionSet:
    """Open the validation split after a change of its document."""
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_bytes(json.dumps(document, ensure_ascii=False).encode(encoding))
    return open_detection(f"coco:{root}", "val")


def same(data: DetectionSet, before: DetectionSet) -> None:
    """All objects are as they were."""
    assert len(data) == len(before)
    for i in range(len(data)):
        assert data.annotations(i).boxes.tolist() == before.annotations(i).boxes.tolist()
        assert data.annotations(i).labels.tolist() == before.annotations(i).labels.tolist()
        assert data.annotations(i).crowd.tolist() == before.annotations(i).crowd.tolist()


# ---- ids and numbers ----


def test_every_number_as_text(coco: Path) -> None:
    before = open_detection(f"coco:{coco}", "val")

    def text(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image.update({k: f" {image[k]} " for k in ("id", "width", "height")})
        for category in document["categories"]:
            category["id"] = f"{category['id']}.0"
        for entry in document["annotations"]:
            entry.update({k: str(entry[k]) for k in ("id", "image_id", "category_id", "area")})
            entry.update(iscrowd="false", bbox=[str(v) for v in entry["bbox"]])
            entry["segmentation"] = [[str(v) for v in ring] for ring in entry["segmentation"]]

    data = changed(coco, text)
    same(data, before)
    assert data.fingerprint == before.fingerprint
    assert [c.id for c in data.classes] == [c.id for c in before.classes]
    assert data.annotations(1).image_id == 101
    assert not data.skipped.lines()


@pytest.mark.parametrize(
    ("value", "crowd"), [("1", True), ("true", True), (True, True), (1.0, True), ("0", False), (None, False)]
)
def test_iscrowd_in_every_spelling(coco: Path, value: Any, crowd: bool) -> None:
    data = changed(coco, lambda d: [a.update(iscrowd=value) for a in d["annotations"]])
    assert data.annotations(0).crowd.tolist() == [crowd] * len(data.annotations(0).labels)
    assert not data.skipped.lines()


def test_iscrowd_that_is_no_flag_is_said(coco: Path) -> None:
    data = changed(coco, lambda d: d["annotations"][0].update(iscrowd="perhaps"))
    assert not data.annotations(0).crowd.any()
    assert data.skipped.kept == {"iscrowd that is neither 0 nor 1, taken for 0": 1}


def test_images_with_file_stems_as_ids(coco: Path) -> None:
    before = open_detection(f"coco:{coco}", "val")

    def stems(document: dict[str, Any]) -> None:
        names = {image["id"]: image["file_name"].removesuffix(".jpg") for image in document["images"]}
        for image in document["images"]:
            image["id"] = names[image["id"]]
        for entry in document["annotations"]:
            entry["image_id"] = names[entry["image_id"]]

    data = changed(coco, stems)
    same(data, before)
    assert data.annotations(0).image_id == "val-0"
    assert not data.skipped.lines()


@pytest.mark.parametrize("cut", ["", ".jpg"])
def test_annotations_that_name_file_and_class(coco: Path, cut: str) -> None:
    before = open_detection(f"coco:{coco}", "val")

    def names(document: dict[str, Any]) -> None:
        files = {image["id"]: image["file_name"].removesuffix(cut) for image in document["images"]}
        kinds = {category["id"]: category["name"] for category in document["categories"]}
        for entry in document["annotations"]:
            entry.update(image_id=files[entry["image_id"]], category_id=kinds[entry["category_id"]])

    data = changed(coco, names)
    same(data, before)
    count = sum(len(before.annotations(i).labels) for i in range(3))
    assert data.skipped.remarks == [
        f"instances_val.json: {count} annotations give images by file name, not by id",
        f"instances_val.json: {count} annotations give categories by name, not by id",
    ]


def test_categories_with_text_as_ids(coco: Path) -> None:
    before = open_detection(f"coco:{coco}", "val")

    def text(document: dict[str, Any]) -> None:
        document["categories"].sort(key=lambda c: c["id"])
        for category in document["categories"]:
            category["id"] = f"K{category['id']}"
        for entry in document["annotations"]:
            entry["category_id"] = f"K{entry['category_id']}"

    data = changed(coco, text)
    same(data, before)
    assert [c.id for c in data.classes] == list(range(1, 11))
    assert data.skipped.remarks == [
        "instances_val.json: ids of categories are text (e.g. 'K1'): they are numbered from 1 as the file has them, in "
        "results too"
    ]


def test_what_a_class_is_called(coco: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        by_id = {category["id"]: category for category in document["categories"]}
        by_id[1]["name"] = " cat "
        by_id[4]["name"] = "Cat"
        del by_id[7]["name"]
        by_id[10]["name"] = 7

    data = changed(coco, change)
    assert [c.name for c in data.classes][:4] == ["cat", "Cat", "class 7", "7"]
    assert data.skipped.remarks == [
        "instances_val.json: category 7 has no name and is called 'class 7'",
        "instances_val.json: classes 'Cat' and 'cat' differ in capitals or spaces alone: are they one?",
    ]


# ---- files ----


@pytest.mark.parametrize(
    "written",
    [
        "..\\..\\media\\upload\\4\\{}",
        "C:\\Users\\me\\set\\images\\{}",
        "/home/me/set/images/{}",
        "./images/{}",
        "https://example.org/bucket/{}",
        "https://example.org/bucket/{}?x=1",
        "https://example.org/b/{}?X-Credential=AK/2026/x&y=a.jpg#top",
        "https%3A//example.org/b/{}?x=1",
        "bucket/{}?v=2",
        "/data/local-files/?d=photos/{}",
        "data%2Fphotos%2F{}",
        "elsewhere/images/{}",
    ],
)
def test_paths_of_another_machine(coco: Path, written: str) -> None:
    before = open_detection(f"coco:{coco}", "val")
    data = changed(
        coco, lambda d: [im.update(file_name=written.format(im["file_name"])) for im in d["images"]]
    )
    same(data, before)
    assert data.annotations(0).name == "images/val-0.jpg"
    assert data.image(0).shape == before.image(0).shape
    exact = written.startswith("./")
    assert data.skipped.kept == ({} if exact else {"image whose file is called otherwise": 3})


@pytest.mark.parametrize(
    ("disk", "written"),
    [
        ("val-0.JPG", "val-0.jpg"),
        ("val-0.jpg", "VAL-0.JPG"),
        (unicodedata.normalize("NFD", "bäum 0.jpg"), unicodedata.normalize("NFC", "bäum 0.jpg")),
        ("a b.jpg", "a%20b.jpg"),
        ("000139.jpg", "000139"),
    ],
)
def test_names_that_differ_a_little(coco: Path, disk: str, written: str) -> None:
    (coco / "images" / "val-0.jpg").rename(coco / "images" / disk)
    data = changed(coco, lambda d: d["images"][0].update(file_name=written))
    assert data.annotations(0).name == f"images/{disk}"
    assert len(data) == 3


INVISIBLE = [
    *("{} ", "{}\r", "{}\n", "\ufeff{}", "{}\u00a0", "{}\u200b", "\u200e{}\u200f", "\t{}\u2060", "{}\x00"),
    *("images /{}", "images/ {}", "images\u200b\\{}", "C:\\set\u00a0\\images\\{} ", "../images/{}\r"),
]


@pytest.mark.parametrize("written", INVISIBLE)
def test_names_with_characters_that_nobody_sees(coco: Path, written: str) -> None:
    before = open_detection(f"coco:{coco}", "val")
    data = changed(
        coco, lambda d: [im.update(file_name=written.format(im["file_name"])) for im in d["images"]]
    )
    same(data, before)
    assert data.annotations(2).name == "images/val-2.jpg"
    assert data.skipped.kept == {"image whose file is called otherwise": 3}


@pytest.mark.parametrize(
    ("disk", "written"),
    [
        ("my\u00a0image.jpg", "my image.jpg"),
        ("my image.jpg", "my\u00a0image.jpg"),
        ("my image.jpg", "my  image.jpg"),
        ("a\u200bb.jpg", "ab.jpg"),
        ("ab.jpg", "a\u200bb.jpg"),
        ("a.jpg ", "a.jpg"),
        ("ab.jpg", "AB\u200b"),
    ],
)
def test_characters_that_nobody_sees_within_a_name(coco: Path, disk: str, written: str) -> None:
    (coco / "images" / "val-0.jpg").rename(coco / "images" / disk)
    data = changed(coco, lambda d: d["images"][0].update(file_name=written))
    assert (len(data), data.annotations(0).name) == (3, f"images/{disk}")


def test_names_that_differ_in_such_characters_alone_are_kept_apart(coco: Path) -> None:
    (coco / "images" / "val-1.jpg").rename(coco / "images" / "val-0.jpg ")
    data = changed(coco, lambda d: d["images"][1].update(file_name="val-0.jpg "))
    assert [data.annotations(i).name for i in range(2)] == ["images/val-0.jpg", "images/val-0.jpg "]
    assert not data.skipped.lines()


def test_annotations_that_name_such_a_file(coco: Path) -> None:
    before = open_detection(f"coco:{coco}", "val")

    def change(document: dict[str, Any]) -> None:
        names = {image["id"]: image["file_name"] + " " for image in document["images"]}
        for image in document["images"]:
            image["file_name"] += " "
        for entry in document["annotations"]:
            entry["image_id"] = names[entry["image_id"]]

    same(changed(coco, change), before)


def test_folders_of_the_same_names_are_kept_apart(coco: Path) -> None:
    for i in range(3):
        (coco / "images" / f"cam{i}").mkdir()
        (coco / "images" / f"val-{i}.jpg").rename(coco / "images" / f"cam{i}" / "0.jpg")
    data = changed(
        coco, lambda d: [im.update(file_name=f"cam{i}\\0.jpg") for i, im in enumerate(d["images"])]
    )
    assert [data.annotations(i).name for i in range(3)] == [f"images/cam{i}/0.jpg" for i in range(3)]


def test_a_name_without_its_folder_is_no_guess(coco: Path) -> None:
    (coco / "images" / "val-1.jpg").unlink()
    (coco / "images" / "val-2.jpg").unlink()
    with pytest.raises(
        InputError, match=r"none of its images is in .*cam0/val-0.jpg; images/val-0.jpg may be cam1"
    ):
        changed(
            coco, lambda d: [im.update(file_name=f"cam{i}/val-0.jpg") for i, im in enumerate(d["images"])]
        )


def test_another_ending_is_said_and_not_taken(coco: Path) -> None:
    with pytest.raises(InputError, match=r"image 100 \(val-0.png\); there is images/val-0.jpg"):
        changed(
            coco,
            lambda d: [im.update(file_name=im["file_name"].replace("jpg", "png")) for im in d["images"]],
        )


def test_an_image_that_is_listed_twice_is_said(coco: Path) -> None:
    data = changed(coco, lambda d: d["images"].append({**d["images"][0], "id": 7}))
    assert len(data) == 4
    (reason,) = data.skipped.kept
    assert reason.startswith("image that is listed again")
    assert data.skipped.examples[reason] == ["instances_val.json, val-0.jpg as image 100 and 7"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_json_in_every_encoding(coco: Path, encoding: str) -> None:
    before = open_detection(f"coco:{coco}", "val")
    data = changed(coco, lambda d: d["categories"][0].update(name="Käfer"), encoding=encoding)
    same(data, before)
    assert data.classes[9].name == "Käfer"


# ---- sizes ----


def write(root: Path, change: Callable[[dict[str, Any]], None] = lambda d: None, n: int = 6) -> DetectionSet:
    """A set of noise of 64 x 48 pixels with a box in each image."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    height, width = SIZE
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            root / "images" / f"{i}.png"
        )
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": width, "height": height} for i in range(n)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 0, "bbox": [40, 5, 20, 30]} for i in range(n)
        ],
        "categories": [{"id": 0, "name": "thing"}],
    }
    change(document)
    layouts.write_json(root / "annotations" / "instances_val.json", document)
    return open_detection(f"coco:{root}", "val")


def test_category_and_image_and_annotation_zero(tmp_path: Path) -> None:
    data = write(tmp_path)
    assert len(data) == 6
    assert data.annotations(0).ids == (0,)
    assert data.annotations(0).image_id == 0
    assert data.classes[0].id == 0
    assert not data.skipped.lines()


def test_width_and_height_exchanged(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"6 of 6 images .*0.png is 64 x 48 pixels, annotated as 48 x 64.*exchange"
    ):
        write(tmp_path, lambda d: [im.update(width=48, height=64) for im in d["images"]])


def test_annotated_at_another_size(tmp_path: Path) -> None:
    def larger(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image.update(width=128, height=96)
        for entry in document["annotations"]:
            entry["bbox"] = [2 * v for v in entry["bbox"]]

    with pytest.raises(InputError, match="scale the annotations"):
        write(tmp_path, larger)


def test_a_few_images_of_another_size_are_said(tmp_path: Path) -> None:
    data = write(tmp_path, lambda d: [im.update(width=60) for im in d["images"][:2]])
    assert data.skipped.remarks == [
        "2 of 6 images looked at have another size than their annotations say (e.g. images/0.png is 64 x 48 pixels, "
        "annotated as 60 x 48): such images are not used"
    ]


def test_a_size_that_a_tool_rounded(tmp_path: Path) -> None:
    """Off by a pixel: used where no mask hangs on it."""
    data = write(tmp_path, lambda d: [im.update(width=63, height=49) for im in d["images"]])
    pixels = np.asarray(Image.open(tmp_path / "images" / "0.png"))
    assert data.image(0).shape == (49, 63, 3)
    assert (data.image(0)[:48] == pixels[:, :63]).all()
    assert not data.skipped.lines()
    square = [[41, 6, 50, 6, 50, 20]]
    with pytest.raises(InputError, match="6 of 6 images"):
        write(
            tmp_path,
            lambda d: [
                *(im.update(width=63) for im in d["images"]),
                *(a.update(segmentation=square) for a in d["annotations"]),
            ],
        )


def test_an_upright_size_is_right(tmp_path: Path) -> None:
    write(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (tmp_path / "images").iterdir():
        Image.new("RGB", (48, 64)).save(path, exif=exif)
    data = open_detection(f"coco:{tmp_path}", "val")
    assert not data.skipped.lines()
    assert data.image(0).shape == (48, 64, 3)


def test_boxes_in_another_convention_are_refused_with_the_fix(tmp_path: Path) -> None:
    def two_corners(document: dict[str, Any]) -> None:
        for entry in document["annotations"]:
            left, top, width, height = entry["bbox"]
            entry["bbox"] = [left, top, left + width, top + height]

    with pytest.raises(InputError) as caught:
        write(tmp_path, two_corners)
    assert "instances_val.json: its boxes look like x1, y1, x2, y2 (two corners)" in str(caught.value)
    assert "(e.g. annotation 0 of 0.png: [40, 5, 60, 35])" in str(caught.value)
    assert "width = x2 - x1, height = y2 - y1" in str(caught.value)


# ---- outlines and fields ----


@pytest.mark.parametrize("bbox", [None, []])
def test_a_box_from_its_outline(coco: Path, bbox: Any) -> None:
    before = open_detection(f"coco:{coco}", "val")
    data = changed(coco, lambda d: [a.update(bbox=bbox) for a in d["annotations"]])
    same(data, before)
    assert list(data.skipped.kept) == ["annotation without a bbox: that of its outline is taken"]


def test_a_polygon_in_other_brackets(coco: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        square = [1, 1, 9, 1, 9, 9, 1, 9]
        document["annotations"][0]["segmentation"] = square
        document["annotations"][1]["segmentation"] = [square[i : i + 2] for i in range(0, 8, 2)]

    truth = changed(coco, change).annotations(0)
    assert truth.segments is not None
    for segment in truth.segments[:2]:
        assert bitmap(segment, truth.size).sum() == 64  # type: ignore[arg-type]


def test_run_lengths_that_were_bytes(coco: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[3:20, 5:9] = 1
    printed = str(encode(mask)["counts"])
    assert printed.startswith("b'")
    runs = {"size": ["64", 64.0], "counts": printed}
    data = changed(coco, lambda d: d["annotations"][0].update(segmentation=runs))
    assert (bitmap(data.annotations(0).segments[0], (64, 64)) == mask).all()  # type: ignore[index,arg-type]
    data = changed(coco, lambda d: d["annotations"][0].update(segmentation=[runs]))
    assert (bitmap(data.annotations(0).segments[0], (64, 64)) == mask).all()  # type: ignore[index,arg-type]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [64, 64], "counts": [4096]}, "mask that covers nothing"),
        ([4000, 50, 46], "run lengths without a size: write them as {size, counts}"),
        ([[1, 1, 5, 5]], "annotation without a usable polygon"),
    ],
)
def test_outlines_that_cannot_be_used(coco: Path, segmentation: Any, reason: str) -> None:
    data = changed(coco, lambda d: d["annotations"][0].update(segmentation=segmentation))
    assert data.skipped.counts[reason] == 1
    assert data.annotations(0).ids[0] == 2


def test_run_lengths_of_an_exchanged_size(tmp_path: Path) -> None:
    runs = {"size": [64, 48], "counts": [64 * 48 - 5, 5]}
    data = write(tmp_path, lambda d: d["annotations"][0].update(segmentation=runs))
    assert data.skipped.counts == {"mask whose size is width, height and not height, width": 1}


def test_a_pixel_s_width_is_kept_and_said(coco: Path) -> None:
    data = changed(coco, lambda d: d["annotations"][0].update(bbox=[5, 5, 1, 9]))
    assert data.annotations(0).boxes[0].tolist() == [5, 5, 6, 14]
    assert data.skipped.lines() == [
        "kept 1: box that is a pixel wide or high, or less (e.g. instances_val.json, annotation 1 of val-0.jpg)"
    ]


def test_an_object_that_repeats_another_is_said(coco: Path) -> None:
    data = changed(coco, lambda d: d["annotations"].append({**d["annotations"][0], "id": 999}))
    assert data.skipped.lines() == [
        "kept 1: object that repeats another of its image, of the same class and box (e.g. instances_val.json, "
        "annotation 999 of val-0.jpg)"
    ]


def test_an_area_of_nothing_is_the_box_s(coco: Path) -> None:
    data = changed(coco, lambda d: d["annotations"][0].update(area=0, bbox=[5, 5, 10, 9]))
    assert data.annotations(0).areas[0] == 90
