"""Offline retrieval as slowly and plainly as possible: loops over queries and keys, sums rounded once.

Written from the definition alone; it knows nothing of ``hetcl``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Answer:
    """What one query finds."""

    rank: int
    place: int
    image: int
    right: float
    wrong: float


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product in float64: products of float32 are exact there, ``fsum`` rounds their sum once."""
    return math.fsum((a.astype(np.float64) * b.astype(np.float64)).tolist())


def answer(
    query: np.ndarray, key: np.ndarray, image: int, keys: Sequence[np.ndarray], images: Sequence[int]
) -> Answer:
    """One query against its own key and a gallery; ties count against it, the first of equal keys is the nearest."""
    own = similarity(query, key)
    rank, place, best = 1, -1, -math.inf
    for j, (other, its) in enumerate(zip(keys, images, strict=True)):
        if its == image:
            continue
        value = similarity(query, other)
        rank += value >= own
        if place < 0 or value > best:
            place, best = j, value
    return Answer(rank, place, int(images[place]) if place >= 0 else -1, own, best)


def first_in_first_out(
    query: np.ndarray, key: np.ndarray, index: np.ndarray, gallery: int, batch: int
) -> list[Answer]:
    """Every row of a data set against the gallery that its batch meets; row j is at place j modulo the gallery."""
    n = len(query)
    answers = []
    for i in range(n):
        start = i // batch * batch
        if gallery + batch > n:
            rows = list(range(n))
        else:
            rows = [j % n for j in sorted(range(start - gallery, start), key=lambda j: j % gallery)]
        answers.append(answer(query[i], key[i], index[i], [key[j] for j in rows], [index[j] for j in rows]))
    return answers
