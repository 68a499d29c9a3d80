"""Cityscapes' fine annotations: instances and pixels, both from its PNG files (cityscapes-dataset.com).

``leftImg8bit/{split}/CITY/*_leftImg8bit.png`` and ``gtFine/{split}/CITY/*_gtFine_{instanceIds,labelIds}.png``.

    H W  height and width in pixels     R  runs of one value, column by column
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hetcl.datasets.annotations import Category, Rle, Skipped
from hetcl.datasets.files import Files, read_indices, stored_size
from hetcl.datasets.maps import VOID, MapSet
from hetcl.datasets.masks import from_uncompressed
from hetcl.datasets.packed import PackedDetection, Packer
from hetcl.datasets.recognise import one_line
from hetcl.errors import InputError
from hetcl.machine import cores
from hetcl.types import BadImage

LABELS = {
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light"},
    **{20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car"},
    **{27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"},
}
"""The 19 classes that are evaluated, by label id, in order of their train ids 0..18 (Cordts et al., 2016)."""

THINGS = tuple(Category(label, name) for label, name in LABELS.items() if label >= 24)
"""The 8 of them that come in instances."""

TRAIN_IDS = np.full(256, VOID, np.uint8)
"""Label id -> class."""
TRAIN_IDS[list(LABELS)] = np.arange(len(LABELS))

_IMAGE = "_leftImg8bit.png"


class CityscapesDetection(PackedDetection):
    """Cityscapes' instances in memory; its instance maps, which alone know what is void, stay on disk."""

    def instance_map(self, index: int) -> np.ndarray:
        """The instance ids of an image as stored: uint8 or int32 ``[H, W]``. Raises ``InputError``."""
        name = _map_of(self.name(range(len(self))[index]), "instanceIds")
        try:
            return read_indices(self._root, name)
        except BadImage as error:  # it was read when the set was opened
            raise InputError(f"{self._root}: {error}; put the file back as it was") from error


@dataclass(frozen=True)
class Instance:
    """One value of an instance map."""

    value: int
    """Label id x 1000 + n; or the label id itself: a group whose members were not told apart."""
    box: tuple[int, int, int, int]
    area: int
    rle: Rle


