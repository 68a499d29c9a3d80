"""What lies in a folder that is no data set of the wanted layout: whose files they are, and what makes them right."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from hetcl.datasets.part_files import OTHERS, around, head, is_coco, parts_of, tokens
from hetcl.paths import lies_in

MOST = 3_000
"""Files that are looked at, in a folder and three levels below."""

COCO = "export or convert it to COCO's format: annotations/instances_train.json and instances_val.json"
PACKED = (".zip", ".rar", ".7z", ".tar", ".gz", ".tgz")


def whose_json(text: str) -> str | None:
    """Whose format the beginning of a JSON text is in, in words, with the fix; None for COCO's and unknown ones."""

    def has(*keys: str) -> bool:
        return all(f'"{name}"' in text for name in keys)

    if has("shapes", "imagePath"):
        return "LabelMe's annotations of one image: convert those of each part to one file in COCO's format"
    if has("_via_img_metadata") or has("regions", "filename"):
        return "a project of the VGG Image Annotator: export it as COCO there"
    if has("completed_by", "result") or (has("result") and '"rectanglelabels"' in text):
        return "Label Studio's own JSON: export it there as COCO"
    if has("categories", "items") and not has("images"):
        return "Datumaro's own JSON: convert it with `datum convert -f coco`"
    if has("image", "annotations", "coordinates"):
        return "CreateML's JSON: export it as COCO"
    if has("objects", "classTitle") or has("classes", "projectType"):
        return "Supervisely's JSON: export it there as COCO"
    if has("frames", "objects") or has("imgHeight", "objects"):
        return "JSON of Cityscapes or BDD, not of COCO: convert it"
    if text.lstrip().startswith("[") and has("image_id", "bbox", "score"):
        return "detections in COCO's results format, not annotations: name the file of the annotations"
    if text.lstrip().startswith("[") and has("file_name", "annotations"):
        return (
            "detectron2's list of images: write it out in COCO's format (detectron2's convert_to_coco_json)"
        )
    if has("segments_info"):
        return "COCO's panoptic annotations: take the file instances_... of the same set"
    if has("images", "caption"):
        return "COCO's captions: take the file instances_... of the same set"
    return None


def what_lies_in(root: Path) -> str:
    """A sentence about a folder: the file that was found, whose it is, and the fix; empty where nothing is known."""
    files = list(islice(_below(root), MOST))
    finders = (_layout_of_ours, _coco, _json, _yolo, _xml, _others, _one_below)
    return next((sentence for find in finders if (sentence := find(root, files))), "")


def one_line(root: Path) -> str:
    """``what_lies_in`` to be put behind another sentence."""
    sentence = what_lies_in(root)
    return f"; {sentence}" if sentence else ""


def _below(root: Path) -> Iterator[Path]:
    """Paths of files, relative to ``root``: its own, then those up to three folders down, some of each folder.
    Links that lead out of it are passed over."""
    level, real = [root], os.path.realpath(root)
    for _ in range(4):
        folders = []
        for folder in level:
            try:
                entries = sorted(islice(folder.iterdir(), 300))
            except OSError:
                continue
            entries = [entry for entry in entries if not entry.is_symlink() or lies_in(entry, real)]
            yield from (entry.relative_to(root) for entry in entries if entry.is_file())
            folders += [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        level = folders[:30]


def _layout_of_ours(root: Path, files: list[Path]) -> str:
    for file in files:
        for needle, kind in (("JPEGImages", "voc"), ("leftImg8bit", "cityscapes"), ("gtFine", "cityscapes")):
            if needle in file.parts[:-1] and not any(
                is_coco(head(root / f)) for f in files if f.suffix == ".json"
            ):
                base = root.joinpath(*file.parts[: file.parts.index(needle)])
                return f"its folder {needle} is of {kind}'s layout: name it {kind}:{base}"
        if re.fullmatch(r"lvis_v.*\.json", file.name):
            base = root / file.parent
            return f"found {file}: name it lvis:{base.parent if base.name == 'annotations' else base}"
    return ""


def _coco(root: Path, files: list[Path]) -> str:
    """A set in COCO's format whose files, or folders, say which part they are of: here, or around this folder."""
    for place in around(root):
        parts = parts_of(place)
        if len(parts) > 1:
            return f"its annotations of train and val are in COCO's format: name it coco:{place}"
        for part, (found, *_) in parts.items():
            other = "val" if part == "train" else "train"
            return (
                f"found {os.path.relpath(found.path, root)}, in COCO's format, of the part {part} alone: put "
                f"annotations of {other} beside it, or split it (docs/data.md shows how), and name it coco:{place}"
            )
    return ""


def _json(root: Path, files: list[Path]) -> str:
    for file in islice((f for f in files if f.suffix.lower() == ".json"), 20):
        text = head(root / file)
        whose = whose_json(text)
        if whose:
            return f"found {file}: {whose}"
        if is_coco(text) and tokens(file.stem) & OTHERS:
            return f"found {file}, which is of another kind by its name: take instances_... of the same set"
        if is_coco(text):
            return (
                f"found {file}, which is in COCO's format and names no part: split it into "
                "annotations/instances_train.json and annotations/instances_val.json (docs/data.md shows how)"
            )
    return ""


def _yolo(root: Path, files: list[Path]) -> str:
    for file in files:
        if file.suffix in (".yaml", ".yml") and re.search(r"^names\s*:", head(root / file), re.MULTILINE):
            return f"found {file}: YOLO's layout: {COCO}"
    for file in files:
        if file.name in ("obj.names", "obj.data", "_darknet.labels") or (
            file.suffix == ".txt" and re.match(r"\d+( [\d.]+){4,}\s*$", head(root / file).split("\n")[0])
        ):
            return f"found {file}: YOLO's annotations: {COCO}"
    return ""


def _xml(root: Path, files: list[Path]) -> str:
    for file in islice((f for f in files if f.suffix.lower() == ".xml"), 5):
        text = head(root / file)
        if "<annotations>" in text and "<image " in text:
            return f"found {file}: CVAT's own XML: export it there as 'COCO 1.0'"
        if "<annotation" in text and "<bndbox>" in text:
            return (
                f"found {file}, in VOC's format: put XML files into Annotations/, images into JPEGImages/, the names "
                f"of the images into ImageSets/Main/train.txt and val.txt, and name it voc:{root}"
            )
    return ""


def _others(root: Path, files: list[Path]) -> str:
    for file in files:
        if (
            file.name in ("_annotations.csv", "_classes.csv", "_annotations.txt")
            or file.suffix == ".tfrecord"
        ):
            return f"found {file}: {COCO}"
    packed = next((f for f in files if f.suffix.lower() in PACKED), None)
    return f"found {packed}: unpack it" if packed is not None else ""


def _one_below(root: Path, files: list[Path]) -> str:
    return "" if files else "there are no files in it, up to three folders down"
