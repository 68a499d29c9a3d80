"""Do a thousand steps teach where things are? MoCo-v2, HCL and supervised training at equal steps, over seeds.

    python experiments/where_seeds.py --data 'train-0000.tar' --test coco:ROOT,scenes:3000 --out DIR [--seeds 0,1,2]

Each method is trained on the same images by the recipe ``small`` at 48 pixels (``hetcl pretrain``; goes on where it
was stopped), then the models of a seed are asked together, beside random weights (``hetcl probe --ask where``).
Printed: for each figure the mean over seeds of the paired difference to random weights, and each seed's own.
docs/results.md says what came out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

METHODS = {
    "hcl": "--recipe small --stage1.epochs 2 --stage2.epochs 1",
    "moco-v2": "--recipe small --stage1.epochs 3 --stage2.epochs 0",
    "supervised": "--recipe small --stage1.method supervised --stage1.epochs 3 --stage2.epochs 0",
    "hcl-long": "--recipe small --stage1.epochs 4 --stage2.epochs 2",
}
"""Name -> recipe; three passes over the images each, the last one six."""
THEN = (
    "--size 48 --spatial.side 8 --batch_negatives false --stage1.lr 0.06 --stage2.lr 0.01 --stage2.queue 1024"
)
"""The recipe as it was, at 48 pixels, when docs/results.md was written."""
FIGURES = (("localization", "iou", "c4"), ("correspondence", "pck1", "c4"), ("dense-knn", "miou", "c2-c5"))
FIGURES += (("dense-linear", "miou", "c2-c5"),)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--threads", default="0")
    args = parser.parse_args()
    names, seeds = args.methods.split(","), args.seeds.split(",")
    if unknown := set(names) - set(METHODS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    hetcl = [sys.executable, "-m", "hetcl.cli"]
    args.out.mkdir(parents=True, exist_ok=True)
    same = f"{THEN} --knn.every 0 --threads {args.threads} --resume".split()
    found: dict[tuple[str, str], list[float]] = {}
    for seed in seeds:
        for name in names:
            run = args.out / seed / name
            if not (run / "backbone.safetensors").is_file():
                words = ["--data", args.data, "--out", str(run), "--seed", seed, *METHODS[name].split()]
                subprocess.run([*hetcl, "pretrain", *words, *same], check=True)
        for i, test in enumerate(args.test.split(",")):
            asked = "localization" if test.startswith("scenes:") else "where"
            out = args.out / seed / f"test-{i}"
            words = [*(str(args.out / seed / name) for name in names), "--data", test, "--out", str(out)]
            words += (
                f"--ask {asked} --images 1500 --test_images 600 --threads {args.threads} --resume".split()
            )
            if not (out / "where.json").is_file():
                subprocess.run([*hetcl, "probe", *words], check=True)
            report = json.loads((out / "where.json").read_text())
            roles = {m["name"]: m["role"] for m in report["models"]}
            for d in report["differences"]:
                key = d["question"], d["measure"], d["level"]
                if key in FIGURES and roles[d["second"]] == "random":
                    found.setdefault((f"{test} {' '.join(key)}", d["first"]), []).append(100 * d["value"])
        for (figure, name), values in found.items():
            each = ", ".join(f"{v:+.1f}" for v in values)
            print(
                f"{figure}: {name} minus random weights {statistics.mean(values):+.1f} ({each})", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
