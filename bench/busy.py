"""Images a second while a machine is idle and while one core is taken, with threads that sleep and threads that spin.

::

    python bench/busy.py [--case demo --case resnet18 ...] [--rounds 5] [--also GOMP_SPINCOUNT=1000] [--json FILE]

hetcl has OpenMP's threads sleep while they wait for each other (``OMP_WAIT_POLICY=PASSIVE``). *before* is the same
without that: torch is loaded first, so its own default holds. Each figure is of a process of its own, the rounds
alternate, and a figure is the median of a run's rows in timing.csv but the first. *busy* is beside a process that
keeps one core. Goals: busy at least 0.45 of idle, idle at least 1.05 of before.

Run it on a machine that does nothing else; others' work moves all figures.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PRETRAIN = (
    "pretrain --data scenes:1500 --knn.every 0 --stage1.epochs {n} --stage2.epochs 0 --log_every 4 --recipe "
)
FINETUNE = "finetune --init torchvision:resnet18:random --data scenes:200 --log_every 4 --steps {n} --recipe "
CASES = {
    "demo": (PRETRAIN + "demo", 2),
    "smoke": (PRETRAIN + "smoke --data scenes:600", 4),
    "resnet18": (PRETRAIN + "demo --backbone torchvision:resnet18 --size 64 --spatial.side 4", 1),
    "fcn": (FINETUNE + "tiny-fcn --warmup 1 --milestones [] --evaluations 1", 40),
}
"""Words of a command, and how long it takes: epochs, or steps."""
GOALS = {"busy / idle": 0.45, "idle / before": 1.05}
BEFORE = "import sys, torch; from hetcl.cli import main; sys.exit(main(sys.argv[1:]))"
AFTER = "import sys; from hetcl.cli import main; sys.exit(main(sys.argv[1:]))"
TAKEN = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"


def speed(words: list[str], code: str, changes: dict[str, str], busy: bool) -> float:
    """Images a second of one run."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))} | changes
    other = subprocess.Popen([sys.executable, "-c", TAKEN]) if busy else None
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            command = [sys.executable, "-c", code, *words, "--out", str(out), "--device", "cpu"]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(words)}: {done.stderr[-800:]}")
            with open(out / "timing.csv", newline="") as f:
                rows = [float(row["images_per_second"]) for row in csv.DictReader(f)]
    finally:
        if other is not None:
            other.kill()
            other.wait()
    return statistics.median(rows[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=[*CASES], help="default: demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--also", action="append", default=[], help="NAME=VALUE[,NAME=VALUE]: another variant"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    variants: dict[str, tuple[str, dict[str, str]]] = {"before": (BEFORE, {}), "now": (AFTER, {})}
    for text in args.also:
        variants[text] = (AFTER, dict(pair.split("=", 1) for pair in text.split(",")))
    result: dict[str, dict[str, list[float]]] = {}
    for case in args.case or ["demo"]:
        text, length = CASES[case]
        words = text.format(n=length).split()
        found: dict[str, list[float]] = {f"{v}, {s}": [] for v in variants for s in ("idle", "busy")}
        for _ in range(args.rounds):
            for state in ("idle", "busy"):
                for name, (code, changes) in variants.items():
                    found[f"{name}, {state}"].append(speed(words, code, changes, state == "busy"))
        of = {name: statistics.median(values) for name, values in found.items()}
        for name, values in found.items():
            spread = f"({min(values):.1f} to {max(values):.1f})"
            print(f"{case:9} {name:34} {of[name]:7.1f} images/s  {spread}")
        ratios = {
            "busy / idle": of["now, busy"] / of["now, idle"],
            "idle / before": of["now, idle"] / of["before, idle"],
        }
        for name, value in ratios.items():
            print(f"{case:9} {name:34} {value:7.2f}  (goal {GOALS[name]:g})", flush=True)
        result[case] = {**found, **{name: [value] for name, value in ratios.items()}}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {args.rounds} rounds"
    print(json.dumps({"machine": machine, "load": os.getloadavg()}))
    if args.json:
        args.json.write_text(
            json.dumps({"machine": machine, "cases": result}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
