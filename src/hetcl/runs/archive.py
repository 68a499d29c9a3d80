"""The zip archives that ``torch.save`` writes, tested before they are believed: torch itself compares no checksum."""

from __future__ import annotations

import errno
import os
import zipfile
import zlib
from pathlib import Path

GROWTH, SLACK = 10, 1 << 26
"""A zip may declare at most this many times its size, plus this many bytes: torch itself stores without packing."""
UNZIP = (zipfile.BadZipFile, zipfile.LargeZipFile, RuntimeError, ValueError, EOFError, zlib.error)
"""What a damaged zip may raise. (``RuntimeError``: a part that claims to be encrypted or packed in an unknown way.)"""
DAMAGED = "it is damaged, cut short or of another kind"


def damage(path: Path) -> str | None:
    """What is wrong with an archive, or None. Each of its parts is compared with its CRC-32.

    Reads the file once, about 3 GB a second of one core.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return "the file is empty"
        try:
            with zipfile.ZipFile(file) as archive:
                declared = sum(e.file_size for e in archive.infolist())
                if declared > GROWTH * size + SLACK:
                    return f"it is a zip of {size} bytes that claims to hold {declared}; weights do not pack like that"
                part = archive.testzip()
        except UNZIP:
            return DAMAGED
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place before the file's beginning
                raise
            return DAMAGED
    return None if part is None else f"it is damaged: the bytes of {part} do not match their checksum"


def is_zip(path: Path) -> bool:
    """Whether a file can be taken for a zip; a damaged one may be neither, which the library says by an error."""
    try:
        return zipfile.is_zipfile(path)
    except (*UNZIP, OSError):
        return False


def parts(path: Path) -> set[str]:
    """Names of an archive's parts, without their folder; empty when it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    except (*UNZIP, OSError):
        return set()
