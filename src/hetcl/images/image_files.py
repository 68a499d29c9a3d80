"""The IMAGES argument: files, folders at any depth and patterns, as images by index."""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hetcl.errors import InputError
from hetcl.images.decode import open_image
from hetcl.images.folder_source import read_file
from hetcl.images.formats import BROKEN, EXTENSIONS, OTHERS, PREDICTED, SPECIAL, Aside, ending
from hetcl.images.listing import Walk, is_predicted, walk
from hetcl.images.sources import near
from hetcl.paths import expand, spellings
from hetcl.types import RGB, PixelFormat

HELP = "; IMAGES are files, folders of images at any depth, and patterns such as 'photos/*.jpg'"


class ImageFiles:
    """Image files that somebody named, each once, in the order in which they were named.

    Args:
        named: files, folders and patterns.
        but: a folder whose images are left out: what is written is not read. Folders inside what is named that
            ``hetcl predict`` wrote are left out, too.
        pixels: as what they are read.

    Raises:
        InputError: something named is not there, or nothing is an image.
    """

    def __init__(
        self, named: Sequence[str | os.PathLike[str]], but: Path | None = None, pixels: PixelFormat = RGB
    ) -> None:
        self.pixels = pixels
        self.aside = Aside()
        """Files of other kinds."""
        self.paths: list[str] = []
        """Each file."""
        skip = None if but is None else os.path.realpath(but) + os.sep
        seen: set[str] = set()
        roots: list[str] = []
        for argument in named:
            for root, path in self._found(os.fspath(argument)):
                absolute = os.path.abspath(path)
                if absolute in seen or (skip and os.path.realpath(path).startswith(skip)):
                    continue
                seen.add(absolute)
                self.paths.append(path)
                roots.append(os.path.abspath(root))
        if not self.paths:
            what = ", ".join(str(name) for name in named[:3]) or "nothing"
            words, advice = self.aside.words(), self.aside.advice()
            there = f" (there: {words})" if words else ""
            raise InputError(f"no images in {what}{there}{f'; {advice}' if advice else HELP}")
        self.folder = os.path.commonpath(roots)
        """Which holds all of them."""
        self.names = [os.path.relpath(os.path.abspath(path), self.folder) for path in self.paths]
        """What to call each: its path below that folder."""

    def __len__(self) -> int:
        return len(self.paths)

    def _found(self, argument: str) -> Iterator[tuple[str, str]]:
        """What one argument names: the folder that names count from, and the file."""
        path = next((p for p in spellings(expand(argument)) if os.path.exists(p)), None)
        if path is None and glob.has_magic(argument):
            matches = sorted(glob.glob(expand(argument), recursive=True), key=os.fsencode)
            if not matches:
                raise InputError(f"{argument} matches no file{HELP}")
            fixed, ours = re.split(r"[*?[]", expand(argument))[0].rpartition(os.sep)[0], set[str]()
            written = functools.cache(is_predicted)
            for match in matches:
                above = [match[:i] for i, c in enumerate(match + os.sep) if c == os.sep and i > len(fixed)]
                if not (here := [folder for folder in above if written(folder)]):
                    yield from self._at(match)
                elif here[0] not in ours:
                    ours.add(here[0])
                    self.aside.add(PREDICTED, here[0])
        elif path is None:
            raise InputError(f"{argument} does not exist{near(expand(argument), HELP)}")
        else:
            yield from self._at(path)

    def _at(self, path: str) -> Iterator[tuple[str, str]]:
        """A file, or the images of a folder."""
        if os.path.isdir(path):
            met = Walk(aside=self.aside)
            yield from ((path, os.path.join(path, os.fsdecode(inside))) for inside in walk(path, met))
        elif (kind := ending(path)) in OTHERS - EXTENSIONS:
            self.aside.add(kind, os.path.basename(path))
        elif not os.path.isfile(path):
            self.aside.add(SPECIAL if os.path.exists(path) else BROKEN, os.path.basename(path))
        else:
            yield os.path.dirname(path) or ".", path

    def image(self, index: int) -> np.ndarray:
        """``[H, W, C]``, upright, of the type that ``pixels`` says. Raises ``BadImage``."""
        return open_image(read_file(self.paths[index]), pixels=self.pixels).pixels()

    def stamp(self, index: int) -> tuple[int, int]:
        """Bytes and time (ns) of the last change, by which a file is known again; zeros where it is gone."""
        try:
            status = os.stat(self.paths[index])
        except OSError:
            return 0, 0
        return status.st_size, status.st_mtime_ns
