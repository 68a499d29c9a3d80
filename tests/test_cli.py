"""The command line: verbs to functions, and failures to one line and an exit status."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hetcl
from hetcl import cli
from hetcl.errors import InputError, Stopped, WorkFailed, out_of_memory
from hetcl.settings import recipe_names

Say = pytest.CaptureFixture[str]


@pytest.fixture
def demo_does(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | type[BaseException]], None]:
    """Make ``hetcl demo`` fail in a given way."""

    def become(failure: Any) -> None:
        def fail(args: Any, overrides: Any) -> None:
            raise failure

        monkeypatch.setitem(cli.VERBS, "demo", (fail, "fails"))

    return become


# ---- failures --------------------------------------------------------------------------------------------------------

FAILURES = [
    (InputError("no such folder x; name another"), 2, "hetcl: no such folder x; name another"),
    (WorkFailed("the disk is full"), 1, "hetcl: the disk is full"),
    (Stopped(signal.SIGTERM, "stopped at step 3"), 143, "hetcl: stopped at step 3"),
    (Stopped(signal.SIGINT, "stopped at step 3"), 130, "hetcl: stopped at step 3"),
    (KeyboardInterrupt(), 130, "hetcl: interrupted before the run could save anything new"),
    (OSError(errno.ENOSPC, "No space left", "run/x"), 1, "hetcl: run/x: the disk is full; what was saved"),
    (OSError(errno.EIO, "Input/output error"), 1, "hetcl: Input/output error; what was saved"),
    (PermissionError(errno.EACCES, "Permission denied", "p"), 1, "hetcl: p: Permission denied; what was"),
    (MemoryError(), 1, "hetcl: out of memory, "),
    (
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        1,
        "(tried to allocate 20.00 MiB): lower",
    ),
    (RuntimeError("can't allocate memory: you tried to allocate 36 bytes."), 1, "tried to allocate 36 bytes"),
    (
        RuntimeError("first\nsecond\nthird"),
        1,
        "hetcl: RuntimeError: first; --debug shows where; what was saved",
    ),
    (ZeroDivisionError(), 1, "hetcl: ZeroDivisionError: ; --debug shows where"),
]


@pytest.mark.parametrize(("failure", "status", "said"), FAILURES, ids=[repr(f[0])[:40] for f in FAILURES])
def test_a_failure_is_one_line_and_a_status(
    failure: Any, status: int, said: str, demo_does: Any, capsys: Say
) -> None:
    demo_does(failure)
    assert cli.main(["demo"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_several_faults_are_a_line_each(demo_does: Any, capsys: Say) -> None:
    demo_does(InputError("a", "b"))
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "hetcl: a\nhetcl: b\n"


@pytest.mark.parametrize(
    "failure", [InputError("x"), WorkFailed("x"), RuntimeError("x"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("words", [["demo", "--debug"], ["--debug", "demo"]])
def test_debug_shows_the_traceback(failure: Any, words: list[str], demo_does: Any) -> None:
    demo_does(failure)
    with pytest.raises(type(failure)):
        cli.main(words)


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_only_the_first_rank_speaks(
    name: str, demo_does: Any, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo_does(InputError("x"))
    slurm = name.startswith("SLURM")
    monkeypatch.setenv("SLURM_NTASKS" if slurm else "WORLD_SIZE", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    for rank, said in (("0", "hetcl: x\n"), ("1", "")):
        monkeypatch.setenv(name, rank)
        assert cli.main(["demo"]) == 2
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["recipes"], ["demo", "--help"]])
def test_a_reader_that_goes_away_is_no_failure(words: list[str], unbuffered: str) -> None:
    """``hetcl recipes | head``: the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "import sys; from hetcl.cli import main; sys.exit(main())", *words]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=env, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_that_the_console_cannot_show(tmp_path: Path) -> None:
    folder = tmp_path / "tw élve 照片"
    folder.mkdir()
    command = [sys.executable, "-c", "import sys; from hetcl.cli import main; sys.exit(main())"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "HETCL_CACHE": str(tmp_path)}
    done = subprocess.run(
        [*command, "doctor", "--data", str(folder)], capture_output=True, env=env, text=True, check=False
    )
    assert done.returncode == 2
    assert "no images in" in done.stderr
    assert r"\u7167" in done.stderr


