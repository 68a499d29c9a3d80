"""Paths as people write them: with ``~``, and names that another system spelled."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hetcl.errors import InputError
from hetcl.textfiles import visible

log = logging.getLogger(__name__)

_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_TRIES = 5


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


def expand_spec(spec: str | os.PathLike[str]) -> str:
    """A MODEL or DATASET with the path in it expanded: ``coco:~/set``, ``torchvision:resnet50:~/weights.pth``.

    Raises:
        InputError: as ``expand``.
    """
    spec = os.fspath(spec)
    place = re.search("(?:^|:)(~)", spec)
    return spec if place is None else spec[: place.start(1)] + expand(spec[place.start(1) :])


def home() -> str | None:
    """The home folder of this user (which need not exist); None where none is known."""
    if os.environ.get("HOME") == "":  # Python would take the root of the file system
        return None
    folder = os.path.expanduser("~")
    return None if folder == "~" else folder


def create(path: Path) -> IO[bytes]:
    """A new file, opened for writing. What stood there, a leftover or a link, is removed and not written through.

    Raises:
        OSError: as ``open``.
    """
    for _ in range(_TRIES):
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):  # put there this moment
            return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN, 0o666), "wb")
    raise FileExistsError(errno.EEXIST, "somebody else writes it too", str(path))


def appending(path: Path) -> IO[bytes]:
    """A file opened to be written at its end, made when it is missing. A link makes room for a new file, unless it
    leads to a device such as ``/dev/null``.

    Raises:
        OSError: as ``open``.
    """
    if path.is_symlink() and not path.is_char_device():
        return create(path)
    followed = 0 if path.is_symlink() else _PLAIN
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | followed, 0o666), "ab")


def drop_link(path: Path) -> None:
    """Remove a link where a library will write a file. Raises ``OSError``."""
    if path.is_symlink():
        path.unlink(missing_ok=True)


def unwritable(folder: Path) -> str | None:
    """Why ``folder`` cannot be written, or None; makes it when it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def spare_folder() -> Path:
    """This user's own folder in the system's temporary one, for caches that can lie nowhere else.

    Raises:
        OSError: nothing can be written there.
    """
    spare = Path(tempfile.gettempdir()) / f"hetcl-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    if unwritable(spare) is None and (not hasattr(os, "getuid") or spare.stat().st_uid == os.getuid()):
        return spare
    return Path(tempfile.mkdtemp(prefix="hetcl-"))


def shelter() -> None:
    """Name a folder for the caches of all libraries where this user has no home folder; else they make one called
    ``~``, or fail. A warning says which."""
    lacking = [name for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME") if not os.environ.get(name)]
    if home() is not None or not lacking:
        return
    with contextlib.suppress(OSError):
        spare = str(spare_folder())
        os.environ.update(dict.fromkeys(lacking, spare))
        log.warning(
            "this user has no home folder: caches go to %s; set HOME or HETCL_CACHE to keep them", spare
        )


def lies_in(path: str | os.PathLike[str], folder: str) -> bool:
    """Whether a path lies below ``folder`` (a ``realpath``), or is it, once all links are followed.

    Raises:
        ValueError: a name that no file can have.
    """
    real = os.path.realpath(path)
    return real == folder or real.startswith(folder.rstrip(os.sep) + os.sep)


def spellings(name: str) -> Iterator[str]:
    """The ways in which a name out of a text may stand on a disk, the likeliest first, each once.

    As written; with the slashes of this system; without characters that nobody sees; with its accents in one piece
    (NFC) or in two (NFD, from macOS); and as the bytes of Windows-1252, where an old archive was unpacked.
    """
    seen = set()
    for slashed in (name, name.replace("\\", "/"), visible(name), visible(name.replace("\\", "/"))):
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
