"""What would make ``small`` learn more in as much time? Variants of the recipe, by kNN accuracy on labels.

    python experiments/small_trials.py --data TINY-IMAGENET --out DIR [--only NAME,...] [--threads N]

Each variant is one stage of MoCo-v2 on the 50,000 training images for about as many minutes of one core (``hetcl
pretrain``, goes on where it was stopped). Its kNN accuracy is that of the run's own check, of 5,000 validation images
among 20,000 training images (standard error 0.4%). docs/results.md says what came out.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

AS_IT_IS = {
    "size": 48, "batch": 32, "groups": 2, "batch_negatives": "false", "stage1.lr": 0.06, "stage1.temperature": 0.1,
    "stage1.queue": 256, "stage1.epochs": 1,
}  # fmt: skip
"""The recipe as it was when the trials began, at 48 pixels and for one epoch."""
NEGATIVES = AS_IT_IS | {"batch_negatives": "true"}
VARIANTS: dict[str, dict[str, object]] = {
    "as-it-is": AS_IT_IS,
    "batch-negatives": NEGATIVES,
    "batch-128": NEGATIVES | {"batch": 128, "groups": 4, "stage1.lr": 0.12, "stage1.queue": 512},
    "pixels-32": NEGATIVES | {"size": 32, "spatial.side": 4, "stage1.epochs": 2},
    "pixels-64": NEGATIVES | {"size": 64},
    "large-crops": NEGATIVES | {"stage1.views.area": "0.4,1"},
    "temperature-0.2": NEGATIVES | {"stage1.temperature": 0.2},
    "lr-0.03": NEGATIVES | {"stage1.lr": 0.03},
    "lr-0.015": NEGATIVES | {"stage1.lr": 0.015},
    "lr-0.0075": NEGATIVES | {"stage1.lr": 0.0075},
    "lr-0.03-temperature-0.2": NEGATIVES | {"stage1.lr": 0.03, "stage1.temperature": 0.2},
    "lr-0.03-batch-64": NEGATIVES | {"stage1.lr": 0.03, "batch": 64, "groups": 2},
}
"""Name -> settings. A hypothesis each: none; negatives of the same weights; fewer and larger batches; more and smaller
views; larger views; views that share more; a flatter loss; smaller steps, which alone rose above random weights; still
smaller ones; then these with a flatter loss, and with a larger batch."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--threads", default="1")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - set(VARIANTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        run = args.out / name
        if not (run / "backbone.safetensors").is_file():
            settings = VARIANTS[name] | {"stage2.epochs": 0, "threads": args.threads, "workers": 1}
            settings |= {"knn.every": 100, "knn.bank": 20_000, "knn.queries": 5_000}
            words = ["--data", str(args.data), "--out", str(run), "--recipe", "small", "--resume"]
            words += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
            subprocess.run([sys.executable, "-m", "hetcl.cli", "pretrain", *words], check=True)
        with (run / "metrics.csv").open() as f:
            knn = [100 * float(row["knn"]) for row in csv.DictReader(f) if row["knn"]]
        print(f"{name}: kNN {knn[0]:.1f}% with random weights, {knn[-1]:.1f}% trained", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
