"""The documents say what is so: every command in them parses, every target and file they name exists."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest
import torch

from tests.downstream.light import small_heads

COMMANDS_RUN = ("tutorial-own-images.md",)
"""Documents whose ``bash`` blocks are run."""
RUN_ELSEWHERE = ("stories.md", "methods.md")
"""Documents that another test runs: ``tests/test_stories.py``, ``tests/pretraining/test_methods.py``."""
ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_lines(text: str) -> list[str]:
    """Commands of the fenced ``console`` blocks (lines after ``$``) and ``bash`` blocks (all but comments).

    A backslash at the end joins a line to the next one; the output shown in a ``console`` block is left out.
    """
    found = []
    for kind, block in re.findall(r"^```(console|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if kind == "console" and line.startswith("$ "):
                found.append(line[2:].strip())
            elif kind == "bash" and line.strip() and not line.lstrip().startswith("#"):
                found.append(line.strip())
    return found


def words_of(program: str, text: str) -> list[list[str]]:
    """Arguments of every call of ``program`` among the shell lines, up to a pipe, ``&`` or redirection."""
    calls = []
    for line in shell_lines(text):
        for command in re.split(r"&&|;", line):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"\w+=\S*|time|nice|nohup|setsid", words[0]):
                words = words[1:]
            if words and Path(words[0]).name == program:
                ends = [i for i, w in enumerate(words) if w in ("|", "&", "2>&1") or re.match(r"[12]?>", w)]
                calls.append(words[1 : min(ends, default=len(words))])
    return calls


def calls_in_documents(program: str) -> list[tuple[str, list[str]]]:
    return [(d.name, c) for d in DOCUMENTS if d.exists() for c in words_of(program, d.read_text("utf-8"))]


def parse(words: list[str]) -> str | None:
    """What the command line's parser objects to in ``words``, or None."""
    from hetcl.cli import build_parser

    if words[:1] == ["doctor"] and not any(word.startswith("-") for word in words):
        words = words[:1]  # its function, not the parser, tells runs from settings
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            build_parser().parse_args(words)
    except SystemExit as stop:
        return None if stop.code in (0, None) else said.getvalue()
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return None


needs_cli = pytest.mark.skipif(
    importlib.util.find_spec("hetcl.cli") is None
    or "def build_parser" not in (ROOT / "src" / "hetcl" / "cli.py").read_text("utf-8"),
    reason="hetcl.cli.build_parser is not there yet",
)


def test_commands_are_found_in_both_kinds_of_block() -> None:
    text = (
        "```console\n$ hetcl demo\nhetcl is output here\n"
        "$ A=1 .venv/bin/hetcl pretrain --data x \\\n    --out y | tee z\n"
        "```\n```bash\n# hetcl no\nhetcl recipes  # list\n```\n```text\nhetcl no\n```\n"
    )
    assert words_of("hetcl", text) == [["demo"], ["pretrain", "--data", "x", "--out", "y"], ["recipes"]]


def test_the_readme_shows_how_to_start() -> None:
    verbs = {words[0] for _, words in calls_in_documents("hetcl") if words}
    assert "pretrain" in verbs
    assert ["test"] in words_of("make", (ROOT / "README.md").read_text("utf-8"))


@needs_cli
@pytest.mark.parametrize(("document", "words"), calls_in_documents("hetcl"), ids=lambda v: str(v)[:60])
def test_every_hetcl_command_in_the_documents_parses(document: str, words: list[str]) -> None:
    assert parse(words) is None, f"{document}: hetcl {shlex.join(words)}"


@needs_cli
@pytest.mark.parametrize("words", [["no-such-verb"], ["pretrain", "--no-such-option", "1"]])
def test_the_parser_objects_to_what_does_not_exist(words: list[str]) -> None:
    assert parse(words) is not None


@pytest.mark.parametrize(("document", "words"), calls_in_documents("make"), ids=lambda v: str(v)[:60])
def test_every_make_target_in_the_documents_exists(document: str, words: list[str]) -> None:
    targets = set(re.findall(r"^(\w+):(?!=)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    missing = [w for w in words if "=" not in w and not w.startswith("-") and w not in targets]
    assert not missing, document


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


def named_files(document: Path) -> set[str]:
    """Relative links, and paths in backticks that begin with a folder of this repository."""
    text = document.read_text("utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    links = {
        (document.parent / target).resolve().relative_to(ROOT).as_posix()
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
        if "://" not in target
    }
    ticked = set(re.findall(r"`((?:src|docs|tests|bench|experiments|\.ci)/[\w./-]*)`", text))
    return links | ticked


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_files_named_in_the_documents_exist(document: Path) -> None:
    missing = sorted(name for name in named_files(document) if not (ROOT / name).exists())
    assert not missing, f"{document.name} names what is not there: {missing}"


def test_every_departure_from_the_paper_is_listed_in_the_decisions() -> None:
    package = ROOT / "src" / "hetcl"
    listed = (ROOT / "docs" / "decisions.md").read_text("utf-8")
    marked = [p for p in package.rglob("*") if p.suffix in (".py", ".yaml")]
    marked = [p for p in marked if "NOTE(paper)" in p.read_text("utf-8")]
    names = sorted(p.relative_to(package).as_posix() for p in marked)
    assert names
    assert not [n for n in names if f"`{n}`" not in listed], "name these files in docs/decisions.md"


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if d.name not in RUN_ELSEWHERE], ids=lambda path: path.name
)
def test_python_in_the_documents_runs(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a document, one after the other, in an empty folder; of some the commands, too."""
    from hetcl.cli import main

    monkeypatch.chdir(tmp_path)
    small_heads(monkeypatch)
    names: dict[str, object] = {}
    pattern = r"^```(python|bash)\n(.*?)^```"
    threads = torch.get_num_threads()
    for kind, block in re.findall(pattern, document.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(compile(block, document.name, "exec"), names)
        elif document.name in COMMANDS_RUN:
            for words in words_of("hetcl", f"```bash\n{block}```\n"):
                assert main(words) == 0, words
    torch.set_num_threads(threads)
