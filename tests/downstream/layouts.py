"""Small data sets in the true published layouts, made of the built-in scenes.

Image ``i`` of a split is the scene ``scene_of(split, i, size)``, so a test can compare what was read with what was
drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hetcl.datasets.masks import encode
from hetcl.images.scenes import CLASSES, Scene, scene

SIZE = 64
SEEDS = {"train": 11, "val": 12}

CITY_OF_CLASS = (24, 25, 26, 27, 28, 31, 32, 33, 29, 23)
"""Cityscapes label of each of the scenes' ten classes: the eight things, a caravan and the sky, which are no things."""
ROAD = 7

VOC_NAMES = tuple(name.replace(" ", "-") for name in CLASSES)


def scene_of(split: str, index: int, size: int = SIZE) -> Scene:
    """The scene behind an image."""
    return scene(index, seed=SEEDS[split], size=size)


def _splits(train: int, val: int, size: int) -> Iterator[tuple[str, int, Scene]]:
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            yield split, index, scene_of(split, index, size)


def save(path: Path, pixels: np.ndarray) -> Path:
    """Write an image, JPEG or PNG by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)
    return path


def rectangles(mask: np.ndarray) -> list[list[float]]:
    """Polygons whose union is exactly a bitmap ``[H, W]``: equal runs of neighbouring columns as one rectangle."""
    polygons, open_runs = [], {}
    for x in range(mask.shape[1] + 1):
        column = np.zeros(len(mask), np.int8) if x == mask.shape[1] else mask[:, x].astype(np.int8)
        edges = np.flatnonzero(np.diff(column, prepend=0, append=0))
        runs = {(int(t), int(b)) for t, b in zip(edges[::2], edges[1::2], strict=True)}
        for top, bottom in [run for run in open_runs if run not in runs]:
            left = open_runs.pop((top, bottom))
            polygons.append([float(v) for v in (left, top, x, top, x, bottom, left, bottom)])
        for run in runs:
            open_runs.setdefault(run, x)
    return polygons


def runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a bitmap, zeros first, column by column; counted one by one."""
    counts, last = [0], 0
    for value in mask.T.reshape(-1).tolist():
        if int(value) == last:
            counts[-1] += 1
        else:
            counts.append(1)
            last = int(value)
    return counts


def segmentation(mask: np.ndarray, form: str) -> Any:
    """A bitmap as a COCO annotation writes it: ``polygons``, ``rle`` or ``uncompressed``."""
    if form == "polygons":
        return rectangles(mask)
    size = [int(side) for side in mask.shape]
    if form == "uncompressed":
        return {"size": size, "counts": runs(mask)}
    return {"size": size, "counts": encode(mask)["counts"].decode()}


