"""``hetcl reproduce`` end to end at toy size: cells once, shared folders, stops, refusals."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.reproduce import run, runner
from hetcl.reproduce.run import reproduce
from hetcl.reproduce.scales import load_scale
from hetcl.runs.lock import NAME, FolderLock

COMPUTE = {"threads": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reproduction of what needs no fine-tuning."""
    out = tmp_path_factory.mktemp("reproduce") / "quick"
    reproduce(["fig2", "fig4", "overhead", "frozen"], out=out, scale="quick", compute=COMPUTE)
    return out


def test_every_place_has_its_figure(finished: Path) -> None:
    tree = json.loads((finished / "reproduction.json").read_bytes())
    assert [t["name"] for t in tree["experiments"]] == ["fig2", "fig4", "overhead", "frozen"]
    for table in tree["experiments"]:
        for row in table["rows"]:
            for column, ours, why in zip(table["columns"], row["ours"], row["why_not"], strict=True):
                known = (
                    column["figure"].startswith("iou-") or ours is not None
                )  # (few pairs overlap so little)
                assert known, (table["name"], row["method"], column, why)
    verdicts = {c["verdict"] for t in tree["experiments"] if t["name"] != "fig2" for c in t["claims"]}
    assert verdicts == {"not resolved"}  # one seed has no interval
    assert not tree["failed"]


def test_figures_are_those_of_the_verbs(finished: Path) -> None:
    """The table's numbers, read again from the files of the verbs."""
    tree = json.loads((finished / "reproduction.json").read_bytes())
    tables = {t["name"]: t for t in tree["experiments"]}
    where = json.loads((finished / "places/frozen-seed0/where.json").read_bytes())
    names = {m["model"]: m["name"] for m in where["models"] if m["role"] == "model"}
    rows = {row["method"]: row for row in tables["frozen"]["rows"]}
    for method in ("hcl", "supervised"):
        name = names[str(finished / f"pretrain/{method}-seed0")]
        row = next(
            r for r in where["results"]
            if (r["model"], r["question"], r["measure"], r["level"]) == (name, "localization", "iou", "c4")
        )  # fmt: skip
        assert rows[method]["ours"][0]["values"] == [100 * row["value"]]
    contrast = json.loads((finished / "dimensions/fig4-seed0/contrast.json").read_bytes())
    named = {m["name"]: m["model"] for m in contrast["models"]}
    full = {named[r["model"]]: r["top1"]["value"] for r in contrast["results"] if r["vector"] == "full"}
    top1 = [c["figure"] for c in tables["fig4"]["columns"]].index("top1")
    for row in tables["fig4"]["rows"]:
        model = str(finished / f"pretrain/{row['method']}-seed0")
        assert row["ours"][top1]["values"] == [100 * full[model]]


