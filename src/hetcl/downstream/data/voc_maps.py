"""PASCAL VOC's layout for pixels: palette PNGs whose indices are classes, 255 for borders.

``SegmentationClass/`` and the lists of ``ImageSets/Segmentation/``; for training, ``train_aug`` with
``SegmentationClassAug/`` where they are there (the 10,582 pictures of Hariharan et al.'s SBD and VOC 2012).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from hetcl.downstream.data.files import Files, read_indices
from hetcl.downstream.data.maps import VOID, MapSet
from hetcl.downstream.data.voc import KINDS, Entry, path_of, read_list, years
from hetcl.downstream.objects import Skipped
from hetcl.errors import InputError
from hetcl.types import BadPicture

VOC_CLASSES = tuple(
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor".split()
)
_LOOKED_AT = 500
"""So many maps, spread evenly, tell whether the classes can be VOC's."""


def voc_segmentation(root: Path, split: str) -> MapSet:
    """Open VOC's pixels, of the newest year that has them.

    Classes: the lines of ``ROOT/classes.txt`` (the first is value 0); else VOC's 21 where no value is above 20 and the
    set's XML files name VOC's things alone; else as many as there are values. Raises ``InputError``.
    """
    year = years(root, "ImageSets/Segmentation")[-1]
    lists = {name: _list(root, year, name) for name in ("train", "val")}
    if lists[split] is None:
        wanted = "train_aug.txt, train.txt or trainval.txt" if split == "train" else "val.txt"
        raise InputError(f"{root / year}: has no {wanted} in ImageSets/Segmentation")
    files, skipped = Files(root), Skipped()
    pairs = _pairs(files, lists[split] or [], split, skipped)
    others = _pairs(files, lists["val"] or [], "val", Skipped()) if split == "train" else []
    others += _pairs(files, lists["train"] or [], "train", Skipped()) if split == "val" else []
    of_voc = _of_voc(root / path_of(year, "Annotations", ""))
    classes = _classes(root, [label_map for _, label_map in sorted(pairs + others)], of_voc)
    return MapSet("voc", classes, root, pairs, f"{root / year} ({split})", skipped)


def _list(root: Path, year: str, split: str) -> list[Entry] | None:
    if split == "val":
        return read_list(root, year, "Segmentation", "val")
    for name in ("train_aug", "trainaug", "train"):
        entries = read_list(root, year, "Segmentation", name)
        if entries is not None:
            return entries
    both = read_list(root, year, "Segmentation", "trainval")
    held = set(read_list(root, year, "Segmentation", "val") or ())
    return None if both is None else [entry for entry in both if entry not in held]


def _pairs(files: Files, entries: list[Entry], split: str, skipped: Skipped) -> list[tuple[str, str]]:
    folders = ("SegmentationClassAug", "SegmentationClass") if split == "train" else ("SegmentationClass",)
    found = []
    for year, stem in entries:
        picture = files.first(path_of(year, "JPEGImages", stem + kind) for kind in KINDS)
        label_map = files.first(path_of(year, folder, f"{stem}.png") for folder in folders)
        if picture is None:
            skipped.add("picture not found", path_of(year, "JPEGImages", f"{stem}.jpg"))
        elif label_map is None:
            skipped.add("no label map", path_of(year, "SegmentationClass", f"{stem}.png"))
        else:
            found.append((picture, label_map))
    return found


def _of_voc(folder: Path) -> bool:
    """Whether the things in a set are VOC's, by its XML files: all names in some of them, and there are any."""
    files = sorted(folder.glob("*.xml"))
    named: set[str] = set()
    for xml in files[:: -(-len(files) // _LOOKED_AT)] if files else []:
        text = xml.read_text(encoding="utf-8", errors="replace")
        named |= set(re.findall(r"<object>\s*<name>\s*([^<]*?)\s*</name>", text))
    return bool(named) and named <= set(VOC_CLASSES)


def _classes(root: Path, maps: list[str], of_voc: bool) -> tuple[str, ...]:
    """Names of the classes. The maps are those of both splits, so that both have the same classes."""
    path = root / "classes.txt"
    names: tuple[str, ...] = ()
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    some = maps[:: -(-len(maps) // _LOOKED_AT)] if maps else []
    top, where = _highest(root, some)
    if names:
        if not top < len(names) <= VOID:
            raise InputError(
                f"{path}: names {len(names)} classes, the first being value 0; {where} holds the value {top}"
            )
        return names
    if of_voc and top < len(VOC_CLASSES):
        return VOC_CLASSES
    top, _ = _highest(root, maps)
    return tuple(f"class {i}" for i in range(top + 1))


def _highest(root: Path, maps: list[str]) -> tuple[int, str]:
    """The highest value below 255, and a map that holds it; maps that cannot be read are left to training."""
    best, where = -1, ""
    for name in maps:
        try:
            values = read_indices(str(root), name)
        except BadPicture:
            continue
        top = int(np.max(values[(values != VOID) & (values < 256)], initial=0))
        if top > best:
            best, where = top, name
    return best, where
