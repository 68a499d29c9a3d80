"""Random images with objects and detections, as COCO's files have them, and sets of the product's own classes.

n  objects or detections of an image     H W  height and width in pixels
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pycocotools import mask as official

from hetcl.datasets import open_detection
from hetcl.datasets.annotations import Annotations, Category, Prediction, Skipped
from hetcl.datasets.packed import PackedDetection, Packer

CLASSES = (
    Category(3, "dog", "c"),
    Category(7, "cat", "r"),
    Category(12, "yak", "f"),
    Category(90, "owl", "f"),
)
"""In the order of their ids, as sets have them; no image has a yak."""
SEEN = (0, 1, 3)


def made(
    truths: Iterable[Annotations], kind: str = "coco", classes: tuple[Category, ...] = CLASSES
) -> PackedDetection:
    """A set of these truths; its images are nowhere."""
    packer = Packer()
    for truth in truths:
        packer.image(truth.image_id, truth.name, truth.size, truth.negative, truth.not_exhaustive)
        for i, id in enumerate(truth.ids):
            packer.add(
                id,
                truth.boxes[i].tolist(),
                int(truth.labels[i]),
                crowd=bool(truth.crowd[i]),
                difficult=bool(truth.difficult[i]),
                area=float(truth.areas[i]),
                segment=truth.segments[i] if truth.segments else None,
            )
    return packer.finish(kind, classes, Path("nowhere"), "made up", Skipped())


def truths_of(data: PackedDetection) -> list[Annotations]:
    return [data.annotations(i) for i in range(len(data))]


def truth_of(image_id: int | str = 1, size: tuple[int, int] = (100, 100), **given: Any) -> Annotations:
    """A truth of ``boxes`` ``[n, 4]`` whose other fields have the plainest values."""
    boxes = np.array(given.pop("boxes", []), dtype=np.float64).reshape(-1, 4)
    n = len(boxes)
    fields: dict[str, Any] = {
        "labels": np.zeros(n, dtype=np.int64),
        "crowd": np.zeros(n, dtype=bool),
        "difficult": np.zeros(n, dtype=bool),
        "areas": (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        "ids": tuple(range(n)),
    }
    fields |= {name: np.array(value) if name in fields else value for name, value in given.items()}
    return Annotations(image_id, f"{image_id}.jpg", size, boxes, **fields)


def said_of(
    image_id: int | str, boxes: Any, scores: Any, labels: Any = None, masks: Any = None
) -> Prediction:
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    labels = np.zeros(len(boxes), dtype=np.int64) if labels is None else np.array(labels, dtype=np.int64)
    return Prediction(image_id, boxes, np.array(scores, dtype=np.float64), labels, masks)


def read_back(data: PackedDetection, entries: Iterable[dict[str, Any]]) -> list[Prediction]:
    """A results file in COCO's format as predictions, best first; images without an entry have none."""
    labels = {category.id: label for label, category in enumerate(data.classes)}
    rows: dict[Any, list[dict[str, Any]]] = {}
    for entry in sorted(entries, key=lambda entry: -entry["score"]):
        rows.setdefault(entry["image_id"], []).append(entry)
    found = []
    for image_id, held in rows.items():
        boxes = np.array([e["bbox"] for e in held])
        boxes[:, 2:] += boxes[:, :2]
        masks = [
            {**e["segmentation"], "counts": e["segmentation"]["counts"].encode()}
            for e in held if "segmentation" in e
        ]  # fmt: skip
        scores, classes = [e["score"] for e in held], [labels[e["category_id"]] for e in held]
        found.append(said_of(image_id, boxes, scores, classes, tuple(masks) or None))
    return found


def random_set(seed: int, count: int = 10, lvis: bool = False) -> tuple[dict[str, Any], list[Prediction]]:
    """COCO's (or LVIS') annotation file as a dict, and detections of it: near misses, duplicates, inventions, ties.

    The first image has no object, the second no prediction, the third a class's detections by the hundred.
    """
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(10, 10 + count)).tolist()
    images, annotations, predictions = [], [], []
    for place, image_id in enumerate(ids):
        size = (int(rng.integers(160, 260)), int(rng.integers(160, 260)))
        objects = [_object(rng, size, lvis) for _ in range(0 if place == 0 else rng.integers(2, 9))]
        for entry in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": size[0], "width": size[1]})
        if lvis:
            images[-1] |= _federated(rng, {entry["category_id"] for entry in objects})
        if place != 1:
            predictions.append(
                _said(rng, image_id, size, objects, (330 if lvis else 130) if place == 2 else 12)
            )
    categories = [{"id": c.id, "name": c.name, "frequency": c.frequency} for c in CLASSES[::-1]]
    raw = {"images": images, "annotations": annotations, "categories": categories}
    return raw, [predictions[place] for place in rng.permutation(len(predictions))]


