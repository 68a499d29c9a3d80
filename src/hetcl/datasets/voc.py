"""PASCAL VOC's layout for boxes: one XML file an image; folders and lists as ``voc_lists`` has them.

Pixel indices 1..W, both ends included, become continuous edges 0..W.
"""

from __future__ import annotations

import codecs
import contextlib
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hetcl.datasets import values
from hetcl.datasets.annotations import Category, Skipped
from hetcl.datasets.categories import alike
from hetcl.datasets.conventions import CORNERS, Boxes
from hetcl.datasets.files import Files, stored_size
from hetcl.datasets.packed import PackedDetection, Packer, box_fault
from hetcl.datasets.segments import Unusable
from hetcl.datasets.sizes import check_sizes
from hetcl.datasets.voc_lists import (
    ListEntry,
    VocList,
    every,
    image_of,
    lists_there,
    path_of,
    read_list,
    together,
    without,
    years,
)
from hetcl.errors import InputError
from hetcl.textfiles import decode, strip
from hetcl.types import BadImage

EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """An ``object`` of an XML file: n-th, from 1."""

    n: int
    name: str
    written: tuple[float, float, float, float] | None
    """xmin, ymin, xmax, ymax; None where there are no such numbers."""
    fault: str
    """Why it cannot be used, or empty."""
    difficult: bool | None
    """None where it is no flag."""


@dataclass(frozen=True)
class Sheet:
    """What an XML file says; size (0, 0) where it does not say one."""

    size: tuple[int, int]
    things: tuple[VocObject, ...]
    guessed: bool = False
    """Whether it is not of the encoding that it declares (UTF-8 where none) and was read as Windows-1252."""


def voc_detection(files: Files, split: str) -> PackedDetection:
    """Open VOC's boxes; ``splits`` says which lists. Raises ``InputError``."""
    root, skipped = files.root, Skipped()
    parts = splits(files, skipped if split == "val" else Skipped())
    if parts[split].lists and not parts[split].entries:
        raise InputError(f"{root}: there is no image for {split} in {', '.join(parts[split].lists)}")
    if not parts[split].entries:
        wanted = "train.txt or trainval.txt" if split == "train" else "test.txt or val.txt"
        first = years(root, "Annotations")[0]
        raise InputError(f"{root}: has no ImageSets/Main/{wanted}{lists_there(root, first, 'Main')}")
    for notes in parts[split].notes:
        skipped.remark(notes)
    # Both splits are read, so that both have the same classes.
    other = "val" if split == "train" else "train"
    sheets = _read(root, files, parts[split].entries, skipped)
    elsewhere = _read(root, files, parts[other].entries, Skipped())
    names = {thing.name for read in (sheets, elsewhere) for sheet in read.values() for thing in sheet.things}
    names.discard("")
    _remark_alike(names, skipped)
    # VOC's published order is that of the alphabet.
    classes = tuple(Category(i, name) for i, name in enumerate(sorted(names), 1))
    label = {category.name: i for i, category in enumerate(classes)}
    twice = {stem for stem, n in Counter(stem for _, stem in sheets).items() if n > 1}
    packer, boxes = Packer(), Boxes(CORNERS)
    for (year, stem), sheet in sheets.items():
        where = path_of(year, "Annotations", f"{stem}.xml")
        try:
            name, size = _image(root, files, (year, stem), sheet.size)
        except Unusable as reason:
            skipped.add(str(reason), where)
            continue
        packer.image(f"{Path(year).name}/{stem}" if stem in twice else stem, name, size)
        for thing in sheet.things:
            _add(packer, thing, size, label, boxes, skipped, f"{where}, object {thing.n}")
    source = f"{root} ({split}: {', '.join(parts[split].lists)})"
    check_sizes(root, packer.names, packer.image_sizes(), source, skipped, packer.slack)
    verdict = boxes.verdict()
    if verdict is not None and verdict.certain:
        raise InputError(f"{source}: {verdict.text}")
    if verdict is not None:
        skipped.remark(verdict.text)
    data = packer.finish("voc", classes, root, source, skipped)
    data.lists = parts[split].lists
    return data


def _add(
    packer: Packer,
    thing: VocObject,
    size: tuple[int, int],
    label: dict[str, int],
    boxes: Boxes,
    skipped: Skipped,
    what: str,
) -> None:
    """Check an object and pack it, or count it as left out."""
    fault = thing.fault or ("" if thing.name else "object without a name")
    if thing.written is None:
        skipped.add(fault, what)
        return
    boxes.add(thing.written, size, what)
    left, top, right, bottom = thing.written
    box = (left - 1, top - 1, right, bottom)
    fault = fault or box_fault(box, size) or ""
    if fault:
        skipped.add(fault, what)
        return
    if min(left, top) == 0:
        skipped.keep(
            "box that counts pixels from 0 and not from 1: it is read a pixel further left and up", what
        )
    reservation = packer.reservation(box, label[thing.name])
    if reservation:
        skipped.keep(reservation, what)
    if thing.difficult is None:
        skipped.keep("difficult that is neither 0 nor 1, taken for 0", what)
    packer.add(len(packer.ids) + 1, box, label[thing.name], difficult=bool(thing.difficult))


