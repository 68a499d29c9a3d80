"""Retrieval against faiss's exact flat index, and its memory from 10,000 to 1,000,000 queries.

::

    python bench/retrieval.py [--rounds 7] [--threads N] [--few 10000 --many 1000000] [--json FILE]

Speed: 4,096 queries against 65,536 keys of 128 dimensions, on one machine in one run, rounds interleaved, medians of
wall and of CPU time. faiss's ``IndexFlatIP`` finds the nearest key; ours finds it and ranks the own key as well.
faiss's filling of its index is not counted. Both must name the same nearest keys. One thread each by default: beside
other programs, several threads time how long they wait for each other. How fast we are hangs on the features:

    trained     the own key is the nearest for about two thirds of the queries
    random      own keys anywhere: every group of keys has to be counted
    collapsed   similarities that differ by less than float32 resolves: the search is done in float64

Memory: a process of its own for each number of queries, features in memory-mapped files, peak of its private memory
(Linux's RssAnon; mapped files are the disk cache's) while the gallery moves over all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hetcl.analysis.contrast.retrieval import first_in_first_out, retrieve

GOAL = 0.9
"""Times faster than faiss that we want."""
QUERIES, KEYS, DIMS = 4096, 65536, 128
NOISE = {"trained": 0.2, "random": 1e3}
"""How far the own key lies from the query, in each dimension."""
SMALL_DIMS, SMALL_GALLERY, SMALL_BATCH = 32, 4096, 512
"""Of the memory test, so that it takes a minute."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of everything")
    parser.add_argument("--threads", type=int, default=1, help="of both sides")
    parser.add_argument("--few", type=int, default=10_000, help="queries of the memory test")
    parser.add_argument("--many", type=int, default=1_000_000, help="queries of the memory test")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--features", type=Path, help=argparse.SUPPRESS)  # measure memory in this process
    args = parser.parse_args()
    if args.features:
        torch.set_num_threads(args.threads)
        print(json.dumps(memory(args.features)))
        return
    result = {
        "speed": speed(args.rounds, args.threads),
        "memory": flat(args.few, args.many, args.threads),
        "goal": GOAL,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"faiss {faiss.__version__}",
    }
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def speed(rounds: int, threads: int) -> dict[str, object]:
    """Seconds of each side and their ratios."""
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)

    def noise(rows: int) -> Tensor:
        return torch.randn(rows, DIMS, generator=draw)

    query, gallery = normalize(noise(QUERIES), dim=1), normalize(noise(KEYS), dim=1)
    key = {name: normalize(query + size * noise(QUERIES), dim=1) for name, size in NOISE.items()}
    index, gallery_index = torch.arange(QUERIES), torch.arange(KEYS) + QUERIES
    flat_index = faiss.IndexFlatIP(DIMS)
    flat_index.add(gallery.numpy())

    def peer() -> np.ndarray:
        return flat_index.search(query.numpy(), 1)[1][:, 0]

    around = normalize(noise(1), dim=1)
    near = [normalize(around + 1e-5 * x, dim=1) for x in (query, gallery)]

    def ours(name: str) -> np.ndarray:
        if name == "collapsed":
            found = retrieve(near[0], near[0], near[1], index, gallery_index)
        else:
            found = retrieve(query, key[name], gallery, index, gallery_index)
        top1[name] = float((found.rank == 1).float().mean())
        return found.place.numpy()

    top1: dict[str, float] = {}
    jobs: dict[str, Callable[[], np.ndarray]] = {
        "faiss": peer,
        "trained": lambda: ours("trained"),
        "random": lambda: ours("random"),
        "collapsed": lambda: ours("collapsed"),
    }
    nearest = {name: job() for name, job in jobs.items()}  # warms up, too
    same = {name: float((nearest[name] == nearest["faiss"]).mean()) for name in jobs}
    wall: dict[str, list[float]] = {name: [] for name in jobs}
    cpu: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            began, used = time.perf_counter(), time.process_time()
            job()
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - used)
    out: dict[str, object] = {"threads": threads, "rounds": rounds, "top1": top1, "same_nearest": same}
    for kind, spent in (("wall", wall), ("cpu", cpu)):
        seconds = {name: statistics.median(values) for name, values in spent.items()}
        ratio = {name: seconds["faiss"] / s for name, s in seconds.items() if name != "faiss"}
        out[f"{kind}_seconds"], out[f"{kind}_ratio"] = seconds, ratio
        for name, s in seconds.items():
            says = f"faiss / ours = {ratio[name]:.2f}" if name in ratio else "nearest key alone"
            low, high = min(spent[name]), max(spent[name])
            print(f"{kind:4s} {name:8s} {s:7.3f} s  (from {low:.3f} to {high:.3f})  {says}")
    found = ", ".join(f"{name} {share:.2%}" for name, share in same.items() if name != "faiss")
    print(f"goal {GOAL:g} for trained features; {threads} threads; same nearest key as faiss: {found}")
    return out


def flat(few: int, many: int, threads: int) -> dict[str, object]:
    """Peak private memory for two numbers of queries."""
    runs = {}
    for n in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("query", "key"):
                write(Path(folder) / f"{name}.npy", n)
            words = [sys.executable, __file__, "--features", folder, "--threads", str(threads)]
            out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            runs[n] = json.loads(out)
    ratio = runs[many]["peak_mb"] / runs[few]["peak_mb"]
    for n, run in runs.items():
        print(
            f"{n:>10,} queries: peak private memory {run['peak_mb']:.1f} MB, of which {run['before_mb']:.1f} before; "
            f"{run['seconds']:.1f} s"
        )
    print(f"peak private memory, {many / few:g} times the queries: {ratio:.3f} times")
    return {"queries": [few, many], "peak_private_ratio": ratio, "runs": list(runs.values())}


def write(path: Path, n: int) -> None:
    """Random unit vectors; the files' rows differ by some noise, so that own keys are mostly the nearest."""
    array = np.lib.format.open_memmap(path, "w+", np.float32, (n, SMALL_DIMS))
    for start in range(0, n, 10_000):
        rows = np.random.default_rng(start).normal(size=(min(10_000, n - start), SMALL_DIMS))
        rows += 0.3 * np.random.default_rng(len(path.name)).normal(size=rows.shape)
        array[start : start + len(rows)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)


def memory(folder: Path) -> dict[str, float]:
    """Move the gallery over all rows; private memory in MB before, and at most while (looked at every 5 ms)."""
    query, key = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("query", "key"))
    index = np.memmap(folder / "index", np.int64, "w+", shape=(len(query),))
    for start in range(0, len(index), 10_000):
        index[start : start + 10_000] = np.arange(start, min(start + 10_000, len(index)))
    torch.mm(torch.ones(512, 512), torch.ones(512, 512))  # the threads and their stacks
    before, done = private(), threading.Event()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, private())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, right = time.perf_counter(), 0
    for _, found, _ in first_in_first_out(
        query, key, index, dims={"all": SMALL_DIMS}, gallery=SMALL_GALLERY, batch=SMALL_BATCH
    ):
        right += int((found.rank == 1).sum())
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return {"before_mb": before, "peak_mb": peak, "seconds": seconds, "top1": right / len(query)}


def private() -> float:
    """Private memory of this process now, in MB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
