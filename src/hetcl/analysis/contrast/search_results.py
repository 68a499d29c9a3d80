"""What became of every query, kept on disk: its rank, what was found, how similar.

One file for each (features, gallery, vector), written under ``.part`` until it is whole, so that other bins or another
comparison cost no second search; its CRC-32 lies beside it. n queries, P parts of a vector.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hetcl.analysis.contrast.retrieval import first_in_first_out
from hetcl.analysis.contrast.vectors import Vector
from hetcl.analysis.store import UNREADABLE, Features
from hetcl.paths import create
from hetcl.runs.files import crc_of, disk_problem, seal, unseal, write_atomic

FIFO_BATCH = 256
"""Queries after which the gallery moves on by as many keys (the paper's batch)."""


def outcome_type(parts: int) -> np.dtype:
    """A row of the file, packed: 20 bytes and 8 for each part."""
    return np.dtype(
        [
            ("rank", np.int32),  # 1 + keys of other images at least as similar as the own one
            ("found", np.int64),  # the image of the most similar other key
            ("right", np.float32),  # similarity with the own key
            ("wrong", np.float32),  # similarity with the most similar other key
            ("parts", np.float32, (parts, 2)),  # both again, of each part
        ]
    )


class SearchResults:
    """The outcomes of one vector, searched for once.

    Args:
        path: the file, ``.npy``.
        features: what is searched.
        vector: how.
        gallery: keys of other images that each query meets.
    """

    def __init__(self, path: Path, features: Features, vector: Vector, *, gallery: int) -> None:
        self.path, self.features, self.vector, self.gallery = path, features, vector, gallery
        self._part, self._seal = path.with_suffix(".part"), path.with_suffix(".json")
        self._sound: bool | None = None
        self.type = outcome_type(len(vector.dims))

    @property
    def finished(self) -> bool:
        """Whether the file is whole and undamaged. Reads it when it is first asked."""
        if self._sound is None:
            try:
                held = np.load(self.path, mmap_mode="r")
                sums = unseal(self._seal.read_bytes())
                self._sound = held.dtype == self.type and len(held) == len(self.features)
                self._sound &= sums == {"crc32 of": {self.path.name: crc_of(self.path)}}
            except UNREADABLE:
                self._sound = False
        return self._sound

    def prepare(self) -> None:
        """Make room. One process calls it. Raises ``WorkFailed``."""
        try:
            with create(self._part) as f:
                header = {"descr": np.lib.format.dtype_to_descr(self.type), "fortran_order": False}
                np.lib.format.write_array_header_1_0(f, header | {"shape": (len(self.features),)})
                f.truncate(f.tell() + len(self.features) * self.type.itemsize)
        except OSError as e:
            raise disk_problem(self.path, e) from None

    def search(
        self, *, rank: int, ranks: int, device: torch.device | str, advance: Callable[[int], None]
    ) -> None:
        """This process's share of the queries.

        Args:
            advance: told how many queries were done, batch by batch; it may raise to stop.

        Raises:
            WorkFailed: the disk refuses.
        """
        n = len(self.features)
        batches = -(-n // FIFO_BATCH)
        start, stop = (min(n, FIFO_BATCH * (batches * r // ranks)) for r in (rank, rank + 1))
        if start >= stop:
            return
        offset = np.load(self._part, mmap_mode="r").offset
        try:
            with open(self._part, "r+b") as f:
                f.seek(offset + start * self.type.itemsize)
                for _, found, parts in first_in_first_out(
                    self.features.query,
                    self.features.key,
                    self.features.index,
                    dims=self.features.dims,
                    gallery=self.gallery,
                    batch=FIFO_BATCH,
                    project=self.vector.projection,
                    device=device,
                    rows=(start, stop),
                ):
                    rows = np.zeros(len(found.rank), self.type)
                    rows["rank"], rows["found"] = found.rank, found.image
                    rows["right"], rows["wrong"] = found.right, found.wrong
                    for i, part in enumerate(parts.right):
                        rows["parts"][:, i, 0], rows["parts"][:, i, 1] = parts.right[part], parts.wrong[part]
                    f.write(rows.tobytes())
                    advance(len(rows))
        except OSError as e:
            raise disk_problem(self.path, e) from None

    def finish(self) -> None:
        """The file is whole. One process calls it, after all have searched."""
        try:
            write_atomic(self._seal, seal({"crc32 of": {self.path.name: crc_of(self._part)}}))
            os.replace(self._part, self.path)
        except OSError as e:
            raise disk_problem(self.path, e) from None
        self._sound = True

    def read(self) -> np.ndarray:
        """All rows, memory-mapped, of :func:`outcome_type`."""
        return np.load(self.path, mmap_mode="r")
