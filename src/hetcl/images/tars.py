"""One pass over the headers of a tar shard: which members belong together, where the images lie, their
labels.

A sample is the run of neighbouring members that share a KEY, which is everything before the first dot of the
file name (the webdataset convention).
"""

from __future__ import annotations

import io
import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from hetcl.errors import InputError
from hetcl.images.formats import EXTENSIONS, HEAD, OTHERS, SPECIAL, Aside, looks_like_image
from hetcl.images.labels import ENDINGS, LabelReader
from hetcl.images.split_words import is_map, words_of

log = logging.getLogger(__name__)

BLOCK = 512
"""Bytes of a tar header, which stands right before the data it describes."""

_LARGEST_TEXT = 1 << 24
_PACKED = {
    **{b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d"},
    **{b"PK\x03\x04": "unzip", b"PK\x05\x06": "unzip", b"Rar!": "unrar x", b"7z\xbc\xaf\x27\x1c": "7z x"},
}
"""First bytes of packed files, and what unpacks them."""
_ARCHIVES = ("unzip", "unrar x", "7z x")
_LINKS_AT_MOST = 1_000_000
"""Links of a shard that are resolved; their names are held while its headers are read."""
_STEPS = 40
"""Links in a row that are followed."""
_FOLDERS_AT_MOST = 64
"""Names of folders in shards that are held."""


@dataclass(frozen=True)
class TarEntry:
    """One image of a shard: the member that holds it, and its label (-1 for none)."""

    key: str
    offset: int
    size: int
    label: int


@dataclass
class TarRest:
    """What was met in shards besides the images."""

    aside: Aside = field(default_factory=Aside)
    """Members that are no images and no labels."""
    lost: Aside = field(default_factory=Aside)
    """Members that cannot be read: links that lead out of the tar, sparse files."""
    again: int = 0
    """Names of images that links gave another name."""
    contradicted: int = 0
    """Images that have several labels under several names."""
    astray: int = 0
    """Labels that do not stand beside an image."""
    example: str = ""
    """One of them."""
    numbers: str = ""
    """A text beside an image without a label that holds a number and is no label."""
    folders: set[str] = field(default_factory=set)
    """Folders in the shards, two levels at most, some of them."""


def split_name(name: str) -> tuple[str, str]:
    """(KEY, extension in lower case) of a member: ``a/b.seg.png`` -> (``a/b``, ``seg.png``)."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()


@dataclass(frozen=True)
class Member:
    """A plain file of a tar, or a link to one: its own name, and where the data lies."""

    name: str
    offset: int
    size: int


def members(path: str, found: TarRest | None = None) -> Iterator[Member]:
    """The plain files of a tar, by one pass over its headers; links to files in it are among them, in their places.

    A tar with links is passed over twice more, to find what they link to.

    Args:
        path: the tar.
        found: where members that cannot be read are counted.

    Raises:
        InputError: unreadable, compressed, not a tar, cut short, or two archives joined.
    """
    found = found or TarRest()
    targets: dict[str, Member] | None = None
    for member in _headers(path):
        if member.isreg() and not member.issparse():
            yield Member(member.name, member.offset_data, member.size)
        elif member.islnk() or member.issym():
            targets = _targets(path) if targets is None else targets
            target = targets.get(_plain(member.name))
            if target is not None and target.offset >= 0:
                yield Member(member.name, target.offset, target.size)
            elif target is None:
                found.lost.add("stray link", f"{member.name} -> {member.linkname}")
        elif not member.isdir():
            found.lost.add("sparse file" if member.issparse() else SPECIAL, member.name)


def _targets(path: str) -> dict[str, Member]:
    """What each link of a tar leads to, maybe by way of others, by the link's name; without those that lead out of it.

    Folders have an offset of -1: their files are members anyway.
    """
    links: dict[str, str] = {}
    for member in _headers(path):
        if (member.islnk() or member.issym()) and len(links) < _LINKS_AT_MOST:
            folder = "" if member.islnk() else member.name.rpartition("/")[0]
            links[_plain(member.name)] = _plain(f"{folder}/{member.linkname}" if folder else member.linkname)
    ends = {name: _end(target, links) for name, target in links.items()}
    wanted = set(ends.values())
    files = {".": Member(".", -1, 0)}
    for member in _headers(path):
        name = _plain(member.name)
        if name in wanted and member.isreg() and not member.issparse():
            files[name] = Member(name, member.offset_data, member.size)
        elif name in wanted and member.isdir():
            files[name] = Member(name, -1, 0)
        while name := os.path.dirname(name):
            if name in wanted:
                files.setdefault(name, Member(name, -1, 0))
    return {name: files[end] for name, end in ends.items() if end in files}


def _end(target: str, links: dict[str, str]) -> str:
    """Where a link ends that leads to ``target``, by way of other links, also of such to folders on its path."""
    for _ in range(_STEPS):
        head = target
        while head and head not in links:
            head = os.path.dirname(head)
        if not head:
            break
        target = _plain(links[head] + target[len(head) :])
    return target


def _plain(name: str) -> str:
    """``a/b`` for ``./a//c/../b``: a member by whatever path a link names it."""
    return os.path.normpath(name.lstrip("/"))


def _headers(path: str) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, whatever they are. Raises ``InputError`` as ``members``."""
    try:
        with open(path, "rb") as file:
            _refuse_packed(path, file)
            with tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
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


class _Bounded(io.RawIOBase):
    """A file that is not asked for more bytes than it has: tarfile would make room for all that a header states."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()


def _refuse_packed(path: str, file: IO[bytes]) -> None:
    start = file.read(6)
    for magic, command in _PACKED.items():
        if start.startswith(magic) and command in _ARCHIVES:
            raise InputError(
                f"{path} is a {command.split()[0].removeprefix('un')} archive, which is not read: unpack it "
                f"({command} {os.path.basename(path)}) and name the folder"
            )
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
        self.seen: dict[str, tuple[Member, bool]] = {}
        self.image: Member | None = None
        self.exact = False
        self.extra = 0
        self.labels: dict[str, Member] = {}
        self.others: list[tuple[str, Member]] = []

    def add(self, extension: str, member: Member, *, image: bool) -> None:
        self.seen[extension] = member, image
        if extension in ENDINGS or extension == "json":
            self.labels[extension] = member
        elif image:
            exact = "." not in extension
            self.extra += self.image is not None
            if self.image is None or (exact and not self.exact):
                self.image, self.exact = member, exact
        else:
            self.others.append((extension, member))


def entries(path: str, label: LabelReader | None = None, found: TarRest | None = None) -> Iterator[TarEntry]:
    """The images of a shard in their order; what belongs to no image is counted in ``found``."""
    label, found = label or LabelReader(), found or TarRest()
    extra = 0
    with _open(path) as file:
        for group in _groups(path, file, found):
            extra += group.extra
            for extension, other in group.others:
                found.aside.add("." + extension.rpartition(".")[2] if extension else "", other.name)
            member = group.image
            if member is None:
                if group.labels.keys() - {"json"} and not group.others:
                    found.astray += 1
                    found.example = found.example or next(iter(group.labels.values())).name
                continue
            number = _label_of(path, file, group, label)
            if number < 0 and not group.labels and not found.numbers:
                found.numbers = _number_beside(path, file, group)
            if len(found.folders) < _FOLDERS_AT_MOST and "/" in group.key:
                found.folders.add("/".join(group.key.removeprefix("./").split("/")[:-1][:2]))
            yield TarEntry(group.key, member.offset, member.size, number)
    if extra:
        log.warning(
            "%s: %d more images share the key of another (the part before the first dot) and are left out: "
            "give each a name of its own up to there, or unpack the tar and name the folder",
            path,
            extra,
        )


def _label_of(path: str, file: IO[bytes], group: _Group, label: LabelReader) -> int:
    """The class number of a sample, -1 where it has none."""
    for ending in (*ENDINGS, "json"):
        member = group.labels.get(ending)
        if member is not None and member.size <= _LARGEST_TEXT:
            number = (label.json if ending == "json" else label.text)(_text(path, file, member), member.name)
            if number >= 0:
                return number
    return -1


def _number_beside(path: str, file: IO[bytes], group: _Group) -> str:
    """A small text beside an image that is nothing but a number; empty where there is none."""
    for _, member in group.others:
        if member.size <= 16 and _text(path, file, member).strip().isdigit():
            return member.name
    return ""


def _text(path: str, file: IO[bytes], member: Member) -> bytes:
    try:
        return os.pread(file.fileno(), member.size, member.offset)
    except OSError as error:
        raise _unreadable(path, error) from error


def _groups(path: str, file: IO[bytes], found: TarRest) -> Iterator[_Group]:
    group: _Group | None = None
    for member in members(path, found):
        key, extension = split_name(member.name)
        if key.rpartition("/")[2] == "":  # a hidden file
            continue
        if group is None or group.key != key or extension in group.seen:
            if group is not None:
                yield from _apart(group)
            group = _Group(key)
        group.add(extension, member, image=_is_image(path, file, extension, member))
    if group is not None:
        yield from _apart(group)


def _apart(group: _Group) -> Iterator[_Group]:
    """The samples of a group: itself, or one for each image where all names have dots of their own.

    ``2020.01.02.jpg`` and ``2020.01.03.jpg`` share the key ``2020`` and are two images all the same; ``a.seg.png``
    belongs to ``a.jpg``, and ``a.mask.png`` is no image beside ``a.rgb.png``.
    """
    images = [extension for extension, (_, image) in group.seen.items() if image]
    if len(images) < 2 or not all("." in extension for extension in group.seen):
        yield group
        return
    found: dict[str, _Group] = {}
    for extension, (member, image) in group.seen.items():
        stem, _, last = extension.rpartition(".")
        inner = found.setdefault(stem, _Group(f"{group.key}.{stem}"))
        inner.add(last, member, image=image and not is_map(stem) and "seg" not in words_of(stem))
    yield from found.values()


def _is_image(path: str, file: IO[bytes], extension: str, member: Member) -> bool:
    """By the ending, or by the content where that is of no known kind."""
    last = "." + extension.rpartition(".")[2] if extension else ""
    if last in EXTENSIONS or last in OTHERS or last == ".npy":  # (what belongs to an image mostly)
        return last in EXTENSIONS
    try:
        return looks_like_image(os.pread(file.fileno(), min(HEAD, member.size), member.offset))
    except OSError as error:
        raise _unreadable(path, error) from error


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from error
