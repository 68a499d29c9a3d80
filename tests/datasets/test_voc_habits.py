"""VOC's layout as people have it: XML of other encodings, faults in it, label maps of other kinds, other lists."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hetcl.datasets import open_detection, open_segmentation
from hetcl.datasets.annotations import DetectionSet
from hetcl.datasets.voc_maps import VOC_CLASSES, voc_colors
from hetcl.errors import InputError
from tests.datasets.test_voc_lists import lists, refused
from tests.downstream import layouts


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A set of one's own: the three folders directly below the root, train 6 and val 3."""
    layouts.write_voc(tmp_path, train=6, val=3, years=("VOC2012",), devkit=False)
    return tmp_path / "VOC2012"


# ---- XML ----


def rewritten(root: Path, change: Callable[[str], str | bytes], name: str = "2012_100000") -> DetectionSet:
    path = root / "Annotations" / f"{name}.xml"
    text = change(path.read_text())
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_detection(f"voc:{root}", "val")


@pytest.mark.parametrize(
    ("encoding", "declared", "name"),
    [
        ("gb2312", "gb2312", "狗"),
        ("gbk", "GBK", "猫"),
        ("utf-16", "utf-16", "狗"),
        ("utf-8-sig", "utf-8", "狗"),
        ("utf-8", "", "狗"),
        ("shift_jis", "shift_jis", "犬"),
    ],
)
def test_xml_in_every_encoding(voc: Path, encoding: str, declared: str, name: str) -> None:
    def change(text: str) -> bytes:
        head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else "\n"
        return (
            head + re.sub(r"<name>[^<]+</name><trunc", f"<name>{name}</name><trunc", text, count=1)
        ).encode(encoding)

    data = rewritten(voc, change)
    assert not data.skipped.lines()
    assert data.classes[data.annotations(0).labels[0]].name == name
    assert data.annotations(0).boxes.tolist() == layouts.scene_of("val", 0).boxes.tolist()


@pytest.mark.parametrize("declared", ["", "utf-8", "UTF-8", "gb2312", "no-such-encoding"])
def test_xml_that_is_not_what_it_declares_is_read_and_said(voc: Path, declared: str) -> None:
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""

    def change(text: str) -> bytes:
        return (head + re.sub(r"<name>[^<]+</name><trunc", "<name>piéton</name><trunc", text)).encode(
            "cp1252"
        )

    data = rewritten(voc, change)
    assert len(data) == 3
    assert data.classes[data.annotations(0).labels[0]].name == "piéton"
    assert data.annotations(0).boxes.tolist() == layouts.scene_of("val", 0).boxes.tolist()
    assert data.skipped.lines() == [
        "kept 1: XML that is neither UTF-8 nor in the encoding it declares, read as Windows-1252 (e.g. "
        "Annotations/2012_100000.xml)"
    ]


def test_xml_that_declares_another_encoding_and_is_utf_8(voc: Path) -> None:
    head = '<?xml version="1.0" encoding="us-ascii"?>'
    data = rewritten(
        voc, lambda text: head + re.sub(r"<name>[^<]+</name><tr", "<name>piéton</name><tr", text)
    )
    assert data.classes[data.annotations(0).labels[0]].name == "piéton"
    assert not data.skipped.lines()


def test_xml_with_a_bare_ampersand(voc: Path) -> None:
    data = rewritten(voc, lambda text: text.replace("<filename>", "<filename>black & white "))
    assert not data.skipped.lines()


@pytest.mark.parametrize(
    ("pattern", "new", "reason"),
    [
        (r"<bndbox><xmin>.*?</bndbox>", "", "object without a bndbox"),
        (r"<xmax>.*?</xmax>", "", "bndbox without xmax"),
        (r"<ymin>.*?</ymin>", "<ymin></ymin>", "bndbox without ymin"),
        (r"<ymin>.*?</ymin>", "<ymin>(88, 100)</ymin>", "bndbox with a value that is no number"),
    ],
)
def test_a_fault_is_named_and_not_its_consequence(voc: Path, pattern: str, new: str, reason: str) -> None:
    data = rewritten(voc, lambda text: re.sub(pattern, new, text, count=1))
    assert data.skipped.lines() == [f"left out 1: {reason} (e.g. Annotations/2012_100000.xml, object 1)"]


