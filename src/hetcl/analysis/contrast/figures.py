"""The figures of a contrastive test, from ``contrast.json``'s content: accuracy against overlap and against dimensions.

Free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from hetcl.analysis.contrast.plotting import (
    COLORS,
    DASHES,
    GROUND,
    INK,
    QUIET,
    WIDTH,
    intervals,
    legend,
    limits,
    offset,
    percent_axis,
    style,
    title,
)
from hetcl.analysis.contrast.report_text import shortened

WITH_PARTS = 3
"""Models with parts up to which :func:`overlap` draws each part alone too: with more nobody finds a line."""
APART = -0.12
"""Where the bin of no overlap stands on the axis of IoU."""

Report = Mapping[str, Any]
Row = Mapping[str, Any]


# ---- against overlap -----------------------------------------------------------------------------------------------


def figures_of(report: Report, views: str) -> Iterator[tuple[str, Figure]]:
    """The figures that the results under some views allow, each with its kind."""
    vectors = [r["vector"] for r in report["results"] if r["views"] == views]
    yield "overlap", overlap(report, views)
    if any(v.startswith("pca-") for v in vectors):
        yield "dimensions", dimensions(report, views)
    if any("@" in v for v in vectors):
        yield "splits", splits(report, views)


def overlap(report: Report, views: str) -> Figure:
    """Top-1 of the full vectors against the IoU of the two crops (Figure 2), with the number of pairs below.

    The pairs without any overlap stand apart at the left. Up to :data:`WITH_PARTS` models with parts also show each
    part alone, as thin lines. Models stand a little beside each other where they share a bin.
    """
    models = report["models"]
    with_parts = sum(bool(_parts(m)) for m in models) <= WITH_PARTS
    with style():
        figure = Figure(figsize=(WIDTH, 4.7), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
        thin: dict[str, Any] = {}
        for i, model in enumerate(models):
            beside = offset(i, len(models), 0.1)  # little: a steep line that is moved looks like a better one
            for j, vector in enumerate(["full", *(_parts(model) if with_parts else [])]):
                row = _find(report, views, model["name"], vector)
                if row is None:
                    continue
                if j:
                    dash = thin.setdefault(vector, DASHES[1 + len(thin) % (len(DASHES) - 1)])
                    _part_against_overlap(top, row, model["name"], i, dash, beside)
                else:
                    _against_overlap(top, row, model["name"], i, beside)
        bins: list[Any] = next(
            (r["bins"] for r in report["results"] if r["views"] == views and r["bins"]), []
        )
        _pairs(bottom, bins)
        for axes in (top, bottom):
            axes.axvspan(APART - 0.08, APART + 0.08, color=GROUND, zorder=0, linewidth=0)
        top.set_xlim(APART - 0.08, 1.02)
        top.set_ylim(-0.02, 1.03)
        top.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        percent_axis(top, report)
        title(figure, report, "Is the other view found? By overlap of the two crops", views)
        legend(
            figure, report, [(f"{v} part alone", {"linestyle": d, "linewidth": 1.1}) for v, d in thin.items()]
        )
    return figure


def _against_overlap(axes: Axes, row: Row, name: str, i: int, beside: float) -> None:
    """The full vector of model ``i``: a line through the bins with intervals, no overlap apart from it."""
    held = [b for b in row["bins"] if b["top1"] is not None]
    for apart, label in ((False, name), (True, f"{name}, no overlap")):
        some = [b for b in held if (b["high"] == 0) == apart]
        intervals(
            axes,
            [_place(b, beside) for b in some],
            [b["top1"] for b in some],
            i,
            label=label,
            line=None if apart else "-",
        )


def _part_against_overlap(axes: Axes, row: Row, name: str, i: int, dash: Any, beside: float) -> None:
    """A part alone: a thin line, and a tick in the bin of no overlap."""
    held = [b for b in row["bins"] if b["top1"] is not None]
    color = COLORS[i % len(COLORS)]
    for apart, label in ((False, f"{name}, {row['vector']}"), (True, f"{name}, {row['vector']}, no overlap")):
        some = [b for b in held if (b["high"] == 0) == apart]
        axes.plot(
            [_place(b, beside) for b in some],
            [b["top1"]["value"] for b in some],
            linestyle="none" if apart else dash,
            marker="_" if apart else "",
            color=color,
            linewidth=1.1,
            alpha=0.8,
            label=label,
        )


def _pairs(axes: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    """How many pairs each bin holds, as bars with their numbers."""
    width = [0.1 if b["high"] == 0 else 0.86 * (b["high"] - b["low"]) for b in bins]
    axes.bar([_place(b) for b in bins], [b["count"] for b in bins], width=width, color="#c9c9c9")
    most = max((b["count"] for b in bins), default=0)
    axes.set_ylim(0, 1.55 * most or 1)
    axes.set_ylabel("pairs")
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([] if len(bins) <= 14 else [most], [] if len(bins) <= 14 else [_compact(most)])
    if len(bins) <= 14:
        for b in bins:
            axes.text(
                _place(b),
                b["count"] + 0.06 * most,
                _compact(b["count"]),
                ha="center",
                va="bottom",
                fontsize=7.5,
                color=INK,
            )
    edges = [b["high"] for b in bins] if 1 < len(bins) <= 14 else [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set_xticks([APART, *edges], ["none", *(f"{e:.2g}" for e in edges)])
    axes.set_xlabel("overlap of the two crops (IoU on the original image)")


def _compact(count: int) -> str:
    """``843``, ``3.4k``, ``128k``, ``1.3M``."""
    if count < 1000:
        return str(count)
    value, unit = (count / 1e3, "k") if count < 999_500 else (count / 1e6, "M")
    return (f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}") + unit


def _place(b: Mapping[str, Any], beside: float = 0.0) -> float:
    """Where a bin stands: its middle, moved by a share of its width; the bin of no overlap apart."""
    if b["high"] == 0:
        return APART + 0.2 * beside
    return (b["low"] + b["high"]) / 2 + beside * (b["high"] - b["low"])


# ---- against dimensions --------------------------------------------------------------------------------------------


def dimensions(report: Report, views: str) -> Figure:
    """Top-1 against total dimensions after PCA, halved between the parts (Figure 4); full vectors at the right.

    Each part alone stands beside the full vectors with hollow marks. Where all accuracies are close together and far
    from chance the axis does not begin at zero, and the label says so.
    """
    models = report["models"]
    with style():
        figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        drawn = []
        halves = {m["name"]: _pca(report, views, m["name"], halves=True) for m in models}
        totals = sorted({r["total"] for rows in halves.values() for r in rows})
        span = math.log2(totals[-1] / totals[0]) if len(totals) > 1 else 1.0
        names = list(dict.fromkeys(v for m in models for v in ("full", *_parts(m))))
        for i, model in enumerate(models):
            beside, rows = offset(i, len(models)), halves[model["name"]]
            x = [r["total"] * 2 ** (0.2 * beside * span) for r in rows]
            intervals(left, x, [r["top1"] for r in rows], i, label=model["name"], line="-")
            for vector in ("full", *_parts(model)):
                row = _find(report, views, model["name"], vector)
                if row is not None:
                    intervals(
                        right,
                        [names.index(vector) + 1.6 * beside],
                        [row["top1"]],
                        i,
                        label=f"{model['name']}, {vector}",
                        hollow=vector != "full",
                    )
                    drawn.append(row)
            drawn += rows
        _totals_axis(left, totals, span)
        left.set_xlabel(
            "dimensions after PCA, " + ("shared equally by the parts" if len(names) > 1 else "in all")
        )
        right.set_xticks(range(len(names)), [_full_label(models, n) for n in names])
        right.set_xlim(-0.6, max(len(names), 1) - 0.4)
        right.set_xlabel("all dimensions, without PCA")
        right.set_facecolor(GROUND)
        right.grid(color="white")
        zoomed = limits(left, drawn, report)
        percent_axis(left, report, zoomed)
        right.axhline(report["test"]["chance"], color=QUIET, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
        title(figure, report, "Is the other view found? By length of the vectors", views, zoomed)
        hollow = {"linestyle": "none", "marker": "o", "markersize": 5, "markerfacecolor": "white"}
        legend(figure, report, [("hollow: one part alone", hollow)] if len(names) > 1 else [])
    return figure


def _totals_axis(axes: Axes, totals: Sequence[int], span: float) -> None:
    """Doublings at equal distances, a tick at each total unless they would run into each other."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    ticks: list[int] = []
    for t in reversed(totals):
        if not ticks or math.log2(ticks[-1] / t) > span / 12:
            ticks.append(t)
    axes.set_xticks(ticks, [str(t) for t in ticks])
    if totals:
        axes.set_xlim(totals[0] * 2 ** (-0.08 * span), totals[-1] * 2 ** (0.08 * span))
    else:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "no PCA was possible", transform=axes.transAxes, ha="center", color=INK)


