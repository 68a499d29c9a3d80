"""Kill a run again and again at random moments and resume it: does it end in the same bytes as an undisturbed one?

    python experiments/kill_resume.py [--kills 20] [--seed 0] [--out FOLDER] [-- SETTINGS]

Each kill is SIGKILL to a real ``hetcl pretrain`` with worker processes: three in four at a random moment after it has
touched its folder, the others while it starts. A run that ends is compared (``backbone.safetensors``, ``metrics.csv``)
and the next begins in a new folder, until there were that many kills. Prints a line a kill and a summary; exit status
1 if any byte differs. Some minutes on two cores, most of them spent importing torch.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = (
    "--recipe demo --backbone timm:test_resnet --size 32 --batch 8 --groups 2 --spatial.side 4 --spatial.width 8 "
    "--semantic.dim 8 --threads 1 --device cpu --log_every 3 --checkpoint_every 4 --stage1.queue 50 "
    "--stage2.queue 50 --knn.bank 40 --knn.queries 20 --stage1.epochs 4 --stage2.epochs 3"
).split()
FILES = ("backbone.safetensors", "metrics.csv")


def start(out: Path, words: list[str], workers: int) -> subprocess.Popen[bytes]:
    argv = [
        sys.executable,
        "-m",
        "hetcl.cli",
        "pretrain",
        "--out",
        str(out),
        *words,
        "--workers",
        str(workers),
    ]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def digests(out: Path) -> list[str]:
    return [hashlib.sha256((out / name).read_bytes()).hexdigest()[:16] for name in FILES]


def newest(out: Path) -> float:
    return (
        max((p.stat().st_mtime for p in out.rglob("*") if p.exists()), default=0.0) if out.exists() else 0.0
    )


def where(out: Path) -> str:
    """How far a folder is, in words."""
    rows = (out / "metrics.csv").read_text().splitlines() if (out / "metrics.csv").exists() else []
    have = sorted(p.stem for p in (out / "checkpoints").glob("*.ckpt")) if out.exists() else []
    row = rows[-1].split(",")[:3] if len(rows) > 1 else []
    return f"{' '.join(row) or 'no row yet'}; checkpoints: {', '.join(have) or 'none'}"


def disturb(out: Path, words: list[str], rng: random.Random, startup: float) -> bool:
    """Start or resume and kill once. False when the run ended first."""
    before = newest(out)
    process = start(out, words, rng.choice([0, 1, 2]))
    if rng.random() < 0.75:
        while process.poll() is None and newest(out) == before:
            time.sleep(0.002)
        time.sleep(rng.random() * rng.choice([0.2, 2, 6]))
    else:
        time.sleep(rng.random() * startup)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if process.returncode:
        raise SystemExit(
            f"the run failed with {process.returncode}: {(process.communicate()[1]).decode()[-500:]}"
        )
    return False


def finish(out: Path, words: list[str]) -> None:
    """Resume to the end (which changes nothing when the run has ended)."""
    process = start(out, [*words, "--resume"], 1)
    message = process.communicate()[1].decode()
    if process.returncode:
        raise SystemExit(f"--resume failed with {process.returncode}: {message[-500:]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: a temporary folder, removed at the end")
    parser.add_argument("settings", nargs="*", help="other settings, after --")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    root = args.out or Path(tempfile.mkdtemp())
    words = ["--data", "scenes:123", *SETTINGS, *args.settings]

    began = time.monotonic()
    whole = start(root / "undisturbed", words, 0)
    while not (root / "undisturbed").exists() and whole.poll() is None:
        time.sleep(0.01)
    startup = time.monotonic() - began
    if whole.wait():
        raise SystemExit((whole.communicate()[1]).decode()[-500:])
    expected = digests(root / "undisturbed")
    print(
        f"undisturbed: {time.monotonic() - began:.0f} s, of which {startup:.0f} s to start; {expected}",
        flush=True,
    )

    kills, runs, same = 0, 0, True
    while kills < args.kills:
        out = root / f"run{runs}"
        while kills < args.kills and disturb(
            out, [*words, "--resume"] if out.exists() else words, rng, startup
        ):
            kills += 1
            print(f"kill {kills}: {where(out)}", flush=True)
        finish(out, words)
        runs += 1
        found = digests(out)
        same = same and found == expected
        print(
            f"run {runs} ended: {'same bytes' if found == expected else f'OTHER BYTES {found}'}", flush=True
        )
    if args.out is None:
        shutil.rmtree(root)
    print(
        f"{kills} kills over {runs} runs in {time.monotonic() - began:.0f} s: "
        f"{' and '.join(FILES)} {'are the same bytes in every run' if same else 'DIFFER'}"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
