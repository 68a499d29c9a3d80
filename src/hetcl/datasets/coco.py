"""COCO's layout, and any set in it: one JSON file a split, images in a folder (cocodataset.org/#format-data)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetcl.datasets import segments, values
from hetcl.datasets.annotation_files import annotation_file
from hetcl.datasets.annotations import Segment, Skipped
from hetcl.datasets.categories import categories
from hetcl.datasets.conventions import SIDES, Boxes
from hetcl.datasets.files import ENDINGS, Files, read_json
from hetcl.datasets.masks import box_of
from hetcl.datasets.packed import PackedDetection, Packer, box_fault
from hetcl.datasets.part_files import WORDS, around, bare, head
from hetcl.datasets.recognise import whose_json
from hetcl.datasets.sizes import check_sizes, stored
from hetcl.datasets.values import Ids, Key
from hetcl.errors import InputError
from hetcl.textfiles import strip

Locate = Callable[[dict[str, Any]], Iterable[str]]
"""An entry of ``images`` -> where its image may be, relative to the root, likeliest first."""
NAMES = ("file_name", "filename", "path")
"""What tools call the name of an image's file."""


def coco_detection(files: Files, split: str) -> PackedDetection:
    """Open the annotations that :func:`annotation_file` finds, ``annotations/instances_{split}2017.json`` above all.

    Images are looked for in ``{split}2017/``, ``{split}/``, ``images/``, beside the annotations, and where else tools
    put them. Raises ``InputError``.
    """
    found = annotation_file(files, split)
    folders = found.folders(files.root, split)

    def locate(image: dict[str, Any]) -> Iterable[str]:
        return (f"{folder}/{image['file_name']}".removeprefix("/") for folder in folders)

    document = Instances(found.path, read_json(files, found.path))
    if split == "val" and bare(found.word) in WORDS["val"][1]:
        document.skipped.remark(
            f"{found.path.name}: there is no part for validation; that for testing is taken"
        )
    return document.pack("coco", files, locate, folders)


