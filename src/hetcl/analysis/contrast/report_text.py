"""What was found, as a short table and in sentences. Reads ``contrast.json``'s content; free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from hetcl.analysis.text import percent, short_names, shortened, signed
from hetcl.printable import printable

Report = Mapping[str, Any]
Row = Mapping[str, Any]

NEAR_CHANCE = 3.0
"""Below so many times chance an accuracy is called near chance, where chance is small."""
TIES = 0.01
"""Share of queries with ties from which they are mentioned."""
COLLAPSED = -0.02
"""Uniformity above which a part is called collapsed: 0 is one vector for all, -4 is spread out."""
MOST = 4
"""Models that a sentence names."""
PARTED = 3
"""Models with parts that get a sentence of their own."""
FEW = 1000
"""Queries below which intervals are called wide."""
HELD = 20
"""Pairs that a bin needs before a sentence relies on it."""
LONGEST = 40
"""Characters of a model's name in the table and in sentences."""


# ---- the table -----------------------------------------------------------------------------------------------------


def table(report: Report) -> Table:
    """A row for each model and vector, by kind of views; other splits than equal ones stand in the JSON and a figure.

    Size and features of the models have a column where they differ.
    """
    out = Table(box=None, pad_edge=False, header_style="bold")
    facts = {m["name"]: {"features": str(m["features"]), "pixels": str(m["size"])} for m in report["models"]}
    own = [key for key in ("features", "pixels") if len({fact[key] for fact in facts.values()}) > 1]
    for title in ("model", *own, "vector", "dims"):
        out.add_column(title, no_wrap=title != "model")
    for title in ("top-1", "interval", "top-5", "MRR"):
        out.add_column(title, justify="right", no_wrap=True)
    short = _short(report)
    views: str | None = None
    last: tuple[str, str] | None = None
    for row in report["results"]:
        if "@" in row["vector"]:
            continue
        here = (row["views"], row["model"])
        if last is not None and here != last:
            out.add_section()
        if row["views"] != views:
            views = row["views"]
            out.add_row(Text(printable(f"{views} views"), style="italic"))
        fact = facts[row["model"]]
        name = short.get(row["model"], row["model"])
        names = [
            name.removesuffix(f" {fact['features']}") if "features" in own else name,
            *map(fact.get, own),
        ]
        names = names if here != last else [""] * len(names)
        last = here
        low, high = row["top1"]["low"], row["top1"]["high"]
        cells = (
            *names,
            row["vector"],
            " + ".join(map(str, row["dims"].values())),
            percent(row["top1"]["value"]),
            f"{100 * low:.1f} to {100 * high:.1f}",
            percent(row["top5"]["value"]),
            f"{row['mrr']['value']:.3f}",
        )
        out.add_row(*(Text(printable(cell)) for cell in cells))  # as text: a name with brackets is no markup
    return out


# ---- the sentences -------------------------------------------------------------------------------------------------


def sentences(report: Report) -> list[str]:
    """What was found, the most important first: about seven for two models and two kinds of views."""
    return [
        *_small(report),
        *_broken(report),
        *_headline(report),
        *_compared(report),
        *_overlap(report),
        *_contributions(report),
        *_compressed(report),
    ]


def _small(report: Report) -> Iterator[str]:
    """A test that can say little."""
    test = report["test"]
    others, queries = test["gallery"], test["queries"]
    if others < 100:
        yield (
            f"Each image was sought among {others} other{'s' * (others != 1)} only: by chance "
            f"{percent(test['chance'])} are found, and differences say little. Give more images."
        )
    elif queries < FEW:
        yield f"{queries:,} images make wide intervals; {10 * FEW:,} give about one point either way."


