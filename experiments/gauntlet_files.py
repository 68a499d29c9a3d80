"""What can happen to the files of a run, for ``gauntlet.py``, and which checkpoints are there."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path


def checkpoints(folder: Path) -> set[str]:
    """Digests of all checkpoints, under whatever name they lie there."""
    files = [p for p in (folder / "checkpoints").glob("*") if p.is_file()] if folder.is_dir() else []
    return {hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def truncate(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) or 1)])


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def zero(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(max(1, len(data) - 4095))
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    path.write_bytes(data)


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


def folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path, _: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name + ".nowhere")


DAMAGES = (truncate, flip, zero, remove, folder, link)
"""Each makes a fault in a file."""
