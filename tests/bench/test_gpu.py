"""``bench/gpu.py``: the rehearsal on a CPU, whole; and that a section which fails or hangs takes nothing with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from gpu_sections import isolate, table

ROOT = Path(__file__).resolve().parents[2]
PLANTED = {name: (f"tests.bench.planted.{name}", 0.5) for name in ("breaks", "works")}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_rehearsal(tmp_path: Path) -> None:
    """Everything, from a bare checkout. (One test, so that it is run once wherever tests are shared out.)"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [sys.executable, str(ROOT / "bench" / "gpu.py"), *f"--out {tmp_path} --toy --commit abc".split()]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "gpu.log").read_text()[-3000:]
    assert {p.name for p in tmp_path.iterdir()} == {"gpu.json", "gpu.md", "gpu.log"}
    report = json.loads((tmp_path / "gpu.json").read_text())
    check_that_everything_was_done(report, (tmp_path / "gpu.md").read_text())
    check_what_was_found(report)


def check_that_everything_was_done(report: dict[str, Any], text: str) -> None:
    assert list(report["sections"]) == ["machine", "correct", "steps", "loader", "detect", "train"]
    for name, section in report["sections"].items():
        assert section["status"] == "done", (name, section["error"])
        assert not [r for r in section["rows"] if "error" in r or "skipped" in r], name
    assert all(r["ok"] is True for r in report["sections"]["correct"]["rows"])
    assert text.startswith("## Rehearsal")
    for section in ("correct", "steps", "detect"):
        for row in report["sections"][section]["rows"]:
            if "seconds" in row and not {"ms", "kinds_mb", "time"} & set(row):
                assert row["name"] in text, row["name"]


def check_what_was_found(report: dict[str, Any]) -> None:
    assert {"bench": "gpu", "schema": 1, "toy": True, "commit": "abc"}.items() <= report.items()
    for key in ("device", "python", "torch", "torchvision", "cores", "bandwidth", "peak", "copy", "product"):
        assert report["machine"][key], key
    rows = {s: {r["name"]: r for r in report["sections"][s]["rows"]} for s in report["sections"]}
    one, two = rows["steps"]["stage 1"], rows["steps"]["stage 2"]
    assert 0 < one["mb_fused"] < one["mb_eager"] < two["mb_eager"]
    assert one["roof_eager"] / one["roof_fused"] == pytest.approx(one["mb_eager"] / one["mb_fused"], rel=1e-4)
    assert sum(rows["steps"]["kernels of stage 1"]["time"].values()) == pytest.approx(1, abs=1e-3)
    assert rows["loader"]["training from files"]["waiting"] <= 1
    assert rows["loader"]["training from memory"]["cores_needed"] > 0
    hcl, twin = rows["train"]["hcl"], rows["train"]["moco-v2 twin"]
    assert sum(hcl["epochs"]) == sum(twin["epochs"])
    assert [c["stage"] for c in hcl["curve"]] == ["stage1", "stage1", "stage2", "stage2"]
    assert set(rows["train"]["masks from hcl"]["levels"]) == {"c2", "c3", "c4", "c5"}
    tested = {r["model"].split()[0] for r in rows["train"]["contrastive test"]["results"]}
    assert {"hcl", "moco-v2-twin"} <= tested, "beside them, the test's own yardsticks"
    assert rows["correct"]["killed and resumed, deterministic"]["killed"] is True


# ---- isolation ----


def test_a_section_that_fails_keeps_its_rows_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "SECTIONS", PLANTED)
    monkeypatch.setattr(gpu, "MACHINE", ("tests.bench.planted.works", 300.0))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert gpu.main(["--out", str(tmp_path), "--toy"]) == 1
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    failed, rows = sections["breaks"], sections["breaks"]["rows"]
    assert (failed["status"], failed["error"]) == ("failed", "exit status 1: RuntimeError: planted failure")
    assert rows[0]["name"] == "divides"
    assert rows[0]["error"] == "ZeroDivisionError: integer division or modulo by zero"
    assert rows[1] == {"name": "before", "found": None}
    adds, late = sections["works"]["rows"]
    assert adds["found"] == 2
    assert late["skipped"] == "0 s left"
    assert sections["works"]["status"] == "done"


