"""The figure of where: for each question the models' figures with their intervals. Reads ``where.json``'s content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from hetcl.analysis.contrast.plotting import COLORS, INK, MARKERS, QUIET, WIDTH, style
from hetcl.analysis.text import short_names

PANELS = (
    ("correspondence", "pck1", "Found in another crop, within a cell"),
    ("localization", "iou", "Box of the main object: mean IoU"),
    ("dense-knn", "miou", "Class of a cell, kNN: mean IoU"),
    ("dense-linear", "miou", "Class of a cell, linear: mean IoU"),
)
FLOORS = {"localization": "mean_box", "dense-knn": "majority", "dense-linear": "majority"}


def draw(report: Mapping[str, Any]) -> Figure:
    """A panel for each question; levels above each other, models by colour and mark."""
    shown = [p for p in PANELS if any(r["question"] == p[0] for r in report["results"])]
    names = [m["name"] for m in report["models"]]
    with style():
        levels = {q: _levels(report, q) for q, _, _ in shown}
        heights = [0.55 + 0.17 * len(names) * len(levels[q]) for q, _, _ in shown]
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.5 + 0.2 * len(names)), layout="constrained")
        axes = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
        for ax, (question, measure, title) in zip(axes, shown, strict=True):
            for j, level in enumerate(levels[question]):
                for i, name in enumerate(names):
                    row = next(
                        (r for r in report["results"] if (r["model"], r["question"], r["measure"], r["level"])
                         == (name, question, measure, level)), None,
                    )  # fmt: skip
                    if row is None:
                        continue
                    y = j + (i - (len(names) - 1) / 2) * 0.7 / max(1, len(names))
                    spread = [[max(0, row["value"] - row["low"])], [max(0, row["high"] - row["value"])]]
                    ax.errorbar(
                        row["value"], y, xerr=spread, color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)],
                        markersize=5, capsize=2, linestyle="none", elinewidth=1, label=name if j == 0 else None,
                    )  # fmt: skip
                    if question == "correspondence":
                        ax.plot(row["position"], y, marker="|", color=INK, markersize=6, linestyle="none")
                        ax.plot(row["chance"], y, marker="|", color=QUIET, markersize=6, linestyle="none")
            group = "localization" if question == "localization" else "cells"
            floor = report["chance"].get(group, {}).get(FLOORS.get(question, ""))
            if floor is not None:
                ax.axvline(floor, color=QUIET, linewidth=1.2, linestyle=(0, (1, 2)))
            ax.set_yticks(
                range(len(levels[question])),
                [level.upper() if level[0] == "c" else level for level in levels[question]],
            )
            ax.set_ylim(len(levels[question]) - 0.5, -0.5)
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.6g}%"))
            ax.set_title(title, fontsize=9, loc="left")
        handles = {h.get_label(): h for ax in axes for h in ax.get_legend_handles_labels()[0]}
        short = dict(zip(names, short_names(names, 60), strict=True))
        figure.legend(
            [handles[n] for n in names if n in handles], [short[n] for n in names if n in handles],
            loc="outside lower center", ncols=1,
        )  # fmt: skip
        figure.suptitle(
            "Frozen maps: where things are (bars: 95% intervals;\n"
            "dotted: floor; black tick: position alone; grey tick: chance)",
            fontsize=9.5,
        )
    return figure


def _levels(report: Mapping[str, Any], question: str) -> list[str]:
    return list(dict.fromkeys(r["level"] for r in report["results"] if r["question"] == question))
