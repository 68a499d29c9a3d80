"""Files in COCO's format and the words by which they, or their folders, say which part of a set they are."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from hetcl.datasets.files import Files
from hetcl.errors import InputError

HEAD = 100_000
"""Bytes of a JSON file by which it is judged."""
OTHERS = {"captions", "keypoints", "stuff", "panoptic", "lvis", "info", "results", "predictions", "createml"}
"""A file with such a word in its name holds something else than boxes and masks of objects."""
WORDS = {
    "train": (("train", "training"),),
    "val": (("val", "valid", "validation", "dev"), ("test", "testing")),
}
"""The words by which a part is called, best first; a part for testing stands in for validation where there is none."""
FOLDERS = ("annotations", "annotation", "labels", "ann", "json")
"""Below the root, where files of annotations are looked for, besides the root and folders called as a part."""


@dataclass(frozen=True)
class PartFile:
    """A file of annotations."""

    path: Path
    word: str
    """The part as the file or its folder calls it, with a year where there is one: ``train2017``, ``valid``."""

    def folders(self, root: Path, split: str) -> list[str]:
        """Folders relative to the root in which images may be, likeliest first."""
        own = self.path.parent.relative_to(root).as_posix()
        own = "" if own == "." else own
        places = [f"{split}2017", split, f"images/{split}2017", f"images/{split}", "images", ""]
        places += [self.word, f"images/{self.word}", f"{self.word}/images", f"{self.word}/data", own]
        places += [f"{own}/{name}" if own else name for name in ("images", "data", "JPEGImages", "img")]
        places += ["images/default", "JPEGImages", "img"]
        return list(dict.fromkeys(places))


def is_coco(text: str) -> bool:
    """Whether the beginning of a JSON text can be COCO's format."""
    return '"images"' in text and ('"file_name"' in text or '"coco_url"' in text or '"annotations"' in text)


def tokens(name: str) -> set[str]:
    """The words in a name, in small letters."""
    return set(re.findall(r"[a-z]+", name.lower()))


def head(path: Path) -> str:
    """The beginning of a text file; empty where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(HEAD)
    except OSError:
        return ""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig", errors="replace")


def called(files: Files, words: tuple[str, ...]) -> list[PartFile]:
    """Files of annotations of a part: those of the clearest name, where several are there."""
    root = files.root
    every = [word for groups in WORDS.values() for group in groups for word in group]
    found: list[tuple[bool, PartFile]] = []
    for folder in [root, *(f for f in folders_in(root) if f.name.lower() in (*FOLDERS, *every))]:
        for below in (
            folder,
            *(folders_in(folder) if folder != root and folder.name.lower() in every else ()),
        ):
            for path in sorted(below.glob("*.json")):
                word = _word(path.stem, every) or ("" if folder == root else _word(folder.name, every))
                if not (bare(word) in words and path.is_file()) or tokens(path.stem) & OTHERS:
                    continue
                if is_coco(head(files.alone(path))):
                    found.append((bool(tokens(path.stem) & {"instances", "coco"}), PartFile(path, word)))
    clear = [file for sure, file in found if sure]
    return clear or [file for _, file in found]


def folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _word(name: str, words: list[str]) -> str:
    """The word for a part in a name, with its year, as it is written: ``instances_Train2014`` -> ``Train2014``."""
    for found in re.findall(r"[A-Za-z]+\d*", name):
        if bare(found) in words:
            return str(found)
    return ""


def bare(word: str) -> str:
    """``Train2014`` -> ``train``."""
    return word.lower().rstrip("0123456789")


def parts_of(root: Path) -> dict[str, list[PartFile]]:
    """The files of annotations of each part that is there; none where a link leads out of ``root``."""
    files = Files(root)
    try:
        found = {
            part: [file for words in groups for file in called(files, words)]
            for part, groups in WORDS.items()
        }
    except InputError:
        return {}
    return {part: some for part, some in found.items() if some}


def around(root: Path) -> list[Path]:
    """A folder, and those that it is a part of by its name: ``set/train/annotations``, ``set/train``, ``set``."""
    every = [word for groups in WORDS.values() for group in groups for word in group]
    found = [root]
    while len(found) < 4 and (found[-1].name.lower() in FOLDERS or bare(found[-1].name) in every):
        found.append(found[-1].parent)
    return found
