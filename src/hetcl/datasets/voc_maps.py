"""PASCAL VOC's layout for pixels: palette PNGs whose indices are classes, 255 for borders.

``SegmentationClass/`` and the lists of ``ImageSets/Segmentation/``; for training, ``train_aug`` with
``SegmentationClassAug/`` where they are there (the 10,582 images of Hariharan et al.'s SBD and VOC 2012).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hetcl.datasets.annotations import Skipped
from hetcl.datasets.files import Files, read_indices, stored_size
from hetcl.datasets.maps import VOID, MapSet
from hetcl.datasets.voc_lists import (
    ListEntry,
    VocList,
    image_of,
    lists_there,
    path_of,
    read_list,
    without,
    years,
)
from hetcl.errors import InputError
from hetcl.textfiles import decode, lines
from hetcl.types import BadImage

VOC_CLASSES = tuple(
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor".split()
)
_BORDER = 224 << 16 | 224 << 8 | 192
"""The colour of VOC's index 255."""
_LOOKED_AT = 500
"""So many maps, spread evenly, tell whether the classes can be VOC's."""


def voc_segmentation(files: Files, split: str) -> MapSet:
    """Open VOC's pixels, of the newest year that has them.

    Classes: the lines of ``ROOT/classes.txt`` (the first is value 0; each may begin with its number); else those of
    CVAT's ``labelmap.txt``, with their colours; else VOC's 21 where no value is above 20 and the set's XML files name
    VOC's things alone, which is told where the values do not fit them; else as many as there are values. Maps in
    colours are read where all are in ``labelmap.txt``, else where all are of VOC's palette.

    Raises ``InputError``.
    """
    root, skipped = files.root, Skipped()
    year = years(root, "ImageSets/Segmentation")[-1]
    parts = {
        name: _part(files, year, name, skipped if name == split else Skipped()) for name in ("train", "val")
    }
    chosen = parts[split]
    if chosen is None:
        wanted = "train_aug.txt, train.txt or trainval.txt" if split == "train" else "val.txt"
        raise InputError(
            f"{root / year}: has no {wanted} in ImageSets/Segmentation{lists_there(root, year, 'Segmentation')}"
        )
    for notes in chosen.notes:
        skipped.remark(notes)
    pairs = _pairs(files, chosen.entries, split, skipped)
    other = "val" if split == "train" else "train"
    others = _pairs(files, parts[other].entries if parts[other] else [], other, Skipped())  # type: ignore[union-attr]
    source = f"{root / year} ({split}: {', '.join(chosen.lists)})"
    of_voc = _of_voc(files, path_of(year, "Annotations", "").rstrip("/"))
    named = _label_map(files, year)
    colors = voc_colors()
    if named:
        colors = {_BORDER: VOID} | {code: number for number, code in enumerate(named.values())}
    every = sorted(pairs + others)
    classes = _classes(files, every, of_voc, tuple(named), colors, skipped)
    data = MapSet("voc", classes, root, pairs, source, skipped, colors=colors)
    data.lists = chosen.lists
    return data


def voc_colors() -> dict[int, int]:
    """VOC's palette: ``red << 16 | green << 8 | blue`` -> index. The bits of an index are dealt to the three channels,
    the lowest three to their highest bits (``VOClabelcolormap`` of the development kit)."""
    found = {}
    for index in range(256):
        channels = [sum((index >> (3 * i + c) & 1) << (7 - i) for i in range(3)) for c in range(3)]
        found[channels[0] << 16 | channels[1] << 8 | channels[2]] = index
    return found


def _label_map(files: Files, year: str) -> dict[str, int]:
    """Name -> colour, of CVAT's ``labelmap.txt`` (``name:red,green,blue:parts:actions``); empty where there is none."""
    root = files.root
    path = next((p for p in (root / year / "labelmap.txt", root / "labelmap.txt") if p.is_file()), None)
    found = {}
    for number, line in lines(files.text(path) or "") if path else ():
        if line.startswith("#"):
            continue
        match = re.match(r"([^:]+):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)", line)
        if match is None:
            raise InputError(f"{path}: line {number} is no 'name:red,green,blue::': {line[:60]!r}")
        found[match[1].strip()] = int(match[2]) << 16 | int(match[3]) << 8 | int(match[4])
    return found


def _part(files: Files, year: str, split: str, skipped: Skipped) -> VocList | None:
    """The list of a part; None where there is none."""

    def listed(name: str) -> VocList | None:
        return read_list(files, year, "Segmentation", name)

    val = listed("val")
    if split == "val":
        if val is not None:
            return val
        test = listed("test")
        maps = [
            path_of(year, "SegmentationClass", f"{stem}.png")
            for _, stem in (test.entries if test else [])[:1]
        ]
        if test is None or files.first(maps) is None:
            return None
        skipped.remark("there is no val.txt: test.txt is evaluated on")
        return test
    for name in ("train_aug", "trainaug", "train"):
        part = listed(name)
        if part is not None:
            return part
    both = listed("trainval")
    return None if both is None else without(both, val.entries if val else ())


def _pairs(files: Files, entries: list[ListEntry], split: str, skipped: Skipped) -> list[tuple[str, str]]:
    folders = ("SegmentationClassAug", "SegmentationClass") if split == "train" else ("SegmentationClass",)
    found = []
    for year, stem in entries:
        image = image_of(files, (year, stem))
        places = [path_of(year, folder, "").rstrip("/") for folder in folders]
        label_map = files.first(f"{place}/{stem}.png" for place in places) or files.image(places, stem)
        if image is None:
            skipped.add("image not found", path_of(year, "JPEGImages", f"{stem}.jpg"))
        elif label_map is None:
            skipped.add("no label map", path_of(year, "SegmentationClass", f"{stem}.png"))
        else:
            found.append((image, label_map))
    return found


