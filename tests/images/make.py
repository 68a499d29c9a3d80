"""Small files for the tests of this room."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hetcl.images import tables


def pixels(width: int = 40, height: int = 30, seed: int = 0) -> np.ndarray:
    """A smooth image with a corner of its own in each colour: uint8 `[H, W, 3]`."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray | Image.Image | None = None, kind: str = "JPEG", **options: object) -> bytes:
    """The bytes of an image file."""
    if image is None:
        image = pixels()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    """A tar with the given members, in order."""
    with tarfile.open(path, "w", format=kind) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def shard(path: Path, count: int = 3, first: int = 0, classes: int = 2) -> Path:
    """A shard of small labelled images."""
    members = []
    for i in range(first, first + count):
        members.append((f"{i:04d}.jpg", encoded(pixels(8, 8, seed=i))))
        members.append((f"{i:04d}.cls", b"%d\n" % (i % classes)))
    return tar(path, members)


def folder(root: Path, names: list[str]) -> Path:
    """A folder of small images, each different."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(pixels(8, 8, seed=i)))
    return root


def create_sparse(
    path: Path, columns: dict[str, tuple[str, int]], meta: dict[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """A table of (dtype, length) by name, all zeros and (where the file system can) without using disk; its columns as
    writable memory maps."""
    places, start = {}, 0
    for name, (kind, length) in columns.items():
        size = np.dtype(kind).itemsize * length
        places[name] = tables._place(np.dtype(kind), start, size)
        start += size + -size % tables._ALIGN
    with open(path, "wb") as file:
        file.truncate(start)
        file.seek(start)
        file.write(tables._footer(meta or {}, places, None))
    return {
        name: np.memmap(path, dtype=np.dtype(kind), mode="r+", offset=places[name]["start"], shape=(length,))
        for name, (kind, length) in columns.items()
        if length
    }
