"""A CSV file that grows by rows, and is mended when it is gone on with: what is reported stops no training."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hetcl.errors import InputError
from hetcl.paths import appending
from hetcl.printable import csv_row
from hetcl.runs.files import disk_problem, set_aside, write_atomic

RECORD = re.compile(rb'(?>[^"\n]+|"(?>[^"]+|"")*+")*+\n|[^\n]*\n')
"""A line, with the line ends that are between quotes in it; where a quote is not closed, up to its own end."""


class Table:
    """A table of numbers and some text.

    Args:
        path: the file; its header is written when it is new.
        columns: the header; a row may leave cells empty and have no others.
        text: the columns that hold text; all others hold numbers or nothing.
    """

    def __init__(self, path: Path, columns: Sequence[str], text: Collection[str] = ("stage",)) -> None:
        self.path, self.columns, self.text = path, tuple(columns), frozenset(text)
        self._header = self._line(dict(zip(self.columns, self.columns, strict=True)))
        self.held = bytearray()
        """What this process knows to be in the file, since :meth:`cut`."""

    def cut(self, size: int | None, saved: bytes | None = None) -> str | None:
        """Go on with what the file held at some time, and forget what came after.

        Args:
            size: bytes it had then; 0: start anew; None: all of it, but for a last line that is cut short.
            saved: those bytes themselves, where a checkpoint has them: the file is put back when it has others.

        Returns:
            what a person should know, when it was damaged: the file is then set aside and mended.

        Raises:
            InputError: the rows of the checkpoint have other columns.
            WorkFailed: the disk refused.
        """
        if saved and not saved.startswith(self._header):
            raise InputError(
                f"{self.path} has other columns than this hetcl writes; go on with the hetcl that began the run, or "
                "start a new folder"
            )
        try:
            there = self.path.read_bytes() if self.path.is_file() else b""
        except OSError as e:
            raise disk_problem(self.path, e) from None
        end = there.rfind(b"\n") + 1
        whole, cut_short = there[:end], there[end:]
        mended, lost = self._mend(whole[: size or None])
        if saved is not None:
            lost = 0 if there.startswith(saved) or saved.startswith(there) else 1
        elif b"\0" in cut_short or not (whole or self._header.startswith(cut_short)):
            lost += 1
        kept = b"" if size == 0 else mended if saved is None else saved
        notes = None
        if lost:
            what = "it was put back as the checkpoint has it" if saved else "what can be read of it was kept"
            what = "it begins again" if not kept else what
            notes = f"{self.path} was damaged: {what}; {set_aside(self.path)} is how it was"
            there = b""
        elif len(whole) < len(kept):
            notes = f"{self.path} has lost rows; they were put back from the checkpoint"
        self._begin(there, kept or self._header)
        return notes

    def _begin(self, there: bytes, kept: bytes) -> None:
        self.held = bytearray(kept)
        try:
            if self.path.is_symlink() and not self.path.is_char_device():
                write_atomic(self.path, kept)
            elif not there.startswith(kept):
                if there and self.path.is_file():
                    write_atomic(self.path, kept)
                    return
                with appending(self.path) as f:
                    f.write(kept)
            elif len(there) > len(kept):
                with open(self.path, "r+b") as f:
                    f.truncate(len(kept))
        except OSError as e:
            raise disk_problem(self.path, e) from None

    def _mend(self, data: bytes) -> tuple[bytes, int]:
        """The header and the whole rows of ``data``, and how many lines are neither."""
        if not (lines := RECORD.findall(data)):
            return b"", 0
        known = lines[0] == self._header
        rest = lines[1:] if known or self._cells(lines[0]) is None else lines
        rows = [line for line in rest if self._cells(line) is not None]
        return self._header + b"".join(rows), len(rest) - len(rows) + (not known)

    def _cells(self, line: bytes) -> list[str] | None:
        """The cells of a line; None when it is no row of this table."""
        try:
            (cells,) = csv.reader(io.StringIO(line.decode(), newline=""), strict=True)
            for name, cell in zip(self.columns, cells, strict=True):
                if name not in self.text and cell:
                    float(cell)
        except (ValueError, csv.Error):
            return None
        return cells if b"\0" not in line and any(cells) else None

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row. Floats keep nine digits, which is exact for fp32. Raises ``WorkFailed``."""
        cells = zip(row, csv_row(row.values()), strict=True)
        line = self._line({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in cells})
        try:
            self._write(line)
        except OSError as e:
            raise disk_problem(self.path, e) from None

    def _write(self, line: bytes) -> None:
        with appending(self.path) as f:
            if not f.tell():
                self.held = bytearray(self._header)
                f.write(self._header)
            f.write(line)
        self.held += line

    def _line(self, row: Mapping[str, Any]) -> bytes:
        """A row as it stands in the file."""
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerow(dict(row))
        return text.getvalue().encode()

    def rows(self) -> list[dict[str, float | str]]:
        """What :attr:`held` says, numbers as floats; empty cells are left out."""
        return list(self._rows(bytes(self.held)))

    def read(self) -> list[dict[str, float | str]]:
        """The rows of the file that are whole; none when it cannot be read."""
        try:
            return list(self._rows(self.path.read_bytes() if self.path.is_file() else b""))
        except OSError:
            return []

    def _rows(self, data: bytes) -> Iterator[dict[str, float | str]]:
        for line in RECORD.findall(data):
            cells = self._cells(line)
            if cells is not None and cells != [*self.columns]:
                row = zip(self.columns, cells, strict=True)
                yield {k: v if k in self.text else float(v) for k, v in row if v}

    def size(self) -> int:
        """Bytes safely on disk."""
        try:
            with open(self.path, "rb") as f:
                os.fsync(f.fileno())
                return os.fstat(f.fileno()).st_size
        except OSError as e:
            raise disk_problem(self.path, e) from None
