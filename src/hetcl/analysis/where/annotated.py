"""Images with what is asked of them: the box of the main object, and the class of each cell.

n images of a split.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from hetcl.analysis.where.cells import VOID, cell_labels
from hetcl.analysis.where.localization import main_box
from hetcl.datasets import masks, open_detection, open_segmentation
from hetcl.draws import permute
from hetcl.errors import InputError
from hetcl.images.sources import open_held_out, open_source
from hetcl.paths import expand
from hetcl.textfiles import read_text
from hetcl.types import BadImage, Sample, Source

log = logging.getLogger(__name__)

LAYOUTS = ("coco", "lvis", "voc", "cityscapes", "scenes")
"""Data sets that say where things are."""
COLUMNS = ("key", "left", "top", "right", "bottom")
"""The columns of a file of boxes, in pixels, the last one included."""
FIRST = 64
"""Images of each split that are looked at: one at least must have a box in such a file."""


class Located:
    """Some images of a data set, as a source (``types.Source``), with what is known of each.

    Args:
        data: a source, a detection set or a segmentation set.
        index: int64 ``[n]``, ascending: which images.
        boxes: of plain images.
    """

    classes: tuple[str, ...] | None = None
    unlabelled = 0

    def __init__(self, data: Any, index: np.ndarray, boxes: BoxFile | None = None) -> None:
        self.data, self.index, self._boxes = data, index, boxes
        self._known: dict[tuple[int, int], np.ndarray | None] = {}  # all models and levels ask the same
        self.prefers_window: int = getattr(data, "prefers_window", 0)
        self.fingerprint: str = data.fingerprint
        self.hash = hashlib.blake2b(index.tobytes(), digest_size=6).hexdigest()
        """Tells which images these are."""
        whole = len(index) == len(data)
        self.description = data.description if whole else f"{len(index):,} of {data.description}"

    def __len__(self) -> int:
        return len(self.index)

    def sample(self, index: int) -> Sample:
        """The image at ``index``. Raises ``BadImage``."""
        place = int(self.index[index])
        if hasattr(self.data, "sample"):
            sample = self.data.sample(place)
            return Sample(sample.data, None, sample.name)
        return Sample(self.data.image(place), None, self.name(index))

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        place = int(self.index[index])
        if hasattr(self.data, "name"):
            return str(self.data.name(place))
        named = self.data.annotations(place) if hasattr(self.data, "annotations") else self.data.sample(place)
        return str(named.name)

    def label(self, index: int) -> int | None:
        """None: no labels of whole images."""
        return None

    def blocks(self) -> np.ndarray | None:
        """Where the blocks of the data begin here."""
        starts = self.data.blocks() if hasattr(self.data, "blocks") else None
        return None if starts is None else np.unique(np.searchsorted(self.index, starts))

    def box(self, index: int) -> np.ndarray | None:
        """The main object's box in shares of the image, ``[4]``; None where there is none. Raises ``BadImage``."""
        if (index, 0) not in self._known:
            self._known[index, 0] = self._box(index)
        return self._known[index, 0]

    def _box(self, index: int) -> np.ndarray | None:
        if self._boxes is not None:
            return self._boxes.main_box(self.data.sample(int(self.index[index])))
        found = self.data.annotations(int(self.index[index]))
        kept = ~found.crowd
        return main_box(found.boxes[kept], found.areas[kept], found.size)

    def cells(self, index: int, side: int) -> np.ndarray:
        """The class of each cell: int16 ``[side, side]``, -1 void. Raises ``BadImage``."""
        if (found := self._known.get((index, side))) is not None:
            return found
        place = int(self.index[index])
        if hasattr(self.data, "label_map"):
            label_map = self.data.label_map(place).astype(np.int16)
            label_map[label_map == 255] = VOID
        else:
            label_map = painted(self.data.annotations(place))
        self._known[index, side] = found = cell_labels(label_map, side)
        return found


def painted(found: Any) -> np.ndarray:
    """Instances as a class for each pixel: int16 ``[H, W]``, 0 the background, then the classes, -1 crowds.

    The largest objects lie at the bottom, so that small ones in front of them are seen.
    """
    out = np.zeros(found.size, np.int16)
    for i in np.lexsort((-found.areas, ~found.crowd)).tolist():
        segment = found.segments[i]
        if segment is not None:
            out[masks.bitmap(segment, found.size) > 0] = VOID if found.crowd[i] else found.labels[i] + 1
    return out


