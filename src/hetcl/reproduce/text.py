"""The results of a reproduction as Markdown and CSV; how figures are worded says ``reporting/reproduction.py``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from hetcl.reporting.reproduction import CLAIMS, about, claim_rows, grid, not_run, tally


def markdown(tree: Mapping[str, Any]) -> str:
    """results.md: what was asked, every claim and table, and where each figure comes from."""
    lines = ["# Reproduction", "", tally(tree), "", *about(tree), ""]
    if tree["changes"]:
        lines += ["Not as in the paper:", "", *(f"- {change}" for change in tree["changes"]), ""]
    for table in tree["experiments"]:
        source = f"Paper: {table['source']}." if table["source"] != "ours" else "Not in the paper."
        lines += [f"## {table['name']}: {table['title']}", "", f"{source} {table['note']}".strip(), ""]
        lines += _grid(CLAIMS, claim_rows(table))
        for whose in ("ours", "paper"):
            header, rows = grid(table, whose)
            lines += ["", *_grid(header, rows)] if rows else []
        lines += ["", *(f"- {line}" for line in not_run(table)), ""]
    cells = [
        [c["key"], f"{c['seconds_of_the_last_process']:.0f}", f"`{c['command']}`"] for c in tree["cells"]
    ]
    lines += ["## Cells", "", *_grid(["cell", "seconds", "command"], cells), ""]
    lines += [f"- {key} failed: {why}" for key, why in tree["failed"].items()]
    machine = ", ".join(f"{k} {v}" for k, v in tree["machine"].items() if v is not None)
    return "\n".join([*lines, f"Machine: {machine}.", ""])


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    safe = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in safe]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def comma_separated(tree: Mapping[str, Any]) -> str:
    """results.csv: a line for each row and column of each table."""
    page = io.StringIO()
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow(
        ["experiment", "method", "task", "figure", "paper", "mean", "low", "high", "seeds", "not_run"]
    )
    for table in tree["experiments"]:
        for row in table["rows"]:
            for column, paper, ours, why in zip(
                table["columns"], row["paper"], row["ours"], row["why_not"], strict=True
            ):
                own = ours or {"mean": None, "low": None, "high": None, "values": []}
                each = " ".join(f"{v:.6g}" for v in own["values"])
                names = [table["name"], row["method"], column["task"], column["figure"]]
                writer.writerow([*names, paper, own["mean"], own["low"], own["high"], each, why])
    return page.getvalue()
