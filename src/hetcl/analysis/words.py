"""What was found, as a short table and in sentences. Reads ``contrast.json``'s content; free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

Report = Mapping[str, Any]
Row = Mapping[str, Any]

NEAR_CHANCE = 3.0
"""Below so many times chance (and 1%) an accuracy is called near chance."""
TIES = 0.01
"""Share of queries with ties from which they are mentioned."""
MOST = 4
"""Models that a sentence names."""
FEW = 1000
"""Queries below which intervals are called wide."""


def table(report: Report) -> Table:
    """A row for each kind of views, model and vector."""
    out = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("views", "model", "vector", "dims"):
        out.add_column(title, no_wrap=title != "model")
    for title in ("top-1", "interval", "top-5", "MRR"):
        out.add_column(title, justify="right", no_wrap=True)
    last: tuple[str, str] | None = None
    for row in report["results"]:
        here = (row["views"], row["model"])
        names = here if here != last else ("", "")
        if last is not None and row["views"] != last[0]:
            out.add_section()
        last = here
        low, high = row["top1"]["low"], row["top1"]["high"]
        out.add_row(
            *names,
            row["vector"],
            _dims(row["dims"]),
            percent(row["top1"]["value"]),
            f"{100 * low:.1f} to {100 * high:.1f}",
            percent(row["top5"]["value"]),
            f"{row['mrr']['value']:.3f}",
        )
    return out


def _dims(dims: Mapping[str, int]) -> str:
    return " + ".join(map(str, dims.values()))


def percent(share: float) -> str:
    """``71.2%``; very small shares keep a digit that says something."""
    return f"{share:.1%}" if share >= 0.0005 or share == 0 else f"{share:.2g}"


def points(e: Mapping[str, float]) -> str:
    """``+2.2 points, 1.9 to 2.5``."""
    return f"{100 * e['value']:+.1f} points, interval {100 * e['low']:+.1f} to {100 * e['high']:+.1f}"


def sentences(report: Report) -> list[str]:
    """What was found, the most important first."""
    return [
        *_small(report),
        *_broken(report),
        *_headline(report),
        *_compared(report),
        *_overlap(report),
        *_contributions(report),
        *_compressed(report),
    ]


def _results(report: Report, **wanted: str) -> Iterator[Row]:
    for row in report["results"]:
        if all(row[k] == v for k, v in wanted.items()):
            yield row


def _row(report: Report, **wanted: str) -> Row | None:
    return next(_results(report, **wanted), None)


def _small(report: Report) -> Iterator[str]:
    test = report["test"]
    others = test["gallery"]
    if others < 100:
        yield (
            f"Each picture was sought among {others} other{'s' * (others != 1)} only: by chance "
            f"{percent(test['chance'])} are found, and differences say little. Give more pictures."
        )
    elif test["queries"] < FEW:
        yield f"{test['queries']:,} pictures make wide intervals; {10 * FEW:,} give about one point either way."


def _broken(report: Report) -> Iterator[str]:
    """Ties, duplicates, collapse, features no better than chance."""
    for row in _results(report, vector="full"):
        who, ties = f"{row['model']} ({row['views']})", row["ties"]
        same = _same_views(report, row["views"])
        if same and row["top1"]["value"] < 1:
            what = percent(1 - row["top1"]["value"])
            yield (
                f"{who}: both views are the same picture, and yet {what} are not found: another picture is exactly as "
                "similar. Those pictures come twice in the data, or look the same to this model."
            )
        elif ties >= TIES:
            yield (
                f"{who}: for {percent(ties)} of the pictures another one is exactly as similar as the partner (ties "
                "count as failures): a picture comes twice in the data, or different pictures get the same vector."
            )
        elif row["top1"]["value"] < max(NEAR_CHANCE * report["test"]["chance"], 0.0) and not same:
            yield f"{who}: {percent(row['top1']['value'])} found is near chance ({percent(report['test']['chance'])})."
    for part in report["parts"]:
        if part["uniformity"] > -0.02:
            yield (
                f"{part['model']} ({part['views']}): the {part['part']} part has collapsed, nearly the same vector for "
                f"every picture (uniformity {part['uniformity']:.3f}; 0 is collapse, -4 is spread out)."
            )


def _same_views(report: Report, views: str) -> bool:
    """Whether both views of a picture are the same: nothing random in them."""
    p = report["views"][views]["policy"]
    chances = ("jitter_p", "grayscale_p", "blur_p", "flip_p")
    return tuple(p["area"]) == (1.0, 1.0) and not any(p[k] for k in chances)


def _headline(report: Report) -> Iterator[str]:
    """How often the partner is found, for each kind of views."""
    test = report["test"]
    for views in report["views"]:
        rows = sorted(_results(report, views=views, vector="full"), key=lambda r: -r["top1"]["value"])
        if not rows:
            continue
        found = ", ".join(f"{r['model']} {percent(r['top1']['value'])}" for r in rows[:MOST])
        found += f", {len(rows) - MOST} more below" if len(rows) > MOST else ""
        yield (
            f"{views}: the other view is found among {test['gallery']:,} other pictures by {found} "
            f"(chance {percent(test['chance'])})."
        )


def _compared(report: Report) -> Iterator[str]:
    """Of each two models: who finds more, at equal length where there is one."""
    seen: dict[tuple[str, str, str], list[Row]] = {}
    for row in report["differences"]:
        seen.setdefault((row["views"], *row["models"]), []).append(row)
    if len(seen) > 6:
        seen = {key: rows for key, rows in seen.items() if key[1] == report["models"][0]["name"]}
    for (views, a, b), rows in seen.items():
        row = next((r for r in rows if r["vector"].startswith("pca-") and "@" not in r["vector"]), rows[0])
        values = [_row(report, views=views, model=m, vector=row["vector"]) for m in (a, b)]
        if values[0] is None or values[1] is None:
            continue
        where = (
            f"at {values[0]['total']} dimensions" if row["vector"].startswith("pca-") else "with full vectors"
        )
        e = row["top1"]
        if e["low"] <= 0 <= e["high"]:
            yield f"{views}, {where}: no difference can be told between {a} and {b} ({points(e)})."
        else:
            better, worse = (a, b) if e["value"] > 0 else (b, a)
            shown = [percent(v) for v in sorted((v["top1"]["value"] for v in values if v), reverse=True)]
            yield (
                f"{views}, {where}: {better} finds the partner more often than {worse}, {shown[0]} against {shown[1]} "
                f"({a} minus {b}: {points(e)})."
            )


def _overlap(report: Report) -> Iterator[str]:
    """Whether accuracy rises with overlap, for the first kind of views that varies it."""
    views = next((v for v, facts in report["views"].items() if facts["mean_iou"] < 0.99), None)
    if views is None:
        return
    none = report["views"][views]["no_overlap"]["value"]
    for row in _results(report, views=views, vector="full"):
        held = [b for b in row["bins"] if b["count"] >= 20]
        if len(held) < 2:
            continue
        low, high = held[0], held[-1]
        a, b = low["top1"]["value"], high["top1"]["value"]
        verb = "rises" if b > a else "does not rise"
        yield (
            f"{views}, {row['model']}: accuracy {verb} with overlap, {percent(a)} {_bin(low)}, "
            f"{percent(b)} {_bin(high)}."
        )
    yield f"{views}: {percent(none)} of the pairs do not overlap at all."


def _bin(b: Row) -> str:
    return "without overlap" if b["high"] == 0 else f"at an IoU of {b['low']:.2g} to {b['high']:.2g}"


def _contributions(report: Report) -> Iterator[str]:
    """What each part adds."""
    for model in report["models"]:
        parts = list(model["dims"])
        if len(parts) < 2:
            continue
        for views in report["views"]:
            rows = [_row(report, views=views, model=model["name"], vector=v) for v in ("full", *parts)]
            if any(r is None for r in rows):
                continue
            full, *single = [r["top1"]["value"] for r in rows if r is not None]
            shown = ", ".join(f"the {p} part alone {percent(v)}" for p, v in zip(parts, single, strict=True))
            gain = full - max(single)
            best = parts[single.index(max(single))]
            yield (
                f"{views}, {model['name']}: together {percent(full)}, {shown}: the two are worth "
                f"{100 * gain:+.1f} points over the {best} part."
            )


def _compressed(report: Report) -> Iterator[str]:
    """What is lost by the shortest PCA."""
    views = next(iter(report["views"]), None)
    if views is None:
        return
    said = []
    for model in report["models"]:
        full = _row(report, views=views, model=model["name"], vector="full")
        short = [
            r
            for r in _results(report, views=views, model=model["name"])
            if r["vector"].startswith("pca-") and "@" not in r["vector"]
        ]
        if full is None or not short:
            continue
        least = min(short, key=lambda r: r["total"])
        change = 100 * (least["top1"]["value"] - full["top1"]["value"])
        said.append(
            f"{model['name']} {change:+.1f} points at {least['total']} dimensions (full: {full['total']})"
        )
    if said:
        yield f"{views}, PCA: {'; '.join(said[:MOST])}."