def _broken(report: Report) -> Iterator[str]:
    """Features no better than chance, duplicates, ties, collapse."""
    short, chance = _short(report), report["test"]["chance"]
    poor, twice, tied = [], [], []
    own = {m["name"] for m in report["models"] if m.get("role", "model") in ("model", "backbone")}
    for row in (r for r in _results(report, vector="full") if r["model"] in own):
        top, who = row["top1"], f"{short.get(row['model'], row['model'])} ({row['views']})"
        if same_views(report, row["views"]):
            if top["value"] < 1:
                twice.append(f"{percent(1 - top['value'])} by {who}")
        elif row["ties"] >= TIES:
            tied.append(f"{who} {percent(row['ties'])}")
        if _near_chance(report, row):
            poor.append(f"{who} {percent(top['value'])}")
    if poor:
        yield f"Found no more often than near chance ({percent(chance)}): {_list(poor)}."
    if twice:
        yield (
            f"Both views are the same image, and yet not all are found; missed are {_list(twice)}: another image "
            "is exactly as similar. Those come twice in the data, or look the same to the model."
        )
    if tied:
        yield (
            f"Ties, which count as failures: {_list(tied)} of the images have another exactly as similar as the "
            "partner. Images come twice in the data, or different ones get the same vector."
        )
    flat = [p for p in report["parts"] if p["uniformity"] > COLLAPSED and p["model"] in own]
    for (model, part), some in groupby(sorted(flat, key=_model_part), key=_model_part):
        rows = list(some)
        yield (
            f"{short.get(model, model)}: the {part} part has collapsed, nearly the same vector for every image "
            f"(views {', '.join(r['views'] for r in rows)}; uniformity {rows[0]['uniformity']:.3f}, where 0 is "
            "collapse and -4 spread out)."
        )


def _near_chance(report: Report, row: Row) -> bool:
    chance = report["test"]["chance"]
    return row["top1"]["low"] <= chance or (chance < 0.05 and row["top1"]["value"] < NEAR_CHANCE * chance)


def same_views(report: Report, views: str) -> bool:
    """Whether both views of an image are the same: nothing random in them."""
    p = report["views"][views]["policy"]
    chances = ("jitter_p", "grayscale_p", "blur_p", "flip_p")
    return tuple(p["area"]) == (1.0, 1.0) and not any(p[k] for k in chances)


def _headline(report: Report) -> Iterator[str]:
    """How often the partner is found, for each kind of views, the best model first, of each size and features."""
    test, short = report["test"], _short(report)
    groups = _alike(report["models"])
    for views in report["views"]:
        found: dict[str, list[str]] = {}
        for row in sorted(_results(report, views=views, vector="full"), key=lambda r: -r["top1"]["value"]):
            of = next((how for how, names in groups.items() if row["model"] in names), "")
            found.setdefault(of, []).append(
                f"{short.get(row['model'], row['model'])} {percent(row['top1']['value'])}"
            )
        if found:
            several = len(found) > 1
            shares = [_list(some) + f" ({how})" * several for how, some in found.items()]
            chance = percent(test["chance"])
            yield (
                f"{views}: the other view is found among {test['gallery']:,} other images by {_list(shares, '; ')}"
                + (f"; chance {chance}." if several else f" (chance {chance}).")
            )


def _alike(models: Iterable[Row]) -> dict[str, list[str]]:
    """``pooled at 64 pixels`` -> the names of the models of that size and by those features."""
    found: dict[str, list[str]] = {}
    for model in models:
        found.setdefault(f"{model['features']} at {model['size']} pixels", []).append(model["name"])
    return found


def _compared(report: Report) -> Iterator[str]:
    """The best model against each other, at equal length where there is one, for each kind of views.

    Models are compared where size and features are alike: with more pixels, or by other features, more is found
    whoever learned more.
    """
    alike = _alike(named(report))
    for views in report["views"]:
        for models in alike.values():
            yield from _best(report, views, models)
    if len(alike) > 1 and len({model.get("of", model["name"]) for model in named(report)}) > 1:
        short = _short(report)
        groups = [
            f"{_list([short[name] for name in models])} ({how})"
            for how, models in _alike(report["models"]).items()
        ]
        yield (
            f"Not compared with each other, since size or features differ: {_list(groups, '; ')}. "
            "--size and --features make them alike."
        )
    archs = list(dict.fromkeys(m["arch"] for m in named(report)))
    if len(archs) > 1 and any(len(models) > 1 for models in alike.values()):
        yield (
            f"Architectures differ ({_list(archs)}): what one finds more than another says which to use, "
            "not which learned more."
        )


