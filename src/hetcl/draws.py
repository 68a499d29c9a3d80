"""Random numbers as functions of where they are used, never as state.

Every draw in hetcl comes from a key such as ``(seed, stage, epoch, index, view)``. The same key gives the
same numbers on any machine, in any worker, in any order; so a resumed run, another number of workers and
another number of ranks all see the same images cut the same way.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np

Key = int | str


def digest(*key: Key) -> int:
    """A 128-bit integer that depends on every part of ``key`` (signed 64-bit integers or strings)."""
    packed = b"".join(
        b"i" + struct.pack("<q", int(part))
        if not isinstance(part, str)
        else b"s" + struct.pack("<q", len(part.encode())) + part.encode()
        for part in key
    )
    return int.from_bytes(hashlib.blake2b(packed, digest_size=16).digest(), "little")


class _Words(np.random.bit_generator.ISeedSequence):
    """Hands a digest to Philox as its key. ``Philox(key=...)`` is the same and first asks the system for entropy."""

    def __init__(self, value: int) -> None:
        self.value = value

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.frombuffer(self.value.to_bytes(16, "little"), "<u8").astype(np.uint64)


def generator(*key: Key) -> np.random.Generator:
    """A numpy generator (Philox, counter-based) that is a function of ``key`` alone."""
    return np.random.Generator(np.random.Philox(_Words(digest(*key))))  # type: ignore[arg-type]  # any ISeedSequence


def seed_of(*key: Key) -> int:
    """A seed for ``torch.Generator.manual_seed`` (63 bits), a function of ``key`` alone."""
    return digest(*key) & ((1 << 63) - 1)


def _mix(x: np.ndarray, salt: int) -> np.ndarray:
    """A 64-bit finaliser (multiply, shift, xor) of ``x`` with a round's salt; wraps modulo 2**64."""
    x = (x + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(32)
    return x


def permute(position: np.ndarray, n: int, *key: Key) -> np.ndarray:
    """The place of each ``position`` in a pseudo-random permutation of ``range(n)``, nothing stored.

    A Feistel network over the smallest even number of bits that holds ``n``, walked until the value falls
    inside the range (less than four steps on average).

    Args:
        position: integers in ``[0, n)``, any shape.
        n: size of the permuted range, up to 2**62.
        key: what the permutation is a function of.

    Returns:
        int64 array of the same shape; over all positions every value of ``range(n)`` appears once.
    """
    shape = np.shape(position)
    position = np.atleast_1d(np.asarray(position))
    if n <= 1:
        return np.zeros(shape, np.int64)
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    base = digest("permute", n, *key)
    salts = [(base >> (12 * i)) & ((1 << 60) - 1) for i in range(6)]

    def network(value: np.ndarray) -> np.ndarray:
        left, right = value >> shift, value & mask
        for salt in salts:
            left, right = right, left ^ (_mix(right, salt) & mask)
        return (left << shift) | right

    out = network(position.astype(np.uint64))
    outside = out >= n
    while outside.any():
        out[outside] = network(out[outside])
        outside = out >= n
    return out.astype(np.int64).reshape(shape)