def size_of(sample: Sample) -> tuple[int, int]:
    """Height and width of an upright image. Raises ``BadImage``."""
    from hetcl.images.decode import open_image

    image = open_image(sample)
    return image.height, image.width


Both = tuple[Located, Located]
"""The images to fit and the images to test on."""


@dataclass(frozen=True)
class QuestionImages:
    """The images of each question; questions of one data set share them."""

    images: Both
    """For questions that need nothing but images."""
    boxes: Both | None
    """With the main object's box."""
    cells: Both | None
    """With a class for each cell."""
    classes: tuple[str, ...]
    """The names of the classes of the cells."""
    held_out: bool
    """Whether the test images were held out of the others, for want of a validation part."""


def open_question_images(
    data: str, *, boxes: str, images: int, test_images: int, holdout: float, seed: int, data_split: str,
    test_split: str, window: int,
) -> QuestionImages:  # fmt: skip
    """The images of ``data`` for questions of where.

    Args:
        data: ``coco:ROOT`` and the like, ``scenes:N``, or plain images.
        boxes: a CSV file of main boxes by key, for plain images; empty: none.
        images, test_images: fit and test on so many, drawn at random; 0: all.
        holdout: share of plain images to test on where there is no validation part.

    Raises:
        InputError: no such data, or a file of boxes that cannot be used.
    """

    def some(sets: tuple[Any, Any], rows: tuple[np.ndarray, np.ndarray], known: Any = None) -> Both:
        parts: list[Located] = []
        for one, index, most in zip(sets, rows, (images, test_images), strict=True):
            if most and most < len(index):
                index = index[np.sort(permute(np.arange(most), len(index), seed, "where", len(parts)))]
            parts.append(Located(one, index, known))
        return parts[0], parts[1]

    layout, colon, _ = data.partition(":")
    if not colon or layout not in LAYOUTS:
        sets, rows, held_out = _plain(data, holdout, seed, data_split, test_split, window)
        both = some(sets, rows, read_boxes(boxes) if boxes else None)
        if boxes:
            _check_keys(boxes, both)
        return QuestionImages(both, both if boxes else None, None, (), held_out)
    if boxes:
        raise InputError(f"--boxes {boxes}: {data} has boxes of its own; leave it out")
    objects, pixels = _annotated(data, layout)
    made = {id(s): some(s, (np.arange(len(s[0])), np.arange(len(s[1])))) for s in (objects, pixels) if s}
    with_boxes = made[id(objects)] if objects else None
    with_cells = made[id(pixels)] if pixels else None
    names: tuple[str, ...] = ()
    if pixels:
        train, test = (tuple(getattr(c, "name", c) for c in split.classes) for split in pixels)
        if train != test:
            raise InputError(f"{data}: the training and the validation part name different classes")
        names = train if hasattr(pixels[0], "label_map") else ("background", *train)
    images_of = with_boxes or with_cells
    assert images_of is not None
    return QuestionImages(images_of, with_boxes, with_cells, names, held_out=False)


def _annotated(data: str, layout: str) -> tuple[tuple[Any, Any] | None, tuple[Any, Any] | None]:
    """Both parts of the set with boxes, and of the one with a class for each pixel (the same where it has masks)."""
    objects: Any = None
    pixels: Any = None
    fault: InputError | None = None
    try:
        objects = open_detection(data, "train"), open_detection(data, "val")
    except InputError as error:
        fault = error
    if layout in ("voc", "cityscapes"):
        try:
            pixels = open_segmentation(data, "train"), open_segmentation(data, "val")
        except InputError as error:
            log.info("%s: no classes of pixels (%s)", data, error)
    elif objects and all(split.has_masks for split in objects):
        pixels = objects
    if objects is None and pixels is None:
        assert fault is not None
        raise fault
    return objects, pixels


def _plain(
    data: str, holdout: float, seed: int, data_split: str, test_split: str, window: int
) -> tuple[tuple[Source, Source], tuple[np.ndarray, np.ndarray], bool]:
    """Plain images: with their own validation or test part, or a share held out."""
    source = open_source(data, split=data_split, window=window)
    splits = ("val", "test") if test_split == "auto" else (test_split,)
    beside = open_held_out(data, splits=splits, window=window) if data_split == "train" else {}
    other = next(iter(beside.values()), None)
    if other is not None:
        return (source, other), (np.arange(len(source)), np.arange(len(other))), False
    if test_split != "auto":
        raise InputError(
            f"test_split {test_split}: {data} has no folder or shards of that name; leave it out"
        )
    n, held = len(source), round(holdout * len(source))
    if not 0 < held < n:
        raise InputError(
            f"{data} has {n} images, and a share of {holdout:g} leaves {n - held} to fit and {held} to test"
        )
    aside = np.zeros(n, np.bool_)
    aside[permute(np.arange(held), n, seed, "where", "holdout")] = True
    return (source, source), (np.flatnonzero(~aside), np.flatnonzero(aside)), True


