"""The command line answers before torch is loaded, and says something useful to whoever asks for help."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hetcl.cli") is None, reason="hetcl.cli is not there yet"
)

VERBS = ["demo", "pretrain", "recipes", "doctor"]

ASK = """
import contextlib, io, json, sys
from hetcl.cli import main
said = {}
for verb in sys.argv[1:]:
    out = io.StringIO()
    sys.argv = ["hetcl", *([verb] if verb != "-" else []), "--help"]
    code = 0
    try:
        with contextlib.redirect_stdout(out):
            code = main() or 0
    except SystemExit as stop:
        code = stop.code or 0
    heavy = [m for m in ("torch", "torchvision", "timm", "lightning_fabric") if m in sys.modules]
    said[verb] = [code, out.getvalue(), heavy]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str, list[str]]]:
    """For each verb (``-``: none): exit status, what ``--help`` printed, heavy packages loaded by then."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, "-", *VERBS], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {verb: tuple(answer) for verb, answer in json.loads(done.stdout).items()}


@pytest.mark.parametrize("verb", ["-", *VERBS])
def test_help_answers_without_torch(answers: dict[str, tuple[int, str, list[str]]], verb: str) -> None:
    code, text, heavy = answers[verb]
    assert code == 0
    assert len(text.splitlines()) > 3
    assert not heavy


def test_help_names_every_verb_and_the_options_of_the_contract(
    answers: dict[str, tuple[int, str, list[str]]],
) -> None:
    assert not [verb for verb in VERBS if verb not in answers["-"][1]]
    assert not [o for o in ("--data", "--out", "--recipe", "--resume") if o not in answers["pretrain"][1]]
    assert "--out" in answers["demo"][1]


def test_help_shows_no_raw_types_or_missing_text(answers: dict[str, tuple[int, str, list[str]]]) -> None:
    for verb, (_, text, _heavy) in answers.items():
        for ugly in ("<class ", "typing.", "Traceback", "CLASS_PATH"):
            assert ugly not in text, f"hetcl {verb} --help shows {ugly!r}"
