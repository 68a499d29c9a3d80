"""What ``hetcl predict`` writes of images: a record each while it goes on, drawings, and the JSON and CSV of all.

A record is a line of JSON: ``image`` (its entry in predictions.json, without id) and ``found``, a list: of a detector
the entries of COCO's results format, of a segmenter the pixels of each class. An image that cannot be used has
``reason`` instead.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from hetcl.datasets import masks
from hetcl.datasets.annotations import Prediction
from hetcl.downstream import sheets
from hetcl.downstream.scores.results import text_rle, xywh
from hetcl.errors import InputError
from hetcl.printable import csv_row, printable
from hetcl.runs.files import replacing, write_atomic
from hetcl.training.bad_images import BAD_COLUMNS
from hetcl.trees import TreeError, parse_json
from hetcl.types import BadRecord

RESULT, PROGRESS = "predictions.json", "progress"
KIND = "hetcl-predictions"
FOLDERS = ("drawn", "label_maps")
Record = dict[str, Any]
"""What is known of one image."""
Stamp = tuple[str, int, int]
"""Name, bytes and time of change of an image: it is done where a record has the same."""


# ---- records -------------------------------------------------------------------------------------------------------


def stamp_of(record: Record) -> Stamp:
    """Of which file the record is."""
    image = record["image"]
    return str(image["file_name"]), int(image["bytes"]), int(image["modified"])


def files_of(record: Record) -> set[str]:
    """What was written of an image: paths below ``drawn`` and ``label_maps``."""
    named = (str(record["image"][name]) for name in ("drawn", "label_map") if name in record["image"])
    return {
        n for n in named if n.startswith(tuple(f"{f}/" for f in FOLDERS)) and ".." not in PurePath(n).parts
    }


def read_records(folder: Path) -> tuple[dict[str, Any] | None, dict[Stamp, Record]]:
    """The key and the records of what a folder holds, finished or not; None and nothing where it holds none.

    Of several records of one image the last one counts. A line that was cut short is left out, with what follows it.

    Raises:
        InputError: predictions.json is damaged, or its parts are of different keys.
    """
    key, records = None, dict[Stamp, Record]()
    result = folder / RESULT
    if result.is_file():
        try:
            tree = parse_json(result.read_bytes())
            key, found = tree["info"]["key"], tree[tree["info"]["list"]]
            records |= {stamp_of(r): r for r in _apart(tree["images"], found)}
        except (OSError, TreeError, LookupError, TypeError, ValueError):
            raise InputError(
                f"{result} is damaged; add --overwrite to begin again, or name a new --out"
            ) from None
    begun = folder / f"{PROGRESS}.jsonl"  # what was there when the pass began; the others are of the pass
    for path in sorted(folder.glob(f"{PROGRESS}*.jsonl"), key=lambda path: (path != begun, path)):
        lines = path.read_bytes().split(b"\n")[:-1]
        for i, line in enumerate(lines):
            try:
                content = json.loads(line)
                if i == 0:
                    if key is not None and key != content["key"]:
                        raise InputError(f"{folder} holds predictions of several settings; add --overwrite")
                    key = content["key"]
                else:
                    records[stamp_of(content)] = content
            except (LookupError, TypeError, ValueError):
                break
    return key, records


def _apart(images: Sequence[Any], found: Sequence[Any]) -> list[Record]:
    """The records that :func:`tree_of` put together."""
    of: dict[int, list[Any]] = {image["id"]: [] for image in images}
    for entry in found:
        of[entry["image_id"]].append(
            {n: v for n, v in entry.items() if n not in ("id", "image_id", "iscrowd")}
        )
    return [
        {"image": {n: v for n, v in image.items() if n != "id"}, "found": of[image["id"]]} for image in images
    ]


def line_of(content: Any) -> bytes:
    """A line of a progress file."""
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def detections_of(prediction: Prediction) -> list[dict[str, Any]]:
    """A detector's prediction as entries of COCO's results format, nothing rounded; class ids count from 1."""
    entries = []
    for i, box in enumerate(xywh(prediction.boxes).tolist()):
        entry = {
            "category_id": int(prediction.labels[i]) + 1, "bbox": box, "score": float(prediction.scores[i]),
            "area": box[2] * box[3],
        }  # fmt: skip
        if prediction.masks is not None:
            rle = text_rle(prediction.masks[i])
            entry |= {"area": masks.area(prediction.masks[i], tuple(rle["size"])), "segmentation": rle}
        entries.append(entry)
    return entries


def pixels_of(labels: np.ndarray) -> list[dict[str, Any]]:
    """The pixels of each class that is there; class ids are the label map's numbers."""
    there, counts = np.unique(labels, return_counts=True)
    return [{"category_id": int(k), "pixels": int(n)} for k, n in zip(there, counts, strict=True)]


# ---- images --------------------------------------------------------------------------------------------------------


