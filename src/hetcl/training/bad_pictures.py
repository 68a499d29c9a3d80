"""The ledger of pictures that could not be used."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetcl.errors import WorkFailed
from hetcl.runs.folder import Table, disk_problem
from hetcl.types import BadRecord

BAD_COLUMNS = ("index", "name", "reason")


class BadPictures:
    """Counts pictures that were replaced, lists each once in a file, and stops a run that has too many.

    Args:
        path: the CSV file; what it lists already (a resumed run) is not listed again.
        share: of the pictures opened (a bad one's replacement too), above which :meth:`see` raises.
        pictures: in the data.
    """

    def __init__(self, path: Path, share: float, pictures: int) -> None:
        self.path, self.share, self.pictures = path, share, pictures
        self.seen = self.replaced = 0
        self.warn: Any = print
        self._listed: set[int] = set()
        if path.is_file():
            Table(path, BAD_COLUMNS).cut(None)
            with open(path, newline="", encoding="utf-8") as f:
                self._listed = {int(row["index"]) for row in csv.DictReader(f)}

    @property
    def known(self) -> int:
        """Different pictures found unusable."""
        return len(self._listed)

    def see(self, usable: int, bad: Sequence[BadRecord]) -> None:
        """Count a batch of ``usable`` pictures. Raises ``WorkFailed`` when too many of those opened were bad."""
        self.seen += usable + len(bad)
        self.replaced += len(bad)
        new = [r for r in {r.index: r for r in bad}.values() if r.index not in self._listed]
        if new:
            first = not self._listed
            try:
                # A file name need not be text in any encoding.
                with open(self.path, "a", newline="", encoding="utf-8", errors="backslashreplace") as f:
                    writer = csv.writer(f, lineterminator="\n")
                    if f.tell() == 0:
                        writer.writerow(BAD_COLUMNS)
                    writer.writerows((r.index, r.name, r.reason) for r in new)
            except OSError as e:
                raise disk_problem(self.path, e) from None
            self._listed |= {r.index for r in new}
            if first:
                self.warn(
                    f"{new[0].name} cannot be used ({new[0].reason}); another picture takes its place. "
                    f"{self.path} lists all such pictures"
                )
        enough = min(self.pictures, 1000)
        if self.seen >= enough and self.replaced > self.share * self.seen:
            raise WorkFailed(
                f"{self.replaced} of the first {self.seen} pictures opened cannot be used, "
                f"more than max_bad = {self.share:.0%}; {self.path} lists them: "
                "mend the data, or raise max_bad and go on with --resume"
            )