def _check_keys(path: str, both: Both) -> None:
    """Raises ``InputError`` when none of the first images of both parts has a box in the file."""
    names = []
    for split in both:
        for i in range(min(FIRST, len(split))):
            with contextlib.suppress(BadImage):
                names.append(split.sample(i).name)
                if split.box(i) is not None:
                    return
    if names:
        raise InputError(
            f"--boxes {path} has no box for any of the {len(names)} images that were looked at, e.g. {names[0]}: its "
            f"keys must be names without ending, such as {PurePosixPath(names[0]).stem}"
        )


class BoxFile:
    """Boxes of a CSV file, by the name of their image without its ending, with or without its folders.

    Args:
        path: the file.
        boxes: key -> ``[4]``: left, top, right, bottom in pixels, the last two behind the last pixel.
    """

    def __init__(self, path: str, boxes: Mapping[str, np.ndarray]) -> None:
        self.path, self.boxes = path, boxes
        self._owners: dict[str, str] = {}

    def main_box(self, sample: Sample) -> np.ndarray | None:
        """The box of an image in shares of it, ``[4]``; None where the file has none.

        Raises:
            BadImage: the image cannot be read.
            InputError: another image has the same key, or less than half of the box lies in the image.
        """
        name = PurePosixPath(sample.name)
        whole = str(name.with_suffix(""))
        key = whole if whole in self.boxes else name.stem
        if (box := self.boxes.get(key)) is None:
            return None
        if (other := self._owners.setdefault(key, sample.name)) != sample.name:
            raise InputError(
                f"--boxes {self.path}: the images {other} and {sample.name} share the key {key}; give keys with "
                f"folders, such as {whole}"
            )
        height, width = size_of(sample)
        inside = np.minimum(box, (width, height, width, height))
        if 2 * (inside[2:] - inside[:2]).prod() < (box[2:] - box[:2]).prod():
            raise InputError(
                f"--boxes {self.path}: most of the box of {key} lies outside its image of {width} x {height} pixels; "
                "boxes must be in pixels of the images as they are"
            )
        return main_box(box[None], np.ones(1), (height, width))


def read_boxes(path: str) -> BoxFile:
    """The boxes of a CSV file.

    Raises:
        InputError: it is not there, lacks a column, has a row that is no box, or a key twice.
    """
    text = read_text(expand(path))
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    if lacking := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
        first = text.partition("\n")[0]
        parted = next(
            (
                f"; it is parted by {w}, save it with commas"
                for c, w in ((";", "';'"), ("\t", "tabs"))
                if c in first
            ),
            "",
        )
        raise InputError(
            f"--boxes {path} lacks the column {lacking[0]}; its first line must be {','.join(COLUMNS)}{parted}"
        )
    out: dict[str, np.ndarray] = {}
    for number, row in enumerate(rows, 2):
        where = f"--boxes {path}, line {number}"
        try:
            left, top, right, bottom = (float(row[name]) for name in COLUMNS[1:])
        except (TypeError, ValueError):
            raise InputError(f"{where}: a box is four numbers") from None
        if not all(0 <= v < 1e6 for v in (left, top, right, bottom)):
            raise InputError(
                f"{where}: a box is four numbers of pixels from 0, not {left}, {top}, {right}, {bottom}"
            )
        if left > right or top > bottom:
            raise InputError(f"{where}: left must not exceed right, nor top bottom")
        if row["key"] in out:
            raise InputError(
                f"{where}: the key {row['key']} stands there a second time; keep one box for each image"
            )
        out[row["key"]] = np.array([left, top, right + 1, bottom + 1])
    if not out:
        raise InputError(f"--boxes {path} holds no box")
    if all((box <= 2).all() for box in out.values()):  # right and bottom have one pixel added
        raise InputError(
            f"--boxes {path} has no number above 1: these are shares of the images, and boxes must be in pixels"
        )
    return BoxFile(path, out)
