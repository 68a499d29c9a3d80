"""Whole runs of the command line beside the checks: killed and resumed, trained and evaluated.

Each goes on in a thread that waits for processes, so that all of them and the checks share the time.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from gpu_sections.section import Section

COMMAND = "import sys; from hetcl.cli import main; sys.exit(main(sys.argv[1:]))"
"""The command ``hetcl`` where it is not installed."""
CALLS = """
import hetcl, json, sys
for name, arguments in json.loads(sys.argv[1]):
    getattr(hetcl, name)(**arguments)
"""
"""Functions of the public API, one after the other."""
SRC = Path(__file__).resolve().parents[2] / "src"
AP = 0.5
"""Points of AP that evaluation in bf16 may differ by."""


class Beside:
    """Work in a thread; :meth:`result` waits for it and raises what it raised."""

    name = ""

    def __init__(self, section: Section) -> None:
        self.section, self.folder = section, section.work / self.name.replace(" ", "-").replace(",", "")
        self.folder.mkdir()
        self.found: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            self.found = self.work()
        except BaseException as error:  # raised again where the result is asked for
            self.error = error

    def work(self) -> dict[str, Any]:
        """The values of the row."""
        raise NotImplementedError

    def result(self) -> dict[str, Any]:
        """What came of it."""
        self.thread.join()
        if self.error is not None:
            raise self.error
        return self.found

    def start(self, words: list[str], code: str = COMMAND) -> subprocess.Popen[bytes]:
        """A process that runs ``code`` with some arguments; what it says is kept in case it fails."""
        path = os.pathsep.join([str(SRC), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        return subprocess.Popen(
            [sys.executable, "-c", code, *words], env=env, stdin=subprocess.DEVNULL,
            stdout=open(self.folder / "said", "ab"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a process that must end well."""
        if process.wait():
            stated = (self.folder / "said").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"exit status {process.returncode}: {stated[-1] if stated else ''}")


class Resumed(Beside):
    """A run that is killed and resumed against one that is left alone."""

    def __init__(self, section: Section, *, deterministic: bool) -> None:
        self.deterministic = deterministic
        self.name = "killed and resumed" + (", deterministic" if deterministic else "")
        super().__init__(section)

    def words(self, out: Path) -> list[str]:
        """The run: both stages, some dozen steps."""
        toy = self.section.toy
        small = (
            "--backbone timm:test_resnet --size 32 --batch 8 --groups 2 --spatial.side 2 --spatial.width 8"
        )
        large = "--backbone torchvision:resnet18 --size 64 --batch 64 --groups 8 --spatial.side 4"
        words = (
            f"pretrain --data scenes:{64 if toy else 640} --out {out} --recipe demo {small if toy else large}"
        )
        words += " --stage1.epochs 3 --stage2.epochs 2 --stage1.queue 128 --stage2.queue 128 --knn.every 0"
        words += " --log_every 2 --checkpoint_every 2 --workers 1 --threads 1"
        words += f" --device {self.section.device.type}"
        words += " --deterministic true" * self.deterministic
        return words.split()

    def work(self) -> dict[str, Any]:
        alone, killed = self.folder / "alone", self.folder / "killed"
        first, second = self.start(self.words(alone)), self.start(self.words(killed))
        began = time.monotonic()
        while not (killed / "checkpoints" / "last.ckpt").exists() and second.poll() is None:
            time.sleep(0.01)
        second.kill()
        died = second.wait() < 0
        if not died and not killed.joinpath("backbone.safetensors").exists():
            self.finish(second)
        self.finish(self.start([*self.words(killed), "--resume"]))
        self.finish(first)
        return self.compared(alone, killed, died) | {
            "killed": died,
            "seconds_of_both": time.monotonic() - began,
        }

    def compared(self, alone: Path, killed: Path, died: bool) -> dict[str, Any]:
        """Bits, and the largest difference where they are not equal."""
        digests = [
            hashlib.sha256((p / "backbone.safetensors").read_bytes()).hexdigest() for p in (alone, killed)
        ]
        rows = [(p / "metrics.csv").read_bytes() for p in (alone, killed)]
        a, b = (load_file(p / "backbone.safetensors") for p in (alone, killed))
        worst = max(float(np.abs(a[k].astype(np.float64) - b[k]).max()) for k in a)
        equal = digests[0] == digests[1] and rows[0] == rows[1]
        # Without the setting, different bits are a finding and no fault.
        must = self.deterministic or self.section.toy
        return {"ok": died and equal if must else None, "equal": equal, "worst": worst}


class Evaluated(Beside):
    """A small Mask R-CNN trained on the built-in scenes, then evaluated in fp32 and in bf16."""

    name = "evaluation in bf16"

    def work(self) -> dict[str, Any]:
        toy, run = self.section.toy, str(self.folder / "run")
        size = 64 if toy else 128
        data, machine = (
            f"scenes:{4 if toy else 400}@{size}",
            {"device": self.section.device.type, "workers": 2},
        )
        sizes = {"min_size": [size], "max_size": size, "test_size": size, "anchor_scale": size / 400}
        heads = {"regions": 4, "test_proposals": 4, "detections": 4} if toy else {"regions": 64}
        course = (
            {"steps": 2, "batch": 2, "milestones": []}
            if toy
            else {"steps": 300, "batch": 8, "milestones": [250]}
        )
        trained = {
            "init": "timm:test_resnet:random" if toy else "torchvision:resnet18:random",
            "data": data,
            "out": run,
            "recipe": "tiny-mask-rcnn-fpn",
            "overrides": {
                **machine,
                **sizes,
                **heads,
                **course,
                "base_batch": 0,
                "warmup": 1,
                "evaluations": 1,
            },
        }
        outs = {p: self.folder / p for p in ("fp32", "bf16")}
        seen = {**machine, "examples": 0, "images": 4 if toy else 0}
        calls: list[tuple[str, dict[str, Any]]] = [("finetune", trained)]
        for precision, out in outs.items():
            asked = {**seen, "precision": precision}
            calls.append(("evaluate", {"run": run, "data": data, "out": str(out), "overrides": asked}))
        self.finish(self.start([json.dumps(calls)], CALLS))
        figures = {p: json.loads((out / "evaluation.json").read_text())["figures"] for p, out in outs.items()}
        names = ("box_ap", "mask_ap")
        worst = max(abs((figures["bf16"][n] or 0.0) - (figures["fp32"][n] or 0.0)) for n in names)
        shown = {f"{n}_{p}": figures[p][n] for p in outs for n in names}
        return {"ok": worst <= AP, "worst": worst, "limit": AP, **shown}
