"""The ledger of images that could not be used: it counts them, lists them, and stops what has too many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hetcl.errors import WorkFailed
from hetcl.printable import csv_row
from hetcl.ranks import first_process
from hetcl.runs.folder import Table
from hetcl.types import BadRecord

BAD_COLUMNS = ("index", "name", "reason")


def too_many(bad: int, images: str, share: float, which: str) -> str:
    """In words: ``bad`` of ``images`` (how many, of what) are more than ``share``; and where to see which."""
    return (
        f"{bad} of {images} cannot be used, more than max_bad = {share:.0%}; {which}: mend the data, or raise "
        "max_bad"
    )


def check_share(bad: int, images: int, share: float, path: Path) -> None:
    """Raises ``WorkFailed`` where more than ``share`` of all ``images`` are ``bad``; ``path`` lists them."""
    if bad > share * images:
        said = too_many(bad, f"{images} images", share, f"{path} lists them")
        raise WorkFailed(f"{said} and go on with --resume")


class BadList:
    """The file that lists each image that could not be used once.

    Args:
        path: the CSV file; what it lists already (of a resumed run) is known, and what is damaged in it mended.
    """

    def __init__(self, path: Path) -> None:
        self.table = Table(path, BAD_COLUMNS, text=("name", "reason"))
        self.notes = self.table.cut(None) if path.is_file() and first_process() else None
        """What a person should know: that the file was damaged."""
        self.known = {(row.get("index"), row.get("name", "")) for row in self.table.read()}
        """Index and name, as the file has them: two sources may both have an image 0."""

    def add(self, bad: Sequence[BadRecord]) -> list[BadRecord]:
        """List those that are not listed yet, and return them. Raises ``WorkFailed`` when the disk refuses."""
        new = []
        for r in bad:
            if (key := (r.index, *csv_row([r.name]))) not in self.known:
                self.table.append({"index": r.index, "name": r.name, "reason": r.reason})
                self.known.add(key)
                new.append(r)
        return new


class BadImages:
    """Counts images that could not be used, lists each once in a file, and stops work that has too many.

    Args:
        path: the CSV file; what it lists already (a resumed run) is not listed again.
        share: of the images opened (a bad one's replacement too), above which :meth:`see` raises.
        images: in the data.
        fate: what becomes of such an image, in words.
        warn: told of the first one.
    """

    def __init__(
        self, path: Path, share: float, images: int, *, fate: str = "; another image takes its place.",
        warn: Callable[[str], Any] = print,
    ) -> None:  # fmt: skip
        self.path, self.share, self.images, self.fate, self.warn = path, share, images, fate, warn
        self.seen = self.lost = 0
        self.list = BadList(path)

    @property
    def known(self) -> int:
        """Different images found unusable."""
        return len(self.list.known)

    def see(self, usable: int, bad: Sequence[BadRecord]) -> None:
        """Count a batch of ``usable`` images. Raises ``WorkFailed`` when too many of those opened were bad."""
        first = not self.list.known
        if (new := self.list.add(bad)) and first:
            r = new[0]
            self.warn(f"{r.name} cannot be used ({r.reason}){self.fate} {self.path} lists all such images")
        self.seen += usable + len(bad)
        self.lost += len(bad)
        if self.seen >= min(self.images, 1000) and self.lost > self.share * self.seen:
            opened = f"the first {self.seen} images opened"
            said = too_many(self.lost, opened, self.share, f"{self.path} lists them")
            raise WorkFailed(f"{said} and go on with --resume")
