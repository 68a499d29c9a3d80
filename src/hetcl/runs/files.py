"""Small files of a run: written wholly or not at all, checked by CRC-32 when they are read back. Free of torch.

CRC-32 is what the archives of ``torch.save`` carry for each of their parts, so it is the one checksum everywhere. It
tells damage (a flipped bit, zeros, a piece that is missing), not intent.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from hetcl.errors import WorkFailed
from hetcl.paths import create
from hetcl.trees import TreeError, parse_json

CHUNK = 1 << 20
"""Bytes read at a time."""


def disk_problem(path: Path, error: OSError) -> WorkFailed:
    """A write that failed, in one line with the fix."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why, mend = ("the disk is full", "make room") if full else (error.strerror or error, "mend that")
    return WorkFailed(
        f"cannot write {path}: {why}; what was saved before is intact: {mend} and go on with --resume (or run the "
        "command again, where it has none)"
    )


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` wholly or not at all. Raises ``WorkFailed`` when the disk refuses."""
    try:
        with replacing(path) as f:
            f.write(data)
    except OSError as e:
        raise disk_problem(path, e) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file beside ``path`` that takes its place once it is on the disk, and goes when something is raised.

    A link called ``path`` is replaced, not followed. Raises ``OSError``.
    """
    part = path.with_name(path.name + ".part")
    try:
        with create(part) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def set_aside(path: Path) -> Path:
    """Give a damaged file a name beside its own that nothing reads: ``NAME.damaged``, ``NAME.damaged-2`` ...

    Raises:
        WorkFailed: the disk refused.
    """
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    try:
        os.replace(path, aside)
    except OSError as e:
        raise disk_problem(path, e) from None
    return aside


def crc_of(path: Path) -> int:
    """CRC-32 of a file, about 3 GB a second of one core. Raises ``OSError``."""
    crc = 0
    with open(path, "rb") as f:
        while chunk := f.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def seal(tree: Mapping[str, Any]) -> bytes:
    """JSON of ``tree``, which has no ``crc32``, with its own one in it, for :func:`unseal`."""
    return (json.dumps({**tree, "crc32": _crc(tree)}, indent=1) + "\n").encode()


def unseal(data: bytes) -> dict[str, Any]:
    """The tree of :func:`seal`. Raises ``TreeError`` when it is damaged or another one's."""
    tree = parse_json(data)
    if not isinstance(tree, dict) or tree.pop("crc32", None) != _crc(tree):
        raise TreeError("damaged, or not written by hetcl")
    return tree


def _crc(tree: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(dict(tree), sort_keys=True).encode()):08x}"