def test_a_section_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        'pathlib.Path(sys.argv[1]).write_text(\'{"name": "one", "child": %d}\\n{"na\' % child.pid)\n'
        "time.sleep(1000)\n"
    )
    rows, seen = tmp_path / "rows", []
    state = isolate.run(
        [sys.executable, "-c", code, str(rows)],
        rows=rows,
        log=tmp_path / "log",
        limit=6,
        changed=lambda s: seen.append(len(s["rows"])),
    )
    assert (state["status"], state["error"]) == ("out of time", "ended after 6 s")
    assert [r["name"] for r in state["rows"]] == ["one"]  # and not half a row
    assert seen[0] == 0
    assert 1 in seen
    deadline = time.monotonic() + 30
    while alive(state["rows"][0]["child"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(state["rows"][0]["child"])


def alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--out", str(tmp_path / "named")]) == 2
    assert "no GPU here, so nothing was measured; --toy rehearses" in capsys.readouterr().err
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert gpu.main([]) == 0, "make bench goes on"


def test_an_unknown_section_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "out"), "--only", "steps,speed"]) == 2
    assert "no section speed; there are correct, steps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- the table ----


def test_the_table_keeps_what_failed_and_says_what_the_recipe_costs() -> None:
    step = {
        **{
            "batch": 256,
            "spread": 0.01,
            "gpu_memory_gib": 21.5,
            "roof_eager": 0.7,
            "roof_fused": 0.5,
            "mfu": 0.1,
        },
        **{
            "mb_eager": 680.0,
            "mb_fused": 510.0,
            "gflop": 32.5,
        },
    }
    rows = [
        {"name": "stage 1", "images_per_second": 3000.0, **step},
        {"name": "stage 2", "images_per_second": 2000.0, **step},
        {"name": "stage 1, compiled", "batch": 256, "error": "out of memory", "seconds": 1.0},
        {"name": "stage 1, CUDA graphs", "batch": 256, "skipped": "3 s left"},
        {"name": "kernels of stage 1", "time": {"copy": 0.25, "other": 0.75}, "idle": 0.02},
        {"name": "kernels of stage 2", "error": "no profiler"},
    ]
    report = {
        **{"toy": False, "commit": "abc", "began": "now", "seconds": 5.0},
        "machine": {
            "device": "CARD",
            "cores": 16,
            "bandwidth": 3.35e12,
            "source": "data sheet",
            "copy": 3e12,
            "peak": 9.89e14,
        },
        "sections": {
            "steps": {"rows": rows, "status": "out of time", "error": "ended after 6 s"},
            "loader": {"rows": [], "status": "done", "error": None},
        },
    }
    text = table.markdown(report)
    assert text.startswith("## On a GPU: CARD\n")
    assert "| stage 1, batch 256 | 3,000 (spread 1.0%) | 21.5 GiB | 70% | 50% | 10% |" in text
    assert "| stage 1 | 25% | 75% | 2.0% |" in text
    assert "| stage 2 | no profiler |" in text
    assert "| stage 1, compiled, batch 256 | out of memory |" in text
    assert "| stage 1, CUDA graphs, batch 256 | not run: 3 s left |" in text
    assert "| stage 2 over stage 1 | 1.500 |" in text
    # 200 epochs of 1,281,167 images at 3,000 and at 2,000 a second: 23.7 h and 35.6 h
    assert "takes 59 h on one such card, eager** (23.7 + 35.6 h" in text
    assert "compiled**" not in text
    # 0.9 x 3.35 TB/s over 680 MB
    assert "| stage 1 | 32.5 | 680 | 4,434 images/s | 510 | 5,912 images/s |" in text
    assert "The section steps is not whole: out of time, ended after 6 s." in text
