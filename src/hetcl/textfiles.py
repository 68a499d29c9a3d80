"""Text that people's own editors and systems wrote: any byte order mark, line end and usual encoding.

Every text file from outside is read here, so that no entry is lost to a character that nobody sees.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
from pathlib import Path

from hetcl.errors import InputError

log = logging.getLogger(__name__)

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SEEN = 4096
"""Bytes by which text without a mark is judged."""
INVISIBLE = "\ufeff\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u2060\u00ad\x00\x1a"
"""Marks of byte order and of writing direction, spaces without width, soft hyphen, and the DOS end of file."""
_INVISIBLE = re.compile(rf"[{INVISIBLE}]")
_EDGE = re.compile(rf"^[\s{INVISIBLE}]+|[\s{INVISIBLE}]+$")


def read_text(path: Path | str) -> str:
    """The text of a file, as ``decode`` gives it.

    Raises:
        InputError: it cannot be read, or is not text.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot read {os.fspath(path)} ({reason}): check the path and rights") from error
    return decode(data, os.fspath(path))


def decode(data: bytes, name: str, *, warn: bool = True) -> str:
    r"""Bytes of a text file to text whose lines end in ``\n`` alone, without a byte order mark.

    UTF-8, UTF-16 and UTF-32 by their mark; UTF-16 without one by where its zeros stand; else UTF-8; else Windows-1252,
    which a warning says, since the letters beyond ASCII may then be others.

    Args:
        data: the bytes.
        name: the file, for messages.
        warn: say so when the encoding had to be guessed; false where nothing but ASCII counts.

    Raises:
        InputError: no text: zeros or control characters that no text has, or half a character.
    """
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and len(data) % 2:
        data = data.removesuffix(b"\n")  # put there by a program that thinks in bytes
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", _without_mark(data)))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or mark:
            raise InputError(
                f"{name} is not whole text (byte {error.start + len(mark):,} is not {encoding.upper()}): "
                "save it as UTF-8"
            ) from error
        text = _windows(data)
        if warn and not _is_binary(text):
            log.warning(
                "%s is not UTF-8 (byte %s) and was read as Windows-1252: save it as UTF-8 if letters look wrong",
                name,
                f"{error.start:,}",
            )
    if _is_binary(text):
        raise InputError(f"{name} is not text: it looks like another kind of file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _windows(data: bytes) -> str:
    """Windows-1252, or Latin-1 where that has no such letter: different bytes stay different."""
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _without_mark(data: bytes) -> str:
    """The encoding of text without a mark: the zeros of UTF-16 stand on one side of each pair."""
    seen = data[: min(_SEEN, len(data) // 2 * 2)]
    first, second = seen[::2].count(0), seen[1::2].count(0)
    if len(data) % 2 == 0 and first + second > len(seen) // 8:
        if not first:
            return "utf-16-le"
        if not second:
            return "utf-16-be"
    return "utf-8"


def _is_binary(text: str) -> bool:
    """Whether there are control characters that no text has; zeros at the very end are padding."""
    return re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text.rstrip("\x00\x1a \r\n")[:_SEEN]) is not None


def strip(text: str) -> str:
    """``text`` without white space and invisible characters at both ends."""
    return _EDGE.sub("", text)


def visible(text: str) -> str:
    """A name or a path as it looks: without invisible characters, with single spaces, and none at either end or beside
    a slash."""
    return re.sub(r" ?([/\\]) ?", r"\1", " ".join(_INVISIBLE.sub("", text).split()))


def lines(text: str) -> list[tuple[int, str]]:
    """The lines of a text that hold something, each with its number (from 1), stripped at both ends."""
    stripped = ((number, strip(line)) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in stripped if line]
