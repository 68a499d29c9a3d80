"""The figures of a contrastive test, from ``contrast.json``'s content: accuracy against overlap and against dimensions.

Drawn with matplotlib's objects alone: no window system, no global state. Free of torch.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from hetcl.runs.folder import write_atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7A00")
"""Of the models, told apart by people with any kind of colour vision (Okabe and Ito 2008)."""
MARKERS = "osD^vPX*"
PART_STYLES = (":", "--", "-.")
QUIET = "#8a8a8a"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.hashsalt": "hetcl",
    "svg.fonttype": "path",
}
LONGEST = 34
"""Characters of a model's name in a legend."""

Report = Mapping[str, Any]


def save(figure: Figure, path: Path) -> None:
    """``path.svg`` and ``path.png``, the same bytes for the same figures. Raises ``WorkFailed``."""
    with mpl.rc_context(STYLE):
        for kind, metadata in (("svg", {"Date": None, "Creator": "hetcl"}), ("png", {"Software": None})):
            page = io.BytesIO()
            figure.savefig(page, format=kind, dpi=150, metadata=metadata)
            write_atomic(path.with_name(f"{path.name}.{kind}"), page.getvalue())


def overlap(report: Report, views: str) -> Figure:
    """Top-1 of the full vectors against the IoU of the two crops (Figure 2), with the number of pairs below."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.8), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        for i, model in enumerate(report["models"]):
            for j, vector in enumerate(["full", *_parts(model)]):
                row = _find(report, views, model["name"], vector)
                if row is not None:
                    _against_overlap(top, row, _label(model, vector), i, j)
        bins: list[Any] = next((r["bins"] for r in report["results"] if r["views"] == views), [])
        where = [_place(b) for b in bins]
        bottom.bar(where, [b["count"] for b in bins], width=_width(bins), color="#c9c9c9")
        bottom.set_ylabel("pairs")
        bottom.set_yscale("symlog", linthresh=10)
        bottom.set_ylim(bottom=0)
        edges = [b["low"] for b in bins[1:]] + [bins[-1]["high"]] if len(bins) > 1 else []
        shown = edges[:: max(1, len(edges) // 10)]
        bottom.set_xticks([-0.08, *shown], ["none", *(f"{e:.2g}" for e in shown)])
        bottom.set_xlabel("overlap of the two crops (IoU on the original)")
        _finish(top, report, f"Is the other view found? By overlap, views: {views}", top=1.0)
    return figure


def _against_overlap(axes: Axes, row: Mapping[str, Any], label: str, i: int, j: int) -> None:
    """One line: the full vector with its interval, a part alone thin."""
    held = [b for b in row["bins"] if b["top1"] is not None]
    x = [_place(b) for b in held]
    y = [b["top1"]["value"] for b in held]
    colour = COLOURS[i % len(COLOURS)]
    if j:
        axes.plot(x, y, PART_STYLES[(j - 1) % len(PART_STYLES)], color=colour, linewidth=1.1, label=label)
        return
    spread = [
        [b["top1"]["value"] - b["top1"]["low"] for b in held],
        [b["top1"]["high"] - b["top1"]["value"] for b in held],
    ]
    axes.errorbar(
        x,
        y,
        spread,
        color=colour,
        marker=MARKERS[i % len(MARKERS)],
        markersize=4.5,
        capsize=2,
        elinewidth=1,
        linewidth=1.8,
        label=label,
    )


def _place(b: Mapping[str, Any]) -> float:
    """Where a bin stands: its middle; the bin of no overlap a little apart."""
    return -0.08 if b["high"] == 0 else (b["low"] + b["high"]) / 2


def _width(bins: Sequence[Mapping[str, Any]]) -> list[float]:
    return [0.06 if b["high"] == 0 else 0.8 * (b["high"] - b["low"]) for b in bins]


def dimensions(report: Report, views: str) -> Figure:
    """Top-1 against total dimensions after PCA, halved between the parts (Figure 4); full vectors at the right."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1.6))
        for i, model in enumerate(report["models"]):
            rows = [
                r for r in report["results"]
                if (r["views"], r["model"]) == (views, model["name"])
                and r["vector"].startswith("pca-") and "@" not in r["vector"]
            ]  # fmt: skip
            rows.sort(key=lambda r: r["total"])
            _points(left, [r["total"] for r in rows], rows, i, _label(model, "full"), line=True)
            for j, vector in enumerate(["full", *_parts(model)]):
                row = _find(report, views, model["name"], vector)
                if row is not None:
                    _points(right, [j + (i - len(report["models"]) / 2) * 0.08], [row], i, None, hollow=j > 0)
        totals = sorted({r["total"] for r in report["results"] if r["vector"].startswith("pca-")})
        left.set_xticks(totals, [str(t) for t in totals])
        left.set_xlabel("dimensions after PCA, all parts")
        names = list(dict.fromkeys(v for m in report["models"] for v in ("full", *_parts(m))))
        right.set_xticks(range(len(names)), [_full_label(report, n) for n in names])
        right.set_xlim(-0.6, len(names) - 0.4)
        right.set_xlabel("without PCA")
        _finish(left, report, None, [right])
        figure.suptitle(
            _title(report, f"Is the other view found? By dimensions, views: {views}"), fontsize=10
        )
    return figure


