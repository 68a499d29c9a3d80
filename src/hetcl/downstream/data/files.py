"""Which files there are, without asking for each; and pictures, label maps and JSON as they are stored."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hetcl.errors import InputError
from hetcl.images.decode import open_picture
from hetcl.types import BadPicture


class Files:
    """The files below ``root``: each folder is listed once, however many files are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, frozenset[str]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """Names of the files in a folder (relative to the root); none where there is no such folder."""
        if folder not in self._listed:
            try:
                with os.scandir(os.path.join(self.root, folder)) as entries:
                    self._listed[folder] = frozenset(entry.name for entry in entries if entry.is_file())
            except (OSError, ValueError):  # ValueError: a name that no file can have
                self._listed[folder] = frozenset()
        return self._listed[folder]

    def first(self, candidates: Iterable[str]) -> str | None:
        """The first of these relative paths that is a file."""
        for path in candidates:
            folder, name = os.path.split(path)
            if name in self.names(folder):
                return path
        return None


def read_picture(root: str, name: str, size: tuple[int, int] | None) -> np.ndarray:
    """The pixels of a picture as they are annotated: as stored, or, where that has another size than the annotations
    and the upright picture has theirs, turned as its EXIF orientation says.

    Args:
        root, name: folder, and path below it.
        size: height and width that the annotations are of, or None.

    Returns:
        uint8 ``[H, W, 3]``, RGB, writable.

    Raises:
        BadPicture: it cannot be read, or has another size.
    """
    data = _bytes(os.path.join(root, name))
    picture = open_picture(data, upright=False)
    if size is not None and (picture.height, picture.width) != size:
        upright = open_picture(data)
        if (upright.height, upright.width) == size:
            picture = upright
    pixels = np.array(picture.image())
    if size is not None and pixels.shape[:2] != size:
        raise BadPicture(f"{_by(pixels.shape[:2])} pixels, the annotations are of {_by(size)}")
    return pixels


def read_indices(root: str, name: str) -> np.ndarray:
    """The numbers that a label map stores: palette indices or gray values, never colours.

    Returns:
        uint8 or int32 ``[H, W]``.

    Raises:
        BadPicture: it cannot be read, or is a picture in colour.
    """
    path = os.path.join(root, name)
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L", "1") and not picture.mode.startswith("I"):
                raise BadPicture(f"{name}: colours (mode {picture.mode}), not palette indices or gray values")
            values = np.array(picture)
    except BadPicture:
        raise
    except Exception as error:  # a damaged file may fail in any way
        raise BadPicture(f"{name}: cannot be read ({error})") from error
    return values.astype(np.uint8 if values.dtype.itemsize == 1 else np.int32)


def stored_size(root: str, name: str) -> tuple[int, int]:
    """Height and width of a picture as stored, from its header. Raises ``BadPicture``."""
    try:
        with Image.open(os.path.join(root, name)) as picture:
            return picture.height, picture.width
    except Exception as error:
        raise BadPicture(f"{name}: cannot be read ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        InputError: it cannot be read, is cut short or damaged (with the position), or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: cut short or damaged at line {error.lineno}, column {error.colno} "
            f"(character {error.pos:,}; {error.msg}): fetch it again"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: no JSON text (byte {error.start:,} is not UTF-8): fetch it again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise InputError(
            f"{path}: holds a {type(document).__name__}, not a JSON object with images, annotations and categories"
        )
    return document


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise BadPicture(f"cannot be read ({error.strerror or error})") from error


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"
