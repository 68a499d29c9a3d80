"""``hetcl demo``, on a recipe and images so small that it takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from hetcl.errors import InputError, Stopped
from hetcl.pretraining import demo as story


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "DATA", "scenes:64")
    monkeypatch.setattr(story, "RECIPE", "smoke")
    monkeypatch.setattr(story, "TEST", {**story.TEST, "images": 60, "dims": [], "workers": 0})


@pytest.mark.usefixtures("short")
def test_from_images_to_a_picture_and_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    story.demo(out)
    stated = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == set(story.OURS)
    report = json.loads((out / "contrast" / "contrast.json").read_text())
    full = {r["model"]: r["top1"]["value"] for r in report["results"] if r["vector"] == "full"}
    random = next(name for name in full if name.startswith("random") and name.endswith("embedding"))
    assert f"among 60 in {full['run']:.1%} of cases; with random weights in {full[random]:.1%}" in stated
    assert f"{100 * (full['run'] - full[random]):+.1f} points" in stated
    with Image.open(out / "found.png") as image:
        assert image.width > 900
        assert image.height > 200
    weights = (out / "run" / "backbone.safetensors").stat().st_mtime_ns
    story.demo(out)
    assert "holds a finished demo already" in capsys.readouterr().out
    assert (out / "run" / "backbone.safetensors").stat().st_mtime_ns == weights


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something that is no demo"):
        story.demo(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        story.demo(tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("stop", [Stopped(2, "stopped; go on with --resume"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["pretrain", "contrast"])
def test_a_stop_says_how_to_go_on(
    step: str, stop: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise stop

    (tmp_path / "run").mkdir()
    if step == "contrast":
        (tmp_path / "run" / "backbone.safetensors").touch()
    monkeypatch.setattr(story, step, stopped)
    with pytest.raises(Stopped, match=f"hetcl demo --out {tmp_path}` goes on from there"):
        story.demo(tmp_path)