def _full_label(report: Report, vector: str) -> str:
    """``full`` with the dimensions, where all models agree on them."""
    dims = {
        sum(m["dims"].values()) if vector == "full" else m["dims"].get(vector)
        for m in report["models"]
        if vector == "full" or vector in _parts(m)
    }
    shown = " / ".join(str(d) for d in sorted(d for d in dims if d))
    return f"{'all parts' if vector == 'full' else vector}\n{shown}"


def splits(report: Report, views: str) -> Figure:
    """Top-1 against the spatial part's share of the dimensions, for each total."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.4), layout="constrained")
        axes = figure.subplots()
        for i, model in enumerate(report["models"]):
            if len(model["dims"]) < 2:
                continue
            last = list(model["dims"])[-1]
            rows = [
                r for r in report["results"]
                if (r["views"], r["model"]) == (views, model["name"]) and r["vector"].startswith("pca-")
            ]  # fmt: skip
            for j, total in enumerate(sorted({r["total"] for r in rows})):
                some = sorted((r for r in rows if r["total"] == total), key=lambda r: r["dims"].get(last, 0))
                x = [r["dims"].get(last, 0) / total for r in some]
                _points(axes, x, some, i, f"{_label(model, 'full')}, {total}", line=True, style=j)
        axes.set_xlabel("share of the dimensions that the spatial part gets")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        _finish(axes, report, f"Which part is worth how many dimensions? Views: {views}")
    return figure


def _points(
    axes: Axes, x: Sequence[float], rows: Sequence[Mapping[str, Any]], i: int, label: str | None,
    *, line: bool = False, hollow: bool = False, style: int = 0,
) -> None:  # fmt: skip
    """Accuracies with intervals, in a model's colour."""
    if not rows:
        return
    y = [r["top1"]["value"] for r in rows]
    spread = [
        [r["top1"]["value"] - r["top1"]["low"] for r in rows],
        [r["top1"]["high"] - r["top1"]["value"] for r in rows],
    ]
    colour = COLOURS[i % len(COLOURS)]
    axes.errorbar(
        list(x), y, spread, color=colour, marker=MARKERS[i % len(MARKERS)], markersize=5, capsize=2.5, elinewidth=1,
        linestyle=("-", "--", ":", "-.")[style % 4] if line else "none", linewidth=1.8,
        markerfacecolor="white" if hollow else colour, label=label,
    )  # fmt: skip


def _finish(
    axes: Axes, report: Report, title: str | None, others: Sequence[Axes] = (), *, top: float | None = None
) -> None:
    """Percent, the line of chance, the legend, the title."""
    for one in (axes, *others):
        one.axhline(report["test"]["chance"], color=QUIET, linewidth=1, linestyle=(0, (1, 2)))
        one.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    highest = max((r["top1"]["high"] for r in report["results"]), default=1.0) if top is None else top
    axes.set_ylim(-0.02 * highest, 1.03 * highest if highest > 0.8 else 1.25 * highest)
    axes.set_ylabel("found first (top-1)")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="best", fontsize=8)
    if title:
        axes.set_title(_title(report, title), fontsize=10)


def _title(report: Report, text: str) -> str:
    test = report["test"]
    return (
        f"{text}\n{test['queries']:,} pictures, each among {test['gallery']:,} others; "
        f"bars: {test['confidence']:.0%} intervals, dotted: chance"
    )


def _parts(model: Mapping[str, Any]) -> list[str]:
    """The parts that are searched for alone."""
    return list(model["dims"]) if len(model["dims"]) > 1 else []


def _find(report: Report, views: str, model: str, vector: str) -> Mapping[str, Any] | None:
    wanted = (views, model, vector)
    return next((r for r in report["results"] if (r["views"], r["model"], r["vector"]) == wanted), None)


def _label(model: Mapping[str, Any], vector: str) -> str:
    name = model["name"]
    name = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}"
    return name if vector == "full" else f"{name}, {vector} alone"
