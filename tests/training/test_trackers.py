"""Weights & Biases and MLflow: nothing unless asked for, the figures of metrics.csv, and no run that they can end."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hetcl.cli import main
from hetcl.runs.folder import RunFolder
from hetcl.training import trackers
from hetcl.training.trackers import Trackers
from tests.pretraining.small import command


class Fake:
    """A tool that keeps what it is told; ``breaks`` names what fails."""

    made: list[Fake]
    breaks = ""

    def __init__(self, folder: Path, known: str | None, settings: Any) -> None:
        if self.breaks == "init":
            raise OSError("no network\nand more")
        self.known, self.settings, self.figures, self.ended = known, settings, [], None  # type: ignore[var-annotated]
        self.id, self.where = known or f"id{len(self.made)}", "at home"
        self.made.append(self)

    def log(self, values: Any, step: int) -> None:
        if self.breaks == "log":
            raise RuntimeError("the server\x1b[2J is gone")
        self.figures.append((step, dict(values)))

    def close(self, *, failed: bool) -> None:
        if self.breaks == "close":
            raise RuntimeError("will not end")
        self.ended = failed  # type: ignore[assignment]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    class Mine(Fake):
        made: list[Fake] = []  # noqa: RUF012

    monkeypatch.setitem(trackers.KINDS, "wandb", Mine)
    return Mine


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv", newline="") as f:
        return [*csv.DictReader(f)]


ONE = ("--stage2.epochs", "0")


def test_nothing_is_tracked_unless_asked_for(tmp_path: Path, fake: type[Fake]) -> None:
    assert main(command(tmp_path / "run", *ONE)) == 0
    assert not fake.made
    assert not (tmp_path / "run" / "trackers.json").exists()


def test_figures_are_those_of_metrics_csv_and_a_resumed_run_goes_on(tmp_path: Path, fake: type[Fake]) -> None:
    out = tmp_path / "run"
    assert main(command(out, "--track", "wandb")) == 0
    (one,) = fake.made
    assert one.settings["stage1.epochs"] == 2
    assert one.settings["backbone"] == "timm:test_resnet"
    assert one.ended is False
    sent = {(s, k): v for s, values in one.figures for k, v in values.items()}
    for row in rows(out):
        if row["loss"]:
            assert sent[int(row["step"]), f"{row['stage']}/loss"] == pytest.approx(float(row["loss"]))
    assert main(["pretrain", "--out", str(out), "--resume"]) == 0
    assert [t.known for t in fake.made] == [None, "id0"]
    (out / "trackers.json").write_text("{}")
    assert main(["pretrain", "--out", str(out), "--resume", "--track", "wandb"]) == 0
    assert fake.made[-1].known is None


@pytest.mark.parametrize(
    ("breaks", "why"), [("init", "no network"), ("log", "the server"), ("close", "will not end")]
)
def test_a_tracker_that_fails_is_said_once_and_ends_nothing(
    tmp_path: Path, fake: type[Fake], capsys: pytest.CaptureFixture[str], breaks: str, why: str
) -> None:
    plain, out = tmp_path / "plain", tmp_path / "run"
    assert main(command(plain, *ONE)) == 0
    capsys.readouterr()
    fake.breaks = breaks
    assert main(command(out, *ONE, "--track", "wandb")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("wandb failed") == 1
    assert why in said
    assert "\x1b[2J" not in said
    assert (out / "metrics.csv").read_bytes() == (plain / "metrics.csv").read_bytes()


def test_a_run_that_fails_is_closed_as_failed(tmp_path: Path, fake: type[Fake]) -> None:
    assert main(command(tmp_path / "run", "--track", "wandb", "--stage1.lr", "1e20")) == 1
    assert fake.made[0].ended is True


def test_unknown_trackers_and_missing_packages_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command(tmp_path / "run", "--track", "wandbb")) == 2
    assert "setting track: no tracker 'wandbb'; there are wandb and mlflow" in capsys.readouterr().err
    (tmp_path / "wandb").mkdir()  # wandb leaves a folder of its own name where it runs
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(trackers.InputError, match=r"not installed: pip install 'hetcl\[wandb\]'"):
        trackers.check_installed(["wandb"])
    assert not (tmp_path / "run").exists()


# ---- the tools themselves --------------------------------------------------------------------------------------------


def told(names: list[str], folder: Path) -> list[str]:
    """Track two stages, resumed between them; what was said."""
    folder.mkdir()
    said: list[str] = []
    for stage in ("stage1", "stage2"):
        some = Trackers(
            names,
            RunFolder(folder),
            {"settings": {"stage1": {"lr": 0.03}}, "data": "d"},
            say=said.append,
            warn=said.append,
        )
        for step in (50, 100):
            some.log({f"{stage}/loss": 1.0 / step, f"{stage}/kNN": 0.1}, step)
        some.close(failed=False)
    return said


def test_mlflow_has_parameters_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    said = told(["mlflow"], tmp_path / "run")
    assert not [line for line in said if "failed" in line], said
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    found = client.get_experiment_by_name("hetcl")
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert run.data.params == {"stage1.lr": "0.03", "data": "d"}
    assert run.info.status == "FINISHED"
    for stage in ("stage1", "stage2"):
        history = client.get_metric_history(run.info.run_id, f"{stage}/loss")
        assert [(m.step, m.value) for m in history] == [(50, 0.02), (100, 0.01)]


def test_mlflow_without_databases_says_which_addresses_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    inner = trackers.importlib.util.find_spec
    monkeypatch.setattr(
        trackers.importlib.util,
        "find_spec",
        lambda name, *a: None if name == "sqlalchemy" else inner(name, *a),
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
    (said, *_) = told(["mlflow"], tmp_path / "run")
    assert f"it would write to sqlite:///{tmp_path}/m.db, and mlflow-skinny alone knows no databases" in said
    assert "set MLFLOW_TRACKING_URI to a folder (file:" in said
    assert "pip install 'hetcl[mlflow]'" in said


def test_a_reason_is_cut_between_sentences() -> None:
    first = "The store is in maintenance mode and will not receive further updates. " * 3
    long = first + "Please migrate to a database " + "that is very large " * 20
    said = trackers._reason(RuntimeError("\n" + long))
    assert said == first.strip()
    assert trackers._reason(RuntimeError("short\nsecond line")) == "short"
    assert trackers._reason(RuntimeError()) == "no reason given"
    assert trackers._reason(RuntimeError("word " * 100)).endswith("word ...")


def test_wandb_offline_writes_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    said = told(["wandb"], tmp_path / "run")
    assert not [line for line in said if "failed" in line], said
    ids = json.loads((tmp_path / "run" / "trackers.json").read_text())
    kept = [*(tmp_path / "run" / "wandb").glob(f"offline-run-*-{ids['wandb']}/run-{ids['wandb']}.wandb")]
    assert kept
    assert all(path.stat().st_size for path in kept)