def splits(files: Files, skipped: Skipped) -> dict[str, VocList]:
    """Which images are for training and which for validation.

    VOC 2007 as it is published (a list of test images with annotations, and ``trainval``): ``trainval`` of every
    year, and that list. Else ``train`` and ``val`` of every year; where no year has a ``val``, an annotated ``test``
    stands in for it. A list that is not there counts as empty.
    """
    folders = years(files.root, "Annotations")

    def annotated(year: str) -> VocList | None:
        test = read_list(files, year, "Main", "test")
        if test is None or not test.entries:
            return None
        return test if files.first([path_of(year, "Annotations", f"{test.entries[0][1]}.xml")]) else None

    def listed(*names: str) -> VocList:
        return every(files, folders, "Main", names)

    for year in folders:
        published = Path(files.root / year).resolve().name == "VOC2007"
        test = annotated(year) if published and listed("trainval").entries else None
        if test:
            if listed("val").entries:
                skipped.remark(
                    "test.txt is evaluated on, as for VOC 2007's figures; val.txt is trained on as a part of trainval"
                )
            return {"train": listed("trainval", "train"), "val": test}
    val = listed("val")
    if not val.entries:
        tests = [test for year in folders if (test := annotated(year))]
        if tests:
            skipped.remark("there is no val.txt: test.txt is evaluated on")
            return {"train": listed("trainval", "train"), "val": together(tests)}
    train = [
        read_list(files, year, "Main", "train")
        or without(every(files, [year], "Main", ["trainval"]), val.entries)
        for year in folders
    ]
    return {"train": together(train), "val": val}


def _remark_alike(names: set[str], skipped: Skipped) -> None:
    """Say which names differ in capitals and spaces alone."""
    for first, second in _pairs_alike(sorted(names)):
        skipped.remark(f"classes {first!r} and {second!r} differ in capitals or spaces alone: are they one?")


def _pairs_alike(names: list[str]) -> list[tuple[str, str]]:
    seen: dict[str, str] = {}
    pairs = [(seen.setdefault(alike(name), name), name) for name in names]
    return [(first, second) for first, second in pairs if first != second]


def _read(root: Path, files: Files, entries: list[ListEntry], skipped: Skipped) -> dict[ListEntry, Sheet]:
    sheets: dict[ListEntry, Sheet] = {}
    for year, stem in entries:
        where = path_of(year, "Annotations", f"{stem}.xml")
        found = files.first([where]) or files.like(
            [path_of(year, "Annotations", "").rstrip("/")], f"{stem}.xml"
        )
        if found is None:
            skipped.add("no annotation file", where)
            continue
        try:
            sheet = sheets[year, stem] = read_xml(root / found)
            if sheet.guessed:
                skipped.keep(
                    "XML that is neither UTF-8 nor in the encoding it declares, read as Windows-1252", where
                )
        except Unusable as reason:
            skipped.add("XML that is no VOC annotation", f"{where}: {reason}")
    return sheets


def read_xml(path: Path) -> Sheet:
    """Read an annotation file, in whatever encoding. Raises ``Unusable`` when it is none."""
    top, guessed = _parsed(path)
    if top.tag != "annotation":
        raise Unusable(f"its root is <{top.tag}>, not <annotation>")
    size = values.sides(top.findtext("size/height"), top.findtext("size/width"))
    things = tuple(_thing(n, entry) for n, entry in enumerate(top.findall("object"), 1))
    return Sheet(size or (0, 0), things, guessed)


def _thing(n: int, entry: ElementTree.Element) -> VocObject:
    name = strip(entry.findtext("name") or "")
    difficult = values.flag(entry.findtext("difficult"))
    if entry.find("bndbox") is None:
        return VocObject(n, name, None, "object without a bndbox", difficult)
    texts = [strip(entry.findtext(f"bndbox/{edge}") or "") for edge in EDGES]
    lacking = [edge for edge, text in zip(EDGES, texts, strict=True) if not text]
    if lacking:
        return VocObject(n, name, None, f"bndbox without {lacking[0]}", difficult)
    read = values.numbers(texts, 4)
    if read is None:
        return VocObject(n, name, None, "bndbox with a value that is no number", difficult)
    return VocObject(n, name, (read[0], read[1], read[2], read[3]), "", difficult)


def _parsed(path: Path) -> tuple[ElementTree.Element, bool]:
    """The root of an XML file: as it says, else as text of whatever encoding it is, and whether that was guessed.

    Raises:
        Unusable: it is no XML.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unusable(error.strerror or str(error)) from error
    try:
        return ElementTree.fromstring(data), False
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        first = error
    try:
        text, guessed = _text(data, path)
        text = re.sub(r"^\s*<\?xml[^>]*\?>", "", strip(text))
        return ElementTree.fromstring(re.sub(r"&(?!\w+;|#)", "&amp;", text)), guessed
    except (ElementTree.ParseError, ValueError, LookupError, InputError):
        raise Unusable(str(first)) from first


def _text(data: bytes, path: Path) -> tuple[str, bool]:
    """The text of an XML file, and whether its encoding is neither UTF-8 nor what it declares: Windows-1252, then."""
    named = re.match(rb"""\s*<\?xml[^>]*encoding=["']([\w.-]+)["']""", data)
    for encoding in (named[1].decode() if named else "utf-8", "utf-8"):
        with contextlib.suppress(UnicodeError, LookupError):
            text = data.decode(encoding)
            return (text if named else decode(data, str(path), warn=False)), False
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data
    return decode(data, str(path), warn=False), not marked


def _image(root: Path, files: Files, entry: ListEntry, size: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """Name of an entry's image, and its size, from its header where the XML says none. Raises ``Unusable``."""
    name = image_of(files, entry)
    if name is None:
        raise Unusable("image not found")
    if size == (0, 0):
        try:
            size = stored_size(str(root), name)
        except BadImage as error:
            raise Unusable("no size in the XML, and the image cannot be read") from error
    return name, size