def _best(report: Report, views: str, models: Sequence[str]) -> Iterator[str]:
    """The best of models that are alike in size and features against each of the others."""
    rows = [r for r in report["differences"] if r["views"] == views]
    vector = _common(report, views, models)
    tops = {
        r["model"]: r["top1"]["value"]
        for r in _results(report, views=views, vector=vector)
        if r["model"] in models
    }
    if len(tops) < 2:
        return
    best, *others = sorted(tops, key=lambda m: -tops[m])
    against = [
        r for r in rows if r["vector"] == vector and best in r["models"] and set(r["models"]) <= set(tops)
    ]
    against.sort(key=lambda r: others.index(_other(r, best)))
    if against:
        where = "with full vectors" if vector == "full" else f"at {vector.removeprefix('pca-')} dimensions"
        yield from _against(report, f"{views}, {where}", best, against, tops)


def _against(
    report: Report, where: str, best: str, rows: Sequence[Row], tops: Mapping[str, float]
) -> Iterator[str]:
    """Whom ``best`` beats by how much, and from whom it cannot be told."""
    short, sure = _short(report), f"{100 * report['test']['confidence']:.4g}% interval"
    ahead, level = [], []
    for row in rows:
        # Intervals are of first minus second; here best minus other.
        sign = 1 if row["models"][0] == best else -1
        value = 100 * sign * row["top1"]["value"]
        low, high = sorted(100 * sign * row["top1"][k] for k in ("low", "high"))
        other = _other(row, best)
        what = f"{signed(value)} points, {sure} {low:.1f} to {high:.1f}"
        if low <= 0 <= high:
            level.append(f"{short.get(other, other)} ({what})")
        else:
            ahead.append(
                f"{short.get(other, other)}, {percent(tops[best])} against {percent(tops[other])} ({what})"
            )
    name = short.get(best, best)
    if ahead:
        yield f"{where}: {name} finds the partner more often than {_list(ahead, '; than ')}."
    if level:
        yield f"{where}: no difference can be told between {name} and {_list(level)}."


def _common(report: Report, views: str, models: Sequence[str]) -> str:
    """The shortest equal PCA that all models have, else ``full``."""
    held: dict[str, set[str]] = {}
    totals = {}
    for row in _halves(report, views=views):
        held.setdefault(row["vector"], set()).add(row["model"])
        totals[row["vector"]] = row["total"]
    shared = [v for v, who in held.items() if who >= set(models)]
    return min(shared, key=lambda v: totals[v], default="full")


def _other(row: Row, model: str) -> str:
    return next(m for m in row["models"] if m != model)


def _overlap(report: Report) -> Iterator[str]:
    """Whether accuracy rises with overlap, for the first kind of views that varies it."""
    views = next((v for v, facts in report["views"].items() if facts["mean_iou"] < 0.99), None)
    if views is None:
        return
    short = _short(report)
    by_verb: dict[str, list[str]] = {"rises": [], "falls": [], "does not clearly rise": []}
    own = [m["name"] for m in named(report)]
    for row in (r for r in _results(report, views=views, vector="full") if r["model"] in own):
        held = [b for b in row["bins"] if b["count"] >= HELD and b["top1"] is not None]
        if len(held) < 2:
            continue
        (a, low), (b, high) = ((b["top1"], b) for b in (held[0], held[-1]))
        verb = (
            "rises" if b["low"] > a["high"] else "falls" if b["high"] < a["low"] else "does not clearly rise"
        )
        name = short.get(row["model"], row["model"])
        by_verb[verb].append(
            f"{name} from {percent(a['value'])} {_bin(low)} to {percent(b['value'])} {_bin(high)}"
        )
    lines = [f"accuracy {verb} with overlap: {_list(who, '; ')}." for verb, who in by_verb.items() if who]
    none = f"{percent(report['views'][views]['no_overlap']['value'])} of the pairs do not overlap at all."
    lines = [*lines[:-1], f"{lines[-1]} {none}"] if lines else [none]
    yield from (f"{views}: {line}" for line in lines)


