"""What was found of places, as a short table and in sentences. Reads ``where.json``'s content; free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def find(report: Report, key: str = "results", **wanted: str) -> Row | None:
    """The first row of results (or differences) with these values."""
    return next((r for r in report[key] if all(r[k] == v for k, v in wanted.items())), None)


def table(report: Report) -> Table:
    """A row for each model, the figures that the sentences are about: of C4, and of the cells of all levels."""
    out = Table(box=None, pad_edge=False, header_style="bold")
    out.add_column("", overflow="fold")
    shown = [h for h in HEADLINES if any(r["question"] == h[0] for r in report["results"])]
    names = [m["name"] for m in report["models"]]
    lines: list[list[str]] = []
    for name, short in zip(names, short_names(names, 28), strict=True):
        cells = []
        for question, measure, level, _, _ in shown:
            row = find(report, model=name, question=question, measure=measure, level=level)
            cells.append("" if row is None else _figure(row))
        lines.append([short, *cells])
    for i, (_, _, _, title, _) in enumerate(shown, 1):  # numbers are never cut off: names give way
        out.add_column(title, justify="right", no_wrap=True, min_width=max(len(line[i]) for line in lines))
    for line in lines:
        out.add_row(*line)
    floors = {
        "localization": ("mean box", "mean_box", "found75"),
        "cells": ("commonest class", "majority", "majority"),
    }
    for question, (label, first, second) in floors.items():
        floor = report["chance"].get(question)
        if floor:
            mine = [
                {"iou": floor.get(first), "found75": floor.get(second), "miou": floor.get(first)}.get(measure)
                if q.startswith("dense") == (question == "cells") and q != "correspondence" else None
                for q, measure, _, _, _ in shown
            ]  # fmt: skip
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
            below = row["high"] < row["position"]
            yield (
                f"{model['name']}, C4: {percent(row['value'])} of cells find their place in another crop to within a "
                f"cell; by chance {percent(row['chance'])}. Taking the same cell of the grid, whatever is in it, finds "
                f"{percent(row['position'])}{', which is more' if below else ''}."
            )
            if row["position"] > 0.999:
                yield "The two crops lie in the same place, so correspondence says nothing; set views to others."
    few = [r for r in report["results"] if r["images"] < 500 and r["question"] == "localization"]
    if few:
        yield (
            f"{few[0]['images']:,} images to test boxes on make wide intervals; with 600 the interval of a difference "
            "between two models is about 1.2 points either way."
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
