"""LVIS v0.5 and v1: COCO's format over COCO's images, with federated annotation (lvisdataset.org)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hetcl.datasets.coco import Instances
from hetcl.datasets.files import Files, read_json
from hetcl.datasets.packed import PackedDetection
from hetcl.datasets.recognise import one_line
from hetcl.errors import InputError

VERSIONS = ("v0.5", "v1")
"""Where both are there, v0.5: the version of the paper's Table 3."""


def lvis_detection(files: Files, split: str) -> PackedDetection:
    """Open ``lvis_v0.5_{split}.json`` or ``lvis_v1_{split}.json``, in ``root`` or ``root/annotations``.

    Images are in ``train2017/`` and ``val2017/``. Raises ``InputError``.
    """
    root = files.root
    places = [
        [f"{folder}lvis_{version}_{{}}.json" for folder in ("", "annotations/")] for version in VERSIONS
    ]
    # A version that has both splits goes first, so that training and evaluation take the same one.
    places.sort(key=lambda two: not all(_any_file(root, two, name) for name in ("train", "val")))
    names = [place.format(split) for two in places for place in two]
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        raise InputError(f"{root}: has neither {' nor '.join(names)}{one_line(root)}")
    folders = [f"{split}2017", "train2017", "val2017"]

    def locate(image: dict[str, Any]) -> Iterable[str]:
        url, name = str(image.get("coco_url", "")).split("/")[-2:], image["file_name"]
        if len(url) == 2:
            yield "/".join(url)
        for folder in folders:
            yield f"{folder}/{name[-16:]}"  # COCO_val2014_000000xxxxxx.jpg -> 000000xxxxxx.jpg

    return Instances(path, read_json(files, path)).pack("lvis", files, locate, folders)


def _any_file(root: Path, places: list[str], split: str) -> bool:
    return any((root / place.format(split)).is_file() for place in places)
