"""The results of a reproduction as text: Markdown, CSV, and the lines of the console."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TASKS = {
    "coco-fpn-1x": "FPN 1x", "coco-fpn-2x": "FPN 2x", "coco-c4-1x": "C4 1x", "coco-c4-2x": "C4 2x",
    "lvis-fpn-2x": "LVIS", "voc-c4-24k": "VOC", "voc-fcn": "VOC", "cityscapes-fpn": "Cityscapes",
    "cityscapes-fcn": "Cityscapes", "overlap": "", "dimensions": "", "places": "frozen", "pace": "",
}  # fmt: skip
FIGURES = {
    "box_ap": "box AP", "box_ap50": "box AP50", "box_ap75": "box AP75", "mask_ap": "mask AP",
    "mask_ap50": "mask AP50", "mask_ap75": "mask AP75", "miou": "mIoU", "top1": "top-1", "iou": "box IoU",
    "found75": "box IoU above 0.75", "pck1": "PCK at 1 cell", "more_than_stage1": "% more than stage 1",
}  # fmt: skip


def heading(column: Mapping[str, str]) -> str:
    """What a table calls a column: ``FPN 1x box AP``."""
    figure = column["figure"]
    if figure.startswith("iou-"):
        middle = float(figure.removeprefix("iou-"))
        words = f"IoU {middle - 0.1:.1f} to {middle + 0.1:.1f}"
    elif figure.startswith("pca-"):
        words = f"{figure.removeprefix('pca-')} dimensions"
    else:
        words = FIGURES.get(figure, figure)
    return f"{TASKS.get(column['task'], column['task'])} {words}".strip()


def shown(value: float | None, *, sign: bool = False) -> str:
    """A number in percent or points; nothing for None."""
    return "" if value is None else f"{value + 0.0:{'+' if sign else ''}.1f}"


def spread(ours: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    """``38.1 (37.2 to 39.0)``; of one seed its value alone."""
    if ours is None:
        return ""
    mean = shown(ours["mean"], sign=sign)
    if ours["low"] is None:
        return mean
    return f"{mean} ({shown(ours['low'], sign=sign)} to {shown(ours['high'], sign=sign)})"


def seeds_of(ours: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    """The value of each seed."""
    return "" if ours is None else ", ".join(shown(v, sign=sign) for v in ours["values"])


def markdown(tree: Mapping[str, Any]) -> str:
    """results.md: what was asked, every table, every claim, and where each figure comes from."""
    lines = [
        "# Reproduction", "",
        f"{tree['about'][0].upper()}{tree['about'][1:]}. {tree['seeds']} "
        f"{'seed' if tree['seeds'] == 1 else 'seeds'}. In brackets the 95% interval over seeds (Student's t); one seed "
        "has none. Figures in percent, differences in points.", "",
    ]  # fmt: skip
    if tree["changes"]:
        lines += ["Not as in the paper:", "", *(f"- {change}" for change in tree["changes"]), ""]
    for table in tree["experiments"]:
        lines += [
            f"## {table['name']}: {table['title']}",
            "",
            f"Paper: {table['source']}. {table['note']}".strip(),
            "",
        ]
        lines += _grid(["claim", "must be", "paper", "ours", "each seed", "verdict"], claim_rows(table))
        for header, rows in (grid(table, "ours"), grid(table, "paper")):
            lines += ["", *_grid(header, rows)] if rows else []
        lines += [*(f"- {line}" for line in not_run(table)), ""]
    lines += ["## Cells", "", *_grid(["cell", "seconds", "command"], cell_rows(tree)), ""]
    lines += [f"- {key} failed: {why}" for key, why in tree["failed"].items()]
    machine = tree["machine"]
    lines += ["", "Machine: " + ", ".join(f"{k} {v}" for k, v in machine.items() if v is not None) + ".", ""]
    return "\n".join(lines)


def grid(table: Mapping[str, Any], whose: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table, ``ours`` or the ``paper``'s; rows without a figure are left out."""
    header = [f"{'ours' if whose == 'ours' else 'paper'}", *(heading(c) for c in table["columns"])]
    text = spread if whose == "ours" else shown
    rows = [[row["label"], *(text(v) for v in row[whose])] for row in table["rows"]]
    return header, [row for row in rows if any(row[1:])]


def not_run(table: Mapping[str, Any]) -> Iterator[str]:
    """Each row that has no figure of ours in some column, and why."""
    for row in table["rows"]:
        reasons: dict[str, list[str]] = {}
        for column, why in zip(table["columns"], row["why_not"], strict=True):
            if why:
                reasons.setdefault(why, []).append(heading(column))
        for why, columns in reasons.items():
            of = "" if len(columns) == len(table["columns"]) else f" ({', '.join(columns)})"
            yield f"not run: {row['label']}{of}: {why}"


def claim_rows(table: Mapping[str, Any]) -> list[list[str]]:
    """A row for each claim: text, condition, the paper's difference, ours, each seed's, the verdict."""
    return [
        [
            c["text"], c["condition"], shown(c["paper"], sign=True), spread(c["ours"], sign=True),
            seeds_of(c["ours"], sign=True), c["verdict"],
        ]
        for c in table["claims"]
    ]  # fmt: skip


def cell_rows(tree: Mapping[str, Any]) -> list[list[str]]:
    """A row for each cell that is done."""
    return [[c["key"], f"{c['seconds_of_the_last_process']:.0f}", c["command"]] for c in tree["cells"]]


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    safe = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in safe]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def comma_separated(tree: Mapping[str, Any]) -> str:
    """results.csv: one line for each row and column of each table."""
    page = io.StringIO()
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow(
        ["experiment", "method", "task", "figure", "paper", "mean", "low", "high", "seeds", "not_run"]
    )
    for table in tree["experiments"]:
        for row in table["rows"]:
            for i, column in enumerate(table["columns"]):
                ours = row["ours"][i] or {"mean": None, "low": None, "high": None, "values": []}
                writer.writerow([
                    table["name"], row["method"], column["task"], column["figure"], row["paper"][i], ours["mean"],
                    ours["low"], ours["high"], " ".join(f"{v:.6g}" for v in ours["values"]), row["why_not"][i],
                ])  # fmt: skip
    return page.getvalue()
