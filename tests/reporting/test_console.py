"""``hetcl doctor RUN``: the page's verdict in plain text that fits the terminal, for runs of both kinds."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hetcl.cli import main
from hetcl.errors import InputError
from hetcl.reporting.commands import python_of
from hetcl.reporting.console import verdict_lines
from hetcl.reporting.finetuned import judge_finetune
from hetcl.reporting.read import read_results
from hetcl.reporting.verdict import Verdict, judge
from hetcl.runs.folder import RunFolder
from hetcl.runs.table import Table
from tests.reporting import folders


def plain(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("fate", [*folders.FATES])
@pytest.mark.parametrize("columns", [80, 140])
def test_it_says_what_the_page_says(
    tmp_path: Path, fate: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    run = folders.make_run(tmp_path / "run", fate)
    lines = verdict_lines([run])
    verdict = judge(read_results([run])[0], [])
    commands = [a.command for a in verdict.next]
    assert all(len(line) <= min(columns, 100) for line in lines if line.strip() not in commands)
    said = plain(lines)
    for text in (
        verdict.label,
        verdict.headline,
        *verdict.learned,
        *verdict.spatial,
        *(a.text for a in verdict.next),
    ):
        assert " ".join(text.split()) in said
    assert all(f"     {command}" in lines for command in commands if command)
    assert "mind the queue" in said  # what the run warned of


def test_tests_of_the_run_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folders.make_run(tmp_path / "run", "good")
    test = folders.make_contrast(tmp_path / "contrast", run, status="not learned")
    assert main(["doctor", str(run), str(test)]) == 0
    assert capsys.readouterr().out.startswith("run: Not learned.")


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    what = folders.make_what(tmp_path / "what")
    with pytest.raises(InputError, match=r"no run of hetcl pretrain or finetune"):
        verdict_lines([what])
    for name in ("photos/a", "found/drawn", "features"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "a" / "1.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "found" / "drawn" / "1.jpg")
    for name in ("found/predictions.json", "features/f.npy", "features/f.json", "features/f.csv"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "empty").mkdir()
    for words, said in (
        ([str(tmp_path / "empty")], "is no run and no result"),
        ([str(tmp_path / "photos")], f"for images of your own: hetcl doctor --data {tmp_path / 'photos'}"),
        (
            [str(tmp_path / "found")],
            f"holds what hetcl predict found, no run: look at {tmp_path / 'found' / 'drawn'}",
        ),
        ([str(tmp_path / "features" / "f.npy")], "holds features that hetcl embed wrote, no run"),
        ([str(tmp_path / "nowhere")], "is not there"),
        (["run", "--data", "photos"], "those are two questions"),
        (["run", "--batch", "8"], "those are two questions"),
        (["--batch", "8", "run"], "those are two questions"),
        (["--nope", "8"], "unknown setting 'nope'"),
    ):
        assert main(["doctor", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_run_with_a_backbone_from_python_is_told_of_python(tmp_path: Path) -> None:
    def lines_of(fate: str) -> list[str]:
        path = folders.make_run(tmp_path / fate, fate)
        text = (path / "settings.yaml").read_text().partition("\n")[2]
        text = re.sub(r"\n  backbone: .*", "\n  backbone: module:TinyNet-0a1b2c3d", text)
        assert "module:TinyNet" in text
        (path / "settings.yaml").write_text(text)
        return [line.strip() for line in verdict_lines([path])]

    for fate in ("good", "fell", "collapsed", "half", "level"):
        lines = lines_of(fate)
        assert "hetcl.register_backbone(TinyNet)" in " ".join(lines)
        calls = [line for line in lines if line.startswith("hetcl.")]
        for line in calls:
            ast.parse(line)
        shell = [line for line in lines if line.startswith("hetcl ")]
        assert all(
            line.startswith("hetcl doctor --data") or "--backbone torchvision" in line for line in shell
        ), shell
        if fate == "collapsed":
            (call,) = [line for line in calls if line.startswith("hetcl.pretrain(")]
            assert call.endswith("backbone=TinyNet)")
            assert "out='NEW-RUN'" in call
            assert "'--stage1.lr'" in call
        if fate == "half":
            assert f"hetcl.pretrain(out='{tmp_path / fate}', resume=True, backbone=TinyNet)" in calls


def test_commands_become_calls() -> None:
    for command, call in (
        ("hetcl contrast a b --data d --out o --images 9",
         "hetcl.contrast(['a', 'b'], data='d', out='o', overrides=['--images', '9'])"),
        ("hetcl predict 'my run' photos/ --out p", "hetcl.predict('my run', 'photos/', out='p')"),
        ("hetcl pretrain --data d --out o --backbone module:Net-12 --init x",
         "hetcl.pretrain(data='d', out='o', init='x', backbone=Net)"),
        ("hetcl pretrain --data d --backbone timm:x", "hetcl pretrain --data d --backbone timm:x"),
        ("hetcl doctor --data d", "hetcl doctor --data d"),
    ):  # fmt: skip
        assert python_of(command, "Net") == call


# ---- fine-tuning -------------------------------------------------------------------------------------------------


def tuned(path: Path, *figures: float, ended: bool = True) -> Verdict:
    """The verdict on a run with so many evaluations."""
    run = RunFolder(path)
    run.path.mkdir(parents=True)
    settings: dict[str, Any] = {"model": "mask-rcnn", "steps": 90, "milestones": [60], "lr": 0.03}
    tree = {"kind": "hetcl-finetune", "init": "hcl", "data": "coco:my set", "recipe": None, "hetcl": "0.1.0"}
    run.write_settings(tree | {"settings": settings})
    table = Table(run.metrics, ("stage", "epoch", "step", "loss", "box_ap", "mask_ap"))
    for i, value in enumerate(figures, 1):
        row = {"stage": "finetune", "epoch": i, "step": 30 * i, "loss": 3.0 / i}
        table.append(row | {"box_ap": value + 5, "mask_ap": value})
    if ended:
        last = figures[-1]
        run.write_summary({"figures": {"box_ap": last + 5, "mask_ap": last}, "data": {"test": "50 images"}})
    return judge_finetune(read_results([path])[0])


@pytest.mark.parametrize(
    ("figures", "status", "word", "command"),
    [
        ((10, 20, 30), "ended", "10.0, 20.0, 30.0; still rising", "--milestones 120"),
        ((10, 30, 30.5), "ended", "level", "hetcl evaluate"),
        ((10, 30, 20), "ended", "fallen since its best", "--lr 0.01"),
        ((0.0, 0.2), "nothing", "0.0, 0.2", "hetcl doctor --data 'coco:my set'"),
    ],
)
def test_each_end_of_fine_tuning_is_told(
    tmp_path: Path, figures: tuple[float, ...], status: str, word: str, command: str
) -> None:
    found = tuned(tmp_path / "detector", *figures)
    assert found.status == status
    assert f"mask AP {figures[-1]:.1f}, box AP {figures[-1] + 5:.1f} on 50 images" in found.headline
    assert word in plain(list(found.learned))
    commands = [a.command for a in found.next]
    assert any(command in c for c in commands)
    assert any("--lr 0.01" in c for c in commands) == ("fallen" in word)
    assert any("--steps 180" in c for c in commands) == ("rising" in word or status == "nothing")


def test_fine_tuning_that_has_not_ended_goes_on(tmp_path: Path) -> None:
    found = tuned(tmp_path / "detector", 10, 20, ended=False)
    assert found.status == "half"
    assert "step 60, mask AP 20.0 at step 60" in found.headline
    (advice,) = found.next
    assert advice.command.endswith("--resume")
    assert tuned(tmp_path / "new", ended=False).headline.startswith("Nothing was logged yet")