def cityscapes_detection(files: Files, split: str) -> CityscapesDetection:
    """Open the instances. Every instance map is read once, in threads. Raises ``InputError``."""
    root, skipped, packer = files.root, Skipped(), Packer()
    pairs = _pairs(files, split, "instanceIds", skipped)
    label = {category.id: i for i, category in enumerate(THINGS)}

    def read(pair: tuple[str, str]) -> tuple[tuple[int, int], list[Instance]] | BadImage:
        image, name = pair
        try:
            values = read_indices(str(root), name, size=stored_size(str(root), image))
        except BadImage as error:
            return error
        return (values.shape[0], values.shape[1]), instances(values)

    with ThreadPoolExecutor(min(16, cores())) as pool:
        for (image, _), found in zip(pairs, pool.map(read, pairs), strict=True):
            if isinstance(found, BadImage):
                skipped.add("instance map that cannot be read", str(found))
                continue
            size, things = found
            packer.image(Path(image).name.removesuffix(_IMAGE), image, size)
            for thing in things:
                group = thing.value < 1000
                which = label[thing.value if group else thing.value // 1000]
                packer.add(
                    len(packer.ids) + 1, thing.box, which, crowd=group, area=thing.area, segment=thing.rle
                )
    source = f"{root} ({split})"
    packer.check(source, skipped)
    return CityscapesDetection(packer, "cityscapes", THINGS, root, source, skipped)


def cityscapes_segmentation(files: Files, split: str) -> MapSet:
    """Open the pixels, in 19 classes. Raises ``InputError``."""
    root, skipped = files.root, Skipped()
    pairs = _pairs(files, split, "labelIds", skipped)
    return MapSet("cityscapes", tuple(LABELS.values()), root, pairs, f"{root} ({split})", skipped, TRAIN_IDS)


def _pairs(files: Files, split: str, what: str, skipped: Skipped) -> list[tuple[str, str]]:
    """Images and their maps, by city and name."""
    root = files.root
    for folder in (f"leftImg8bit/{split}", f"gtFine/{split}"):
        if not (root / folder).is_dir():
            some = any((root / name).is_dir() for name in ("leftImg8bit", "gtFine"))
            raise InputError(
                f"{root}: has no {folder}: unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip"
                + ("" if some else one_line(root))
            )
    pairs = []
    for city in sorted({path.name for path in root.glob(f"*/{split}/*") if path.is_dir()}):
        images, maps = (f"{folder}/{split}/{city}" for folder in ("leftImg8bit", "gtFine"))
        ending = f"_gtFine_{what}.png"
        there = {name.removesuffix(_IMAGE) for name in files.names(images) if name.endswith(_IMAGE)}
        known = {name.removesuffix(ending) for name in files.names(maps) if name.endswith(ending)}
        for stem in sorted(there | known):
            if stem not in known:
                skipped.add(f"no {what} map", f"{maps}/{stem}{ending}")
            elif stem not in there:
                skipped.add("image not found", f"{images}/{stem}{_IMAGE}")
            else:
                image = f"{images}/{stem}{_IMAGE}"
                pairs.append((files.check(image), files.check(_map_of(image, what))))
    if not pairs:
        wanted = f"leftImg8bit/{split}/CITY/*{_IMAGE} with gtFine/{split}/CITY/*_gtFine_{what}.png"
        kinds = sorted(
            {path.stem.rpartition("_")[2] for path in root.glob(f"gtFine/{split}/*/*_gtFine_*.png")}
        )
        hint = f"; its maps are {' and '.join(kinds)}: take labelIds, instanceIds of gtFine_trainvaltest.zip"
        raise InputError(f"{root}: has no {wanted}" + hint * bool(kinds and what not in kinds))
    return pairs


def _map_of(image: str, what: str) -> str:
    """``leftImg8bit/SPLIT/CITY/STEM_leftImg8bit.png`` -> ``gtFine/SPLIT/CITY/STEM_gtFine_{what}.png``."""
    stem = image.removeprefix("leftImg8bit/").removesuffix(_IMAGE)
    return f"gtFine/{stem}_gtFine_{what}.png"


def instances(values: np.ndarray) -> list[Instance]:
    """The instances and groups of the 8 classes in an instance map, integers ``[H, W]``, by value.

    The map is cut once into runs of one value down the columns, as COCO's run lengths go; each instance is then a
    selection of runs.
    """
    height, width = values.shape
    flat = np.ascontiguousarray(values.T).reshape(-1)
    first = np.empty(len(flat), bool)  # of a run; a run ends with its column
    first[1:] = flat[1:] != flat[:-1]
    first[::height] = True
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(flat))
    run_values = flat[starts]
    wanted = [category.id for category in THINGS]
    found = []
    for value in np.unique(run_values).tolist():
        if (value if value < 1000 else value // 1000) in wanted:
            mine = run_values == value
            found.append(_instance(value, starts[mine], ends[mine], (height, width)))
    return found


def _instance(value: int, starts: np.ndarray, ends: np.ndarray, size: tuple[int, int]) -> Instance:
    """An instance from its runs, int64 ``[R]`` each, in pixels counted down the columns."""
    height, width = size
    top, left = int((starts % height).min()), int(starts[0]) // height
    bottom, right = int(((ends - 1) % height).max()) + 1, int(ends[-1] - 1) // height + 1
    apart = starts[1:] > ends[:-1]  # runs that touch across two columns become one
    edges = np.stack([starts[np.append(True, apart)], ends[np.append(apart, True)]], 1).reshape(-1)
    counts = np.diff(edges, prepend=0).tolist()
    rest = height * width - int(edges[-1])
    rle = from_uncompressed(counts + [rest] * (rest > 0), size)
    return Instance(value, (left, top, right, bottom), int((ends - starts).sum()), rle)
