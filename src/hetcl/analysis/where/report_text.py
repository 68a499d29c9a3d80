"""What was found of places, as a short table and in sentences. Reads ``where.json``'s content; free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from hetcl.analysis.text import percent, short_names

Report = Mapping[str, Any]
Row = Mapping[str, Any]

HEADLINES = (
    ("localization", "iou", "c4", "box IoU", "the main object's box (IoU)"),
    ("localization", "found75", "c4", "> 0.75", ""),
    ("correspondence", "pck1", "c4", "PCK@1", "the same place in another crop (PCK)"),
    ("dense-knn", "miou", "c2-c5", "kNN mIoU", "the class of a cell by its neighbours (mIoU)"),
    ("dense-linear", "miou", "c2-c5", "lin. mIoU", "the class of a cell by a linear function (mIoU)"),
)
"""Question, measure, level, heading, and what is found, in words. The level is fixed, so that none is picked."""
FLOORS = {
    "localization": ("mean box", "mean_box", "found75"),
    "cells": ("commonest class", "majority", "majority"),
}
"""What needs no features, by group of questions: its name, and the key of its figure and of its share above 0.75."""
WIDTH, LONGEST = 80, 28
"""Columns of a table, and of a name in it."""
FEW = 30
"""Images of a test below which a normal interval is too narrow."""


def find(report: Report, key: str = "results", **wanted: str) -> Row | None:
    """The first row of results (or differences) with these values."""
    return next((r for r in report[key] if all(r[k] == v for k, v in wanted.items())), None)


def tables(report: Report) -> Iterator[Table]:
    """A row for each model, the figures that the sentences are about: of C4, and of the cells of all levels.

    As many tables as it takes to show every name and number within ``WIDTH`` columns.
    """
    names = [m["name"] for m in report["models"]]
    short = short_names(names, LONGEST)
    columns = []
    for headline in HEADLINES:
        rows = [_row(report, name, headline) for name in names]
        if any(rows):
            cells = ["" if row is None else _figure(row) for row in rows]
            columns.append((headline, cells, max(len(headline[3]), *map(len, cells)) + 1))
    room = WIDTH - max(len(label) for label in (*short, *(label for label, *_ in FLOORS.values())))
    while columns:
        taken, used = 1, columns[0][2]
        while taken < len(columns) and used + columns[taken][2] <= room:
            used += columns[taken][2]
            taken += 1
        yield _table(report, short, columns[:taken])
        columns = columns[taken:]


def _row(report: Report, name: str, headline: tuple[str, ...]) -> Row | None:
    return find(report, model=name, question=headline[0], measure=headline[1], level=headline[2])


def _table(
    report: Report, names: Sequence[str], columns: Sequence[tuple[tuple[str, ...], list[str], int]]
) -> Table:
    out = Table(box=None, pad_edge=False, header_style="bold")
    out.add_column("", no_wrap=True)
    for headline, _, _ in columns:
        out.add_column(headline[3], justify="right", no_wrap=True)
    for i, name in enumerate(names):
        out.add_row(name, *(cells[i] for _, cells, _ in columns))
    for group, (label, first, second) in FLOORS.items():
        floor = report["chance"].get(group, {})
        mine = [
            floor.get(second if headline[1] == "found75" else first)
            if (group == "cells") == headline[0].startswith("dense") and headline[0] != "correspondence" else None
            for headline, _, _ in columns
        ]  # fmt: skip
        if any(v is not None for v in mine):
            out.add_row(label, *["" if v is None else f"{100 * v:.1f}" for v in mine])
    return out


def _figure(row: Row) -> str:
    """Per cent: ``64.5 ± 1.1``, or ``2.0 (0.4-10.5)`` where the interval is not symmetrical (shares, mean IoU)."""
    value, low, high = (100 * row[k] for k in ("value", "low", "high"))
    if row["measure"] in ("found75", "miou"):
        return f"{value:.1f} ({low:.1f}-{high:.1f})"
    return f"{value:.1f} ± {(high - low) / 2:.1f}"


def points(e: Row) -> str:
    """``+6.9 points (95% interval +5.7 to +8.1)``."""
    return f"{100 * e['value']:+.1f} points (95% interval {100 * e['low']:+.1f} to {100 * e['high']:+.1f})"


def sentences(report: Report) -> Iterator[str]:
    """What was found, the most important first."""
    for pair in dict.fromkeys((d["first"], d["second"]) for d in report["differences"]):
        yield from _compared(report, *pair)
    for model in report["models"]:
        row = find(report, model=model["name"], question="correspondence", measure="pck1", level="c4")
        if row is not None and model["role"] == "model":
            below = row["minus_position"]["high"] < 0
            yield (
                f"{model['name']}, C4: {percent(row['value'])} of cells find their place in another crop to within a "
                f"cell; by chance {percent(row['chance'])}. Taking the same cell of the grid, whatever is in it, finds "
                f"{percent(row['position'])}{', which is more' if below else ''}."
            )
            if row["position"] > 0.999:
                yield "The two crops lie in the same place, so correspondence says nothing; set views to others."
    yield from _at_the_floor(report)
    boxes = [
        d for d in report["differences"] if (d["question"], d["measure"], d["level"]) == HEADLINES[0][:3]
    ]
    tested = max((r["images"] for r in report["results"] if r["question"] == "localization"), default=0)
    if boxes and tested < 500:
        half = max((d["high"] - d["low"]) / 2 for d in boxes)
        yield (
            f"{tested:,} images to test boxes on leave a difference between two models uncertain by up to "
            f"{100 * half:.1f} points either way; four times as many halve that."
        )
    fewest = min(r["images"] for r in report["results"])
    if fewest < FEW:
        yield f"Intervals from {fewest} images are narrower than they should be; give {FEW} images at the least."


def _at_the_floor(report: Report) -> Iterator[str]:
    """Which models find no more than what needs no features, so that a comparison of them says little."""
    for question, measure, level, _, what in HEADLINES:
        if not what or question == "correspondence":
            continue
        rows = [
            (m["name"], find(report, model=m["name"], question=question, measure=measure, level=level))
            for m in report["models"]
        ]
        low = [name for name, row in rows if row is not None and row["minus_floor"]["low"] <= 0]
        if low:
            label = FLOORS["localization" if question == "localization" else "cells"][0]
            whole = len(low) == sum(row is not None for _, row in rows)
            who = "every model" if whole else ", ".join(low)
            yield (
                f"{what[0].upper()}{what[1:]}: {who} is no better than the {label}, which needs no features"
                f"{': these images do not show what the models know' if whole else ''}."
            )


def _compared(report: Report, first: str, second: str) -> Iterator[str]:
    """What one finds better than the other, worse, and where nothing can be told."""
    better: list[str] = []
    worse: list[str] = []
    level_with: list[str] = []
    for question, measure, level, _, what in HEADLINES:
        row = find(
            report, "differences", first=first, second=second, question=question, measure=measure, level=level
        )
        if row is None or not what:
            continue
        place = better if row["low"] > 0 else worse if row["high"] < 0 else level_with
        place.append(f"{what} {points(row)}")
    against = "random weights" if "random" in _role(report, second) else second
    if better:
        yield f"{first} finds better than {against}: {'; '.join(better)}."
    if worse:
        yield f"{first} finds worse than {against}: {'; '.join(worse)}."
    if level_with:
        yield f"Nothing can be told between {first} and {against}: {'; '.join(level_with)}."


def _role(report: Report, name: str) -> str:
    return next(str(m["role"]) for m in report["models"] if m["name"] == name)