def test_what_is_no_lack_of_memory_is_not_called_so() -> None:
    assert out_of_memory(RuntimeError("shape mismatch")) is None
    assert out_of_memory(ValueError("no such place to allocate")) is None


# ---- verbs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrian"], "no verb 'pretrian' (did you mean 'pretrain'?); see `hetcl --help`"),
        (
            ["frobnicate"],
            "no verb 'frobnicate'; there are demo, pretrain, contrast, probe, embed, export, finetune, evaluate, ",
        ),
        (["help"], "see `hetcl --help`"),
        (["-x"], "unexpected argument '-x'; see `hetcl --help`"),
        (["pretrain"], "--data and --out are missing; see `hetcl pretrain --help`"),
        (["pretrain", "--out"], "--out needs a value; see `hetcl pretrain --help`"),
        (["pretrain", "--out", "run"], "--data is missing"),
        (["pretrain", "--out", "run", "--data", "scenes:4", "--batch"], "--batch needs a value"),
        (["pretrain", "--out", "run", "--data", "scenes:4", "stray"], "unexpected argument 'stray'"),
        (["pretrain", "--out", "run", "--data", "scenes:4", "--init", ""], "--init is empty"),
        (["demo", "stray"], "unexpected argument 'stray'; see `hetcl demo --help`"),
        (["recipes", "small", "more"], "unexpected argument 'more'"),
        (["recipes", "smal"], "(did you mean 'small'?)"),
        (["doctor", "--nope", "3"], "unknown setting 'nope'"),
    ],
)
def test_what_cannot_be_parsed(
    words: list[str], said: str, capsys: Say, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not os.listdir(tmp_path), "nothing may be written"


def test_without_a_verb_the_help_is_shown(capsys: Say) -> None:
    assert cli.main([]) == 0
    assert "verbs:" in capsys.readouterr().out


def test_the_version(capsys: Say) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"hetcl {hetcl.__version__}\n"


def test_recipes_are_listed_and_shown(capsys: Say) -> None:
    assert cli.main(["recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    for verb in ("pretrain", "finetune"):
        start = listed.index(f"hetcl {verb} --recipe") + 1
        lines = listed[start : start + len(recipe_names(verb))]
        assert [line.split()[0] for line in lines] == recipe_names(verb)
        assert all(len(line.split()) > 3 for line in lines)
    assert cli.main(["recipes", "hcl-r50"]) == 0
    assert capsys.readouterr().out.startswith("# HCL, ResNet-50, 200 + 200 epochs")


def test_pretrain_hands_over_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    from hetcl.pretraining import run as room

    got: dict[str, Any] = {}
    monkeypatch.setattr(room, "pretrain", lambda **kw: got.update(kw))
    words = "pretrain --data d --out o --recipe small --init m --resume --stage1.lr=-1 --batch 8 --new-thing 3".split()
    assert cli.main(words) == 0
    assert got == {
        "data": "d",
        "out": "o",
        "recipe": "small",
        "init": "m",
        "allow_partial": [],
        "resume": True,
        "overrides": ["--stage1.lr=-1", "--batch=8", "--new-thing", "3"],
    }


def test_negative_and_odd_values_reach_their_setting(capsys: Say) -> None:
    for value, said in (("-1", "not -1.0"), (".inf", "finite"), ("-.5", "not -0.5"), ("1e-3x", "'1e-3x'")):
        assert cli.main(["doctor", "--stage1.lr", value]) == 2
        assert said in capsys.readouterr().err
