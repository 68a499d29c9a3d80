"""PASCAL VOC's layout for boxes: one XML file a picture, lists of pictures, one folder a year.

``ROOT[/VOCdevkit]/VOC2007/{Annotations,JPEGImages,ImageSets/Main}``; any number of years, or the three folders
directly below ``ROOT``. Pixel indices 1..W, both ends included, become continuous edges 0..W.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hetcl.downstream.data.files import Files, stored_size
from hetcl.downstream.data.packed import PackedDetection, Packer, box_fault
from hetcl.downstream.data.segments import Unusable
from hetcl.downstream.objects import Category, Skipped
from hetcl.errors import InputError
from hetcl.types import BadPicture

KINDS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp")
"""What a picture's name may end in; VOC's own are .jpg."""

Entry = tuple[str, str]
"""Folder of the year (relative to the root) and name without ending."""


@dataclass(frozen=True)
class Thing:
    """An ``object`` of an XML file: n-th, from 1."""

    n: int
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class Sheet:
    """What an XML file says; size (0, 0) where it does not say one."""

    size: tuple[int, int]
    things: tuple[Thing, ...]


def years(root: Path, below: str) -> list[str]:
    """Folders that hold a year, relative to ``root``, oldest first: those with a folder ``below``.

    Raises:
        InputError: there is none.
    """
    for devkit in ("VOCdevkit", "."):
        folders = sorted(
            path for path in (root / devkit).glob("VOC*") if re.fullmatch(r"VOC\d{4}", path.name)
        )
        found = [str(path.relative_to(root)) for path in folders if (path / below).is_dir()]
        if found:
            return found
    if (root / below).is_dir():
        return ["."]
    raise InputError(
        f"{root}: has no {below} in VOCdevkit/VOC2007, VOC2007 (or another year) nor directly below it"
    )


def read_list(root: Path, year: str, kind: str, name: str) -> list[Entry] | None:
    """The pictures of ``ImageSets/{kind}/{name}.txt``, or None where there is no such list.

    Raises:
        InputError: a picture stands there twice.
    """
    path = root / year / "ImageSets" / kind / f"{name}.txt"
    if not path.is_file():
        return None
    lines: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), 1):
        # Lists of train_aug that go round hold two paths a line: the picture's and the map's.
        stem = Path(line.split()[0]).stem if "/" in line else line.strip()
        if stem in lines:
            raise InputError(f"{path}: {stem} is on lines {lines[stem]} and {number}: keep one of them")
        if stem:
            lines[stem] = number
    return [(year, stem) for stem in lines]


def voc_detection(root: Path, split: str) -> PackedDetection:
    """Open VOC's boxes; ``splits`` says which lists. Raises ``InputError``."""
    lists = splits(root)
    if not lists[split]:
        wanted = "train.txt or trainval.txt" if split == "train" else "test.txt or val.txt"
        raise InputError(f"{root}: has no ImageSets/Main/{wanted} that names pictures")
    files, skipped = Files(root), Skipped()
    # Both splits are read, so that both have the same classes.
    other = "val" if split == "train" else "train"
    sheets = _read(root, files, lists[split], skipped)
    elsewhere = _read(root, files, lists[other], Skipped())
    names = {thing.name for read in (sheets, elsewhere) for sheet in read.values() for thing in sheet.things}
    # VOC's published order is that of the alphabet.
    classes = tuple(Category(i, name) for i, name in enumerate(sorted(names), 1))
    label = {category.name: i for i, category in enumerate(classes)}
    twice = {stem for stem, n in Counter(stem for _, stem in sheets).items() if n > 1}
    packer = Packer()
    for (year, stem), sheet in sheets.items():
        where = path_of(year, "Annotations", f"{stem}.xml")
        try:
            name, size = _picture(root, files, (year, stem), sheet.size)
        except Unusable as reason:
            skipped.add(str(reason), where)
            continue
        packer.picture(f"{Path(year).name}/{stem}" if stem in twice else stem, name, size)
        for thing in sheet.things:
            fault = box_fault(thing.box, size) if thing.name else "object without a name"
            if fault:
                skipped.add(fault, f"{where}, object {thing.n}")
            else:
                packer.add(len(packer.ids) + 1, thing.box, label[thing.name], difficult=thing.difficult)
    return packer.finish("voc", classes, root, f"{root} ({split})", skipped)


def splits(root: Path) -> dict[str, list[Entry]]:
    """Which pictures are for training and which for validation.

    Where a year has a test list with annotations (2007): trainval of every year, and that list. Else ``train`` and
    ``val`` of every year. A list that is not there counts as empty.
    """
    folders = years(root, "Annotations")
    for year in folders:
        test = read_list(root, year, "Main", "test")
        if test and (root / year / "Annotations" / f"{test[0][1]}.xml").is_file():
            return {"train": _every(root, folders, ("trainval", "train")), "val": test}
    val = _every(root, folders, ("val",))
    held = set(val)
    train = [entry for entry in _every(root, folders, ("train", "trainval")) if entry not in held]
    return {"train": train, "val": val}


def _every(root: Path, folders: list[str], names: tuple[str, ...]) -> list[Entry]:
    """Of each year the first of these lists that it has."""
    found: list[Entry] = []
    for year in folders:
        lists = (read_list(root, year, "Main", name) for name in names)
        found += next((entries for entries in lists if entries is not None), [])
    return found


def path_of(year: str, folder: str, name: str) -> str:
    """Path relative to the root."""
    return f"{folder}/{name}" if year == "." else f"{year}/{folder}/{name}"


def _read(root: Path, files: Files, entries: list[Entry], skipped: Skipped) -> dict[Entry, Sheet]:
    sheets: dict[Entry, Sheet] = {}
    for year, stem in entries:
        where = files.first([path_of(year, "Annotations", f"{stem}.xml")])
        if where is None:
            skipped.add("no annotation file", path_of(year, "Annotations", f"{stem}.xml"))
            continue
        try:
            sheets[year, stem] = read_xml(root / where)
        except Unusable as reason:
            skipped.add("XML that is no VOC annotation", f"{where}: {reason}")
    return sheets


def read_xml(path: Path) -> Sheet:
    """Read an annotation file. Raises ``Unusable`` when it is none."""
    try:
        top = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise Unusable(str(error)) from error
    if top.tag != "annotation":
        raise Unusable(f"its root is <{top.tag}>, not <annotation>")
    height, width = (_number(top, f"size/{side}") for side in ("height", "width"))
    things = []
    for n, entry in enumerate(top.findall("object"), 1):
        left, top_, right, bottom = (
            _number(entry, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = (entry.findtext("difficult") or "").strip() == "1"
        name = (entry.findtext("name") or "").strip()
        things.append(Thing(n, name, (left - 1, top_ - 1, right, bottom), difficult))
    known = all(1 <= side < 1 << 20 for side in (height, width))
    return Sheet((int(height), int(width)) if known else (0, 0), tuple(things))


def _number(element: ElementTree.Element, path: str) -> float:
    """A number; NaN where there is none."""
    try:
        return float(element.findtext(path) or "nan")
    except ValueError:
        return math.nan


def _picture(root: Path, files: Files, entry: Entry, size: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """Name of an entry's picture, and its size, from its header where the XML says none. Raises ``Unusable``."""
    year, stem = entry
    name = files.first(path_of(year, "JPEGImages", stem + kind) for kind in KINDS)
    if name is None:
        raise Unusable("picture not found")
    if size == (0, 0):
        try:
            size = stored_size(str(root), name)
        except BadPicture as error:
            raise Unusable("no size in the XML, and the picture cannot be read") from error
    return name, size
