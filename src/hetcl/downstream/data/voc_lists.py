"""PASCAL VOC's folders and lists of images: one folder a year, a list a part, a name a line.

``ROOT[/VOCdevkit]/VOC2007/{Annotations,JPEGImages,ImageSets/Main}``; any number of years, or the three folders directly
below ``ROOT``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hetcl.downstream.data.files import ENDINGS, Files, stem_of
from hetcl.downstream.data.recognise import one_line
from hetcl.errors import InputError
from hetcl.textfiles import lines

IMAGES = ("JPEGImages", "images", "Images")
"""Folders in which images are looked for."""
_KNOWN = (*IMAGES, "Annotations", "SegmentationClass", "SegmentationClassAug", "SegmentationObject")

Entry = tuple[str, str]
"""Folder of the year (relative to the root), and the image's name without ending, with its folders below JPEGImages."""


@dataclass(frozen=True)
class Part:
    """The images of a part of a set, and the lists that name them."""

    entries: list[Entry]
    lists: tuple[str, ...]
    """Paths of the lists relative to the root, each with its number of images: ``ImageSets/Main/val.txt (200)``."""


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
        f"{root}: has no {below} in VOCdevkit/VOC2007, VOC2007 (or another year) nor directly below it{one_line(root)}"
    )


def path_of(year: str, folder: str, name: str) -> str:
    """Path relative to the root."""
    return f"{folder}/{name}" if year == "." else f"{year}/{folder}/{name}"


def image_of(files: Files, entry: Entry) -> str | None:
    """The image of an entry."""
    year, stem = entry
    return files.image((path_of(year, folder, "").rstrip("/") for folder in IMAGES), stem)


def read_list(files: Files, year: str, kind: str, name: str) -> list[Entry] | None:
    """The images of ``ImageSets/{kind}/{name}.txt``, or None where there is no such list.

    A line is the name of an image with or without its ending, of an image in a folder (``cam0/0001``), or a path
    (``JPEGImages/0001.jpg``); a second word may follow: a map, or the 1, 0 or -1 of VOC's lists of one class.

    Raises:
        InputError: an image stands there twice, two lines mean the same one, or one leads out of the root.
    """
    path = files.root / year / "ImageSets" / kind / f"{name}.txt"
    text = files.text(path)
    if text is None:
        return None
    found: dict[str, tuple[int, str]] = {}
    for number, line in lines(text):
        stems = list(_stems(line))
        stem = next((stem for stem in stems if _there(files, year, kind, stem)), None)
        if stem is None:
            stem = stems[0]
            places = [path_of(year, folder, stem) for folder in _KNOWN] + [line.split()[0]]
            led = files.outside(line, (place + end for place in places for end in ("", ".xml", *ENDINGS)))
            if led:
                raise InputError(f"{path}: line {number} ({line[:60]}) {led}")
        if stem in found:
            first, text = found[stem]
            if text == line:
                raise InputError(f"{path}: {stem} is on lines {first} and {number}: keep one of them")
            raise InputError(
                f"{path}: {text} (line {first}) and {line} (line {number}) both mean the image {stem}: put images and "
                "annotations into the same folders below JPEGImages and Annotations, or give each a name of its own"
            )
        found[stem] = number, line
    return [(year, stem) for stem in found]


def _there(files: Files, year: str, kind: str, stem: str) -> bool:
    """Whether there is anything of that name: an annotation, a map or an image."""
    own = ("SegmentationClass", ".png") if kind == "Segmentation" else ("Annotations", ".xml")
    own_file = path_of(year, own[0], stem + own[1])
    return files.first([own_file]) is not None or image_of(files, (year, stem)) is not None


def _stems(line: str) -> Iterator[str]:
    """What a line may mean, likeliest first: names without ending, relative to JPEGImages."""
    text = line.replace("\\", "/")
    words = text.split()
    forms = [text]
    if len(words) > 1:
        paths = "/" in words[0] or words[0].lower().endswith(ENDINGS)
        forms = [words[0], text] if paths else [text, words[0]]
    seen = dict.fromkeys(stem for form in forms for stem in _relative(form))
    yield from seen


def _relative(path: str) -> Iterator[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    known = [i for i, part in enumerate(parts[:-1]) if part in _KNOWN]
    if known:
        parts = parts[known[-1] + 1 :]
    for first in range(len(parts)):
        yield stem_of("/".join(parts[first:]))
        yield "/".join(parts[first:])


def every(files: Files, folders: Iterable[str], kind: str, names: Sequence[str]) -> Part:
    """Of each year the first of these lists that it has."""
    entries: list[Entry] = []
    lists: list[str] = []
    for year in folders:
        for name in names:
            found = read_list(files, year, kind, name)
            if found is not None:
                entries += found
                lists.append(said(year, kind, name, found))
                break
    return Part(entries, tuple(lists))


def said(year: str, kind: str, name: str, entries: Sequence[Entry]) -> str:
    """A list and how many images it names."""
    return f"{path_of(year, f'ImageSets/{kind}', f'{name}.txt')} ({len(entries):,})"


def lists_there(root: Path, year: str, kind: str) -> str:
    """The lists of a folder, for a message where the right one is missing."""
    folder = root / year / "ImageSets" / kind
    names = sorted(
        path.name for path in folder.glob("*.txt") if not re.search(r"_(train|val|trainval|test)$", path.stem)
    )
    if not names:
        return f"; write the names of its images into {folder}/train.txt and val.txt, one a line"
    return f"; there is {', '.join(names[:5])}: call a list of images to train on train.txt, one to evaluate on val.txt"
