"""A reproduction of the paper: its claims with their verdicts, its tables beside the paper's. Free of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from hetcl.reporting.blocks import Grid, Section, Text
from hetcl.reporting.charts import Chart, intervals
from hetcl.reporting.read import Result
from hetcl.reporting.sections import figure_name

TASKS = {
    "coco-fpn-1x": "FPN 1x", "coco-fpn-2x": "FPN 2x", "coco-c4-1x": "C4 1x", "coco-c4-2x": "C4 2x",
    "lvis-fpn-2x": "LVIS", "voc-c4-24k": "VOC", "voc-fcn": "VOC", "cityscapes-fpn": "Cityscapes",
    "cityscapes-fcn": "Cityscapes", "overlap": "", "dimensions": "", "places": "frozen", "pace": "",
}  # fmt: skip
FIGURES = {
    "miou": "mIoU", "top1": "top-1", "iou": "box IoU", "found75": "box IoU above 0.75", "pck1": "PCK at 1 cell",
    "more_than_stage1": "% more than stage 1",
}  # fmt: skip
VERDICTS = ("confirmed", "refuted", "not resolved", "not run")
CLAIMS = ("claim", "must be", "paper", "ours (95% interval)", "each seed", "verdict")
"""Header of :func:`claim_rows`."""


def heading(column: Mapping[str, str]) -> str:
    """What a table calls a column: ``FPN 1x box AP``."""
    figure = column["figure"]
    if figure.startswith("iou-"):
        middle = float(figure.removeprefix("iou-"))
        words = f"IoU {middle - 0.1:.1f} to {middle + 0.1:.1f}"
    elif figure.startswith("pca-"):
        words = f"{figure.removeprefix('pca-')} dimensions"
    else:
        words = FIGURES.get(figure) or figure_name(figure)
    return f"{TASKS.get(column['task'], column['task'])} {words}".strip()


def shown(value: float | None, *, sign: bool = False) -> str:
    """A number in percent or points; nothing for None."""
    return "" if value is None else f"{round(value, 1) + 0.0:{'+' if sign else ''}.1f}"


def spread(ours: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    """``38.1 (37.2 to 39.0)``; of one seed its value alone."""
    if ours is None:
        return ""
    mean = shown(ours["mean"], sign=sign)
    if ours["low"] is None:
        return mean
    return f"{mean} ({shown(ours['low'], sign=sign)} to {shown(ours['high'], sign=sign)})"


def grid(table: Mapping[str, Any], whose: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table, ``ours`` or the ``paper``'s; rows and columns without a figure are left out."""
    text = spread if whose == "ours" else shown
    rows = [[row["label"], *(text(v) for v in row[whose])] for row in table["rows"]]
    kept = [i for i, column in enumerate(zip(*rows, strict=True)) if any(column)]
    names = [whose, *(heading(c) for c in table["columns"])]
    return [names[i] for i in kept], [[row[i] for i in kept] for row in rows if any(row[1:])]


def not_run(table: Mapping[str, Any]) -> Iterator[str]:
    """Which rows have no figure of ours in which columns, and why."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row in table["rows"]:
        reasons: dict[str, list[str]] = {}
        for column, why in zip(table["columns"], row["why_not"], strict=True):
            if why:
                reasons.setdefault(why, []).append(heading(column))
        for why, columns in reasons.items():
            found.setdefault((why, tuple(columns)), []).append(row["label"])
    for (why, where), labels in found.items():
        of = "" if len(where) == len(table["columns"]) else f" ({', '.join(where)})"
        rows = "every row" if len(labels) == len(table["rows"]) else "; ".join(labels)
        yield f"not run: {rows}{of}: {why}"


def claim_rows(table: Mapping[str, Any]) -> list[list[str]]:
    """A row for each claim, as :data:`CLAIMS`."""
    return [
        [
            c["text"], c["condition"], shown(c["paper"], sign=True), spread(c["ours"], sign=True),
            ", ".join(shown(v, sign=True) for v in (c["ours"] or {"values": ()})["values"]), c["verdict"],
        ]
        for c in table["claims"]
    ]  # fmt: skip


def tally(tree: Mapping[str, Any]) -> str:
    """``Of 31 claims 9 are confirmed, 2 refuted, 5 not resolved, 15 not run.``"""
    found = Counter(c["verdict"] for table in tree["experiments"] for c in table["claims"])
    parts = [f"{found[v]} {v}" for v in VERDICTS if found[v]]
    return f"Of {found.total()} claims: {', '.join(parts)}."


def about(tree: Mapping[str, Any]) -> list[str]:
    """At what size, how many seeds, and how figures are to be read."""
    seeds = tree["seeds"]
    return [
        f"{tree['about'][0].upper()}{tree['about'][1:]}. {seeds} {'seed' if seeds == 1 else 'seeds'}.",
        "In brackets the 95% interval over seeds (Student's t), which one seed does not have. Figures in percent, "
        "differences in points. Confirmed or refuted: the whole interval lies on one side of the bound.",
    ]


def sections(result: Result) -> Iterator[Section]:
    """The claims of all tables first, then each table beside the paper's."""
    tree = result.tree
    first = Section(f"Reproduction: {result.name}", [Text([tally(tree)]), Text(about(tree), "note")])
    if tree["changes"]:
        first.blocks += [Text(["Not as in the paper:"]), Text(tree["changes"], "list")]
    if tree["failed"]:
        lines = [f"{key} failed: {why}" for key, why in tree["failed"].items()]
        first.blocks.append(Text(lines, "list"))
    yield first
    for table in tree["experiments"]:
        title = table["title"] if table["source"] == "ours" else f"{table['source']}: {table['title']}"
        blocks: list[Any] = [Text([table["note"]], "note")] if table["note"] else []
        blocks += [Grid("Claims, in points", CLAIMS, claim_rows(table)), _chart(table)]
        blocks += [
            Grid(f"Figures in percent, {whose}", *grid(table, whose), folded=whose == "paper")
            for whose in ("ours", "paper")
        ]
        blocks.append(Text(list(not_run(table)), "note"))
        yield Section(title, blocks)
    rows = [[c["key"], f"{c['seconds_of_the_last_process']:.0f}", c["command"]] for c in tree["cells"]]
    yield Section(
        "Cells of the reproduction",
        [Grid("Each, its seconds and its command", ["cell", "seconds", "command"], rows, folded=True)],
    )


def _chart(table: Mapping[str, Any]) -> Chart | None:
    """The difference of each claim with its interval, and each seed's."""
    rows = [
        {
            "label": c["text"], "group": c["verdict"], "value": ours["mean"] / 100, "low": ours["low"] / 100,
            "high": ours["high"] / 100, "each": [v / 100 for v in ours["values"]],
        }
        for c in table["claims"]
        if (ours := c["ours"]) is not None and ours["low"] is not None
    ]  # fmt: skip
    return intervals("Differences, mean and interval over seeds; small: each seed", rows, axis="points")
