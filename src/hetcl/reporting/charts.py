"""Charts, each one specification of Vega-Lite: drawn here to SVG, and again by the page's script, which adds a readout.

Colours are the page's own variables, so one drawing serves light, dark and print. Free of torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from textwrap import fill
from typing import Any

from markupsafe import Markup, escape

from hetcl.printable import printable

Row = Mapping[str, Any]
WIDTH, HEIGHT = 400, 190
BREAK = 28
"""Characters of a label's line."""
SERIES = 8
"""Colours of the page, ``--series-1`` and so on; more series share them, with other dashes."""
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
READOUT = "readout"
"""Name of the layer that only the script draws."""
ACROSS: dict[str, Any] = {"field": "x", "type": "quantitative"}
_AXIS = {"labelColor": "var(--ink)", "titleColor": "var(--ink)", "gridColor": "var(--line)"}
CONFIG: dict[str, Any] = {
    "font": "system-ui, sans-serif",
    "padding": {"left": 14, "right": 6, "top": 5, "bottom": 5},
    "background": "transparent",
    "view": {"stroke": None},
    "axis": _AXIS | {"domainColor": "var(--quiet)", "tickColor": "var(--quiet)", "labelFontSize": 11},
    "axisY": {"titleAngle": 0, "titleAlign": "left", "titleX": 0, "titleY": -10, "titleFontWeight": "normal"},
    "axisX": {"titleFontWeight": "normal", "grid": False},
    "legend": {"labelColor": "var(--ink)", "labelFontSize": 11, "labelLimit": 260, "symbolStrokeWidth": 2.5,
               "columnPadding": 14},
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One curve: what it is called, and the column that holds it."""

    label: str
    key: str
    dashed: bool = False
    """For a yardstick such as chance."""


@dataclass(frozen=True)
class Chart:
    """A drawn chart with its numbers."""

    title: str
    text: str
    """What it shows, for those who do not see it and for those who do."""
    spec: Mapping[str, Any]
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    """What was left out of :attr:`rows`."""
    block: str = "chart"

    @property
    def json(self) -> Markup:
        """The specification for a script element, which no text in it can end."""
        return Markup(json.dumps(self.spec, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))

    @property
    def svg(self) -> Markup:
        """Drawn, with its text as a label."""
        import vl_convert

        spec = {**self.spec, "layer": [x for x in self.spec["layer"] if x.get("name") != READOUT]}
        drawn = vl_convert.vegalite_to_svg(spec)
        label = f'<svg role="img" aria-label="{escape(self.text)}" '
        return Markup(
            drawn.replace("<svg ", label, 1).replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "", 1)
        )


@cache
def script() -> str:
    """Vega, Vega-Lite and Vega-Embed, for the page to hold: 0.9 MB."""
    import vl_convert

    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # (its stub lacks the default)


def rounded(value: float) -> float:
    """Five digits: more than a chart can show."""
    return 0.0 if value == 0 else float(f"{value:.5g}")


def scale_of(labels: Sequence[str], quiet: Sequence[bool] = ()) -> dict[str, Any]:
    """Colours by label; yardsticks have a quiet one."""
    colors = [f"var(--series-{i % SERIES + 1})" for i in range(len(labels))]
    colors = ["var(--quiet)" if q else c for c, q in zip(colors, quiet or [False] * len(labels), strict=True)]
    return {"domain": list(labels), "range": colors}


def legend(labels: Sequence[str]) -> dict[str, Any] | None:
    """Above the chart, in columns that fit; none for a single label."""
    if len(labels) < 2:
        return None
    columns = max(1, min(len(labels), int(WIDTH / (34 + 7 * max(map(len, labels))))))
    return {"orient": "top", "title": None, "columns": columns, "direction": "horizontal", "offset": 14}


def curves(
    title: str, rows: Sequence[Row], lines: Sequence[Line], *, unit: str = "",
    marks: Sequence[tuple[float, str]] = (), table: int = 60, points: int = 300,
) -> Chart | None:  # fmt: skip
    """Curves over steps; None where there is nothing to draw.

    Args:
        rows: in order of ``x``, the step; cells may be missing. Rows of different ``part`` are not joined.
        unit: ``%`` for shares, else what the numbers are.
        marks: where something begins, and what: upright lines.
        table: most rows of the table of numbers.
        points: most rows that are drawn.
    """
    lines = [line for line in lines if any(line.key in row for row in rows)]
    if not lines:
        return None
    keys = [line.key for line in lines]
    held = [row for row in rows if any(k in row for k in keys)]
    thin = thinned(held, keys, points)
    labels = [printable(line.label)[:60] for line in lines]
    data = [
        {"x": row["x"], "part": row.get("part", 0)}
        | {f"y{i}": rounded(row[k]) for i, k in enumerate(keys) if k in row}
        for row in thin
    ]
    form = ".3~p" if unit == "%" else ".4~g"
    upright = {
        "type": "quantitative",
        "title": None,
        "axis": {"format": form, "tickCount": 5},
        "scale": {"zero": False},
    }
    far = "~s" if thin[-1]["x"] >= 10_000 else ",d"
    across = ACROSS | {"title": "step", "axis": {"tickCount": 6, "format": far}}
    quiet = [line.dashed for line in lines]
    layers: list[dict[str, Any]] = []
    for i, (line, label) in enumerate(zip(lines, labels, strict=True)):
        dash = [4, 4] if line.dashed else DASHES[i // SERIES % len(DASHES)]
        single = sum(line.key in row for row in thin) < 40
        mark = {"type": "line", "strokeWidth": 1.5 if line.dashed else 2, "strokeDash": dash, "aria": False}
        mark |= {"interpolate": "step-before"} if line.dashed else {}
        layers.append(
            {
                "mark": mark
                | ({"point": {"size": 18, "filled": True}} if single and not line.dashed else {}),
                "transform": [{"filter": f"isValid(datum.y{i})"}],
                "encoding": {
                    "x": across,
                    "y": {"field": f"y{i}"} | upright,
                    "detail": {"field": "part"},
                    "color": {"datum": label, "scale": scale_of(labels, quiet), "legend": legend(labels)},
                },
            }
        )
    layers += _marks(marks)
    layers.append(_readout([(f"y{i}", label) for i, label in enumerate(labels)], form))
    text = f"{title}. {'. '.join(_said(line, label, held, unit) for line, label in zip(lines, labels, strict=True))}."
    shown = thinned(thin, keys, table)
    note = "" if len(shown) == len(held) else f"{len(shown):,} of {len(held):,} rows, the extremes among them"
    cells = [[f"{row['x']:,.0f}", *(shown_as(row.get(k), unit) for k in keys)] for row in shown]
    return Chart(title, text, _spec(text, data, layers), ["step", *labels], cells, note)


def thinned(rows: Sequence[Row], keys: Sequence[str], most: int) -> list[Row]:
    """At most about ``most`` rows: in equal stretches of the rows those with the least and the greatest of each key.

    The first and the last row stay, and so do the extremes of every key.
    """
    if len(rows) <= most:
        return list(rows)
    stretches = max(1, (most - 2) // (2 * len(keys)))
    kept = {0, len(rows) - 1}
    for s in range(stretches):
        here = range(s * len(rows) // stretches, (s + 1) * len(rows) // stretches)
        for key in keys:
            there = [i for i in here if key in rows[i]]
            if there:
                kept |= {min(there, key=lambda i: rows[i][key]), max(there, key=lambda i: rows[i][key])}
    return [rows[i] for i in sorted(kept)]


def intervals(title: str, rows: Sequence[Row], *, axis: str = "") -> Chart | None:
    """Shares with their intervals, one to a line.

    Args:
        rows: ``label``, ``group`` (its colour), ``value``, ``low``, ``high``; ``each``, single values, where known.
    """
    rows = [
        {**r, "label": fill(printable(r["label"])[:100], BREAK), "group": printable(r["group"])[:60]}
        for r in rows
    ]
    if not rows:
        return None
    groups = list(dict.fromkeys(r["group"] for r in rows))
    data = [
        {"label": r["label"], "group": r["group"], **{k: rounded(r[k]) for k in ("value", "low", "high")}}
        for r in rows
    ]
    form, unit = ".3~p", "%"
    y: dict[str, Any] = {"field": "label", "type": "nominal", "sort": None, "title": None}
    y["axis"] = {"labelLimit": 170, "labelExpr": "split(datum.label, '\\n')", "grid": True}
    if len(groups) > 1:
        y |= {"scale": {"paddingInner": 0.3}}
    offset = {"yOffset": {"field": "group", "sort": None}} if len(groups) > 1 else {}
    color = {"field": "group", "sort": None, "scale": scale_of(groups), "legend": legend(groups)}
    across: dict[str, Any] = {"type": "quantitative", "title": axis or None, "scale": {"zero": False}}
    across["axis"] = {"format": form, "tickCount": 6, "grid": True}
    tip: list[dict[str, Any]] = [
        {"field": "label", "title": " "}, {"field": "group", "title": "  "},
        *({"field": k, "format": form, "type": "quantitative"} for k in ("value", "low", "high")),
    ]  # fmt: skip
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rule", "strokeWidth": 2, "aria": False},
            "encoding": {
                "x": {"field": "low"} | across,
                "x2": {"field": "high"},
                "y": y,
                "color": color,
                **offset,
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
            "encoding": {"x": {"field": "value"} | across, "y": y, "color": color, "tooltip": tip, **offset},
        },
    ]
    single = [
        {"label": r["label"], "group": r["group"], "each": rounded(v)}
        for r in rows
        for v in r.get("each", ())
    ]
    if single:
        encoding = {"x": {"field": "each"} | across, "y": y, "color": color, **offset}
        mark = {"type": "tick", "size": 9, "thickness": 1.5, "aria": False}
        layers.append({"data": {"values": single}, "mark": mark, "encoding": encoding})
    tall = sum(1 + 0.6 * label.count("\n") for label in dict.fromkeys(r["label"] for r in rows))
    lines = tall * max(1, 0.6 * len(groups))
    rows = [{**r, "label": r["label"].replace("\n", " ")} for r in rows]  # from here on for text
    several = len(groups) > 1
    text = f"{title}. " + ". ".join(
        f"{r['label']}{', ' + r['group'] if several else ''}: {shown_as(r['value'], unit)} "
        f"({shown_as(r['low'], unit)} to {shown_as(r['high'], unit)})" for r in rows[:12]
    ) + ("." if len(rows) <= 12 else " ...")  # fmt: skip
    cells = [
        [r["label"], r["group"], *(shown_as(r[k], unit) for k in ("value", "low", "high"))] for r in rows
    ]
    spec = _spec(text, data, layers) | {"height": max(60, round(24 * lines) + 20)}
    return Chart(title, text, spec, ["", "", "value", "low", "high"], cells)


def shown_as(value: object, unit: str) -> str:
    """A number in its table."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    return f"{100 * value:.1f}%" if unit == "%" else f"{value:.4g}"


def _said(line: Line, label: str, rows: Sequence[Row], unit: str) -> str:
    values = [row[line.key] for row in rows if line.key in row]
    first, last = shown_as(values[0], unit), shown_as(values[-1], unit)
    if min(values) == max(values):
        return f"{label}: {first} throughout"
    low, high = shown_as(min(values), unit), shown_as(max(values), unit)
    return f"{label}: {first} at first, {last} at last, between {low} and {high}"


def _marks(marks: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    if not marks:
        return []
    data = {"values": [{"x": at, "name": printable(name)} for at, name in marks]}
    across = {"x": ACROSS}
    quiet = {"color": "var(--quiet)", "aria": False}
    word = quiet | {"type": "text", "align": "left", "baseline": "bottom", "dx": 3, "y": 0, "fontSize": 10}
    return [
        {"data": data, "mark": quiet | {"type": "rule", "strokeDash": [2, 3]}, "encoding": across},
        {"data": data, "mark": word, "encoding": across | {"text": {"field": "name"}}},
    ]


def _readout(fields: Sequence[tuple[str, str]], form: str) -> dict[str, Any]:
    """An upright line at the pointer, and the values there."""
    tip = [ACROSS | {"title": "step", "format": ",d"}]
    tip += [
        {"field": field, "title": label, "type": "quantitative", "format": form} for field, label in fields
    ]
    chosen = {"condition": {"param": "at", "empty": False, "value": 0.6}, "value": 0}
    on = {"type": "point", "fields": ["x"], "nearest": True, "on": "pointerover", "clear": "pointerout"}
    return {
        "name": READOUT,
        "params": [{"name": "at", "select": on}],
        "mark": {"type": "rule", "color": "var(--ink)", "aria": False},
        "encoding": {"x": ACROSS, "opacity": chosen, "tooltip": tip},
    }


def _spec(text: str, data: Sequence[Row], layers: Sequence[Row]) -> dict[str, Any]:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": text,
        "width": WIDTH,
        "height": HEIGHT,
        "data": {"values": list(data)},
        "layer": list(layers),
        "config": CONFIG,
    }
