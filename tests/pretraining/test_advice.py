"""Advice before and after: what so many images allow, near-copies counted, and an end that says what became of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hetcl.cli import main
from hetcl.images.scenes import scene
from hetcl.pretraining.doctor import doctor
from hetcl.reporting.console import verdict_lines
from hetcl.weights import published
from tests.pretraining.small import SMALL, command

FEW = "images are too few to learn much from random weights"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """27 images, of which 9 differ."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(9):
        for k in range(3):
            Image.fromarray(scene(i, seed=3, size=96).pixels).save(
                folder / f"{i}-{k}.jpg", quality=60 + 10 * k
            )
    return folder


def test_doctor_counts_images_that_differ(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = SMALL[2:]
    warnings = doctor(data=str(photos), recipe="demo", overrides=words)
    assert (
        "of 27 images compared: 18 nearly repeat the one before, 9 differ (0-0.jpg" in capsys.readouterr().out
    )
    assert any("of 27 about 9 differ" in line for line in warnings)
    assert any(line.startswith(f"9 {FEW}") for line in warnings)
    assert not any(
        "differ" in line or FEW in line for line in doctor(data="scenes:27", recipe="demo", overrides=words)
    )


def test_doctor_judges_what_is_left_to_train(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL[2:]]
    init = "timm:test_resnet:random"
    warnings = doctor(data=str(photos), recipe="demo", init=init, overrides=words)
    out = capsys.readouterr().out
    assert "stage2: hcl" in out
    assert "stage1: moco" not in out
    assert any(f"hetcl contrast RUN {init}" in line for line in warnings)
    assert main(["doctor", "--data", str(photos), *SMALL, "--init", "timm:test_resnet:no_such_weights"]) == 2
    assert "no_such_weights" in capsys.readouterr().err


def test_a_run_says_at_its_start_and_end_what_it_is_worth(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(out, data=str(photos))) == 0
    said = capsys.readouterr().out
    assert f"! 27 {FEW}" in said
    end = said[said.index("done in") :]
    assert "\n".join(verdict_lines([out], warnings=False)) in end
    assert str(out / "backbone.safetensors") in end
    assert main(command(out, "--resume", data=str(photos))) == 0
    assert FEW not in capsys.readouterr().out


def test_published_weights_are_asked_for_by_the_command_that_is_advised(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the download: the library is asked for that very name."""
    asked: list[str] = []

    def no_network(model: str, *_: str) -> None:
        asked.append(model)
        raise published._cannot(model, model.rpartition(":")[2], OSError("no network"))

    monkeypatch.setattr(published, "fetch", no_network)
    for recipe in ("small", "hcl-r50"):
        warnings = doctor(
            data=str(photos), recipe=recipe, overrides={"size": 32, "spatial.side": 2, "batch": 16}
        )
        (few,) = (line for line in warnings if FEW in line)
        model = few.split("--init ")[1].split(";")[0]
        for verb in ("pretrain", "doctor"):
            where = ["--out", str(tmp_path / "new")] if verb == "pretrain" else []
            assert main([verb, "--data", str(photos), *where, "--recipe", recipe, "--init", model]) == 2
            assert "cannot download" in capsys.readouterr().err
    assert asked == ["timm:resnet10t:c3_in1k"] * 2 + ["torchvision:resnet50:IMAGENET1K_V2"] * 2
    assert not (tmp_path / "new").exists()
