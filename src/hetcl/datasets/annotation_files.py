"""Where a set in COCO's format has the annotations of a part, and where its images may be: COCO's own layout, and those
that annotation tools export."""

from __future__ import annotations

from pathlib import Path

from hetcl.datasets.files import Files
from hetcl.datasets.part_files import WORDS, PartFile, called, folders_in
from hetcl.datasets.recognise import one_line
from hetcl.errors import InputError


def annotation_file(files: Files, split: str) -> PartFile:
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
            return PartFile(root / name, f"{split}2017" if "2017" in name else split)
    for words in WORDS[split]:
        found = called(files, words)
        if len(found) > 1:
            listed = " and ".join(file.path.relative_to(root).as_posix() for file in found[:4])
            raise InputError(
                f"{root}: {listed} may all be the annotations of {split}: call the right one {names[1]}, or move the "
                "others away"
            )
        if found:
            return found[0]
    others = [file for o in WORDS if o != split for words in WORDS[o] for file in called(files, words)]
    hint = _alone(root, others[0], split) if others else _below(root) or one_line(root)
    raise InputError(f"{root}: has neither {' nor '.join(names)}{hint}")


def _alone(root: Path, other: PartFile, split: str) -> str:
    """A hint where one part alone is there."""
    where, beside = other.path.relative_to(root).as_posix(), {"train": "train", "val": "valid"}[split]
    return (
        f"; it has {where} alone, of the other part: put that of {split} beside it as "
        f"annotations/instances_{split}.json, or into a folder {beside}/ with its images, or split the one that is "
        "there (docs/data.md shows how)"
    )


def _below(root: Path) -> str:
    """A hint where the set lies a folder further down."""
    for folder in folders_in(root):
        names = [f"annotations/instances_{split}{year}.json" for split in WORDS for year in ("", "2017")]
        if any((folder / name).is_file() for name in names) or any(
            called(Files(folder), words) for group in WORDS.values() for words in group
        ):
            return f"; it lies in {folder.name}: name it coco:{folder}"
    return ""
