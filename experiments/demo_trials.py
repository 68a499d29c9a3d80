"""What would make the demo learn? Variants of the recipe ``demo``, each asked where the main object is.

    python experiments/demo_trials.py --out DIR [--only NAME,...] [--threads N]

Each variant is trained (``hetcl pretrain``, goes on where it was stopped), then all are asked together, beside random
weights and their own stage 1, on the same 600 of the scenes that no variant has seen (``hetcl probe --ask
localization``). docs/results.md says what came out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BEFORE = {
    "batch_negatives": "false", "stage1.epochs": 6, "stage1.queue": 512,
    "stage2.epochs": 3, "stage2.queue": 1024, "stage2.lr": 0.01,
}  # fmt: skip
"""The recipe as it was when the trials began, where it differs from today's."""
OWN_NEGATIVES = BEFORE | {
    "batch_negatives": "true",
    "stage1.queue": 256,
    "stage2.queue": 256,
    "stage2.lr": 0.05,
}

VARIANTS: dict[str, dict[str, object]] = {
    "as-it-is": BEFORE,
    "small-stage1": BEFORE | {"stage1.temperature": 0.1, "stage1.queue": 256, "stage2.lr": 0.05},
    "batch-negatives": OWN_NEGATIVES,
    "wide": OWN_NEGATIVES | {"data": "scenes:24000", "stage1.epochs": 1, "stage2.epochs": 1},
    "colors-kept": OWN_NEGATIVES
    | {"spatial.side": 12, "stage1.epochs": 2, "stage2.epochs": 7}
    | {"stage2.views.jitter_p": 0, "stage2.views.grayscale_p": 0},
    "batch-128": OWN_NEGATIVES | {"spatial.side": 12, "batch": 128, "groups": 8, "stage1.lr": 0.12},
    "short-stage1": {},
    "low-rate": {"stage1.lr": 0.0075, "stage2.lr": 0.0125},
    "middle-rate": {"stage1.lr": 0.02, "stage2.lr": 0.02},
}
"""Name -> what differs from the recipe. A hypothesis each: none; the stage 1 of small and a larger step in stage 2;
negatives of the same weights; six times the scenes, each seen once; a long stage 2 without colour changes, on a finer
map; fewer and larger batches; negatives of the same weights, a short stage 1 and a longer stage 2, which the recipe
became; the learning rates with which small learns, and some in between."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--threads", default="0")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - set(VARIANTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    hetcl = [sys.executable, "-m", "hetcl.cli"]
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        run = args.out / name
        if not (run / "backbone.safetensors").is_file():
            given = {"data": "scenes:4000"} | VARIANTS[name]
            changed = [word for key, value in given.items() for word in (f"--{key}", str(value))]
            words = [
                "pretrain",
                "--out",
                str(run),
                "--recipe",
                "demo",
                "--resume",
                "--threads",
                args.threads,
            ]
            subprocess.run([*hetcl, *words, *changed], check=True)
    runs = [str(args.out / name) for name in names]
    where = "--data scenes:3000 --ask localization --images 1500 --test_images 600 --resume".split()
    return subprocess.run(
        [*hetcl, "probe", *runs, *where, "--out", str(args.out / "where")], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
