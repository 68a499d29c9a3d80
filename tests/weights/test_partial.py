"""``--allow-partial`` from the command line: what it lets through, what not, and that a run remembers it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
import yaml

from hetcl.cli import main
from hetcl.model.pyramid import build_pyramid
from hetcl.runs.folder import RunFolder
from hetcl.weights.sources import read_weights
from tests.pretraining.small import command
from tests.weights.files import save, shaken, under

ARCH = "timm:test_resnet"
PROBE = "--size 32 --threads 1 --workers 0 --device cpu"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lacking() -> str:
    """A file without its first convolution, and with a weight too many."""
    state = shaken(build_pyramid(ARCH, seed=0), 3)
    del state["conv1.0.weight"]
    return save(under("backbone.", state) | {"backbone.gate.weight": torch.zeros(3)}, "lacking.pth")


def said(capsys: pytest.CaptureFixture[str], line: str, status: int = 0) -> str:
    assert main(shlex.split(line)) == status
    out, err = capsys.readouterr()
    return out + err


def test_pretraining_starts_from_what_there_is(lacking: str, capsys: pytest.CaptureFixture[str]) -> None:
    start = command(Path("run"), "--init", lacking, "--allow-partial", "conv1.0.*", "--stage1.epochs", "1")
    refused = said(capsys, shlex.join([*start, "--stage2.epochs", "0"]), 2)
    assert "0 weights missing, 1 unknown" in refused
    assert "backbone.gate.weight" in refused
    assert not Path("run").exists()
    whole = [*start, "--allow-partial", "*.gate.*", "--stage2.epochs", "0"]
    text = said(capsys, shlex.join(whole))
    assert "missing and left random, as allowed: conv1.0.weight" in text
    assert "not used, as allowed: backbone.gate.weight" in text
    saved = RunFolder("run").read_settings()
    assert saved["allow_partial"] == ["conv1.0.*", "*.gate.*"]
    assert saved["init"] == str(Path(lacking).absolute())


def test_a_resumed_run_keeps_to_what_it_allowed(lacking: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--init", lacking, "--allow-partial", "conv1.0.*", "--allow-partial", "*.gate.*"]
    words = command(Path("run"), *more, "--stage1.epochs", "1", "--stage2.epochs", "0")
    assert main(words) == 0
    for file in [p for p in Path("run").rglob("*") if p.is_file() and p.name != "settings.yaml"]:
        file.unlink()  # as if it had been killed at the start
    assert main(["pretrain", "--out", "run", "--resume"]) == 0
    capsys.readouterr()
    text = said(capsys, "pretrain --out run --resume --allow-partial fc.*", 2)
    assert "began with conv1.0.*, *.gate.*; leave it out" in text


def test_without_init_there_is_nothing_to_allow(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, shlex.join(command(Path("run"), "--allow-partial", "x")), 2)
    assert "--allow-partial is about the weights of --init" in text


@pytest.mark.parametrize("verb", ["contrast", "probe"])
def test_analysis_takes_it_too(verb: str, lacking: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{verb} {ARCH}:{lacking} --data scenes:30 --out out {PROBE}"
    assert "1 weights missing" in said(capsys, line, 2)
    text = said(capsys, f"{line} --allow-partial conv1.0.* --allow-partial *.gate.*")
    assert "missing and left random, as allowed: conv1.0.weight" in text


def test_an_export_leaves_out_what_is_too_much_and_lacks_nothing(
    lacking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"export {ARCH}:{lacking} --format safetensors --out out.safetensors --allow-partial *.gate.*"
    assert "1 weights missing" in said(capsys, line, 2)
    assert "lacks weights (conv1.0.weight)" in said(capsys, f"{line} --allow-partial conv1.0.*", 2)
    state = shaken(build_pyramid(ARCH, seed=0), 3)
    save(state | {"gate.weight": torch.zeros(3)}, lacking)
    said(capsys, line.replace("*.gate.*", "gate.*"))
    again = read_weights("out.safetensors").query
    assert all(torch.equal(again[f"pyramid.{name}"], value) for name, value in state.items())


def test_init_of_moco_is_written_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    state = shaken(build_pyramid(ARCH, seed=0), 3)
    save(under("module.encoder_q.", state), "moco.pth")
    more = ["--init", "moco:moco.pth", "--stage1.epochs", "1", "--stage2.epochs", "0"]
    assert main(command(Path("run"), *more)) == 0
    settings = yaml.safe_load(Path("run/settings.yaml").read_text("utf-8"))
    assert settings["init"] == f"moco:{Path('moco.pth').absolute()}"
    assert f"taken for {ARCH}" in capsys.readouterr().err