def coco_document(scenes: list[tuple[str, Scene]], masks: str | None, crowd: bool = False) -> dict[str, Any]:
    """A document in COCO's format.

    Args:
        scenes: name of the image's file, and what is in it.
        masks: form of the segmentations; ``mixed`` takes turns; None leaves them out.
        crowd: flag the last object of every second image as a crowd (those are always run lengths).
    """
    images, annotations = [], []
    forms = ("polygons", "rle", "uncompressed") if masks == "mixed" else (masks,)
    for number, (name, drawn) in enumerate(scenes):
        height, width = drawn.masks.shape[1:]
        images.append({"id": 100 + number, "file_name": name, "height": height, "width": width})
        for i, (box, label) in enumerate(zip(drawn.boxes.tolist(), drawn.labels.tolist(), strict=True)):
            is_crowd = crowd and number % 2 == 1 and i == len(drawn.labels) - 1
            entry = {
                **{"id": len(annotations) + 1, "image_id": 100 + number, "category_id": 3 * label + 1},
                **{"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "iscrowd": int(is_crowd)},
                "area": float(drawn.masks[i].sum()),
            }
            if masks is not None:
                form = "uncompressed" if is_crowd else forms[len(annotations) % len(forms)]
                entry["segmentation"] = segmentation(drawn.masks[i], str(form))
            annotations.append(entry)
    categories = [{"id": 3 * i + 1, "name": name} for i, name in enumerate(CLASSES)]
    categories.reverse()  # the order is that of the ids, not of the file
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def write_coco(
    root: Path,
    *,
    train: int = 6,
    val: int = 3,
    size: int = SIZE,
    masks: str | None = "mixed",
    crowd: bool = False,
    plain: bool = False,
) -> Path:
    """COCO 2017's folders, or with ``plain`` the ``instances_{split}.json`` and ``images/`` of other sets.

    See ``coco_document`` for ``masks`` and ``crowd``.
    """
    scenes: dict[str, list[tuple[str, Scene]]] = {"train": [], "val": []}
    for split, index, drawn in _splits(train, val, size):
        name = f"{split}-{index}.jpg" if plain else f"{(split == 'val') * 500 + index:012d}.jpg"
        save(root / ("images" if plain else f"{split}2017") / name, drawn.pixels)
        scenes[split].append((name, drawn))
    for split, listed in scenes.items():
        name = f"instances_{split}{'' if plain else '2017'}.json"
        write_json(root / "annotations" / name, coco_document(listed, masks, crowd))
    return root


def write_lvis(root: Path, *, version: str = "v0.5", train: int = 6, val: int = 3, size: int = SIZE) -> Path:
    """LVIS ``v0.5`` or ``v1`` over COCO's folders; ``v1`` has its validation images in ``train2017/``, as some are.

    Classes are ``r``, ``c`` and ``f`` in turn. Of the classes that are not in an image, every second is known to be
    absent; the first class of an image is not annotated exhaustively.
    """
    scenes: dict[str, list[tuple[str, Scene]]] = {"train": [], "val": []}
    for split, index, drawn in _splits(train, val, size):
        folder = "train2017" if version == "v1" else f"{split}2017"
        name = f"{(split == 'val') * 500 + index:012d}.jpg"
        save(root / folder / name, drawn.pixels)
        scenes[split].append((f"{folder}/{name}", drawn))
    for split, listed in scenes.items():
        document = coco_document(listed, "polygons")
        for entry, (path, drawn) in zip(document["images"], listed, strict=True):
            if version == "v1":
                del entry["file_name"]
                entry["coco_url"] = f"http://images.cocodataset.org/{path}"
            else:
                entry["file_name"] = f"COCO_val2014_{path[-16:]}"
            present = set(drawn.labels.tolist())
            absent = [label for label in range(len(CLASSES)) if label not in present][::2]
            entry["neg_category_ids"] = [3 * label + 1 for label in absent]
            entry["not_exhaustive_category_ids"] = [3 * int(drawn.labels[0]) + 1]
        for category in document["categories"]:
            category["frequency"] = "rcf"[category["id"] // 3 % 3]
        for annotation in document["annotations"]:
            del annotation["iscrowd"]
        write_json(root / f"lvis_{version}_{split}.json", document)
    return root


def write_json(path: Path, document: Any) -> Path:
    """Write a document, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def voc_xml(name: str, drawn: Scene, difficult: bool = False) -> str:
    """VOC's XML of a scene: pixel indices from 1, both ends included; with ``difficult`` the last object is."""
    height, width = drawn.masks.shape[1:]
    lines = [f"<annotation><folder>VOC2007</folder><filename>{name}.jpg</filename>"]
    lines.append(f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    for i, (box, label) in enumerate(
        zip(drawn.boxes.astype(int).tolist(), drawn.labels.tolist(), strict=True)
    ):
        left, top, right, bottom = box
        edges = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        hard = int(difficult and i == len(drawn.labels) - 1)
        lines.append(
            f"<object><name>{VOC_NAMES[label]}</name><truncated>0</truncated><difficult>{hard}</difficult>"
            f"<bndbox>{edges}</bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        )
    return "\n".join([*lines, "</annotation>\n"])


def voc_map(drawn: Scene) -> np.ndarray:
    """VOC's class of each pixel, uint8 ``[H, W]``: 0, then the scenes' classes from 1; 255 along the objects' edges."""
    number = (drawn.masks * np.arange(1, len(drawn.masks) + 1)[:, None, None]).sum(0)
    out = (drawn.masks * (drawn.labels + 1)[:, None, None]).sum(0).astype(np.uint8)
    border = np.zeros(out.shape, bool)
    border[:, 1:] |= number[:, 1:] != number[:, :-1]
    border[1:] |= number[1:] != number[:-1]
    out[border] = 255
    return out


def save_indices(path: Path, values: np.ndarray) -> Path:
    """Write uint8 ``[H, W]`` as a palette PNG; the colours are not the indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values).convert("L")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    assert image.mode == "P"
    image.save(path)
    return path


def write_voc(
    root: Path,
    *,
    train: int = 6,
    val: int = 3,
    size: int = SIZE,
    years: tuple[str, ...] = ("VOC2007", "VOC2012"),
    devkit: bool = True,
    difficult: bool = False,
    names: bool = True,
) -> Path:
    """VOC's development kit.

    Training images are dealt to the years in turn: ``trainval`` of all of them; the first year's ``test`` is the
    validation split when it is 2007, else ``val`` of the first year is. Pixels are in the last year: all images have
    maps there, ``train`` and ``val``. ``names`` writes ``classes.txt``.
    """
    base = root / "VOCdevkit" if devkit else root
    tested = years[0] == "VOC2007"
    listed: dict[tuple[str, str], list[str]] = {}
    for split, index, drawn in _splits(train, val, size):
        year = years[index % len(years)] if split == "train" else years[0]
        name = (
            f"{split == 'val':d}{index:05d}" if year == "VOC2007" else f"2012_{split == 'val':d}{index:05d}"
        )
        lists = ("train", "trainval") if split == "train" else (("test",) if tested else ("val", "trainval"))
        for kind in lists:
            listed.setdefault((f"{year}/ImageSets/Main", kind), []).append(name)
        path = base / year / "Annotations" / f"{name}.xml"
        save(base / year / "JPEGImages" / f"{name}.jpg", drawn.pixels)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc_xml(name, drawn, difficult))
        mapped = f"{split}_{index:06d}"
        save(base / years[-1] / "JPEGImages" / f"{mapped}.jpg", drawn.pixels)
        save_indices(base / years[-1] / "SegmentationClass" / f"{mapped}.png", voc_map(drawn))
        listed.setdefault((f"{years[-1]}/ImageSets/Segmentation", split), []).append(mapped)
    for (folder, kind), stems in listed.items():
        (base / folder).mkdir(parents=True, exist_ok=True)
        (base / folder / f"{kind}.txt").write_text("\n".join(stems) + "\n")
    if names:
        (root / "classes.txt").write_text("\n".join(["background", *VOC_NAMES]) + "\n")
    return root


def city_maps(drawn: Scene, group: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Cityscapes' instance ids (uint16) and label ids (uint8); with ``group`` the last object has no number."""
    labels = np.full(drawn.masks.shape[1:], ROAD, np.uint8)
    instances = labels.astype(np.uint16)
    for i, (mask, label) in enumerate(zip(drawn.masks, drawn.labels.tolist(), strict=True)):
        value = CITY_OF_CLASS[label]
        labels[mask] = value
        numbered = value >= 24 and not (group and i == len(drawn.labels) - 1)
        instances[mask] = 1000 * value + i if numbered else value
    return instances, labels


def write_cityscapes(
    root: Path, *, train: int = 6, val: int = 3, size: int = SIZE, groups: bool = False
) -> Path:
    """Cityscapes' folders, two cities a split; with ``groups`` the last object of every second image is a group."""
    cities = {"train": ("aachen", "zurich"), "val": ("frankfurt", "lindau")}
    for split, index, drawn in _splits(train, val, size):
        # Listed by city and name: the first half of the images is in the first city.
        city = cities[split][index >= ((train if split == "train" else val) + 1) // 2]
        stem = f"{city}_{index:06d}_000019"
        save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", drawn.pixels)
        instances, labels = city_maps(drawn, groups and index % 2 == 1)
        save(root / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png", instances)
        save(root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", labels)
    return root
