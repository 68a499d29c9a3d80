"""The command line answers before torch is loaded, and says something useful to whoever asks for help."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hetcl.settings import (
    ContrastSettings,
    EmbedSettings,
    EvaluateSettings,
    FinetuneSettings,
    PredictSettings,
    PretrainSettings,
    ProbeSettings,
    keys_of,
)

VERBS = [
    "demo",
    "pretrain",
    "contrast",
    "probe",
    "embed",
    "export",
    "finetune",
    "evaluate",
    "predict",
    "report",
    "recipes",
    "completion",
    "doctor",
]
HEAVY = (
    *(
        "torch",
        "torchvision",
        "timm",
        "lightning_fabric",
        "numpy",
        "PIL",
        "safetensors",
        "tensorboard",
        "rich",
    ),
    *("yaml", "jsonargparse", "importlib.metadata", "importlib.resources", "difflib", "fsspec"),
)
"""Packages whose import would be felt: help is to come in a tenth of a second."""

ASK = """
import contextlib, io, json, sys
from hetcl.cli import main
heavy = sys.argv.pop(1).split(",")
said = {}
for verb in sys.argv[1:]:
    for flag in ("--help", "-h"):
        out = io.StringIO()
        code = 0
        try:
            with contextlib.redirect_stdout(out):
                code = main([*([verb] if verb != "-" else []), flag])
        except SystemExit as stop:
            code = stop.code or 0
        before = said.get(verb)
        said[verb] = [code, out.getvalue(), [m for m in heavy if m in sys.modules]]
        assert before in (None, said[verb]), "-h and --help differ"
print(json.dumps(said))
"""

Answers = dict[str, tuple[int, str, list[str]]]


@pytest.fixture(scope="module")
def answers() -> Answers:
    """For each verb (``-``: none): exit status, what ``--help`` printed, heavy packages loaded by then."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, ",".join(HEAVY), "-", *VERBS],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr
    return {verb: tuple(answer) for verb, answer in json.loads(done.stdout).items()}


@pytest.mark.parametrize("verb", ["-", *VERBS])
def test_help_answers_without_anything_heavy(answers: Answers, verb: str) -> None:
    code, text, heavy = answers[verb]
    assert code == 0
    assert len(text.splitlines()) > 3
    assert not heavy


def test_help_names_every_verb_and_the_options_of_the_contract(answers: Answers) -> None:
    assert not [verb for verb in VERBS if verb not in answers["-"][1]]
    options = ("--data", "--out", "--recipe", "--resume", "--init", "--debug")
    assert not [o for o in options if o not in answers["pretrain"][1]]
    assert "--out" in answers["demo"][1]
    assert "--recipe" in answers["doctor"][1]


@pytest.mark.parametrize("verb", ["pretrain", "doctor"])
def test_help_shows_every_setting_once_with_its_default(answers: Answers, verb: str) -> None:
    text = answers[verb][1]
    for key in keys_of(PretrainSettings):
        shown = text.count(f"  --{key} ")
        assert shown == (0 if key.startswith("stage2.") else 1), key
    one_line = " ".join(text.split())
    assert one_line.count("(default:") >= sum(not k.startswith("stage2.") for k in keys_of(PretrainSettings))
    assert "--stage2.* likewise" in text
    for line in ("--batch N ", "--stage1.lr X ", "--stage1.views.area X,X", "--fit_queue true|false"):
        assert line in text


@pytest.mark.parametrize(
    ("verb", "cls"),
    [
        ("contrast", ContrastSettings),
        ("probe", ProbeSettings),
        ("embed", EmbedSettings),
        ("finetune", FinetuneSettings),
        ("evaluate", EvaluateSettings),
        ("predict", PredictSettings),
    ],
)
def test_help_shows_the_settings_of_analysis(answers: Answers, verb: str, cls: type) -> None:
    text = answers[verb][1]
    for key in keys_of(cls):
        assert text.count(f"  --{key} ") == 1, key
    others = {"finetune": 1}.get(verb, 0)  # --recipe has a default, too
    assert " ".join(text.split()).count("(default:") == len(keys_of(cls)) + others
    given = {"evaluate": ("RUN", "--data"), "predict": ("RUN", "IMAGES")}.get(verb, ("MODEL", "--data"))
    for word in (*given, "--out"):
        assert word in text


def test_help_starts_with_a_short_usage(answers: Answers) -> None:
    for verb, (_, text, _heavy) in answers.items():
        usage = text.split("\n\n")[0]
        assert usage.startswith("usage: hetcl")
        assert len(usage) < 120, f"hetcl {verb} --help begins with a wall of options"


def test_help_shows_no_raw_types_or_missing_text(answers: Answers) -> None:
    for verb, (_, text, _heavy) in answers.items():
        for ugly in (
            "<class ",
            "typing.",
            "Traceback",
            "CLASS_PATH",
            "None",
            "==SUPPRESS==",
            "%(",
            "1.33333",
        ):
            assert ugly not in text, f"hetcl {verb} --help shows {ugly!r}"
        assert max(map(len, text.splitlines())) <= 120
