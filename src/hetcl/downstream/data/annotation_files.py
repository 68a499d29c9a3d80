"""Where a set in COCO's format has the annotations of a part, and where its images may be: COCO's own layout, and those
that annotation tools export."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hetcl.downstream.data.files import Files
from hetcl.downstream.data.recognise import OTHERS, head, is_coco, one_line, tokens
from hetcl.errors import InputError

WORDS = {
    "train": (("train", "training"),),
    "val": (("val", "valid", "validation", "dev"), ("test", "testing")),
}
"""The words by which a part is called, best first; a part for testing stands in for validation where there is none."""
FOLDERS = ("annotations", "annotation", "labels", "ann", "json")
"""Below the root, where files of annotations are looked for, besides the root and folders called as a part."""


@dataclass(frozen=True)
class Found:
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


def annotation_file(files: Files, split: str) -> Found:
    """The annotations of ``train`` or ``val``.

    ``annotations/instances_{split}2017.json`` or ``instances_{split}.json``; else the JSON file whose name, or whose
    folder's, says that it is of this part: ``train/_annotations.coco.json``, ``instances_Validation.json``.

    Raises:
        InputError: there is none, or more than one.
    """
    root = files.root
    names = [f"annotations/instances_{split}2017.json", f"annotations/instances_{split}.json"]
    for name in names:
        if (root / name).is_file():
            return Found(root / name, f"{split}2017" if "2017" in name else split)
    for words in WORDS[split]:
        found = _called(files, words)
        if len(found) > 1:
            listed = " and ".join(file.path.relative_to(root).as_posix() for file in found[:4])
            raise InputError(
                f"{root}: {listed} may all be the annotations of {split}: call the right one {names[1]}, or move the "
                "others away"
            )
        if found:
            return found[0]
    other = next((o for o in WORDS if o != split and any(_called(files, words) for words in WORDS[o])), "")
    hint = f"; it has annotations of {other} alone" if other else _below(root) or one_line(root)
    raise InputError(f"{root}: has neither {' nor '.join(names)}{hint}")


def _below(root: Path) -> str:
    """A hint where the set lies a folder further down."""
    for folder in _folders(root):
        names = [f"annotations/instances_{split}{year}.json" for split in WORDS for year in ("", "2017")]
        if any((folder / name).is_file() for name in names) or any(
            _called(Files(folder), words) for group in WORDS.values() for words in group
        ):
            return f"; it lies in {folder.name}: name it coco:{folder}"
    return ""


def _called(files: Files, words: tuple[str, ...]) -> list[Found]:
    """Files of annotations of a part: those of the clearest name, where several are there."""
    root = files.root
    every = [word for groups in WORDS.values() for group in groups for word in group]
    found: list[tuple[bool, Found]] = []
    for folder in [root, *(f for f in _folders(root) if f.name.lower() in (*FOLDERS, *every))]:
        for below in (folder, *(_folders(folder) if folder != root and folder.name.lower() in every else ())):
            for path in sorted(below.glob("*.json")):
                word = _word(path.stem, every) or ("" if folder == root else _word(folder.name, every))
                if not (bare(word) in words and path.is_file()) or tokens(path.stem) & OTHERS:
                    continue
                if is_coco(head(files.alone(path))):
                    found.append((bool(tokens(path.stem) & {"instances", "coco"}), Found(path, word)))
    clear = [file for sure, file in found if sure]
    return clear or [file for _, file in found]


def _folders(folder: Path) -> list[Path]:
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
