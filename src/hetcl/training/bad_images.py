"""The ledger of images that could not be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetcl.errors import WorkFailed
from hetcl.ranks import first_process
from hetcl.runs.folder import Table
from hetcl.types import BadRecord

BAD_COLUMNS = ("index", "name", "reason")


class BadList:
    """The file that lists each image that could not be used once.

    Args:
        path: the CSV file; what it lists already (of a resumed run) is known, and what is damaged in it mended.
    """

    def __init__(self, path: Path) -> None:
        self.table = Table(path, BAD_COLUMNS, text=("name", "reason"))
        self.notes = self.table.cut(None) if path.is_file() and first_process() else None
        """What a person should know: that the file was damaged."""
        listed = (row.get("index") for row in self.table.read())
        self.known = {int(i) for i in listed if isinstance(i, float) and i.is_integer()}

    def add(self, bad: Sequence[BadRecord]) -> list[BadRecord]:
        """List those that are not listed yet, and return them. Raises ``WorkFailed`` when the disk refuses."""
        new = [r for r in {r.index: r for r in bad}.values() if r.index not in self.known]
        for r in new:
            self.table.append({"index": r.index, "name": r.name, "reason": r.reason})
        self.known |= {r.index for r in new}
        return new


class BadImages:
    """Counts images that were replaced, lists each once in a file, and stops a run that has too many.

    Args:
        path: the CSV file; what it lists already (a resumed run) is not listed again.
        share: of the images opened (a bad one's replacement too), above which :meth:`see` raises.
        images: in the data.
    """

    def __init__(self, path: Path, share: float, images: int) -> None:
        self.path, self.share, self.images = path, share, images
        self.seen = self.replaced = 0
        self.warn: Any = print
        self.list = BadList(path)

    @property
    def known(self) -> int:
        """Different images found unusable."""
        return len(self.list.known)

    def see(self, usable: int, bad: Sequence[BadRecord]) -> None:
        """Count a batch of ``usable`` images. Raises ``WorkFailed`` when too many of those opened were bad."""
        self.seen += usable + len(bad)
        self.replaced += len(bad)
        first = not self.list.known
        if (new := self.list.add(bad)) and first:
            self.warn(
                f"{new[0].name} cannot be used ({new[0].reason}); another image takes its place. "
                f"{self.path} lists all such images"
            )
        enough = min(self.images, 1000)
        if self.seen >= enough and self.replaced > self.share * self.seen:
            raise WorkFailed(
                f"{self.replaced} of the first {self.seen} images opened cannot be used, "
                f"more than max_bad = {self.share:.0%}; {self.path} lists them: "
                "mend the data, or raise max_bad and go on with --resume"
            )
