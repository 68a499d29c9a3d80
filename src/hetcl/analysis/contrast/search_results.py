"""What became of every query, kept on disk: its rank, what was found, how similar.

A store for each (features, gallery, vector), so that other bins or another comparison cost no second search. n queries,
P parts of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from lightning_fabric import Fabric

from hetcl.analysis.contrast.retrieval import first_in_first_out
from hetcl.analysis.contrast.vectors import Features, Vector
from hetcl.analysis.store import Store

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
        root: where they are kept.
        features: what is searched.
        vector: how.
        gallery: keys of other images that each query meets.
    """

    def __init__(self, root: Path, features: Features, vector: Vector, *, gallery: int) -> None:
        self.features, self.vector, self.gallery = features, vector, gallery
        self.type = outcome_type(len(vector.dims))
        key = {"vector": vector.name, "gallery": gallery}
        self.store = Store(
            root, f"g{gallery}-{vector.name}", key, {"found": self.type}, images=len(features), batch=FIFO_BATCH
        )  # fmt: skip

    def search(self, fabric: Fabric, advance: Callable[[int], None]) -> None:
        """Find what is not there yet, each rank its share.

        Args:
            advance: told how many queries this rank has done, batch by batch; it may raise to stop.

        Raises:
            WorkFailed: the disk refuses.
        """
        if fabric.global_rank == 0:
            self.store.prepare()
        fabric.barrier()
        f, mine = self.features, np.array_split(self.store.todo(), fabric.world_size)[fabric.global_rank]
        try:
            for run in np.split(mine, np.flatnonzero(np.diff(mine) > 1) + 1):
                if not len(run):
                    continue
                stop = min(len(f), (int(run[-1]) + 1) * FIFO_BATCH)
                for where, found, parts in first_in_first_out(
                    f.query, f.key, f.index, dims=f.dims, gallery=self.gallery, batch=FIFO_BATCH,
                    project=self.vector.projection, device=fabric.device, rows=(int(run[0]) * FIFO_BATCH, stop),
                ):  # fmt: skip
                    rows = np.zeros(len(found.rank), self.type)
                    rows["rank"], rows["found"] = found.rank, found.image
                    rows["right"], rows["wrong"] = found.right, found.wrong
                    for i, part in enumerate(parts.right):
                        rows["parts"][:, i, 0], rows["parts"][:, i, 1] = parts.right[part], parts.wrong[part]
                    self.store.write(where.start // FIFO_BATCH, found=rows, index=f.index[where])
                    advance(len(rows))
        finally:
            self.store.close()
        fabric.barrier()
        if fabric.global_rank == 0:
            self.store.finish()
        fabric.barrier()

    def read(self) -> np.ndarray:
        """All rows, memory-mapped, of :func:`outcome_type`."""
        return self.store.read()["found"]
