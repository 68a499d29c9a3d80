"""COCO's layout, and any set in it: one JSON file a split, pictures in a folder (cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetcl.downstream.data import segments
from hetcl.downstream.data.files import Files, read_json
from hetcl.downstream.data.packed import PackedDetection, Packer, box_fault
from hetcl.downstream.objects import Category, Skipped
from hetcl.errors import InputError

Locate = Callable[[dict[str, Any]], Iterable[str]]
"""An entry of ``images`` -> where its picture may be, relative to the root, likeliest first."""


def coco_detection(root: Path, split: str) -> PackedDetection:
    """Open ``annotations/instances_{split}2017.json`` or ``instances_{split}.json``.

    Pictures are looked for in ``{split}2017/``, ``{split}/`` and ``images/``. Raises ``InputError``.
    """
    names = [f"annotations/instances_{split}2017.json", f"annotations/instances_{split}.json"]
    path = first_file(root, names)
    folders = [f"{split}2017", split, f"images/{split}2017", f"images/{split}", "images", ""]

    def locate(image: dict[str, Any]) -> Iterable[str]:
        return (f"{folder}/{image['file_name']}".removeprefix("/") for folder in folders)

    return Instances(path, read_json(path)).pack("coco", root, locate, f"{split}2017/, {split}/ or images/")


def first_file(root: Path, names: list[str]) -> Path:
    """The first of these files below ``root``. Raises ``InputError`` that names them."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise InputError(f"{root}: has neither {' nor '.join(names)}")