def _bin(b: Row) -> str:
    if b["high"] == 0:
        return "without overlap"
    if b["high"] == 1:
        return f"above an IoU of {b['low']:.2g}"
    if b["low"] == 0:
        return f"below an IoU of {b['high']:.2g}"
    return f"at an IoU of {b['low']:.2g} to {b['high']:.2g}"


def _contributions(report: Report) -> Iterator[str]:
    """What each part finds alone, and what the others add to the best."""
    short = _short(report)
    for model in [m for m in report["models"] if len(m["dims"]) > 1][:PARTED]:
        parts = list(model["dims"])
        lines = []
        for views in report["views"]:
            rows = [_row(report, views=views, model=model["name"], vector=v) for v in ("full", *parts)]
            if any(r is None for r in rows) or (rows[0] and _near_chance(report, rows[0])):
                continue
            full, *single = [r["top1"]["value"] for r in rows if r is not None]
            gain, best = signed(100 * (full - max(single))), parts[single.index(max(single))]
            shown = ", ".join(f"{p} {percent(v)}" for p, v in zip(parts, single, strict=True))
            lines.append(f"{views}: {shown}, together {percent(full)}, {gain} points over {best} alone")
        if lines:
            yield f"{short[model['name']]}, each part alone. {_list(lines, '; ')}."


def _compressed(report: Report) -> Iterator[str]:
    """What is lost by the shortest PCA, for the first kind of views."""
    views, short = next(iter(report["views"]), ""), _short(report)
    lines = []
    for model in report["models"]:
        full = _row(report, views=views, model=model["name"], vector="full")
        least = min(_halves(report, views=views, model=model["name"]), key=lambda r: r["total"], default=None)
        if full is not None and least is not None and not _near_chance(report, full):
            change = signed(100 * (least["top1"]["value"] - full["top1"]["value"]))
            lines.append(
                f"{short[model['name']]} {change} points from {full['total']} to {least['total']} dimensions"
            )
    if lines:
        yield f"{views}, PCA: {_list(lines, '; ')}."


# ---- reading the report --------------------------------------------------------------------------------------------


def _list(items: Sequence[str], between: str = ", ") -> str:
    """The first few, and how many more there are."""
    more = [f"and {len(items) - MOST} more"] if len(items) > MOST else []
    return between.join(items[:MOST]) + "".join(f", {m}" for m in more)


def short_of(report: Report, name: str) -> str:
    """What to call a model where there is little room."""
    return _short(report).get(name, shortened(name, LONGEST))


def named(report: Report) -> list[Row]:
    """The models that were named, without what they are held against."""
    return [m for m in report["models"] if m.get("role", "model") == "model"]


def _short(report: Report) -> dict[str, str]:
    """Model -> what to call it where there is little room."""
    names = [m["name"] for m in report["models"]]
    return dict(zip(names, short_names(names, LONGEST), strict=True))


def _model_part(row: Row) -> tuple[str, str]:
    return row["model"], row["part"]


def _results(report: Report, **wanted: str) -> Iterator[Row]:
    for row in report["results"]:
        if all(row[k] == v for k, v in wanted.items()):
            yield row


def _row(report: Report, **wanted: str) -> Row | None:
    return next(_results(report, **wanted), None)


def _halves(report: Report, **wanted: str) -> Iterator[Row]:
    """Rows after PCA with the dimensions shared equally."""
    return (
        r for r in _results(report, **wanted) if r["vector"].startswith("pca-") and "@" not in r["vector"]
    )
