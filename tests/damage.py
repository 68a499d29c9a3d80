"""Ways to damage a file, for whoever tests that damage is noticed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, rng: random.Random) -> bytes:
    """One bit."""
    out = bytearray(data)
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def zero(data: bytes, rng: random.Random) -> bytes:
    """A block of 4 KB, or all of a smaller file."""
    start = rng.randrange(max(1, len(data) - 4095))
    return data[:start] + bytes(len(data[start : start + 4096])) + data[start + 4096 :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Cut short anywhere."""
    return data[: rng.randrange(len(data))]


def swap(data: bytes, rng: random.Random) -> bytes:
    """Two blocks of 512 bytes have changed places."""
    blocks = [data[i : i + 512] for i in range(0, len(data), 512)]
    i, j = rng.randrange(len(blocks)), rng.randrange(len(blocks))
    blocks[i], blocks[j] = blocks[j], blocks[i]
    return b"".join(blocks)


DAMAGES: tuple[Damage, ...] = (flip, zero, truncate, swap)


def spoil(path: Path, damage: Damage, seed: int = 0) -> None:
    """Damage a file where it lies."""
    path.write_bytes(damage(path.read_bytes(), random.Random(seed)))
