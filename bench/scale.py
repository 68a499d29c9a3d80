"""Nothing in memory grows with the data set: a dry run over an index of many million images.

::

    python bench/scale.py [--images 100000000] [--steps 2000] [--json FILE]

For 1 million images and for ``--images`` of them, a process of its own opens an index of shards (sparse: its rows
are zeros and take up no disk), makes the loaders of four ranks, and takes steps from all over an epoch exactly as
training would: which images, then their rows of the index. No image is read.

Memory is told apart as Linux does: *private* memory is what a process asked for and must have. It must not grow with
the images; two numbers a shard it may take, with a window. *Mapped* is the part of the index that was looked at, at
most the file: all processes share it with the disk cache, and the system takes it back when it needs memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from hetcl.images.shard_index import RECORD
from hetcl.images.shards import ShardSource
from hetcl.images.tables import TableFile
from hetcl.views.loader import ViewLoader
from hetcl.views.policies import POLICIES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.images.make import create_sparse

FEW = 1_000_000
"""Images of the small index."""
SHARD = 10_000
"""Images in a shard."""
RANKS = 4
WINDOWS = {"no window": 0, "window": 16 * SHARD}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000_000, help="images of the large index")
    parser.add_argument("--steps", type=int, default=2000, help="steps to take, with and without a window")
    parser.add_argument("--batch", type=int, default=256, help="global batch, over four ranks")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)  # measure this index, in this process
    args = parser.parse_args()
    if args.table:
        print(json.dumps(measure(args.table, args.steps, args.batch)))
        return

    results = {}
    for images in (FEW, args.images):
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "table"
            make_index(table, images)
            words = ["--table", str(table), "--steps", str(args.steps), "--batch", str(args.batch)]
            out = subprocess.run(
                [sys.executable, __file__, *words], check=True, capture_output=True, text=True
            )
            results[images] = {"index_bytes": table.stat().st_size, **json.loads(out.stdout)}
    few, many = results[FEW], results[args.images]
    print(f"{'':36s}{FEW:>14,}{args.images:>14,} images")
    print(f"{'index, MB':36s}{few['index_bytes'] / 1e6:14.1f}{many['index_bytes'] / 1e6:14.1f}")
    rows = [
        ("private memory before, MB", "private_before_mb"),
        ("it grows at most by, MB", "private_growth_mb"),
        ("mapped parts of the index, MB", "mapped_growth_mb"),
        *[(f"us a step of a rank, {name}", f"us_{name}") for name in WINDOWS],
        *[(f"us to read its rows, {name}", f"us_rows_{name}") for name in WINDOWS],
    ]
    for text, key in rows:
        print(f"{text:36s}{few[key]:14.1f}{many[key]:14.1f}")
    peak = [r["private_before_mb"] + r["private_growth_mb"] for r in (few, many)]
    ratio = peak[1] / peak[0]
    print(
        f"peak private memory, {args.images / FEW:g} times the images: {ratio:.3f} times "
        f"(its growth alone: {many['private_growth_mb'] / max(few['private_growth_mb'], 0.1):.2f} times)"
    )
    result = {
        "images": [FEW, args.images],
        "peak_private_ratio": ratio,
        "runs": [few, many],
        "steps": args.steps,
        "batch": args.batch,
        "ranks": RANKS,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}",
    }
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def make_index(path: Path, images: int) -> None:
    """A sparse index of shards, as ``images/shard_index.py`` would write it."""
    shards = -(-images // SHARD)
    columns: dict[str, tuple[Any, int]] = {
        "image": (RECORD, images),
        "start": ("<i8", shards),
        "bytes": ("<u8", shards),
        "shard": ("u1", 1),
        "shard.ends": ("<u8", shards),
        "url": ("u1", 1),
        "url.ends": ("<u8", shards),
    }
    maps = create_sparse(path, columns, {"fingerprint": "none", "classes": None})
    maps["start"][:] = np.arange(shards) * SHARD


def measure(table: Path, steps: int, batch: int) -> dict[str, float]:
    """Open the index and take steps from all over an epoch; private and mapped memory in MB, microseconds a step."""
    before, mapped = memory()
    peak, out = before, {"private_before_mb": before}
    source = ShardSource(TableFile(table), name="a dry run")
    for name, window in WINDOWS.items():
        loaders = [
            ViewLoader(
                source,
                policy=POLICIES["moco-v2"],
                size=224,
                batch=batch,
                seed=0,
                stage="stage1",
                rank=rank,
                ranks=RANKS,
                window=window,
            )
            for rank in range(RANKS)
        ]
        order = rows = 0.0
        last = loaders[0].steps_per_epoch - 1
        for number, step in enumerate(np.linspace(0, last, steps).astype(int).tolist()):
            for loader in loaders:
                began = time.perf_counter()
                indices = loader.images(0, step)
                middle = time.perf_counter()
                for index in indices.tolist():  # one by one, as samples are
                    source.table["image"][index].item()
                order, rows = order + middle - began, rows + time.perf_counter() - middle
            if number % 20 == 0:
                peak = max(peak, memory()[0])
        out[f"us_{name}"] = order / (steps * RANKS) * 1e6
        out[f"us_rows_{name}"] = rows / (steps * RANKS) * 1e6
    out["private_growth_mb"] = max(peak, memory()[0]) - before
    out["mapped_growth_mb"] = memory()[1] - mapped
    return out


def memory() -> tuple[float, float]:
    """Private and file-mapped memory of this process now, in MB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return tuple(int(found[key].split()[0]) * 1024 / 1e6 for key in ("RssAnon", "RssFile"))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
