"""PASCAL VOC's folders and lists of images: one folder a year, a list a part, a name a line.

``ROOT[/VOCdevkit]/VOC2007/{Annotations,JPEGImages,ImageSets/Main}``; any number of years, or the three folders directly
below ``ROOT``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hetcl.datasets.files import ENDINGS, Files, stem_of
from hetcl.datasets.recognise import one_line
from hetcl.datasets.segments import Unusable
from hetcl.errors import InputError
from hetcl.textfiles import lines

IMAGES = ("JPEGImages", "images", "Images")
"""Folders in which images are looked for."""
_KNOWN = (*IMAGES, "Annotations", "SegmentationClass", "SegmentationClassAug", "SegmentationObject")

FLAGS = ("1", "0", "-1")
"""What may stand behind a name in VOC's lists of one class."""

ListEntry = tuple[str, str]
"""Folder of the year (relative to the root), and the image's name without ending, with its folders below JPEGImages."""


@dataclass(frozen=True)
class VocList:
    """The images of a part of a set, and the lists that name them."""

    entries: list[ListEntry]
    lists: tuple[str, ...]
    """Paths of the lists relative to the root, each with its number of images: ``ImageSets/Main/val.txt (200)``."""
    notes: tuple[str, ...] = ()
    """What a person should know of the lists."""


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


def image_of(files: Files, entry: ListEntry) -> str | None:
    """The image of an entry."""
    year, stem = entry
    return files.image((path_of(year, folder, "").rstrip("/") for folder in IMAGES), stem)


def read_list(files: Files, year: str, kind: str, name: str) -> VocList | None:
    """The images of ``ImageSets/{kind}/{name}.txt``, in small or capital letters; None where there is no such list.

    A line is the name of an image with or without its ending, of an image in a folder (``cam0/0001``), or a path
    (``JPEGImages/0001.jpg``). Behind it may stand its map or annotation, VOC's flag (1, 0, -1), or further images. A
    line that begins with ``#`` is a comment.

    Raises:
        InputError: an image stands there twice, two lines mean the same one, a line is something else, or leads out of
            the root.
    """
    folder = path_of(year, "ImageSets", kind)
    wanted = f"{name}.txt"
    there = sorted(files.names(folder), key=lambda file: (file != wanted, file))
    file = next((file for file in there if file.lower() == wanted), None)
    if file is None:
        return None
    path = files.root / folder / file
    written = lines(files.text(path) or "")
    words = [line.split() for _, line in written]
    flagged = all(len(some) < 2 or (len(some) == 2 and some[1] in FLAGS) for some in words)
    reader, several = _Line(files, year, kind, flagged), 0
    found: dict[str, tuple[int, str]] = {}
    for number, line in written:
        try:
            stems = reader.stems(line)
        except Unusable as reason:
            raise InputError(f"{path}: line {number}: {reason}") from reason
        several += len(stems) > 1
        for stem in stems:
            if not _there(files, year, kind, stem):
                places = [path_of(year, folder, stem) for folder in _KNOWN] + line.split()
                led = files.outside(line, (place + end for place in places for end in ("", ".xml", *ENDINGS)))
                if led:
                    raise InputError(f"{path}: line {number} ({line[:60]}) {led}")
            if stem in found:
                first, text = found[stem]
                if text == line:
                    where = f"lines {first} and {number}" if first != number else f"line {number} twice"
                    raise InputError(f"{path}: {stem} is on {where}: keep one of them")
                raise InputError(
                    f"{path}: {text} (line {first}) and {line} (line {number}) both mean the image {stem}: put images "
                    "and annotations into the same folders below JPEGImages and Annotations, or give each a name of "
                    "its own"
                )
            found[stem] = number, line
    relative = f"{folder}/{file}"
    notes = (f"{relative} has lines that name several images ({several:,}): all of them are read",) * (
        several > 0
    )
    return VocList([(year, stem) for stem in found], (f"{relative} ({len(found):,})",), notes)