def file_names(names: Sequence[str], suffix: str) -> list[str]:
    """A file for each image: its name with another ending; behind its own where others have the same but for that."""
    stems = Counter(str(PurePath(name).with_suffix("")).casefold() for name in names)
    return [
        str(PurePath(name).with_suffix(suffix))
        if stems[str(PurePath(name).with_suffix("")).casefold()] == 1
        else name + suffix
        for name in names
    ]


def drawn_width(size: tuple[int, int], longest: int) -> int:
    """The width of a drawing of an image of ``size`` (H, W): small ones are enlarged, so that words can be read."""
    scale = min(longest / max(size), max(1.0, sheets.CELL / size[1]))
    return max(1, int(size[1] * scale))


def draw_detections(pixels: np.ndarray, found: Prediction, names: Sequence[str], longest: int) -> np.ndarray:
    """An image with all that was found in it, uint8 ``[h, w, 3]``."""
    alone = len(names) == 1  # objects are told apart instead of classes
    words = [
        (f"{printable(names[label])} {score:.2f}", i if alone else int(label))
        for i, (label, score) in enumerate(zip(found.labels, found.scores, strict=True))
    ]
    return sheets.drawn(pixels, found.boxes, words, found.masks, drawn_width(pixels.shape[:2], longest))


def draw_labels(pixels: np.ndarray, labels: np.ndarray, names: Sequence[str], longest: int) -> np.ndarray:
    """An image under the colours of its classes, with their key above."""
    width = drawn_width(pixels.shape[:2], longest)
    size = (width, max(1, round(width * pixels.shape[0] / pixels.shape[1])))
    colored = Image.fromarray(sheets.colored(pixels, labels, sheets.is_background(names)))
    shown = np.asarray(colored.resize(size, Image.Resampling.LANCZOS))
    return sheets.keyed(shown, sheets.class_key(names, np.unique(labels).tolist()))


def save(path: Path, image: Image.Image) -> None:
    """Write an image by the ending of its name, with its folder. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as f:
        image.save(
            f,
            "JPEG" if path.suffix == ".jpg" else "PNG",
            **({"quality": 90} if path.suffix == ".jpg" else {}),
        )


def label_image(labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """A label map as an image of class numbers with a palette, uint8 ``[H, W]``; an uncoloured background is black."""
    image = Image.fromarray(labels)
    image.putpalette([v for k in range(len(names)) for v in color_of(k, names)])
    return image


def color_of(label: int, names: Sequence[str]) -> sheets.Color:
    """A class's colour in label maps."""
    return (0, 0, 0) if label == 0 and sheets.is_background(names) else sheets.color(label)


# ---- all of it -----------------------------------------------------------------------------------------------------


def tree_of(
    records: Iterable[Record], names: Sequence[str], *, maps: bool, info: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of predictions.json: a file in COCO's format that stands by itself, ``annotations`` with scores.

    A segmenter's has ``pixels`` instead: how many of each class an image has.
    """
    images, found = list[Any](), list[Any]()
    for number, record in enumerate(records, 1):
        images.append({"id": number, **record["image"]})
        for entry in record["found"]:
            own = {"image_id": number, **entry}
            found.append(own if maps else {"id": len(found) + 1, **own, "iscrowd": 0})
    categories: list[dict[str, Any]] = [
        {"id": k, "name": name, "color": list(color_of(k, names))} if maps else {"id": k + 1, "name": name}
        for k, name in enumerate(names)
    ]
    kind = "pixels" if maps else "annotations"
    return {"info": {**info, "list": kind}, "images": images, "categories": categories, kind: found}


def write_bad(path: Path, bad: Sequence[BadRecord]) -> None:
    """The list of images that cannot be used, none but these; no file where there are none. Raises ``WorkFailed``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([BAD_COLUMNS, *(csv_row([r.index, r.name, r.reason]) for r in bad)])
    if bad:
        write_atomic(path, text.getvalue().encode())
    else:
        path.unlink(missing_ok=True)


def write_tables(folder: Path, tree: Mapping[str, Any]) -> None:
    """predictions.csv, a line a detection (of a segmenter: an image and class). Raises ``WorkFailed``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    images = {image["id"]: image for image in tree["images"]}
    names = {category["id"]: category["name"] for category in tree["categories"]}
    if "pixels" in tree:
        writer.writerow(["image", "class", "pixels", "share"])
        for entry in tree["pixels"]:
            image = images[entry["image_id"]]
            share = entry["pixels"] / (image["width"] * image["height"])
            writer.writerow(
                csv_row([image["file_name"], names[entry["category_id"]], entry["pixels"], round(share, 6)])
            )
    else:
        writer.writerow(["image", "class", "score", "left", "top", "right", "bottom"])
        for entry in tree["annotations"]:
            left, top, width, height = entry["bbox"]
            box = [round(v, 2) for v in (left, top, left + width, top + height)]
            name = images[entry["image_id"]]["file_name"]
            writer.writerow(csv_row([name, names[entry["category_id"]], round(entry["score"], 4), *box]))
    write_atomic(folder / "predictions.csv", text.getvalue().encode())
