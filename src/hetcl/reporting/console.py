"""The verdict on runs in plain text, for a console: at the end of ``hetcl pretrain``, and ``hetcl doctor RUN``.

What is judged is judged by ``verdict.py`` and ``finetuned.py``. Free of torch.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from hetcl.errors import InputError
from hetcl.printable import say
from hetcl.reporting.finetuned import judge_finetune
from hetcl.reporting.read import read_results
from hetcl.reporting.verdict import Verdict, judge

WIDEST = 100
"""Columns of the text; fewer where the terminal has fewer. Commands are never broken."""


def verdict_lines(folders: Sequence[str | Path], *, warnings: bool = True) -> list[str]:
    """What some folders say of the runs among them, as lines that fit the terminal.

    Args:
        folders: runs of ``hetcl pretrain`` and ``finetune``, finished or not, and tests of them (``contrast`` ...).
        warnings: say what the runs warned of, too.

    Raises:
        InputError: as ``read_results``, or there is no run among them.
    """
    results = read_results(folders)
    runs = [r for r in results if r.kind in ("pretrain", "finetune")]
    if not runs:
        raise InputError(
            f"{', '.join(map(str, folders))}: no run of hetcl pretrain or finetune; name the run's folder first"
        )
    lines: list[str] = []
    for run in runs:
        others = [r for r in results if r is not run]
        verdict = judge(run, others) if run.kind == "pretrain" else judge_finetune(run)
        lines += [*([""] if lines else []), *_told(run.warnings if warnings else (), verdict)]
    return lines


def doctor(folders: Sequence[str | Path]) -> list[str]:
    """Print the verdict on runs, and what to do next.

    Args, Raises: as :func:`verdict_lines`.

    Returns:
        the lines, which were printed.
    """
    lines = verdict_lines(folders)
    for line in lines:
        say(line)
    return lines


def _told(warnings: Sequence[str], verdict: Verdict) -> Iterator[str]:
    yield from _wrapped(f"{verdict.run}: {verdict.label}. {verdict.headline}", "", "  ")
    for line in [*verdict.learned, *verdict.spatial, *(f"It warned: {w}" for w in warnings)]:
        yield from _wrapped(line, "  - ", "    ")
    if verdict.next:
        yield "What now:"
    for number, advice in enumerate(verdict.next, 1):
        yield from _wrapped(advice.text, f"  {number}. ", "     ")
        if advice.command:
            yield f"     {advice.command}"


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    width = max(40, min(WIDEST, shutil.get_terminal_size().columns))
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