class _Line:
    """What a line of a list means, by what is there."""

    def __init__(self, files: Files, year: str, kind: str, flagged: bool) -> None:
        self.files, self.year, self.kind, self.flagged = files, year, kind, flagged

    def stems(self, line: str) -> list[str]:
        """The images that a line names; the likeliest name where there is nothing of any.

        Raises:
            Unusable: some of it is an image that is there, and some is not.
        """
        text = line.replace("\\", "/")
        words = text.split()
        whole = self._find(text, words=len(words))
        if whole is not None:
            return [whole]
        if line.startswith("#"):
            return []
        if len(words) > 1:
            return self._several(text, words)
        self._refuse_packed(text)
        return [next(_relative(text), text)]

    def _several(self, text: str, words: list[str]) -> list[str]:
        first = self._find(words[0])
        if len(words) == 2 and words[1] in FLAGS and (self.flagged or self._image(words[1]) is None):
            return [first or next(_relative(words[0]), text)]
        further = [word for word in words[1:] if first is None or first not in _relative(word)]
        others = [self._image(word) for word in further]
        images = [stem for stem in (first, *others) if stem is not None]
        if len(images) == 1 + len(further):
            return list(dict.fromkeys(images))
        named = [word.lower().endswith((*ENDINGS, ".xml")) for word in words]
        if (
            re.match(r"/|[A-Za-z]:/", text)
            and not any(named[:-1])
            and not any(w[0] == "/" for w in words[1:])
        ):
            return [self._find(text) or next(_relative(text), text)]  # a path with spaces in its folders
        self._refuse_packed(text)
        if images:
            odd = next(
                w for w, stem in zip([words[0], *further], [first, *others], strict=True) if stem is None
            )
            raise Unusable(
                f"{odd!r} is no image, no map of the image beside it and no flag (1, 0 or -1): write one name a line"
            )
        if all(named):
            return list(dict.fromkeys(next(_relative(word), word) for word in words))
        return [next(_relative(text), text)]

    def _refuse_packed(self, text: str) -> None:
        """Raises ``Unusable`` for a line of CSV or JSON that holds the name of an image."""
        pieces = [piece for piece in re.split(r"""[\s,;|"'\[\]{}()]+""", text) if piece and piece != text]
        if re.search(r"""[,;|"'\[({]""", text) and any(self._find(piece) for piece in pieces):
            raise Unusable(
                f"{text[:60]!r} looks like CSV or JSON: write names alone, one a line, without commas and quotes"
            )

    def _find(self, text: str, words: int = 1) -> str | None:
        """The first name in a path of which there is anything: an annotation, a map or an image."""
        stems = (stem for stem in _relative(text) if len(stem.split()) == words)
        return next((stem for stem in stems if _there(self.files, self.year, self.kind, stem)), None)

    def _image(self, text: str) -> str | None:
        """The first name in a path that is an image."""
        return next((stem for stem in _relative(text) if image_of(self.files, (self.year, stem))), None)


def _there(files: Files, year: str, kind: str, stem: str) -> bool:
    """Whether there is anything of that name: an annotation, a map or an image."""
    own = ("SegmentationClass", ".png") if kind == "Segmentation" else ("Annotations", ".xml")
    own_file = path_of(year, own[0], stem + own[1])
    return files.first([own_file]) is not None or image_of(files, (year, stem)) is not None


def _relative(path: str) -> Iterator[str]:
    """What a path may mean, likeliest first: names without ending, relative to JPEGImages."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    known = [i for i, part in enumerate(parts[:-1]) if part in _KNOWN]
    if known:
        parts = parts[known[-1] + 1 :]
    for first in range(len(parts)):
        yield stem_of("/".join(parts[first:]))
        yield "/".join(parts[first:])


def together(parts: Iterable[VocList]) -> VocList:
    """Several lists as one part."""
    some = list(parts)
    return VocList(
        [entry for part in some for entry in part.entries],
        tuple(name for part in some for name in part.lists),
        tuple(text for part in some for text in part.notes),
    )


def every(files: Files, folders: Iterable[str], kind: str, names: Sequence[str]) -> VocList:
    """The first of these lists that each year has, put together."""
    found = ((read_list(files, year, kind, name) for name in names) for year in folders)
    return together(part for lists in found if (part := next((p for p in lists if p is not None), None)))


def without(part: VocList, held: Iterable[ListEntry]) -> VocList:
    """One list, trainval, without the images that are for validation, which its words say."""
    gone = set(held)
    kept = [entry for entry in part.entries if entry not in gone]
    n, total = len(kept), len(part.entries)
    if n == total:
        return part
    name, others = part.lists[0].rpartition(" (")[0], "the others" if n else "all"
    return VocList(kept, (f"{name} ({n:,} of {total:,}: {others} are in val.txt too)",), part.notes)


def lists_there(root: Path, year: str, kind: str) -> str:
    """The lists of a folder, for a message where the right one is missing."""
    folder = root / year / "ImageSets" / kind
    names = sorted(
        path.name
        for path in folder.glob("*.[tT][xX][tT]")
        if not re.search(r"_(train|val|trainval|test)$", path.stem)
    )
    if not names:
        return f"; write the names of its images into {folder}/train.txt and val.txt, one a line"
    return f"; there is {', '.join(names[:5])}: call a list of images to train on train.txt, one to evaluate on val.txt"