@pytest.mark.parametrize(
    ("value", "hard"), [("1", True), (" true ", True), ("0", False), ("", False), ("No", False)]
)
def test_difficult_in_every_spelling(voc: Path, value: str, hard: bool) -> None:
    data = rewritten(voc, lambda text: text.replace("<difficult>0<", f"<difficult>{value}<"))
    assert data.annotations(0).difficult.tolist() == [hard] * len(data.annotations(0).labels)
    data = rewritten(voc, lambda text: re.sub("<difficult>.*?</difficult>", "", text))
    assert not data.annotations(0).difficult.any()


def test_difficult_that_is_no_flag_is_said(voc: Path) -> None:
    data = rewritten(voc, lambda text: text.replace("<difficult>0<", "<difficult>Unspecified<", 1))
    assert not data.annotations(0).difficult.any()
    assert data.skipped.kept == {"difficult that is neither 0 nor 1, taken for 0": 1}


def test_names_in_capitals_and_spaces(voc: Path) -> None:
    data = rewritten(
        voc, lambda text: re.sub(r"<name>[^<]+</name><trunc", "<name> Dotted-Box </name><trunc", text)
    )
    rewritten(
        voc,
        lambda text: re.sub(r"<name>[^<]+</name><trunc", "<name>dotted-box</name><trunc", text),
        "2012_100001",
    )
    data = open_detection(f"voc:{voc}", "val")
    assert data.skipped.remarks == [
        "classes 'Dotted-Box' and 'dotted-box' differ in capitals or spaces alone: are they one?"
    ]


def test_boxes_in_another_convention(voc: Path) -> None:
    def sides(text: str) -> str:
        def one(match: re.Match[str]) -> str:
            left, top, right, bottom = map(int, match.groups())
            edges = zip(
                ("xmin", "ymin", "xmax", "ymax"), (left, top, right - left, bottom - top), strict=True
            )
            return "".join(f"<{edge}>{v}</{edge}>" for edge, v in edges)

        return re.sub(r"<xmin>(\d+)</xmin><ymin>(\d+)</ymin><xmax>(\d+)</xmax><ymax>(\d+)</ymax>", one, text)

    for path in (voc / "Annotations").iterdir():
        path.write_text(sides(path.read_text()))
    message = refused(voc, "train")
    assert "its boxes look like left, top, width, height, not x1, y1, x2, y2" in message
    assert "Annotations/2012_0000" in message


def test_boxes_that_count_from_zero_are_said(voc: Path) -> None:
    data = rewritten(voc, lambda text: re.sub(r"<xmin>\d+</xmin>", "<xmin>0</xmin>", text, count=1))
    ((reservation, n),) = data.skipped.kept.items()
    assert (reservation, n) == (
        "box that counts pixels from 0 and not from 1: it is read a pixel further left and up",
        1,
    )


# ---- label maps ----


def redrawn(root: Path, change: Callable[[np.ndarray], Image.Image], ending: str = ".png") -> None:
    for path in list((root / "SegmentationClass").iterdir()):
        values = np.asarray(Image.open(path))
        path.unlink()
        change(values).save(path.with_suffix(ending))


def colors(palette: dict[int, int]) -> Callable[[np.ndarray], Image.Image]:
    table = np.zeros((256, 3), np.uint8)
    for code, number in palette.items():
        table[number] = code >> 16, code >> 8 & 255, code & 255
    return lambda values: Image.fromarray(table[values])


