"""Is it right on a GPU, and how close to the limit of its memory? One command that proves and measures everything.

::

    python bench/gpu.py --out DIR                      on a GPU, 8 minutes at most
    python bench/gpu.py --out DIR --toy                the same code on a CPU, small: a rehearsal of about a minute
    python bench/gpu.py --out DIR --only steps,detect  some sections, with all the time for them
    bash bench/pack_gpu.sh --photos P --shards S       for a GPU machine without network: packs, prints the command

It runs from a bare checkout. Each section is a process of its own with its own time limit: one that fails or hangs
takes nothing with it, and every row is in ``DIR/gpu.json`` as soon as it is found. ``DIR/gpu.md`` is the table for
docs/results.md, ``DIR/gpu.log`` what the sections said.

- correct: steps, views, precisions, compiling, resuming, ranks and detectors against the CPU in float64
- steps: images a second, memory, share of the memory roof; what each switch is worth
- loader: the same fed from JPEG files with all cores
- detect: detectors and segmenter at the recipes' sizes, beside torchvision's own
- train: both stages and a MoCo-v2 twin of equal length, then kNN, linear probe, masks and the contrastive test

Exit status: 0; 1 when a section failed or something was not equal; 2 for unusable arguments, or without a GPU
(0 when no folder was named, so that ``make bench`` goes on).
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

from gpu_sections import isolate, table  # noqa: E402

SECTIONS = {
    "correct": ("gpu_sections.correct", 0.19),
    "steps": ("gpu_sections.steps", 0.32),
    "loader": ("gpu_sections.loader", 0.09),
    "detect": ("gpu_sections.detect", 0.16),
    "train": ("gpu_sections.train", 0.24),
}
"""Module of each section and its share of the time; what one leaves goes to those behind it."""
MACHINE = ("gpu_sections.machine", 90.0)
"""Looks at the card first; its limit in seconds."""
SLACK = 0.1
"""Share of its limit that a section should leave unused: it is ended at the limit, and stops by itself before."""
SCHEMA = 1
"""Version of gpu.json; it rises when a name changes its meaning or goes away."""


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    if args.child:
        return child(args)
    args.minutes = args.minutes or (60.0 if args.toy else 8.0)
    wanted = args.only.split(",") if args.only else list(SECTIONS)
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        print(f"gpu: no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    out = Path(args.out or ROOT / "bench" / "out" / "gpu")
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(out, args, wanted)
    if not bench.look():
        print(
            "gpu: PyTorch sees no GPU here, so nothing was measured; --toy rehearses it on the CPU",
            file=sys.stderr,
        )
        return 2 if args.out else 0
    bench.measure()
    print((out / "gpu.md").read_text(encoding="utf-8"))
    return bench.status()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="folder for gpu.json, gpu.md and gpu.log; default bench/out/gpu")
    parser.add_argument("--only", help=f"sections, joined by commas: {', '.join(SECTIONS)}")
    parser.add_argument("--toy", action="store_true", help="rehearse on the CPU with small models")
    parser.add_argument(
        "--minutes", type=float, help="most it may take in all; default 8, 60 for a rehearsal"
    )
    parser.add_argument("--photos", help="folder of photographs (loader); else drawn scenes")
    parser.add_argument("--shards", help="DATA with labels, such as shards (train); else drawn scenes")
    parser.add_argument("--masks", help="DATASET with masks, such as coco:ROOT (train); else drawn scenes")
    parser.add_argument("--commit", help="what to call this code where there is no git")
    for hidden in ("--child", "--rows", "--work", "--until"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def child(args: argparse.Namespace) -> int:
    """A section, in its own process: ``run(section)`` of the module named."""
    from gpu_sections.section import Section

    section = Section(
        rows=Path(args.rows),
        work=Path(args.work),
        seconds=float(args.until) - time.time(),
        toy=args.toy,
        photos=args.photos,
        shards=args.shards,
        masks=args.masks,
    )
    importlib.import_module(args.child).run(section)
    return 0


class Bench:
    """One run of the bench: starts the sections one after the other and keeps the report on disk.

    Args:
        out: where the report goes.
        args: the command line.
        wanted: names of sections, in order.
    """

    def __init__(self, out: Path, args: argparse.Namespace, wanted: Sequence[str]) -> None:
        self.out, self.args, self.wanted = out, args, wanted
        self.began = time.monotonic()
        (out / "gpu.log").unlink(missing_ok=True)
        self.report: dict[str, Any] = {
            "bench": "gpu",
            "schema": SCHEMA,
            "toy": args.toy,
            "commit": args.commit or _commit(),
            "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "minutes": args.minutes,
            "machine": {},
            "sections": {},
        }

    def look(self) -> bool:
        """Measure the card; whether there is one (or none is needed)."""
        found = self._run("machine", *MACHINE)
        self.report["machine"] = {k: v for row in found["rows"] for k, v in row.items() if k != "name"}
        if found["status"] != "done":
            print(f"gpu: the machine could not be looked at: {found['error']}", file=sys.stderr)
        return self.args.toy or bool(self.report["machine"].get("cuda", True))

    def measure(self) -> None:
        """Every section, each within its part of the time that is left."""
        shares = [SECTIONS[name][1] for name in self.wanted]
        for i, name in enumerate(self.wanted):
            left = self.args.minutes * 60 - (time.monotonic() - self.began)
            self._run(name, SECTIONS[name][0], max(1.0, left * shares[i] / sum(shares[i:])))

    def status(self) -> int:
        """0, or 1 when something failed or was not equal."""
        sections = self.report["sections"]
        bad = [name for name, s in sections.items() if s["status"] != "done"]
        rows = sections.get("correct", {}).get("rows", [])
        # What may differ has an "ok" of null; what was left out has none.
        unequal = [row["name"] for row in rows if row.get("ok", False) is False]
        for what, names in (("not done", bad), ("not equal, or not shown", unequal)):
            if names:
                print(f"gpu: {what}: {', '.join(names)}", file=sys.stderr)
        return 1 if bad or unequal else 0

    def _run(self, name: str, module: str, limit: float) -> dict[str, Any]:
        print(f"gpu: {name}, at most {limit:.0f} s", flush=True)

        def changed(state: Mapping[str, Any]) -> None:
            self.report["sections"][name] = dict(state)
            self._write()

        with tempfile.TemporaryDirectory(prefix=f"gpu-{name}-", ignore_cleanup_errors=True) as work:
            rows = Path(work) / "rows.jsonl"
            words = ["--child", module, "--rows", str(rows), "--work", work]
            words += ["--until", str(time.time() + limit * (1 - SLACK))]
            for option in ("photos", "shards", "masks"):
                value = getattr(self.args, option)
                words += [f"--{option}", value] if value else []
            command = [sys.executable, str(Path(__file__).resolve()), *words, *["--toy"] * self.args.toy]
            threads = {"OMP_NUM_THREADS": "1"} if self.args.toy else {}  # small models gain nothing by more
            state = isolate.run(
                command, rows=rows, log=self.out / "gpu.log", limit=limit, changed=changed, env=threads
            )
        print(
            f"gpu: {name} {state['status']} in {state['seconds']:.0f} s"
            + f" ({state['error']})" * bool(state["error"])
        )
        isolate.write_atomic(self.out / "gpu.md", table.markdown(self.report))
        return state

    def _write(self) -> None:
        self.report["seconds"] = round(time.monotonic() - self.began, 1)
        isolate.write_atomic(self.out / "gpu.json", json.dumps(self.report, indent=1, allow_nan=False) + "\n")


def _commit() -> str | None:
    """The checkout's commit, with ``+`` when it has changes."""
    try:
        ask = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
