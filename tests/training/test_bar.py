"""The live display fits the terminal: a bar, per cent, time left and two figures in one line, at any width."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.training import bar
from hetcl.training.bar import Bar, layout

SHORT = ("3 h 20 min left", "loss 4.346", "in batch 76.5%")
WORDS = st.lists(st.text("abc 1%", max_size=30), max_size=6)


@given(st.text("xy ", max_size=40), st.floats(0, 1), WORDS, WORDS, st.integers(2, 250))
def test_nothing_is_wider_than_the_terminal(
    name: str, share: float, short: Sequence[str], below: Sequence[str], columns: int
) -> None:
    found = layout(name, share, short, below, columns)
    assert len(found.below) < columns
    assert 0 <= found.filled <= found.bar <= 40
    if columns > 40:
        assert len(found.name) + 1 + found.bar + len(found.after) < columns
        assert found.bar >= 10


@given(st.integers(80, 300))
def test_bar_per_cent_time_and_two_figures_have_room_from_80_columns_on(columns: int) -> None:
    found = layout("stage1", 0.451, SHORT, ["epoch 3/8", "x" * 400, "kNN 7.4%"], columns)
    assert found.after == "  45%  3 h 20 min left  loss 4.346  in batch 76.5%"
    assert found.below == "  epoch 3/8  kNN 7.4%"
    assert found.filled == int(0.451 * found.bar) > 0


def test_what_is_less_important_goes_first() -> None:
    ends = [layout("stage1", 0.5, SHORT, [], columns).after for columns in (22, 45, 60, 79)]
    assert ends == [
        "  50%",
        "  50%  3 h 20 min left",
        "  50%  3 h 20 min left  loss 4.346",
        "  50%  3 h 20 min left  loss 4.346  in batch 76.5%",
    ]


def test_until_the_first_row_the_steps_say_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(bar.time, "monotonic", lambda: now)
    shown = Bar("stage1", 50, 150)
    shown.done, now = 52, 102.0
    assert shown._left() == ""
    shown.done, now = 60, 110.0
    assert shown._left() == "1 min 30 s left"
    shown.left = "2 h left"
    assert shown._left() == "2 h left"
    shown.left, shown.done = "", 150
    assert shown._left() == ""


PROGRAM = """
import time
from hetcl.training.progress import Reporter

reporter = Reporter()
reporter.start("stage1", 0, 1000)
time.sleep(0.3)
reporter.advance(451)
reporter.row(
    "the row as log.txt has it", left="3 h 20 min left", short=["loss 4.346", "in batch 76.5%"],
    below=["epoch 3/8, step 450", "right in queue 33.9%, in batch 76.5%", "alignment 0.47, uniformity -3.33"],
)
time.sleep(0.6)
reporter.warn("the loss rises")
reporter.advance(452)
time.sleep(0.3)
reporter.stop()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", [80, 100, 140, 200])
def test_in_a_terminal_it_is_one_line_that_stays_in_place(columns: int) -> None:
    from tests.training.terminal import frames

    seen = frames(PROGRAM, columns)
    for screen in seen:
        assert sum("%" in line and "stage1" in line for line in screen) <= 1, screen  # none is left behind
        assert all(len(line) < columns for line in screen)
        assert not any("the row as log.txt has it" in line for line in screen)
    assert any(screen[0].endswith("   0%") for screen in seen)
    warned, line, below, *_ = seen[-1]
    assert warned == "! the loss rises"
    assert line.startswith("stage1 ━━━━━━━━━━")
    assert line.endswith("  45%  3 h 20 min left  loss 4.346  in batch 76.5%")
    assert below.startswith("  epoch 3/8, step 450  right in queue 33.9%")
    assert ("alignment" in below) == (columns >= 100)
