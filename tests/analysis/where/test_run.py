"""``hetcl probe --ask where``: from images and checkpoints to figures and words; stopped, resumed, given bad input."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import hetcl
from hetcl.analysis import feature_pass
from hetcl.analysis.where import report_text
from hetcl.analysis.where.possible import QUESTIONS
from hetcl.analysis.where.run import check_backbones
from hetcl.cli import main
from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.weights.encoder import load_encoder

SCENES = "scenes:30@64"
QUICK: dict[str, Any] = {
    "workers": 0,
    "threads": 1,
    "device": "cpu",
    "batch": 10,
    "size": 64,
    "images": 24,
    "test_images": 20,
}


def ask(models: Any, out: Path, *, data: str = SCENES, resume: bool = False, **more: Any) -> dict[str, Any]:
    models = [str(m) for m in models] if isinstance(models, list) else str(models)
    return hetcl.probe(models, data=data, out=out, resume=resume, overrides=QUICK | {"ask": "where"} | more)


def figures(report: dict[str, Any]) -> str:
    """What a report says, without times and places."""
    kept = {k: v for k, v in report.items() if k not in ("machine", "seconds", "models")}
    return json.dumps(kept, sort_keys=True)


@pytest.fixture(scope="module")
def report(hcl: Path, moco: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("where") / "out"
    return ask([hcl, moco], out), out


def test_every_question_of_every_model(report: tuple[dict[str, Any], Path]) -> None:
    found, out = report
    assert json.loads((out / "where.json").read_text()) == found
    assert (out / "where.png").stat().st_size > 10_000
    named = [m["name"] for m in found["models"]]
    assert [m["role"] for m in found["models"]] == ["model", "model", "random"]
    asked = {(r["model"], r["question"]) for r in found["results"]}
    assert asked == {(name, q) for name in named for q in QUESTIONS}
    for row in found["results"]:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["images"] <= 20
    levels = {
        r["level"] for r in found["results"] if r["question"] == "correspondence" and r["model"] == "hcl"
    }
    assert levels == {"c2", "c3", "c4", "c5", "spatial"}
    assert {r["level"] for r in found["results"] if r["model"] == "moco"} == {"c2", "c3", "c4", "c5", "c2-c5"}


def test_differences_are_those_of_the_figures(report: tuple[dict[str, Any], Path]) -> None:
    found, _ = report
    value = {(r["model"], r["question"], r["measure"], r["level"]): r["value"] for r in found["results"]}
    pairs = {(d["first"], d["second"]) for d in found["differences"]}
    assert ("hcl", "moco") in pairs
    assert len(pairs) == 3
    for d in found["differences"]:
        key = d["question"], d["measure"], d["level"]
        assert d["value"] == pytest.approx(value[d["first"], *key] - value[d["second"], *key], abs=1e-12)
        assert d["low"] <= d["value"] <= d["high"]


def test_asked_again_nothing_is_computed_twice(
    report: tuple[dict[str, Any], Path], hcl: Path, moco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, out = report
    with pytest.raises(InputError, match="add --resume"):
        ask([hcl, moco], out)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(feature_pass, "extract", never)
    assert figures(ask([hcl, moco], out, resume=True)) == figures(found)


def test_stopped_and_resumed_it_ends_in_the_same(
    report: tuple[dict[str, Any], Path],
    hcl: Path,
    moco: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, calls = feature_pass._Pass.__call__, 0

    def interrupted(self: Any, *args: Any) -> None:
        nonlocal calls
        whole(self, *args)
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(feature_pass._Pass, "__call__", interrupted)
    with pytest.raises(Stopped, match="go on with --resume"):
        ask([hcl, moco], tmp_path / "out")
    assert not (tmp_path / "out" / "where.json").exists()
    assert figures(ask([hcl, moco], tmp_path / "out", resume=True)) == figures(report[0])


def test_other_batches_and_workers_give_the_same(
    report: tuple[dict[str, Any], Path], hcl: Path, moco: Path, tmp_path: Path
) -> None:
    found = ask([hcl, moco], tmp_path / "out", batch=7, workers=1)
    for a, b in zip(found["results"], report[0]["results"], strict=True):
        assert (a["model"], a["measure"], a["level"]) == (b["model"], b["measure"], b["level"])
        assert a["value"] == pytest.approx(
            b["value"], abs=0.02
        )  # a product of another shape rounds otherwise


def test_any_images_answer_correspondence(hcl: Path, images: Path, tmp_path: Path) -> None:
    found = ask(hcl, tmp_path / "out", data=str(images))
    assert {r["question"] for r in found["results"]} == {"correspondence"}
    assert found["data"]["held_out"]


def test_boxes_from_a_file(hcl: Path, images: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["key,left,top,right,bottom"]
    for i in range(40):
        left, top = rng.integers(0, 20, 2)
        rows.append(f"{i:04},{left},{top},{left + 20},{top + 20}")
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    found = ask(hcl, tmp_path / "out", data=str(images), boxes=str(tmp_path / "boxes.csv"), ask="auto")
    assert {r["question"] for r in found["results"]} == {"correspondence", "localization"}
    assert found["chance"]["localization"]["mean_box"] > 0.2


def test_what_and_where_share_a_folder(hcl: Path, tmp_path: Path) -> None:
    what = hetcl.probe(
        str(hcl),
        data="scenes:60",
        out=tmp_path / "p",
        overrides={**QUICK, "test_images": 0, "linear": "none"},
    )
    assert what["kind"] == "hetcl-probe"
    where = ask(hcl, tmp_path / "p", resume=True)
    assert where["kind"] == "hetcl-where"
    assert {"probe.json", "where.json"} <= {p.name for p in (tmp_path / "p").iterdir()}


@pytest.mark.parametrize(
    ("models", "more", "match"),
    [
        (1, {"ask": "places"}, "ask places: there are auto, what, where, correspondence"),
        (1, {"ask": "what,localization"}, "what is asked of one MODEL, and alone"),
        (2, {"ask": "what"}, "what is asked of one MODEL"),
        (
            1,
            {"ask": "localization", "data": "IMAGES"},
            "IMAGES.* has no boxes; name an annotated set .* --boxes",
        ),
        (1, {"ask": "dense-knn", "data": "IMAGES"}, "has no a class for each pixel|has no classes of pixels"),
        (1, {"views": "standard"}, "flips images, which correspondence does not undo; add :flip_p=0"),
        (1, {"boxes": "no.csv"}, "boxes of its own"),
        (1, {"grid": 65}, "grid 65 .* 64 pixels"),
        (1, {"grid": 1}, "grid must be 0 .* or at least 2, not 1"),
        (1, {"grid": -3}, "grid must be 0 .* or at least 2, not -3"),
        (1, {"cells": 1}, "cells must be 0 .* or at least 100, not 1"),
        (1, {"test_images": 1}, "one image to test on says nothing"),
        (1, {"data": "coco:nowhere"}, "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    models: int, more: dict[str, Any], match: str, hcl: Path, moco: Path, images: Path, tmp_path: Path
) -> None:
    data = str(more.pop("data", SCENES)).replace("IMAGES", str(images))
    with pytest.raises(InputError) as caught:
        ask([hcl, moco][:models], tmp_path / "out", data=data, **more)
    assert "\n" not in str(caught.value)
    assert re.search(match.replace("IMAGES", str(images)), str(caught.value)), str(caught.value)
    assert not (tmp_path / "out").exists()


def test_too_few_images_for_a_regression(hcl: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"ask localization: .* has 19 images to fit, and a regression needs 20"
    ):
        ask(hcl, tmp_path / "out", images=19, ask="localization")
    found = ask(hcl, tmp_path / "out", images=19)
    assert "localization" not in {r["question"] for r in found["results"]}
    assert found["sentences"][0].startswith("localization is left out: ")


def test_too_few_boxes_for_a_regression(hcl: Path, images: Path, tmp_path: Path) -> None:
    rows = "".join(f"{i:04d},0,0,3,3\n" for i in range(25))
    (tmp_path / "boxes.csv").write_text("key,left,top,right,bottom\n" + rows)
    with pytest.raises(
        WorkFailed, match=r"images? with a box in .*boxes.csv to fit and \d+ to test on: too few"
    ):
        ask(hcl, tmp_path / "out", data=str(images), boxes=str(tmp_path / "boxes.csv"), ask="localization")


def test_the_same_backbone_twice_is_refused(hcl: Path) -> None:
    one = load_encoder(str(hcl))
    alone = replace(one, model="alone.safetensors", embedding=None, digest="of the backbone alone")
    with pytest.raises(
        InputError, match=r"hcl.ckpt and alone.safetensors hold the same backbone; leave one out"
    ):
        check_backbones([one, alone])


def test_names_give_way_and_numbers_do_not() -> None:
    names = ["a-model-with-a-name-of-a-good-length", "torchvision:resnet18:random"]
    measures = (
        ("localization", "iou", "c4"),
        ("localization", "found75", "c4"),
        ("correspondence", "pck1", "c4"),
    )
    measures += (("dense-knn", "miou", "c2-c5"), ("dense-linear", "miou", "c2-c5"))
    rows = [
        {"model": n, "question": q, "measure": m, "level": l, "value": 0.632, "low": 0.104, "high": 0.876}
        for n in names for q, m, l in measures
    ]  # fmt: skip
    report = {"models": [{"name": n} for n in names], "results": rows, "chance": {}}
    console = Console(width=80, file=io.StringIO())
    for table in report_text.tables(report):
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("63.2 ± 38.6") == 4
    assert shown.count("63.2 (10.4-87.6)") == 6
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    assert shown.count("torchvision:resnet18:random") == shown.count("a-model-with") == 2  # in either table


def test_answers_that_are_replaced_are_stated(
    hcl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(hcl, tmp_path / "out", ask="localization,correspondence")
    assert "is replaced" not in capsys.readouterr().out
    ask(hcl, tmp_path / "out", ask="correspondence", resume=True)
    assert "where.json answered localization as well, and is replaced" in capsys.readouterr().out


def test_boxes_of_other_images(hcl: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("key,left,top,right,bottom\n0001.png,0,0,3,3\n")
    with pytest.raises(
        InputError, match=r"no box for any of the 32 images that were looked at, .* such as \d{4}$"
    ):
        ask(hcl, tmp_path / "out", data=str(images), boxes=str(tmp_path / "boxes.csv"))


def test_the_command_says_what_was_found(
    hcl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "probe",
        str(hcl),
        "--data",
        SCENES,
        "--ask",
        "localization,correspondence",
        "--out",
        str(tmp_path / "o"),
    ]
    words += [w for k, v in QUICK.items() for w in (f"--{k}", str(v))]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "mean box" in shown
    assert "random weights" in shown
    assert max(len(line) for line in shown.splitlines() if "±" in line) <= 80
    assert "…" not in shown
