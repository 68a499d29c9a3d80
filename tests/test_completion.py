"""``hetcl completion``: what bash offers; zsh and fish where they are installed, else their text."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hetcl.arguments import verbs_of
from hetcl.cli import build_parser, main

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not installed")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Made in a process of its own, which must not load torch."""
    folder, ask = (
        tmp_path_factory.mktemp("completion"),
        "import sys; from hetcl.cli import main; main(sys.argv[1:]); ",
    )
    found = {}
    for shell in ("bash", "zsh", "fish"):
        code = f"{ask}assert not {{'torch', 'numpy', 'timm'}} & {{*sys.modules}}"
        done = subprocess.run(
            [sys.executable, "-c", code, "completion", shell], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found[shell] = folder / shell
        found[shell].write_text(done.stdout)
    return found


def tab(script: Path, *words: str, cwd: Path | None = None) -> list[str]:
    """What bash offers for the last of ``words``."""
    code = (
        'source "$1"; shift; COMP_WORDS=(hetcl "$@"); COMP_CWORD=$#; '
        '$(complete -p hetcl | sed "s/.*-F //; s/ .*//"); printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [str(BASH), "--norc", "-c", code, "bash", str(script), *words],
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.split("\n") if line]


@needs_bash
def test_bash_completes_verbs_settings_and_values(scripts: dict[str, Path]) -> None:
    bash = scripts["bash"]
    assert tab(bash, "pre") == ["pretrain", "predict"]
    assert tab(bash, "pretrain", "--devi") == ["--device", "--devices"]
    assert tab(bash, "pretrain", "--data", "x", "--device", "c") == ["cpu", "cuda"]
    assert tab(bash, "pretrain", "--stage2.meth") == ["--stage2.method"]
    assert tab(bash, "--debug", "pretrain", "--fit_queue", "") == ["true", "false"]
    assert "onnx" in tab(bash, "export", "run", "--format", "")
    assert tab(bash, "finetune", "--recipe", "tiny-faster") == ["tiny-faster-rcnn-fpn"]
    assert tab(bash, "recipes", "smo") == ["smoke"]
    assert tab(bash, "completion", "") == ["bash", "zsh", "fish"]
    assert tab(bash, "pretrain", "--batch", "") == []
    assert tab(bash, "pretrain", "--track", "") == ["wandb", "mlflow"]


@needs_bash
def test_bash_completes_values_after_an_equals_sign(scripts: dict[str, Path], tmp_path: Path) -> None:
    """As bash breaks words, at the sign, and as it does where the user took it out of COMP_WORDBREAKS."""
    bash = scripts["bash"]
    assert tab(bash, "pretrain", "--device", "=", "c") == ["cpu", "cuda"]
    assert tab(bash, "pretrain", "--device", "=") == tab(bash, "pretrain", "--device", "")
    assert tab(bash, "pretrain", "--device=c") == ["--device=cpu", "--device=cuda"]
    assert tab(bash, "export", "run", "--format", "=", "onnx-") == ["onnx-predictor"]
    assert tab(bash, "pretrain", "--data=x", "--track=w") == ["--track=wandb"]
    assert tab(bash, "pretrain", "--batch=") == []
    (tmp_path / "my photos").mkdir()
    assert tab(bash, "pretrain", "--data", "=", "my", cwd=tmp_path) == ["my photos"]
    assert tab(bash, "pretrain", "--data=my", cwd=tmp_path) == ["--data=my photos"]


@needs_bash
def test_bash_completes_files_with_any_name(scripts: dict[str, Path], tmp_path: Path) -> None:
    for name in ("my photos", "my run", "other"):
        (tmp_path / name).mkdir()
    assert sorted(tab(scripts["bash"], "pretrain", "--data", "my", cwd=tmp_path)) == ["my photos", "my run"]
    assert sorted(tab(scripts["bash"], "contrast", "m", cwd=tmp_path)) == ["my photos", "my run"]
    assert tab(scripts["bash"], "contrast", "run", "--out", "oth", cwd=tmp_path) == ["other"]


@needs_bash
@pytest.mark.parametrize("verb", [*verbs_of(build_parser("-"))])
def test_every_option_is_completed(scripts: dict[str, Path], verb: str) -> None:
    wanted = {a.option_strings[-1] for a in verbs_of(build_parser())[verb]._actions if a.option_strings}
    assert {*tab(scripts["bash"], verb, "--")} == wanted
    for shell in ("zsh", "fish"):
        text = scripts[shell].read_text()
        assert not [w for w in wanted if (w if shell == "zsh" else f"-l {w[2:]} ") not in text]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_itself_takes_the_script(scripts: dict[str, Path], shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", scripts[shell]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "ksh"]) == 2
    assert "invalid choice: 'ksh'" in capsys.readouterr().err
