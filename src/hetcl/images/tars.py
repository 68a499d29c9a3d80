"""One pass over the headers of a tar shard: which members belong together, where the pictures lie, their
labels.

A sample is the run of neighbouring members that share a KEY, which is everything before the first dot of the
file name (the webdataset convention).
"""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from hetcl.errors import InputError
from hetcl.images.folder import EXTENSIONS
from hetcl.images.labels import LabelReader

log = logging.getLogger(__name__)

BLOCK = 512
"""Bytes of a tar header, which stands right before the data it describes."""

_LARGEST_TEXT = 1 << 24
_PACKED = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d"}


@dataclass(frozen=True)
class Entry:
    """One picture of a shard: the member that holds it, and its label (-1 for none)."""

    key: str
    offset: int
    size: int
    label: int


def split_name(name: str) -> tuple[str, str]:
    """(KEY, extension in lower case) of a member: ``a/b.seg.png`` -> (``a/b``, ``seg.png``)."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()


def members(path: str) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar, by one pass over its headers.

    Raises:
        InputError: unreadable, compressed, not a tar, cut short, or two archives joined.
    """
    try:
        with open(path, "rb") as file:
            _refuse_packed(path, file)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                    if member.isreg() and not member.issparse():
                        yield member
                end = tar.offset
            _check_end(path, file, end)
    except tarfile.TarError as error:
        size = os.path.getsize(path)
        whole = size >= BLOCK or not path.lower().endswith(".tar")
        # "Empty header": it ends right behind one that announces another (a long name, a pax record).
        if whole and not any(words in str(error) for words in ("unexpected end", "empty header")):
            raise InputError(f"{path} is not a tar archive ({error}): name tar shards only") from error
        raise _cut_short(path) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _refuse_packed(path: str, file: IO[bytes]) -> None:
    start = file.read(6)
    for magic, command in _PACKED.items():
        if start.startswith(magic):
            raise InputError(f"{path} is compressed and cannot be read at random: unpack it once ({command})")
    file.seek(0)


def _check_end(path: str, file: IO[bytes], end: int) -> None:
    """A whole archive ends in zero blocks and nothing else."""
    file.seek(end)
    first = True
    while block := file.read(BLOCK if first else 1 << 20):
        if first and len(block) < BLOCK:
            break
        if block.count(0) != len(block):
            raise InputError(
                f"{path} is damaged, or two archives joined, at byte {end:,}: make it again, as one or as two"
            )
        first = False
    if first:
        raise _cut_short(path)


def _unreadable(path: str, error: OSError) -> InputError:
    reason = error.strerror or error
    return InputError(f"cannot read the shard {path} ({reason}): check the path and rights")


def _cut_short(path: str) -> InputError:
    return InputError(
        f"the shard {path} is cut short ({os.path.getsize(path):,} bytes): copy or download it again, "
        "or leave it out"
    )


class _Group:
    """The members seen so far of one sample."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.seen: set[str] = set()
        self.picture: tarfile.TarInfo | None = None
        self.exact = False
        self.extra = 0
        self.labels: dict[str, tarfile.TarInfo] = {}

    def add(self, extension: str, member: tarfile.TarInfo) -> None:
        self.seen.add(extension)
        if extension in ("cls", "json"):
            self.labels[extension] = member
        elif "." + extension.rpartition(".")[2] in EXTENSIONS:
            exact = "." not in extension
            self.extra += self.picture is not None
            if self.picture is None or (exact and not self.exact):
                self.picture, self.exact = member, exact


def entries(path: str, label: LabelReader | None = None) -> Iterator[Entry]:
    """The pictures of a shard in their order; members that belong to no picture are passed over."""
    label = label or LabelReader()
    extra = 0
    with _open(path) as file:
        for group in _groups(path):
            extra += group.extra
            member = group.picture
            if member is None:
                continue
            number = -1
            for extension, read in (("cls", label.cls), ("json", label.json)):
                text = group.labels.get(extension)
                if text is not None and number < 0 and text.size <= _LARGEST_TEXT:
                    number = read(_text(path, file, text), text.name)
            yield Entry(group.key, member.offset_data, member.size, number)
    if extra:
        log.warning(
            "%s: %d more pictures share the key of another (the part before the first dot) and are left out",
            path,
            extra,
        )


def _text(path: str, file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    try:
        return os.pread(file.fileno(), member.size, member.offset_data)
    except OSError as error:
        raise _unreadable(path, error) from error


def _groups(path: str) -> Iterator[_Group]:
    group: _Group | None = None
    for member in members(path):
        key, extension = split_name(member.name)
        if key.rpartition("/")[2] == "":  # a hidden file
            continue
        if group is None or group.key != key or extension in group.seen:
            if group is not None:
                yield group
            group = _Group(key)
        group.add(extension, member)
    if group is not None:
        yield group


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from error