def test_the_palette_is_the_development_kit_s() -> None:
    palette = {number: code for code, number in voc_colors().items()}
    assert len(palette) == 256
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {n: (palette[n] >> 16, palette[n] >> 8 & 255, palette[n] & 255) for n in known} == known


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_maps_in_voc_s_colors(voc: Path, mode: str) -> None:
    redrawn(voc, lambda values: colors(voc_colors())(values).convert(mode))
    data = open_segmentation(f"voc:{voc}", "val")
    for i in range(3):
        assert (data.label_map(i) == layouts.voc_map(layouts.scene_of("val", i))).all()


def test_maps_in_colors_that_a_file_names(voc: Path) -> None:
    own = {(250 - n) << 16 | n << 8 | 7: n for n in range(11)} | {224 << 16 | 224 << 8 | 192: 255}
    redrawn(voc, colors(own))
    with pytest.raises(InputError, match=r"none of its label maps can be used.*is the colour of no class"):
        open_segmentation(f"voc:{voc}", "val")
    lines = [f"thing {n}:{250 - n},{n},7::" for n in range(11)]
    (voc / "labelmap.txt").write_text("\ufeff# label:color_rgb:parts:actions\r\n" + "\r\n".join(lines))
    data = open_segmentation(f"voc:{voc}", "val")
    assert data.classes == tuple(f"thing {n}" for n in range(11))
    assert (data.label_map(1) == layouts.voc_map(layouts.scene_of("val", 1))).all()
    (voc / "labelmap.txt").write_text("thing\n")
    with pytest.raises(InputError, match=r"labelmap.txt: line 1 is no 'name:red,green,blue::': 'thing'"):
        open_segmentation(f"voc:{voc}", "val")


def test_maps_of_three_equal_channels(voc: Path) -> None:
    redrawn(voc, lambda values: Image.fromarray(np.stack([values] * 3, 2)))
    data = open_segmentation(f"voc:{voc}", "val")
    assert (data.label_map(2) == layouts.voc_map(layouts.scene_of("val", 2))).all()


def test_maps_saved_as_jpeg_are_refused(voc: Path) -> None:
    redrawn(voc, lambda values: Image.fromarray(values), ".jpg")
    with pytest.raises(InputError, match=r"none of its label maps can be used; .*a JPEG.*save maps as PNG"):
        open_segmentation(f"voc:{voc}", "train")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: (v > 0).astype(np.uint8) * 255, "hold the value 0 alone, and maybe 255"),
        (lambda v: np.full_like(v, 255), "hold the value 255 alone, which does not count"),
    ],
)
def test_maps_of_a_single_class(voc: Path, change: Callable[[np.ndarray], np.ndarray], said: str) -> None:
    redrawn(voc, lambda values: Image.fromarray(change(values)))
    with pytest.raises(InputError, match=said):
        open_segmentation(f"voc:{voc}", "train")


def test_gray_copies_of_colors_are_said(voc: Path) -> None:
    redrawn(voc, lambda values: Image.fromarray(((values % 3) * 38).astype(np.uint8)))
    data = open_segmentation(f"voc:{voc}", "train")
    assert len(data.classes) == 77
    assert data.skipped.remarks[0].startswith(
        "its maps hold 3 of the values 0 to 76 (0, 38, 76 ...): are they gray"
    )


@pytest.mark.parametrize("text", ["\ufeffbackground\r\n{}\r\n", "background\n\n{}\u200b\n"])
def test_classes_txt_of_other_systems(voc: Path, text: str) -> None:
    names = [f"thing {i}" for i in range(10)]
    (voc / "classes.txt").write_text(text.format("\r\n".join(names)))
    assert open_segmentation(f"voc:{voc}", "val").classes == ("background", *names)


@pytest.mark.parametrize("between", [" ", ": ", "\t", "=", ". "])
def test_classes_txt_with_numbers(voc: Path, between: str) -> None:
    names = ["background", *(f"thing {i}" for i in range(10))]
    path = voc / "classes.txt"
    path.write_text("\n".join(f"{i}{between}{name}" for i, name in enumerate(names)))
    data = open_segmentation(f"voc:{voc}", "val")
    assert data.classes == tuple(names)
    assert data.skipped.remarks == [
        "classes.txt has numbers before its names: they are the values, and no part of the names"
    ]
    path.write_text("\n".join(f"{i}{between}{name}" for i, name in enumerate(names, 1)))
    with pytest.raises(
        InputError, match=r"classes.txt: its names have numbers, '1.+ stands where the value 0 is"
    ):
        open_segmentation(f"voc:{voc}", "val")
    path.write_text("\n".join(["3 doors", *names[1:]]))
    assert open_segmentation(f"voc:{voc}", "val").classes == ("3 doors", *names[1:])