@dataclass
class Instances:
    """A document in COCO's format, being read."""

    path: Path
    document: dict[str, Any]

    def __post_init__(self) -> None:
        self._check_format()
        self.skipped = Skipped()
        self.classes, self._classes = categories(self.path, self.document["categories"], self.skipped)
        self._label = {category.id: i for i, category in enumerate(self.classes)}
        self.boxes = Boxes(SIDES)

    def _check_format(self) -> None:
        """Raises ``InputError``, with whose format it is where that can be told."""
        if isinstance(self.document, dict):
            keys = ("images", "annotations", "categories")
            lacking = [key for key in keys if not isinstance(self.document.get(key), list)]
            if not lacking:
                return
            fault = f"has no list {lacking[0]!r}: is it in COCO's format?"
            if lacking == ["annotations"]:
                fault = "has no list 'annotations': a part for testing has none; take one that is annotated"
        else:
            fault = f"holds a {type(self.document).__name__}, not a JSON object with images, annotations and categories"
        whose = whose_json(head(self.path))
        raise InputError(f"{self.path}: {fault}" + (f"; it looks like {whose}" if whose else ""))

    def pack(self, kind: str, files: Files, locate: Locate, folders: Sequence[str]) -> PackedDetection:
        """Check everything and pack it.

        Args:
            locate: where an image may be.
            folders: where files are looked for that are called otherwise than the document says, and the places that
                a message names when no image is there.

        Raises:
            InputError: ids that stand twice, no images, boxes in another convention, files outside of the root, or
                nothing that can be used.
        """
        root = files.root
        images = self._images()
        if not images:
            raise InputError(f"{self.path}: lists no images")
        objects = self._annotations(images)
        packer = Packer()
        names = self._files(images, files, locate, folders)
        for key, image in images.items():
            if key not in names:
                continue
            size = self._size(image, root, names[key])
            if size is None:
                what = f"image {key} ({names[key]})"
                self._skip("image without a usable file_name, width and height", what)
                continue
            absent, partly = (
                self._labels(image, field) for field in ("neg_category_ids", "not_exhaustive_category_ids")
            )
            packer.image(key, names[key], size, absent, partly)
            for number, label, annotation in objects.get(key, ()):
                self._add(packer, number, label, annotation, size, image["file_name"])
        if not packer.names and "image not found" in self.skipped.counts:
            example = self.skipped.examples["image not found"][0]
            places = " or ".join(f"{folder}/" for folder in folders[:5] if folder)
            deep = f"; if they lie beside that folder, name it {kind}:{root.parent}" * (len(around(root)) > 1)
            raise InputError(
                f"{self.path}: none of its images is in {places} of {root} (e.g. {example}){deep}"
            )
        check_sizes(root, packer.names, packer.image_sizes(), str(self.path), self.skipped, packer.slack)
        self._judge()
        return packer.finish(kind, self.classes, root, str(self.path), self.skipped)

    def _judge(self) -> None:
        """Whether the boxes are in COCO's convention. Raises ``InputError`` when they surely are not."""
        verdict = self.boxes.verdict()
        if verdict is not None and verdict.certain:
            raise InputError(f"{self.path}: {verdict.text}")
        if verdict is not None:
            self.skipped.remark(f"{self.path.name}: {verdict.text}")

    def _skip(self, reason: str, what: str) -> None:
        self.skipped.add(reason, f"{self.path.name}, {what}")

    def _keep(self, reservation: str, what: str) -> None:
        self.skipped.keep(reservation, f"{self.path.name}, {what}")

    # ---- images ------------------------------------------------------------------------------------------------

    def _images(self) -> dict[Key, dict[str, Any]]:
        images: dict[Key, dict[str, Any]] = {}
        for i, image in enumerate(self.document["images"]):
            key = values.key(image.get("id")) if isinstance(image, dict) else None
            if key is None:
                raise InputError(f"{self.path}: images[{i}] has no number or text as id")
            name = next((image[name] for name in NAMES if isinstance(image.get(name), str)), None)
            if name is None and isinstance(image.get("coco_url"), str):  # LVIS v1 has no file_name
                name = image["coco_url"].rsplit("/", 1)[-1]
            if key in images:
                both = " and ".join(repr(one) for one in (images[key]["file_name"], name))
                raise InputError(f"{self.path}: images {both} both have the id {key}: give each its own")
            images[key] = image | {"file_name": name}
        return images

    def _files(
        self, images: dict[Key, dict[str, Any]], files: Files, locate: Locate, folders: Sequence[str]
    ) -> dict[Key, str]:
        """The file of each image; what is not found is counted."""
        found: dict[Key, str] = {}
        owners: dict[str, Key] = {}
        otherwise: list[Key] = []
        for key, image in images.items():
            if image["file_name"] is None:
                self._skip("image without a usable file_name, width and height", f"image {key}")
                continue
            name = files.first(locate(image))
            if name is None:
                otherwise.append(key)
            else:
                plain = os.path.normpath(name) if "./" in name or "//" in name else name
                self._claim(key, plain, found, owners, images)
        meant = {key: files.like(folders, images[key]["file_name"]) for key in otherwise}
        wanted = {name: {images[owner]["file_name"]} for name, owner in owners.items()}
        for key, name in meant.items():
            if name is not None:
                wanted.setdefault(name, set()).add(images[key]["file_name"])
        for key, name in meant.items():
            asked = images[key]["file_name"]
            if name is None:
                if led := files.outside(asked, locate(images[key])):
                    raise InputError(f"{self.path}: image {key} ({asked}) {led}")
                self._skip("image not found", f"image {key} ({asked}){self._near(files, folders, asked)}")
            elif len(wanted[name]) > 1:
                other = min(wanted[name] - {asked})
                self._skip("image not found", f"image {key} ({asked}; {name} may be {other} as well)")
            else:
                self._keep("image whose file is called otherwise", f"{asked} is {name}")
                self._claim(key, name, found, owners, images)
        return found

    def _claim(
        self, key: Key, name: str, found: dict[Key, str], owners: dict[str, Key], images: dict[Key, Any]
    ) -> None:
        if name in owners:
            self._keep(
                "image that is listed again: the objects of each entry are background in the other; join them",
                f"{images[key]['file_name']} as image {owners[name]} and {key}",
            )
        owners.setdefault(name, key)
        found[key] = name

    @staticmethod
    def _near(files: Files, folders: Sequence[str], asked: str) -> str:
        """A hint where the same name has another ending."""
        stem = asked.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
        near = files.image(folders, stem) if stem else None
        return f"; there is {near}" if near else ""

    def _size(self, image: dict[str, Any], root: Path, name: str) -> tuple[int, int] | None:
        """Height and width: the document's, else those of the file; None when there are none."""
        stated = values.sides(image.get("height"), image.get("width"))
        if stated is not None:
            return stated
        size = stored(root, name)
        if size is None:
            return None
        self._keep("image without a usable width and height: its file's are taken", image["file_name"])
        return size[0]

    def _labels(self, image: dict[str, Any], field: str) -> list[int]:
        """LVIS's lists of categories for an image, as labels."""
        labels, listed = [], image.get(field) or ()
        if not isinstance(listed, list | tuple):
            self._keep(f"{field} that is no list, taken for empty", image["file_name"])
            return []
        for category in listed:
            found = self._classes.find(category)
            if found is None:
                self._skip(f"unknown category in {field}", f"{image['file_name']} (category {category})")
            else:
                labels.append(self._label[int(found)])
        return labels

    # ---- annotations -------------------------------------------------------------------------------------------

    def _annotations(
        self, images: dict[Key, dict[str, Any]]
    ) -> dict[Key, list[tuple[Key, int, dict[str, Any]]]]:
        """The annotations of each image with ids and labels, as far as image and category are known."""
        objects: dict[Key, list[tuple[Key, int, dict[str, Any]]]] = {}
        seen: dict[Key, int] = {}
        ids = Ids(images, _file_names(images))
        for i, entry in enumerate(self.document["annotations"]):
            if not isinstance(entry, dict):
                self._skip("annotation that is no JSON object", f"annotations[{i}]")
                continue
            number = values.key(entry.get("id"))
            if number is None:
                number = f"[{i}]"
                self._keep("annotation without a number or text as id", f"annotations[{i}]")
            if number in seen:
                first = f"annotations[{seen[number]}] and annotations[{i}]"
                raise InputError(f"{self.path}: {first} both have the id {number}: give each its own")
            seen[number] = i
            image, category = ids.find(entry.get("image_id")), self._classes.find(entry.get("category_id"))
            if image is None or image not in images:
                self._skip(
                    "annotation of an unknown image", f"annotation {number} (image {entry.get('image_id')})"
                )
            elif category is None or category not in self._label:
                self._skip(
                    "annotation of an unknown category",
                    f"annotation {number} of {images[image]['file_name']} (category {entry.get('category_id')})",
                )
            else:
                objects.setdefault(image, []).append((number, self._label[int(category)], entry))
        for by_name, what in (
            (ids.by_name, "images by file name"),
            (self._classes.by_name, "categories by name"),
        ):
            if by_name:
                self.skipped.remark(f"{self.path.name}: {by_name:,} annotations give {what}, not by id")
        return objects

    def _add(
        self,
        packer: Packer,
        number: Key,
        label: int,
        annotation: dict[str, Any],
        size: tuple[int, int],
        image: str,
    ) -> None:
        """Check an annotation and pack it, or count it as left out."""
        what = f"annotation {number} of {image}"
        segment, fault = None, None
        try:
            segment = segments.parse(
                annotation.get("segmentation"), size, lambda reason: self._skip(reason, what)
            )
            if isinstance(segment, dict) and box_of(segment)[2:] == (0, 0):
                raise segments.Unusable("mask that covers nothing")
        except segments.Unusable as reason:
            fault = reason
        try:
            box = self._box(annotation.get("bbox"), size, segment, what)
            if fault:
                raise fault
        except segments.Unusable as reason:
            self._skip(str(reason), what)
            return
        reservation = packer.reservation(box, label)
        if reservation:
            self._keep(reservation, what)
        crowd = values.flag(annotation.get("iscrowd"))
        if crowd is None:
            self._keep("iscrowd that is neither 0 nor 1, taken for 0", what)
        area = values.number(annotation.get("area"))
        usable = area is not None and 0 < area < float("inf")
        packer.add(
            number,
            box,
            label,
            crowd=bool(crowd),
            area=area if usable else None,
            segment=segment,
        )

    def _box(
        self, bbox: Any, size: tuple[int, int], segment: Segment | None, what: str
    ) -> tuple[float, float, float, float]:
        """COCO's left, top, width, height -> left, top, right, bottom. Raises ``Unusable``."""
        if bbox in (None, []) and segment is not None:
            self._keep("annotation without a bbox: that of its outline is taken", what)
            box = box_of(segment)
        else:
            read = values.numbers(bbox, 4)
            if read is None:
                raise segments.Unusable("annotation without a bbox of four numbers")
            self.boxes.add(read, size, what, segment)
            left, top, width, height = read
            if width <= 0 or height <= 0:
                raise segments.Unusable("box of zero or negative size")
            box = (left, top, left + width, top + height)
        fault = box_fault(box, size)
        if fault:
            raise segments.Unusable(fault)
        return box


def _file_names(images: dict[Key, dict[str, Any]]) -> Iterable[tuple[str, Key]]:
    """What an image may be called instead of its id: its file with or without folders, with or without its ending."""
    for key, image in images.items():
        name = image["file_name"]
        if name is not None:
            name = strip(name)
            base = name.replace("\\", "/").rsplit("/", 1)[-1]
            stem = base.rsplit(".", 1)[0] if base.lower().endswith(ENDINGS) else base
            yield from ((other, key) for other in dict.fromkeys((name, base, stem)))
