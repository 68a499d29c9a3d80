"""Which files there are, without asking for each; and images, label maps and JSON as they are stored."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image, UnidentifiedImageError

from hetcl.errors import InputError
from hetcl.images.channels import size_of
from hetcl.images.decode import FORMATS, MAX_BYTES, EncodedImage, open_image, too_large
from hetcl.paths import lies_in, spellings
from hetcl.textfiles import read_text, visible
from hetcl.types import RGB, BadImage, PixelFormat

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".npy")
"""What an image's name may end in, in small or capital letters; of several files of one stem the first kind counts."""
LOSSY = ("JPEG", "MPO")
"""Formats that change numbers."""


class Files:
    """The files below ``root``: each folder is listed once, however many files are asked for.

    Nothing outside of ``root`` is given: not what a name with ``..`` or an absolute one leads to, and what links lead
    to only with ``follow_links``. (``root`` may be a link itself.)
    """

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self._follow = follow_links
        self._listed: dict[str, frozenset[str]] = {}
        self._links: dict[str, frozenset[str]] = {}
        self._folded: dict[str, dict[str, str]] = {}
        self._stems: dict[str, dict[str, str]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """Names of the files in a folder (relative to the root); none where there is no such folder below the root.

        Raises:
            InputError: a link leads out of the root.
        """
        if folder not in self._listed:
            found: list[os.DirEntry[str]] = []
            try:
                if self._within(folder):
                    with os.scandir(os.path.join(self.root, folder)) as entries:
                        found = [entry for entry in entries if entry.is_file()]
            except (OSError, ValueError):  # ValueError: a name that no file can have
                found = []
            self._links[folder] = frozenset(entry.name for entry in found if entry.is_symlink())
            self._listed[folder] = frozenset(entry.name for entry in found)
        return self._listed[folder]

    def check(self, path: str) -> str:
        """A path relative to the root, once it is known to lie below it; without ``..``.

        Raises:
            InputError: a link leads out of the root.
        """
        folder, name = os.path.split(path)
        self.names(folder)
        if name in self._links[folder]:
            self._within(path)
        if os.path.isabs(path) or ".." in path.split("/"):
            return os.path.relpath(os.path.realpath(os.path.join(self.root, path)), self._real)
        return path

    def alone(self, path: Path) -> Path:
        """``path``, one of the few files that a layout names. Raises ``InputError`` as ``check``."""
        self._within(str(path.relative_to(self.root)))
        return path

    def text(self, path: Path) -> str | None:
        """The text of such a file; None where there is none. Raises ``InputError`` as ``check``."""
        return read_text(self.alone(path)) if path.is_file() else None

    def outside(self, name: str, candidates: Iterable[str]) -> str:
        """What ``name`` leads to where one of these paths is a file outside of the root, for a message; else empty."""
        slashed = name.replace("\\", "/")
        if not (os.path.isabs(slashed) or ".." in slashed.split("/")):
            return ""
        for path in (os.path.join(self.root, c.replace("\\", "/")) for c in candidates):
            if os.path.isfile(path) and not lies_in(path, self._real):
                return (
                    f"leads out of {self.root}, to {os.path.realpath(path)}: nothing that a file names there is read; "
                    "put the file into the data set"
                )
        return ""

    def _within(self, path: str) -> bool:
        """Whether a path lies below the root, by way of links that may be followed. Raises ``InputError``."""
        whole = os.path.join(self.root, path)
        if lies_in(whole, self._real):
            return True
        if os.path.isabs(path) or ".." in path.split("/") or not os.path.exists(whole):
            return False
        if not self._follow:
            raise InputError(
                f"{whole} is a link, or lies behind one, that leads out of {self.root}, to {os.path.realpath(whole)}: "
                "set follow_links to true to allow that, or copy the files into the data set"
            )
        return True

    def first(self, candidates: Iterable[str]) -> str | None:
        """The first of these relative paths that is a file. Raises ``InputError`` as ``check``."""
        for path in candidates:
            folder, name = os.path.split(path)
            if name in self.names(folder):
                return self.check(path)
        return None

    def like(self, folders: Iterable[str], name: str) -> str | None:
        """A file that ``name`` may mean where no file is called exactly so.

        Tried in turn: with other slashes and other forms of accents, and without characters that nobody sees; without
        its first folders, so that paths of another machine are found; in small or capital letters; without an ending.
        An address (``https://...``) stands for what comes after its last slash, without its query.
        """
        places = list(folders)
        for tail in _tails(name):
            for spelled in spellings(tail):
                below, base = os.path.split(spelled)
                for place in places:
                    folder = os.path.join(place, below) if below else place
                    if base in self.names(folder):
                        return self.check(os.path.join(folder, base))
            below, base = os.path.split(tail)
            for place in places:
                folder = os.path.join(place, below) if below else place
                found = self._like(folder, base)
                if found is not None:
                    return self.check(os.path.join(folder, found))
        return None

    def image(self, folders: Iterable[str], stem: str) -> str | None:
        """The image of a name without ending, which may lie in a folder below one of these."""
        below, base = os.path.split(stem)
        for place in folders:
            folder = os.path.join(place, below) if below else place
            found = self._by_stem(folder).get(base) or self._by_stem(folder).get(_folded(base))
            if found is not None:
                return self.check(os.path.join(folder, found))
        return None

    def _like(self, folder: str, name: str) -> str | None:
        if folder not in self._folded:
            self._folded[folder] = {}
            for there in sorted(self.names(folder), reverse=True):
                self._folded[folder][_folded(there)] = there
        found = self._folded[folder].get(_folded(name))
        if found is not None or _ending(name):
            return found
        return self._by_stem(folder).get(name) or self._by_stem(folder).get(_folded(name))

    def _by_stem(self, folder: str) -> dict[str, str]:
        """Name without ending -> name, of the images in a folder; in small letters too."""
        if folder not in self._stems:
            stems: dict[str, str] = {}
            images = [name for name in sorted(self.names(folder)) if _ending(name)]
            for name in sorted(images, key=lambda name: ENDINGS.index(_ending(name))):
                stems.setdefault(stem_of(name), name)
            for name in images:
                stems.setdefault(_folded(stem_of(name)), name)
            self._stems[folder] = stems
        return self._stems[folder]


def stem_of(name: str) -> str:
    """A name without the ending of an image, an annotation or a map; dots within it stay."""
    ending = _ending(name, (*ENDINGS, ".xml"))
    return name[: len(name) - len(ending)] if ending else name


def _ending(name: str, endings: Sequence[str] = ENDINGS) -> str:
    """The ending, in small letters; empty where there is no such."""
    end = os.path.splitext(name)[1].lower()
    return end if end in endings else ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", visible(name)).casefold()


def _tails(name: str) -> Iterator[str]:
    """``C:\\set\\a\\b.jpg`` -> ``set/a/b.jpg``, ``a/b.jpg``, ``b.jpg``: the path, then without its first folders.
    Also without the query of an address."""
    slashed = name.replace("\\", "/")
    bare = re.sub(r"[?#].*" if "://" in slashed else r"[?#][^/]*$", "", slashed, flags=re.DOTALL)
    for text in dict.fromkeys((slashed, unquote(slashed), bare, unquote(bare))):
        parts = [p for p in re.split(r"/|\?d=", text) if p not in ("", ".", "..")]
        for first in range(len(parts)):
            yield "/".join(parts[first:])


def read_image(
    root: str, name: str, size: tuple[int, int] | None, slack: int = 0, pixels: PixelFormat = RGB
) -> np.ndarray:
    """The pixels of an image as they are annotated: as stored, or, where that has another size than the annotations
    and the upright image has theirs, turned as its EXIF orientation says.

    Args:
        root, name: folder, and path below it.
        size: height and width that the annotations are of, or None.
        slack: pixels that either may be off; the edge is cut off or repeated.
        pixels: as what it is read.

    Returns:
        uint8 ``[H, W, 3]``, RGB, writable; float32 ``[H, W, C]`` in [0, 1] of other pixel formats.

    Raises:
        BadImage: it cannot be read, or has another size.
    """
    data = read_bytes(os.path.join(root, name))
    image = open_image(data, upright=False, pixels=pixels)
    found = image.height, image.width
    if size is not None and not near(found, size, slack):
        image = open_image(data, pixels=pixels)
        if not near((image.height, image.width), size, slack):
            raise BadImage(f"{_by(found)} pixels, the annotations are of {_by(size)}")
    values = np.array(image.image() if isinstance(image, EncodedImage) else image.pixels())
    if size is not None and not near(values.shape, size, slack):
        raise BadImage(f"{_by(values.shape[:2])} pixels, the annotations are of {_by(size)}")
    if size is None or values.shape[:2] == size:
        return values
    more = [(0, max(0, wanted - there)) for wanted, there in zip(size, values.shape, strict=False)]
    return np.pad(values, [*more, (0, 0)], mode="edge")[: size[0], : size[1]].copy()


def read_indices(
    root: str, name: str, colors: Mapping[int, int] | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The numbers that a label map stores: palette indices or gray values, never colours.

    Args:
        root, name: folder, and path below it.
        colours: ``red << 16 | green << 8 | blue`` -> number, for maps in colours, which are else refused.
        size: height and width of its image; a map of another size is not decoded.

    Returns:
        uint8 or int32 ``[H, W]``.

    Raises:
        BadImage: it cannot be read, is of another size, in colours that are not known, or its format changes numbers.
    """
    path = os.path.join(root, name)
    try:
        with Image.open(path, formats=FORMATS) as image:
            if size is not None and (image.height, image.width) != size:
                raise BadImage(f"{name}: {_by(image.size[::-1])} pixels, its image {_by(size)}")
            if image.format in LOSSY:
                raise BadImage(
                    f"{name}: a {image.format}, whose compression changes the numbers of classes; save maps as PNG"
                )
            if image.mode in ("RGB", "RGBA"):
                return _numbered(np.array(image.convert("RGB")), name, colors)
            if image.mode == "LA":
                return np.array(image.getchannel("L"))
            if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
                raise BadImage(f"{name}: colours (mode {image.mode}), not palette indices or gray values")
            values = np.array(image)
    except BadImage:
        raise
    except Exception as error:  # a damaged file may fail in any way
        raise BadImage(f"{name}: cannot be read ({error})") from error
    return values.astype(np.uint8 if values.dtype.itemsize == 1 else np.int32)


def _numbered(pixels: np.ndarray, name: str, colors: Mapping[int, int] | None) -> np.ndarray:
    """uint8 ``[H, W, 3]`` -> the number of each pixel's colour; three equal channels of numbers are one."""
    codes = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    found, places = np.unique(codes, return_inverse=True)
    unknown = [int(code) for code in found if code not in (colors or {})]
    if not unknown:
        numbers = np.array([(colors or {})[int(code)] for code in found], np.uint8)
        return numbers[places.reshape(codes.shape)]
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0].copy()
    red, green, blue = unknown[0] >> 16, unknown[0] >> 8 & 255, unknown[0] & 255
    raise BadImage(
        f"{name}: colours, not palette indices or gray values, and ({red}, {green}, {blue}) is the colour of no class; "
        "save the number of each pixel's class"
    )


def stored_size(root: str, name: str) -> tuple[int, int]:
    """Height and width of an image as stored, from its header. Raises ``BadImage``."""
    path = os.path.join(root, name)
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.height, image.width
    except UnidentifiedImageError as error:
        size = size_of(read_bytes(path))  # (of TIFF and .npy that Pillow does not know)
        if size is None:
            raise BadImage(f"{name}: cannot be read ({error})") from error
        return size
    except Exception as error:
        raise BadImage(f"{name}: cannot be read ({error})") from error


def read_json(files: Files, path: Path) -> Any:
    """What a JSON file below the root holds.

    Raises:
        InputError: it cannot be read, is cut short or damaged (with the position), or lies outside of the root.
    """
    try:
        return json.loads(read_text(files.alone(path)))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: cut short or damaged at line {error.lineno}, column {error.colno} "
            f"(character {error.pos:,}; {error.msg}): fetch or export it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error


def near(found: tuple[int, ...], wanted: tuple[int, int], slack: int) -> bool:
    """Whether a size (H, W) is another but for ``slack`` pixels a side."""
    return abs(found[0] - wanted[0]) <= slack and abs(found[1] - wanted[1]) <= slack


def read_bytes(path: str) -> bytes:
    """What a file of an image holds. Raises ``BadImage``."""
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_BYTES:
                raise BadImage(too_large(size))
            return stream.read()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror or error})") from error


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"