def of_voc(root: Path, things: list[str], values: list[int]) -> list[str]:
    """What is told of a set whose XML files name ``things`` in turn and whose maps hold ``values`` in turn."""
    for i, path in enumerate(sorted((root / "Annotations").iterdir())):
        name = things[i % len(things)]
        path.write_text(re.sub(r"<name>[^<]+</name><trunc", f"<name>{name}</name><trunc", path.read_text()))
    for i, path in enumerate(sorted((root / "SegmentationClass").iterdir())):
        drawn = np.zeros((64, 64), np.uint8)
        drawn[20:40, 10:30], drawn[0] = values[i % len(values)], 255
        Image.fromarray(drawn).save(path)
    data = open_segmentation(f"voc:{root}", "val")
    assert data.classes == VOC_CLASSES
    return data.skipped.remarks


@pytest.mark.parametrize(
    ("things", "values", "held"),
    [
        (["person"], [1], "name person; but its maps hold 1 (aeroplane) alone"),
        (["car", "person"], [1, 2], "name car, person; but its maps hold 1 (aeroplane), 2 (bicycle) alone"),
        (["aeroplane", "person"], [1], "name aeroplane, person; but its maps hold 1 (aeroplane) alone"),
        (["aeroplane", "person"], [1, 2], "name aeroplane, person; but its maps hold 2 (bicycle)"),
        (["person"], [15], ""),
        (["aeroplane"], [1], ""),
        (["dog", "car", "cat"], [12, 7], ""),
    ],
)
def test_values_that_are_not_voc_s_are_told(
    voc: Path, things: list[str], values: list[int], held: str
) -> None:
    told = of_voc(voc, things, values)
    assert told == (
        [
            f"VOC's 21 classes are assumed, since its XML files {held}: if the values are your own, name them in "
            "classes.txt, the first being value 0"
        ]
        if held
        else []
    )


def test_the_lists_of_pixels_are_said_and_test_stands_in(voc: Path) -> None:
    data = open_segmentation(f"voc:{voc}", "train")
    assert data.lists == ("ImageSets/Segmentation/train.txt (6)",)
    assert "(train: ImageSets/Segmentation/train.txt (6))" in data.description
    folder = lists(voc, "Segmentation")
    (folder / "train_aug.txt").write_text("train_000000\n")
    assert open_segmentation(f"voc:{voc}", "train").lists == ("ImageSets/Segmentation/train_aug.txt (1)",)
    (folder / "val.txt").rename(folder / "test.txt")
    data = open_segmentation(f"voc:{voc}", "val")
    assert data.lists == ("ImageSets/Segmentation/test.txt (3)",)
    assert data.skipped.remarks == ["there is no val.txt: test.txt is evaluated on"]
    (folder / "test.txt").rename(folder / "default.txt")
    with pytest.raises(
        InputError, match=r"has no val.txt in ImageSets/Segmentation; there is default.txt, train.txt"
    ):
        open_segmentation(f"voc:{voc}", "val")


def test_voc_s_own_classes_are_known_in_any_encoding(tmp_path: Path) -> None:
    layouts.write_voc(tmp_path, years=("VOC2012",), devkit=False, names=False)
    for path in tmp_path.rglob("*.xml"):
        text = re.sub(r"<name>[^<]+</name><trunc", "<name>dog</name><trunc", path.read_text())
        path.write_bytes(text.encode("utf-16"))
    assert open_segmentation(f"voc:{tmp_path}", "val").classes == VOC_CLASSES
