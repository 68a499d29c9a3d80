"""Text from outside on one line, without what a terminal obeys, a table takes for markup or a spreadsheet computes."""

from __future__ import annotations

import pickle
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hetcl.errors import InputError, WorkFailed
from hetcl.printable import csv_row, fenced, markdown, printable, warn
from hetcl.training.progress import Reporter

HOSTILE = "[/x]\x1b[2J\x1b]0;title\x07\r\n2026-01-01 00:00:00 done\u202etxt\x9b31m\u2028\ud800$"


@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_no_character_is_left_that_a_terminal_obeys(text: str) -> None:
    shown = printable(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")]
    assert not [
        c for c in shown if unicodedata.bidirectional(c) in "LRE RLE LRO RLO PDF LRI RLI FSI PDI".split()
    ]
    assert shown == printable(shown)  # twice is once
    assert len(shown.splitlines()) <= 1
    shown.encode()


def test_what_people_write_stays() -> None:
    for text in ("Straße 7", "貓", "हिन्दी", "نام\u200cها", "👩\u200d🚀", "a [b] \\ c", "café"):
        assert printable(text) == text
    assert printable("a\nb\tc\x1b") == r"a\nb\tc\x1b"
    assert printable(3.5) == "3.5"


def test_formulas_in_csv_are_text() -> None:
    assert csv_row(["=cmd|' /C calc'!A0", "+1", "@SUM(A1)", "-2+3", " =1"]) == [
        "'=cmd|' /C calc'!A0", "'+1", "'@SUM(A1)", "'-2+3", "' =1",
    ]  # fmt: skip
    assert csv_row(["\uff1d1"]) == ["'\uff1d1"]
    assert csv_row([-1.5, None, 3, "a.jpg"]) == [-1.5, None, 3, "a.jpg"]


def test_markdown_shows_names_and_nothing_else() -> None:
    assert markdown("a|b\n# c <img> `x` [l](u) *d* \\") == r"a\|b\\n# c \<img> \`x\` \[l\](u) \*d\* \\"
    assert markdown("resnet50_v1.pth") == "resnet50_v1.pth"
    assert fenced("yaml", "a: 1\n```\n# forged\n````") == [
        "`````yaml",
        "a: 1",
        "```",
        "# forged",
        "````",
        "`````",
    ]
    assert fenced("python", "x = 1\n\ny\u202e = 2\n") == ["```python", "x = 1", "", r"y\u202e = 2", "```"]


@pytest.mark.parametrize("kind", [InputError, WorkFailed])
def test_errors_are_printable_and_keep_their_lines(kind: type[Exception]) -> None:
    error = kind("one\nforged", "two \x1b[2J")
    assert str(error) == "one\\nforged\ntwo \\x1b[2J"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # as a worker hands it over


def test_console_and_log_show_hostile_names_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    reporter = Reporter(log)
    reporter.say(f"class {HOSTILE}")
    reporter.warn(f"file {HOSTILE}")
    reporter.row(f"row {HOSTILE}", last=True)
    console = capsys.readouterr().out
    assert len(console.splitlines()) == len(log.read_text().splitlines()) == 3
    assert "\x1b" not in console + log.read_text()
    assert "[/x]" in console


def test_a_terminal_is_shown_the_same(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "log.txt")
    reporter.console = Console(force_terminal=True, width=80, file=open(tmp_path / "screen", "w"))  # noqa: SIM115
    reporter.start(HOSTILE, 0, 10)
    reporter.row("row", left=HOSTILE, short=[HOSTILE], below=[HOSTILE])
    reporter.warn(HOSTILE)
    reporter.stop()
    reporter.console.file.close()
    screen = (tmp_path / "screen").read_text()
    assert "\x1b[2J" not in screen
    assert "[/x]" in screen


def test_warnings_break_between_words_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(f"word{i}" for i in range(40))
    warn(text)
    assert capsys.readouterr().out == f"! {text}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    warn(f"{text} {'x' * 200}")
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines) == f"! {text} {'x' * 200}"
    assert all(len(line) <= 80 for line in lines[:-1])
