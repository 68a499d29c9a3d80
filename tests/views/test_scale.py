"""A hundred million images: which of them a step takes costs no memory that grows with their number."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hetcl.images.shard_index import RECORD
from hetcl.images.shards import ShardSource
from hetcl.images.tables import TableFile
from hetcl.views.loader import ViewLoader
from hetcl.views.policies import POLICIES
from tests.images.make import create_sparse

HUGE, SHARD, BATCH, RANKS = 100_000_000, 10_000, 256, 4


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("huge") / "table"
    shards = HUGE // SHARD
    columns = {
        "image": (RECORD, HUGE),
        "start": ("<i8", shards),
        "shard": ("u1", 1),
        "shard.ends": ("<u8", shards),
    }
    maps = create_sparse(path, columns, {"fingerprint": "f", "classes": None})
    maps["start"][:] = np.arange(0, HUGE, SHARD)
    maps["image"][-1] = (7, 7, 7, 7)
    return path


@pytest.mark.parametrize("window", [0, 16 * SHARD])
def test_steps_over_a_hundred_million_images(table: Path, window: int) -> None:
    tracemalloc.start()
    source = ShardSource(TableFile(table), name="huge")
    loaders = [
        ViewLoader(
            pickle.loads(pickle.dumps(source)),
            policy=POLICIES["hcl"],
            size=8,
            batch=BATCH,
            seed=1,
            stage="a",
            rank=rank,
            ranks=RANKS,
            window=window,
        )
        for rank in range(RANKS)
    ]
    last = loaders[0].steps_per_epoch - 1
    assert last == -(-HUGE // BATCH) - 1
    rows = source.table["image"]
    seen = []
    for step in (0, 1, last // 2, last - 1):
        batch = np.concatenate([loader.images(3, step) for loader in loaders])
        assert rows[batch].dtype == RECORD
        seen.append(batch)
    end = np.concatenate([loader.images(3, last) for loader in loaders])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # of four ranks; 10,000 shards are two numbers each, and their permutation
    together = np.concatenate([*seen, end[: HUGE - last * BATCH]])
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < HUGE
    # The last batch is completed from the start of the epoch.
    assert np.array_equal(end[HUGE - last * BATCH :], seen[0][: BATCH - (HUGE - last * BATCH)])
    shards = {len(np.unique(batch // SHARD)) for batch in seen}
    assert max(shards) <= 18 if window else min(shards) > 200