@dataclass
class Instances:
    """A document in COCO's format, being read."""

    path: Path
    document: dict[str, Any]

    def __post_init__(self) -> None:
        for key in ("images", "annotations", "categories"):
            if not isinstance(self.document.get(key), list):
                raise InputError(f"{self.path}: has no list {key!r}: is it in COCO's format?")
        self.skipped = Skipped()
        self.classes = self._categories()
        self._label: dict[int | str | None, int] = {category.id: i for i, category in enumerate(self.classes)}

    def pack(self, kind: str, root: Path, locate: Locate, folders: str) -> PackedDetection:
        """Check everything and pack it.

        Args:
            locate: where a picture may be.
            folders: the same in words, for the message when no picture is there.

        Raises:
            InputError: ids that stand twice, no pictures, or nothing that can be used.
        """
        images = self._images()
        if not images:
            raise InputError(f"{self.path}: lists no images")
        objects = self._annotations(images)
        files, packer = Files(root), Packer()
        for key, image in images.items():
            size = self._size(image)
            if size is None:
                self._skip("image without a usable file_name, width and height", f"image {key}")
                continue
            name = files.first(locate(image))
            if name is None:
                self._skip("picture not found", f"image {key} ({image['file_name']})")
                continue
            absent, partly = (
                self._labels(image, field) for field in ("neg_category_ids", "not_exhaustive_category_ids")
            )
            packer.picture(key, name, size, absent, partly)
            for annotation in objects.get(key, ()):
                self._add(packer, annotation, size)
        if not packer.names and "picture not found" in self.skipped.counts:
            example = self.skipped.examples["picture not found"][0]
            raise InputError(f"{self.path}: none of its pictures is in {folders} of {root} (e.g. {example})")
        return packer.finish(kind, self.classes, root, str(self.path), self.skipped)

    def _skip(self, reason: str, what: str) -> None:
        self.skipped.add(reason, f"{self.path.name}, {what}")

    def _categories(self) -> tuple[Category, ...]:
        """The classes in order of id; a name that stands twice is told apart by its id."""
        names: dict[int, tuple[str, str]] = {}
        for i, entry in enumerate(self.document["categories"]):
            key = _key(entry, "id")
            if not isinstance(key, int):
                raise InputError(f"{self.path}: categories[{i}] has no whole number as id")
            name = entry.get("name") or (entry.get("synonyms") or [f"class {key}"])[0]
            if key in names:
                raise InputError(
                    f"{self.path}: categories {names[key][0]!r} and {name!r} both have the id {key}"
                )
            names[key] = str(name), str(entry.get("frequency", ""))
        if not names:
            raise InputError(f"{self.path}: lists no categories")
        all_names = [name for name, _ in names.values()]
        return tuple(
            Category(key, name if all_names.count(name) == 1 else f"{name} ({key})", frequency)
            for key, (name, frequency) in sorted(names.items())
        )

    def _images(self) -> dict[int | str, dict[str, Any]]:
        images: dict[int | str, dict[str, Any]] = {}
        for i, image in enumerate(self.document["images"]):
            key = _key(image, "id")
            if key is None:
                raise InputError(f"{self.path}: images[{i}] has no number or text as id")
            if key in images:
                both = " and ".join(repr(one.get("file_name")) for one in (images[key], image))
                raise InputError(f"{self.path}: images {both} both have the id {key}: give each its own")
            images[key] = image
            if isinstance(image.get("coco_url"), str):  # LVIS v1 has no file_name
                image.setdefault("file_name", image["coco_url"].rsplit("/", 1)[-1])
        return images

    def _annotations(self, images: dict[int | str, dict[str, Any]]) -> dict[int | str, list[dict[str, Any]]]:
        """The annotations of each image, as far as image and category are known."""
        objects: dict[int | str, list[dict[str, Any]]] = {}
        seen: dict[int | str, int] = {}
        for i, entry in enumerate(self.document["annotations"]):
            key = _key(entry, "id")
            if key is None:
                self._skip("annotation without a number or text as id", f"annotations[{i}]")
                continue
            if key in seen:
                first = f"annotations[{seen[key]}] and annotations[{i}]"
                raise InputError(f"{self.path}: {first} both have the id {key}: give each its own")
            seen[key] = i
            image, category = _key(entry, "image_id"), _key(entry, "category_id")
            if image is None or image not in images:
                self._skip("annotation of an unknown image", f"annotation {key} (image {image})")
            elif category not in self._label:
                self._skip("annotation of an unknown category", f"annotation {key} (category {category})")
            else:
                objects.setdefault(image, []).append(entry)
        return objects

    @staticmethod
    def _size(image: dict[str, Any]) -> tuple[int, int] | None:
        """Height and width, or None when they or the name cannot be used."""
        sides = [image.get("height"), image.get("width")]
        if not isinstance(image.get("file_name"), str) or not all(
            isinstance(side, int | float) and 1 <= side < 1 << 20 and side == int(side) for side in sides
        ):
            return None
        height, width = map(int, sides)  # type: ignore[arg-type]
        return height, width

    def _labels(self, image: dict[str, Any], field: str) -> list[int]:
        """LVIS's lists of categories for an image, as labels."""
        labels = []
        for category in image.get(field) or ():
            if isinstance(category, int) and category in self._label:
                labels.append(self._label[category])
            else:
                self._skip(f"unknown category in {field}", f"image {image['id']} (category {category})")
        return labels

    def _add(self, packer: Packer, annotation: dict[str, Any], size: tuple[int, int]) -> None:
        """Check an annotation and pack it, or count it as left out."""
        what = f"annotation {annotation['id']}"
        try:
            box = _box(annotation.get("bbox"), size)
            segment = segments.parse(
                annotation.get("segmentation"), size, lambda reason: self._skip(reason, what)
            )
        except segments.Unusable as reason:
            self._skip(str(reason), what)
            return
        area = annotation.get("area")
        usable = isinstance(area, int | float) and 0 <= area < float("inf")
        packer.add(
            _key(annotation, "id") or 0,
            box,
            self._label[_key(annotation, "category_id")],
            crowd=annotation.get("iscrowd") == 1,
            area=float(area) if usable else None,  # type: ignore[arg-type]
            segment=segment,
        )


def _key(entry: Any, field: str) -> int | str | None:
    """An id: a whole number or text; else None."""
    value = entry.get(field) if isinstance(entry, dict) else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) else None


def _box(bbox: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """COCO's left, top, width, height -> left, top, right, bottom. Raises ``Unusable``."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(v, int | float) for v in bbox):
        raise segments.Unusable("annotation without a bbox of four numbers")
    try:
        left, top, width, height = map(float, bbox)
    except OverflowError:
        left = top = width = height = float("inf")
    if width <= 0 or height <= 0:
        raise segments.Unusable("box of zero or negative size")
    box = (left, top, left + width, top + height)
    fault = box_fault(box, size)
    if fault:
        raise segments.Unusable(fault)
    return box