def test_texts_hold_every_table(finished: Path) -> None:
    text = (finished / "results.md").read_text()
    assert all(f"## {name}:" in text for name in ("fig2", "fig4", "overhead", "frozen"))
    with (finished / "results.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert {r["experiment"] for r in rows} == {"fig2", "fig4", "overhead", "frozen"}
    page = (finished / "report.html").read_text()
    assert "Of 13 claims: " in page


def test_model_hubs_read_the_index(finished: Path) -> None:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    tree = json.loads((finished / "reproduction.json").read_bytes())
    index = yaml.safe_load((finished / "model-index.yml").read_text())["model-index"]
    read = {(m["name"], r.metric_type): r for m in index for r in model_index_to_eval_results([m])[1]}
    frozen = next(t for t in tree["experiments"] if t["name"] == "frozen")
    for row in frozen["rows"]:
        for column, ours in zip(frozen["columns"], row["ours"], strict=True):
            one = read[f"{row['label']} ({tree['about']})", column["figure"]]
            assert one.metric_value == pytest.approx(ours["mean"], abs=0.005)
            assert one.dataset_name == tree["data"]["places"]
            assert one.task_type == "image-feature-extraction"


def test_nothing_is_done_twice(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a cell that is done was begun again")

    monkeypatch.setattr(runner, "work", never)
    again = reproduce("fig4", out=finished, scale="quick", compute=COMPUTE)
    assert [t["name"] for t in again["experiments"]] == [
        "fig2",
        "fig4",
        "overhead",
        "frozen",
    ]  # all that was asked


def test_a_damaged_record_is_done_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = runner.record_of(finished, "pretrain/moco-v2-200-seed0")
    before = record.read_bytes()
    record.write_bytes(before[:-20])
    reproduce("fig4", out=finished, scale="quick", compute=COMPUTE)
    assert "pretrain/moco-v2-200-seed0: done" in capsys.readouterr().out
    assert json.loads(record.read_bytes())["key"] == "pretrain/moco-v2-200-seed0"


def test_a_failed_cell_stops_what_needs_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(cell: Any, out: Path, *, quiet: bool) -> Any:
        if cell.key == "pretrain/moco-v2-400-seed0":
            raise WorkFailed("the disk is full")
        return {m: {"top1": 50.0} for m in cell.models}

    monkeypatch.setattr(runner, "work", work)
    with pytest.raises(WorkFailed, match=r"moco-v2-400-seed0: the disk is full") as caught:
        reproduce(["fig2", "fig4"], out=tmp_path / "out", scale="quick", compute=COMPUTE)
    assert "dimensions/fig4-seed0: pretrain/moco-v2-400-seed0 failed" in str(caught.value)
    tree = json.loads((tmp_path / "out/reproduction.json").read_bytes())
    assert [t["rows"][0]["ours"][-1] is not None for t in tree["experiments"]] == [True, False]


@pytest.mark.slow
def test_two_processes_one_killed_do_every_cell_once(tmp_path: Path) -> None:
    out = tmp_path / "shared"
    words = ["reproduce", "fig2", "fig4", "--quick", "--out", str(out), "--threads", "1"]

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "hetcl.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip

    first, second = begin(), begin()
    deadline = time.monotonic() + 120
    while not list(out.glob("pretrain/*/checkpoints/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    said = [process.communicate(timeout=240)[0] for process in (first, second)]
    assert second.returncode == 0, said[1]
    tree = json.loads((out / "reproduction.json").read_bytes())
    assert len(tree["cells"]) == 6
    done = [line for text in said for line in text.splitlines() if ": done in" in line]
    keys = [line.split("] ")[1].split(":")[0] for line in done if line.startswith("[")]
    assert len(keys) == len(set(keys)), keys  # no cell was ended twice


def test_a_cell_in_other_hands_is_waited_for(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PAUSE", 0.01)
    key = "overlap/fig2-seed0"
    record = runner.record_of(finished, key)
    saved = record.read_bytes()
    record.unlink()
    lock = FolderLock(finished / "cells", f"{NAME}-{key.replace('/', '.')}")
    lock.hold()
    pauses = []

    def pause(_: float) -> None:  # the other process ends its work while this one sleeps
        pauses.append(1)
        record.write_bytes(saved)
        lock.release()

    monkeypatch.setattr(runner.time, "sleep", pause)
    reproduce("fig2", out=finished, scale="quick", compute=COMPUTE)
    assert pauses


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"which": "tabel1"}, "no table or figure 'tabel1' (did you mean 'table1'?)"),
        ({"which": []}, "no table or figure is named"),
        ({"which": "table1", "scale": "full"}, "--coco is missing, which table1 needs"),
        ({"which": "table1", "scale": "full"}, "--images is missing, which table1 needs"),
        ({"which": "fig2", "data": {"images": "nowhere"}}, "nowhere is not there"),
        ({"which": "fig2", "data": {"images": __file__}}, "is no"),
        ({"which": "table2", "data": {"coco": str(Path(__file__).parent)}}, "annotations"),
        ({"which": "table2", "data": {"coco": "nowhere"}}, "nowhere is not there"),
        (
            {"which": "fig2", "weights": {"moco": "x.pth"}},
            "--weights moco=...: no such row; there are random,",
        ),
    ],
)
def test_bad_input_is_one_clear_line(words: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        reproduce(**{"scale": "quick", "out": tmp_path / "out", **words})
    assert any(message in line for line in str(caught.value).splitlines()), str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_reproduction_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was begun at the scale quick, not mini"):
        reproduce("fig2", out=finished, scale="mini")
    with pytest.raises(InputError, match="was begun with no --weights"):
        reproduce("fig2", out=finished, scale="quick", weights={"moco-v2": "timm:resnet10t:random"})
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something that is no reproduction"):
        reproduce("fig2", out=tmp_path, scale="quick")


def test_weights_take_the_place_of_a_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    tree = reproduce(
        "fig2", out=out, scale="quick", weights={"moco-v2": "timm:resnet10t:random"}, compute=COMPUTE
    )
    assert [c["key"] for c in tree["cells"]] == ["overlap/fig2-seed0"]
    assert not (out / "pretrain").exists()


def test_a_cell_of_other_settings_is_not_taken_for_this_one(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade that changed the size's settings."""
    size = load_scale("quick")
    other = {
        **size.tasks,
        "overlap": replace(size.tasks["overlap"], settings={"views": "crop", "images": 90}),
    }
    monkeypatch.setattr(run, "load_scale", lambda _: replace(size, tasks=other))
    with pytest.raises(
        InputError, match=r"overlap/fig2-seed0 .* was done with images 150, and is 90 in this"
    ):
        reproduce("fig2", out=finished, scale="quick", compute=COMPUTE)


def test_threads_are_no_other_work(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce("fig2", out=finished, scale="quick", compute={"threads": 2})
    assert "of which 2 are done; to do: none" in capsys.readouterr().out


def test_a_stop_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any, **__: Any) -> Any:
        raise Stopped(signal.SIGTERM, "stopped at step 3; go on with --resume")

    monkeypatch.setattr(runner, "work", work)
    with pytest.raises(Stopped, match="the same command goes on with the rest"):
        reproduce("fig2", out=tmp_path / "out", scale="quick", compute=COMPUTE)
