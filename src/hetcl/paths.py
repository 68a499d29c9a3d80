"""Paths as people write them: with ``~``, and names that another system spelled."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator

from hetcl.errors import InputError


def expand(path: str | os.PathLike[str]) -> str:
    """A path with ``~`` and ``~user`` replaced by the home folder; any other path as it is.

    Every argument that is a path passes through here, since a shell leaves ``--out=~/run`` and ``coco:~/set`` alone.

    Raises:
        InputError: no home folder is known (a container's user without an entry in passwd), and nothing is called so.
    """
    text = os.fspath(path)
    if text.replace(os.sep, "/").split("/", 1)[0] != "~":
        return os.path.expanduser(text)
    folder = home()
    if folder is not None:
        return folder.rstrip("/") + text[1:] or "/"
    if os.path.lexists(text):
        return text
    raise InputError(f"{text}: this user has no home folder; set HOME, or write the whole path")


def home() -> str | None:
    """The home folder of this user (which need not exist); None where none is known."""
    if os.environ.get("HOME") == "":  # Python would take the root of the file system
        return None
    folder = os.path.expanduser("~")
    return None if folder == "~" else folder


def spellings(name: str) -> Iterator[str]:
    """The ways in which a name out of a text may stand on a disk, the likeliest first, each once.

    As written; with the slashes of this system; with its accents in one piece (NFC) or in two (NFD, from macOS); and as
    the bytes of Windows-1252, where an old archive was unpacked.
    """
    seen = set()
    for slashed in (name, name.replace("\\", "/")):
        for form in ("", "NFC", "NFD", "cp1252"):
            try:
                if form == "cp1252":
                    other = os.fsdecode(slashed.encode("cp1252"))
                else:
                    other = unicodedata.normalize(form, slashed) if form else slashed  # type: ignore[arg-type]
            except UnicodeError:
                continue
            if other not in seen:
                seen.add(other)
                yield other