def read(raw: dict[str, Any], kind: str = "coco") -> PackedDetection:
    """What ``hetcl`` reads of COCO's or LVIS' files: nothing may be lost on the way."""
    with TemporaryDirectory() as folder:
        names = {"coco": "annotations/instances_val2017.json", "lvis": "lvis_v0.5_val.json"}
        for path, content in [(names[kind], json.dumps(raw))] + [
            (f"val2017/{image['file_name']}", "") for image in raw["images"]
        ]:
            (Path(folder) / path).parent.mkdir(exist_ok=True)
            (Path(folder) / path).write_text(content)
        data = open_detection(f"{kind}:{folder}", "val")
    assert isinstance(data, PackedDetection)
    assert data.classes == CLASSES
    assert not data.skipped.counts
    return data


def ellipse(box: Any, size: tuple[int, int]) -> np.ndarray:
    """uint8 ``[H, W]``: the ellipse in a box."""
    left, top, right, bottom = box
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    rx, ry = max(right - left, 1) / 2, max(bottom - top, 1) / 2
    return ((((x - (left + right) / 2) / rx) ** 2 + ((y - (top + bottom) / 2) / ry) ** 2) <= 1).astype(
        np.uint8
    )


def rle(bitmap: np.ndarray) -> dict[str, Any]:
    return official.encode(np.asfortranarray(bitmap, dtype=np.uint8))


def _box(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Small, medium and large ones; some reach over the edge."""
    sides = rng.choice([18, 50, 150]) * rng.uniform(0.6, 1.3, 2)
    corner = rng.uniform(-10, np.array(size[::-1]) - 15)
    return np.concatenate([corner, corner + sides])


def _object(rng: np.random.Generator, size: tuple[int, int], lvis: bool) -> dict[str, Any]:
    box = _box(rng, size)
    left, top, right, bottom = box.tolist()
    crowd = not lvis and rng.random() < 0.2
    bitmap = rle(ellipse(box, size))
    ring = [left, top, right, (top + bottom) / 2, (left + right) / 2, bottom]
    text = {"size": bitmap["size"], "counts": bitmap["counts"].decode()}
    entry = {
        "category_id": CLASSES[rng.choice(SEEN)].id,
        "bbox": [left, top, right - left, bottom - top],
        "area": float(official.area(bitmap)) + 0.25,
        "segmentation": text if crowd or rng.random() < 0.5 else [ring],
    }
    return entry if lvis else entry | {"iscrowd": int(crowd)}


def _federated(rng: np.random.Generator, present: set[int]) -> dict[str, Any]:
    absent = [c.id for c in CLASSES if c.id not in present]
    return {
        "neg_category_ids": [i for i in absent if rng.random() < 0.5],
        "not_exhaustive_category_ids": [i for i in sorted(present) if rng.random() < 0.4],
    }


def _said(
    rng: np.random.Generator,
    image_id: int,
    size: tuple[int, int],
    objects: list[dict[str, Any]],
    inventions: int,
) -> Prediction:
    """Each object found up to twice, more or less, and things that are not there."""
    boxes, labels = [], []
    for entry in objects:
        x, y, w, h = entry["bbox"]
        for _ in range(rng.integers(3)):
            boxes.append(np.array([x, y, x + w, y + h]) + rng.normal(0, 0.05, 4) * np.array([w, h, w, h]))
            labels.append(next(i for i, c in enumerate(CLASSES) if c.id == entry["category_id"]))
    boxes += [_box(rng, size) for _ in range(inventions)]
    labels += [0] * inventions if inventions > 100 else rng.integers(0, 4, inventions).tolist()
    found = np.arange(len(boxes)) < len(boxes) - inventions
    scores = rng.uniform(np.where(found, 0.3, 0), np.where(found, 1, 0.8)).round(1)  # rounded: ties
    order = np.argsort(-scores)
    masks = tuple(rle(ellipse(boxes[place], size)) for place in order)
    return Prediction(image_id, np.array(boxes)[order], scores[order], np.array(labels)[order], masks)
