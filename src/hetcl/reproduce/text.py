"""The results of a reproduction as Markdown, CSV and a model-index; the wording: ``reporting/reproduction.py``."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hetcl.quantities import count
from hetcl.reporting.reproduction import CLAIMS, about, claim_rows, grid, heading, not_run, spread, tally

HUB_TASKS = {"box": "object-detection", "mask": "image-segmentation", "miou": "image-segmentation"}
"""Start of a figure's name -> what model hubs call its task; all others are of features alone."""


def markdown(tree: Mapping[str, Any]) -> str:
    """results.md: what was asked, every claim and table, and where each figure comes from."""
    cells = [
        [c["key"], f"{c['seconds_of_the_last_process']:.0f}", f"`{c['command']}`"] for c in tree["cells"]
    ]
    lines = ["# Reproduction", "", *chapter(tree)]
    lines += ["## Cells", "", *_grid(["cell", "seconds", "command"], cells), ""]
    lines += [f"- {key} failed: {why}" for key, why in tree["failed"].items()]
    return "\n".join([*lines, *origin(tree), ""])


def chapter(tree: Mapping[str, Any], heading: str = "##") -> list[str]:
    """The lines of results.md between its title and its cells; ``heading`` opens that of a table."""
    lines = [tally(tree), "", *about(tree), ""]
    if tree["changes"]:
        lines += ["Not as in the paper:", "", *(f"- {change}" for change in tree["changes"]), ""]
    for table in tree["experiments"]:
        source = f"Paper: {table['source']}." if table["source"] != "ours" else "Not in the paper."
        title = f"{heading} {table['name']}: {table['title']}"
        lines += [title, "", f"{source} {table['note']}".strip(), "", *_grid(CLAIMS, claim_rows(table))]
        for whose in ("ours", "paper"):
            header, rows = grid(table, whose)
            lines += ["", *_grid(header, rows)] if rows else []
        lines += ["", *(f"- {line}" for line in not_run(table)), ""]
    return lines


def origin(tree: Mapping[str, Any]) -> list[str]:
    """A line for each machine and version that did cells, most cells first."""
    found = Counter(
        ", ".join(f"{k} {v}" for k, v in cell["machine"].items() if v is not None) for cell in tree["cells"]
    )
    return [f"{count(n, 'cell')} done by {machine}." for machine, n in found.most_common()]


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


def model_index(tree: Mapping[str, Any]) -> str:
    """model-index.yml: our figures by method, in the form that model hubs read in the head of a model card.

    Each metric's name says of how many seeds its mean is, and the interval. Methods without a figure are left out.
    """
    found: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for table in tree["experiments"]:
        for row in table["rows"]:
            for column, ours in zip(table["columns"], row["ours"], strict=True):
                if ours is None or not column["data"]:
                    continue
                task = HUB_TASKS.get(column["figure"].partition("_")[0], "image-feature-extraction")
                seeds = f"mean of {count(len(ours['values']), 'seed')}, {spread(ours)}"
                metric = {
                    "type": column["figure"], "value": round(ours["mean"], 2),
                    "name": f"{heading(column)} ({table['name']}; {seeds})",
                }  # fmt: skip
                found.setdefault(row["label"], {}).setdefault((task, column["data"]), []).append(metric)
    index = [
        {
            "name": f"{name} ({tree['about']})",  # the rows are called as the paper calls them, whatever the size
            "results": [
                {
                    "task": {"type": task},
                    "dataset": {"type": data.partition(":")[0] if ":" in data else "images", "name": data},
                    "metrics": metrics,
                }
                for (task, data), metrics in results.items()
            ],
        }
        for name, results in found.items()
    ]
    return yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True, width=1000)
