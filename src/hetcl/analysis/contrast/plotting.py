"""What the figures of a contrastive test share: style, marks with intervals, axes, title and legend.

Drawn with matplotlib's objects alone: no window system, no global state, nothing of the user's own matplotlib
settings. Legends stand below the axes, so that they never cover what was measured. Free of torch.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from hetcl.analysis.contrast.report_text import percent, short_names, shortened
from hetcl.runs.folder import write_atomic

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7A00")
"""Colours of the models, told apart by people with any kind of colour vision (Okabe and Ito 2008)."""
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (10, 3)), (0, (1, 3)))
"""Lines of the totals in :func:`splits`; those of the parts from the second on."""
QUIET, GROUND, INK = "#8a8a8a", "#f3f3f3", "#444444"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "hetcl",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # letters that editors and readers of journals can take for letters
    "text.parse_math": False,  # a name with two dollar signs is a name
}
WIDTH = 7.0
"""Inches; 1,050 pixels in the PNG."""
Report = Mapping[str, Any]
Row = Mapping[str, Any]


@contextmanager
def style() -> Iterator[None]:
    """Our settings on matplotlib's own defaults; the caller's are back afterwards."""
    plain = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith("backend")}
    with mpl.rc_context(plain | STYLE):
        yield


def save(figure: Figure, path: Path) -> None:
    """``path.svg``, ``path.png`` and ``path.pdf``, the same bytes for the same figures. Raises ``WorkFailed``.

    The PDF is for papers, whose captions say what a title would: it has none, and its text is text.
    """
    kinds: dict[str, Any] = {
        "svg": {"Date": None, "Creator": "hetcl"},
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": "hetcl", "Producer": None},
    }
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks shows as boxes
        title = figure.get_suptitle()
        titles = [text for text in figure.texts if title and text.get_text() == title]
        for kind, metadata in kinds.items():
            page = io.BytesIO()
            for text in titles:
                text.set_text("" if kind == "pdf" else title)
            figure.savefig(page, format=kind, dpi=150, metadata=metadata)
            write_atomic(path.with_name(f"{path.name}.{kind}"), page.getvalue())
        for text in titles:
            text.set_text(title)


def intervals(
    axes: Axes, x: Sequence[float], estimates: Sequence[Mapping[str, float]], i: int,
    *, label: str, line: Any = None, hollow: bool = False, width: float = 1.8,
) -> None:  # fmt: skip
    """Accuracies of model ``i`` with their intervals."""
    if not estimates:
        return
    values = [e["value"] for e in estimates]
    spread = [  # never below zero by rounding
        [max(0.0, e["value"] - e["low"]) for e in estimates],
        [max(0.0, e["high"] - e["value"]) for e in estimates],
    ]
    color = COLORS[i % len(COLORS)]
    axes.errorbar(
        list(x), values, spread, color=color, marker=MARKERS[i % len(MARKERS)], markersize=5, capsize=2, elinewidth=1,
        linestyle="none" if line is None else line, linewidth=width,
        markerfacecolor="white" if hollow else color, label=label,
    )  # fmt: skip


def offset(i: int, n: int, most: float = 0.25) -> float:
    """How far model ``i`` of ``n`` stands from the middle, so that marks at one place are all seen."""
    return (i - (n - 1) / 2) * min(0.1, 2 * most / max(1, n - 1))


def limits(axes: Axes, rows: Sequence[Row], report: Report) -> bool:
    """Limits of the accuracies: from zero, or, where they are alike and chance is far off, around them (True)."""
    low = min((r["top1"]["low"] for r in rows), default=0.0)
    high = max((r["top1"]["high"] for r in rows), default=1.0)
    high = max(high, 1.5 * report["test"]["chance"], 1e-9)
    if high - low < 0.3 * low and report["test"]["chance"] < low / 2:
        room = max(0.08 * (high - low), 0.5 * (0.05 - (high - low)))  # no less than five points in all
        axes.set_ylim(low - room, high + room)
        return True
    axes.set_ylim(-0.03 * high, 1.06 * high)
    return False


def percent_axis(axes: Axes, report: Report, zoomed: bool = False) -> None:
    """Percent, and the line of chance."""
    axes.axhline(report["test"]["chance"], color=QUIET, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.6g}%"))
    axes.set_ylabel("found first (top-1)" + (", axis cut" if zoomed else ""))


def title(figure: Figure, report: Report, text: str, views: str, zoomed: bool = False) -> None:
    """What is asked, of how many, by which views, and what chance would give."""
    test = report["test"]
    chance = f"chance {percent(test['chance'])}" + (", far below" if zoomed else ", dotted")
    figure.suptitle(
        f"{text} (views: {shortened(views, 30)})\n{test['queries']:,} images, each sought among "
        f"{test['gallery']:,} others; bars: {100 * test['confidence']:.4g}% intervals; {chance}",
        fontsize=9.5,
    )


def legend(
    figure: Figure,
    report: Report,
    styles: Sequence[tuple[str, Mapping[str, Any]]],
    of: set[str] | None = None,
) -> None:
    """Below the axes: models by colour and mark, then what line styles mean, in as many columns as fit.

    Args:
        of: the models that were drawn; None: all.
    """
    names = [m["name"] for m in report["models"]]
    entries: list[tuple[str, Line2D]] = []
    for i, (name, short) in enumerate(zip(names, short_names(names, 56), strict=True)):
        if of is None or name in of:
            color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
            entries.append((short, Line2D([], [], color=color, marker=marker, markersize=5, linewidth=1.8)))
    entries += [(text, Line2D([], [], color=INK, **style)) for text, style in styles]
    if not entries:
        return
    columns = max(1, min(4, len(entries), int(WIDTH / (0.55 + 0.075 * max(len(e[0]) for e in entries)))))
    rows = math.ceil(len(entries) / columns)
    figure.set_size_inches(WIDTH, figure.get_figheight() + 0.19 * (rows - 1))
    # Before matplotlib 3.10 a label that begins with an underscore is left out.
    figure.legend(
        [e[1] for e in entries],
        [f" {e[0]}" if e[0].startswith("_") else e[0] for e in entries],
        loc="outside lower center",
        ncols=columns,
        columnspacing=1.6,
        handlelength=2.6,
    )
