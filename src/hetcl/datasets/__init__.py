"""Data sets of boxes, masks and pixels, each in its own published layout, behind two protocols (``annotations.py``).

``files`` lists folders and reads images; ``segments`` and ``packed`` keep annotations in a few arrays; ``coco``,
``lvis``, ``voc``, ``voc_maps``, ``cityscapes`` and ``scenes`` each know one layout; ``maps`` is a set with a class for
each pixel. ``annotation_files``, ``part_files`` and ``voc_lists`` find the files of a part, ``recognise`` names what
lies there; ``values`` and ``categories`` read ids, flags and classes; ``conventions`` and ``sizes`` judge a set as a
whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from hetcl.datasets.annotations import DetectionSet, SegmentationSet
from hetcl.datasets.cityscapes import cityscapes_detection, cityscapes_segmentation
from hetcl.datasets.coco import coco_detection
from hetcl.datasets.files import Files
from hetcl.datasets.lvis import lvis_detection
from hetcl.datasets.recognise import PACKED, one_line
from hetcl.datasets.scenes import scenes_detection, scenes_segmentation
from hetcl.datasets.voc import voc_detection
from hetcl.datasets.voc_maps import voc_segmentation
from hetcl.errors import InputError
from hetcl.paths import expand

__all__ = ["open_detection", "open_segmentation"]

Set = TypeVar("Set")

_DETECTION: dict[str, Callable[[Files, str], DetectionSet]] = {
    "coco": coco_detection,
    "lvis": lvis_detection,
    "voc": voc_detection,
    "cityscapes": cityscapes_detection,
}
_SEGMENTATION: dict[str, Callable[[Files, str], SegmentationSet]] = {
    "voc": voc_segmentation,
    "cityscapes": cityscapes_segmentation,
}


def open_detection(spec: str, split: str, *, follow_links: bool = False) -> DetectionSet:
    """Open a set of images with boxes (and masks).

    Args:
        spec: ``coco:ROOT``, ``lvis:ROOT``, ``voc:ROOT``, ``cityscapes:ROOT``, ``scenes:N`` or ``scenes:N@SIZE``.
        split: ``train`` or ``val``.
        follow_links: also those in ROOT that lead out of it, which are else refused.

    Raises:
        InputError: an unknown spec, a file or folder is missing or damaged, or nothing in it can be used.
    """
    if spec.startswith("scenes:"):
        return scenes_detection(spec, _known(split))
    return _open(spec, split, _DETECTION, "boxes", follow_links)


def open_segmentation(spec: str, split: str, *, follow_links: bool = False) -> SegmentationSet:
    """Open a set of images with a class for each pixel: as ``open_detection``, without ``coco`` and ``lvis``."""
    if spec.startswith("scenes:"):
        return scenes_segmentation(spec, _known(split))
    return _open(spec, split, _SEGMENTATION, "a class for each pixel", follow_links)


def _known(split: str) -> str:
    if split not in ("train", "val"):
        raise ValueError(f"split={split!r}: it is 'train' or 'val'")
    return split


def _open(
    spec: str, split: str, layouts: dict[str, Callable[[Files, str], Set]], what: str, follow_links: bool
) -> Set:
    layout, colon, folder = spec.partition(":")
    if not colon or not folder or layout not in layouts:
        known = ", ".join(f"{name}:ROOT" for name in layouts)
        raise InputError(
            f"{spec}: a data set with {what} is one of {known}, or scenes:N{_meant(spec, folder, layouts)}"
        )
    root = Path(expand(folder))
    if root.is_file():
        packed = root.suffix.lower() in PACKED
        fix = (
            "unpack it, and name the folder"
            if packed
            else f"name the folder that the set lies in ({layout}:ROOT)"
        )
        raise InputError(f"{spec}: {root} is a file; {fix}")
    if not root.is_dir():
        raise InputError(f"{spec}: there is no folder {root}")
    return layouts[layout](Files(root, follow_links=follow_links), _known(split))


def _meant(spec: str, folder: str, layouts: Iterable[str]) -> str:
    """What lies in the folder of a spec without one of these layouts in front, with the spec to write."""
    roots = (Path(expand(text.strip())) for text in (spec, folder) if text.strip())
    root = next((path for path in roots if path.is_dir()), None)
    sentence = one_line(root) if root else ""
    named = re.search(r"name it (\w+):", sentence)
    return sentence if named and named[1] in layouts else ""
