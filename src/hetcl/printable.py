"""Text from outside (names of files and classes, reasons that libraries give) made safe to show and to store.

Every line that goes to a console, a log, a table, a CSV file, a figure or a card passes here, so that no name clears a
terminal, forges a line, reverses its neighbours or is taken for markup or a formula.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Any, TextIO

_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Control characters, line and paragraph separators, marks of writing direction, what has no width, halves of pairs.

The joiners U+200C and U+200D stay: words of some languages, and emoji, need them.
"""
_MARKUP = re.compile(r"[\\`|<\[\]*]")
_FORMULA = re.compile(r"^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # those of full width, too


def printable(text: object) -> str:
    r"""``text`` on one line, with what a terminal would obey or hide as escapes: a newline becomes ``\n``."""
    return _UNSEEN.sub(lambda m: m[0].encode("unicode_escape").decode(), str(text))


def say(text: object = "") -> None:
    """Print one line."""
    print(printable(text))


def warn(text: str) -> None:
    """A line on the console that should not be overlooked; a terminal gets it broken between words."""
    print(filled(printable(f"! {text}"), sys.stdout))


def filled(line: str, stream: TextIO) -> str:
    """``line``, broken between words where ``stream`` is a terminal."""
    if not stream.isatty():
        return line
    width = max(20, shutil.get_terminal_size().columns)
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


def markdown(text: object) -> str:
    """``text`` for Markdown outside of code: on one line, its own markup, cells and tags taken away."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))


def fenced(language: str, text: str) -> list[str]:
    """The lines of a block of code in Markdown, which nothing in ``text`` ends."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [fence + language, *map(printable, text.rstrip().split("\n")), fence]


def csv_row(cells: Iterable[Any]) -> list[Any]:
    """Cells for a CSV file: text made printable, with an apostrophe before what a spreadsheet would compute.

    Numbers and None stay as they are.
    """
    return [_cell(cell) if isinstance(cell, str) else cell for cell in cells]


def _cell(text: str) -> str:
    text = printable(text)
    return f"'{text}" if _FORMULA.match(text) else text