def _full_label(models: Sequence[Mapping[str, Any]], vector: str) -> str:
    """The vector's name, and below it its dimensions in the models that have it."""
    dims = sorted(
        {
            sum(m["dims"].values()) if vector == "full" else m["dims"][vector]
            for m in models
            if vector == "full" or vector in _parts(m)
        }
    )
    shown = " / ".join(map(str, dims)) if len(dims) < 3 else f"{dims[0]} to {dims[-1]}"
    return f"{shortened(vector, 14)}\n{shown}"


# ---- against how the dimensions are shared -------------------------------------------------------------------------


def splits(report: Report, views: str) -> Figure:
    """Top-1 against the spatial part's share of the dimensions, a line for each total; models with parts only."""
    models = report["models"]
    with style():
        figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
        axes = figure.subplots()
        drawn: list[Row] = []
        dashes: dict[int, Any] = {}
        lasts: dict[str, None] = {}
        for i, model in enumerate(models):
            rows = _pca(report, views, model["name"]) if _parts(model) else []
            last = (_parts(model) or [""])[-1]
            held = sorted({r["total"] for r in rows})
            for j, total in enumerate(held):
                some = sorted((r for r in rows if r["total"] == total), key=lambda r: r["dims"].get(last, 0))
                dash = dashes.setdefault(total, DASHES[len(dashes) % len(DASHES)])
                moved = 0.06 * offset(i * len(held) + j, len(models) * len(held), 0.5)
                x = [r["dims"].get(last, 0) / total + moved for r in some]
                label = f"{model['name']}, {total}"
                intervals(axes, x, [r["top1"] for r in some], i, label=label, line=dash, width=1.4)
                drawn += some
                lasts[last] = None
        axes.set_xlabel(f"share of the dimensions that the {' or '.join(lasts) or 'last'} part gets")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
        axes.set_xlim(-0.04, 1.04)
        zoomed = limits(axes, drawn, report)
        percent_axis(axes, report, zoomed)
        title(figure, report, "Which part deserves how many dimensions?", views, zoomed)
        styles = [(f"{t} dimensions", {"linestyle": d, "linewidth": 1.4}) for t, d in dashes.items()]
        legend(figure, report, styles, {r["model"] for r in drawn})
    return figure


# ---- reading the report ----------------------------------------------------------------------------------------------


def _parts(model: Mapping[str, Any]) -> list[str]:
    """The parts that are searched for alone."""
    return list(model["dims"]) if len(model["dims"]) > 1 else []


def _pca(report: Report, views: str, model: str, *, halves: bool = False) -> list[Row]:
    """Rows after PCA, by total; with ``halves`` only those that share the dimensions equally."""
    rows = [r for r in report["results"] if (r["views"], r["model"]) == (views, model)]
    rows = [r for r in rows if r["vector"].startswith("pca-") and not (halves and "@" in r["vector"])]
    return sorted(rows, key=lambda r: r["total"])


def _find(report: Report, views: str, model: str, vector: str) -> Row | None:
    wanted = (views, model, vector)
    return next((r for r in report["results"] if (r["views"], r["model"], r["vector"]) == wanted), None)