def _of_voc(files: Files, folder: str) -> set[str]:
    """The things in a set, by some of its XML files, where all of them are VOC's; empty where others are there too."""
    sheets = sorted(name for name in files.names(folder) if name.endswith(".xml"))
    named: set[str] = set()
    for name in sheets[:: -(-len(sheets) // _LOOKED_AT)] if sheets else []:
        xml = files.root / files.check(f"{folder}/{name}")
        try:
            text = decode(xml.read_bytes(), str(xml), warn=False)
        except (OSError, InputError):
            continue
        named |= set(re.findall(r"<object>\s*<name>\s*([^<]*?)\s*</name>", text))
    return named if named <= set(VOC_CLASSES) else set()


def _classes(
    files: Files,
    maps: list[tuple[str, str]],
    of_voc: set[str],
    named: tuple[str, ...],
    colors: Mapping[int, int],
    skipped: Skipped,
) -> tuple[str, ...]:
    """Names of the classes. The maps are those of both splits, so that both have the same classes."""
    root = files.root
    path = root / "classes.txt"
    text = files.text(path)
    names = named if text is None else _named(path, text, skipped)
    some = maps[:: -(-len(maps) // _LOOKED_AT)] if maps else []
    top, where, values = _highest(root, some, colors)
    if names:
        if not top < len(names) <= VOID:
            raise InputError(
                f"{path if text is not None else 'labelmap.txt'}: names {len(names)} classes, the first being value 0; "
                f"{where} holds the value {top}"
            )
        return names
    if of_voc and top < len(VOC_CLASSES):
        _doubt(of_voc, sorted(values - {0}), skipped)
        return VOC_CLASSES
    top, where, values = _highest(root, maps, colors)
    if maps and top == 0:
        raise InputError(
            f"{root}: its label maps hold the value 0 alone, and maybe 255, which does not count: write "
            "objects as 1, 2 and so on"
        )
    if top + 1 > 3 * len(values) and top > 20:
        some_values = ", ".join(map(str, sorted(values)[:8]))
        skipped.remark(
            f"its maps hold {len(values)} of the values 0 to {top} ({some_values} ...): are they gray copies of "
            "colours? Each value is a class of its own; classes.txt names them, the first being value 0"
        )
    return tuple(f"class {i}" for i in range(top + 1))


def _named(path: Path, text: str, skipped: Skipped) -> tuple[str, ...]:
    """The names in ``classes.txt``, without numbers where each line begins with that of its place.

    Raises:
        InputError: each line begins with a number, and with another than that of its place.
    """
    names = tuple(line for _, line in lines(text))
    numbered = [re.fullmatch(r"(\d+)[\s:;,.=)-]+(\D.*)", name) for name in names]
    pairs = [(int(match[1]), match[2]) for match in numbered if match]
    if not names or len(pairs) < len(names):
        return names
    wrong = next(((i, number) for i, (number, _) in enumerate(pairs) if number != i), None)
    if wrong is not None:
        raise InputError(
            f"{path}: its names have numbers, {names[wrong[0]]!r} stands where the value {wrong[0]} is named: write a "
            f"name for each value from 0 on, one a line, without numbers (0 is the background in most sets)"
        )
    skipped.remark("classes.txt has numbers before its names: they are the values, and no part of the names")
    return tuple(name for _, name in pairs)


def _doubt(things: set[str], values: list[int], skipped: Skipped) -> None:
    """Say where the values in the maps hardly are VOC's: those stand for things that no XML file names."""
    strange = [value for value in values if VOC_CLASSES[value] not in things]
    if not strange and not (values == [1] and len(things) > 1):
        return
    meant = ", ".join(f"{value} ({VOC_CLASSES[value]})" for value in (strange or values)[:3])
    named = ", ".join(sorted(things)[:3]) + f" and {len(things) - 3} more" * (len(things) > 3)
    only = " alone" if not strange or len(strange) == len(values) else ""
    skipped.remark(
        f"VOC's 21 classes are assumed, since its XML files name {named}; but its maps hold {meant}{only}: "
        "if the values are your own, name them in classes.txt, the first being value 0"
    )


def _highest(root: Path, maps: list[tuple[str, str]], colors: Mapping[int, int]) -> tuple[int, str, set[int]]:
    """The highest value below 255, a map that holds it, and all values, of maps and their images; what cannot
    be read, or is of two sizes, is left to training.

    Raises:
        InputError: none of them can be read.
    """
    best, where, found, reason = -1, "", set[int](), ""
    for image, name in maps:
        try:
            size = stored_size(str(root), image)
        except BadImage:
            size = None
        try:
            values = np.unique(read_indices(str(root), name, colors, size))
        except BadImage as error:
            reason = reason or str(error)
            continue
        values = values[(values != VOID) & (values < 256) & (values >= 0)]
        found |= set(values.tolist())
        if len(values) and int(values[-1]) > best:
            best, where = int(values[-1]), name
    if maps and best < 0:
        reason = reason or "they hold the value 255 alone, which does not count"
        raise InputError(f"{root}: none of its label maps can be used; {reason}")
    return best, where, found
