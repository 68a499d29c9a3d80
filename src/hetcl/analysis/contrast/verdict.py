"""Did it work? One line for each model, from ``contrast.json``'s content. Free of torch.

A model has learned where it tells images apart better than its own architecture with random weights. It is judged under
the kind of views where random weights do worst: where only the place of the crop varies, colour alone gives most images
away, and training that changes colours unlearns just that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hetcl.analysis.contrast.report_text import (
    COLLAPSED,
    Report,
    Row,
    same_views,
    short_of,
)
from hetcl.analysis.text import percent, shortened, signed

Status = Literal["learned", "not learned", "collapsed", "too few", "unclear", "partly", "random"]
LEAST = 0.02
"""A gain below this is none: five seeds of random weights lay within 0.018 of each other (docs/contrast.md)."""
EASY = 0.9
"""Top-1 of random weights from which a test is too easy to tell anything by."""
FIGURES = ("judged", "yardstick", "views", "top1", "yardstick_top1", "difference")
LIKE = "the same architecture with random weights"
LINE = 1.5
"""Effective rank below which vectors lie on a line."""
FEWEST = 50
"""Queries below which nothing is called learned, whatever the interval: it is made for more."""
SPREAD = 100
"""Queries from which an effective rank means something."""


def verdicts(report: Report) -> list[dict[str, Any]]:
    """A row for each model that was named: its status, the figures that it rests on, and the line that says so."""
    return [_verdict(report, held) for held in report["yardsticks"]]


def _verdict(report: Report, held: Row) -> dict[str, Any]:
    row = _hardest(report, held["judged"], held["random"])
    status, needed = ("random", None) if held["random"] is None else _status(report, held, row)
    if status in ("not learned", "too few", "unclear") and not held["untrained"]:
        embedding = _hardest(report, held["embedding"], held["random_embedding"])
        if embedding and _learned(report, embedding):
            status, needed = "partly", None
    out = {"model": held["model"], "status": status, **(row or dict.fromkeys(FIGURES)), "needed": needed}
    return out | {"line": _line(report, held, out)}


def _hardest(report: Report, judged: str | None, other: str | None) -> dict[str, Any] | None:
    """Judged against random weights under the kind of views where those find least."""
    rows = _differences(report, judged, other)
    return min(rows, key=lambda r: r["yardstick_top1"]["value"], default=None)


def _differences(report: Report, judged: str | None, other: str | None) -> Iterator[dict[str, Any]]:
    """Judged minus other under each kind of views that varies anything, by the keys of :data:`FIGURES`."""
    tops = {(r["views"], r["model"]): r["top1"] for r in report["results"] if r["vector"] == "full"}
    for row in report["differences"]:
        if row["vector"] != "full" or {judged, other} != set(row["models"]):
            continue
        if same_views(report, row["views"]):
            continue
        d, turned = row["top1"], row["models"][0] != judged
        if turned:
            d = {"value": -d["value"], "low": -d["high"], "high": -d["low"]}
        top1, theirs = (tops[row["views"], m] for m in (judged, other))
        yield dict(zip(FIGURES, (judged, other, row["views"], top1, theirs, d), strict=True))


def least(report: Report, yardstick: float) -> float:
    """The smallest gain that counts: 2 points, or half of what random weights find where that is less."""
    return min(LEAST, max(yardstick / 2, 3 * report["test"]["chance"]))


def _learned(report: Report, row: Row) -> bool:
    d = row["difference"]
    enough = report["test"]["queries"] >= FEWEST
    return bool(enough and d["low"] > 0 and d["value"] >= least(report, row["yardstick_top1"]["value"]))


def _status(report: Report, held: Row, row: Row | None) -> tuple[Status, int | None]:
    """What became of a model, and how many images would tell where these are too few."""
    if _flat(report, held, learned=row is not None and _learned(report, row)) is not None:
        return "collapsed", None
    if held["untrained"]:
        return "not learned", None
    if row is None:
        return "unclear", None
    if _learned(report, row):
        return "learned", None
    d, random = row["difference"], row["yardstick_top1"]["value"]
    gain = least(report, random)
    if random >= EASY:
        return "unclear", None
    queries, half = report["test"]["queries"], (d["high"] - d["low"]) / 2
    if queries < FEWEST or (d["high"] >= 0 and d["high"] > gain):
        needed = max(2.0 * FEWEST, queries * max(2.0, (half / gain) ** 2))
        digit = 10 ** math.floor(math.log10(needed))
        return "too few", math.ceil(needed / digit) * digit
    return ("not learned" if _colors(report, row["views"]) else "unclear"), None


def _flat(report: Report, held: Row, learned: bool) -> Row | None:
    """The part that shows that a model has collapsed, in its embedding or in other features that tell nothing apart.

    Random weights may be flat themselves (layer norms leave a common vector): collapsed is what is twice as flat.
    """
    spread = report["test"]["queries"] >= SPREAD
    yardsticks = {_features(report, n): n for n in (held["random"], held["random_embedding"]) if n}
    for name in _entries(report, held["model"]):
        features = _features(report, name)
        rows, random = (
            [p for p in report["parts"] if p["model"] == one] for one in (name, yardsticks.get(features))
        )
        uniformity = min((p["uniformity"] for p in random), default=-4.0)
        rank = max((p["effective_rank"] for p in random), default=math.inf)
        flat = [
            p["uniformity"] > max(COLLAPSED, uniformity / 2)
            or (spread and p["effective_rank"] < min(LINE, rank / 2))
            for p in rows
        ]
        if rows and all(flat) and (features in ("aligned", "embedding") or not learned):
            return rows[0]
    return None


def _entries(report: Report, model: str) -> list[str]:
    """The names under which the features of a model stand: what it was asked for, and what it is judged by."""
    return [m["name"] for m in report["models"] if m["of"] == model and m["role"] in ("model", "backbone")]


def _features(report: Report, name: str) -> str:
    return next(str(m["features"]) for m in report["models"] if m["name"] == name)


def _colors(report: Report, views: str) -> bool:
    """Whether the views change colours."""
    policy = report["views"][views]["policy"]
    return bool(policy["jitter_p"] or policy["grayscale_p"])


# ---- in words ------------------------------------------------------------------------------------------------------


def _line(report: Report, held: Row, verdict: Mapping[str, Any]) -> str:
    """The verdict in words: what, by how much, and what it does not mean."""
    who, status, d = short_of(report, held["model"]), verdict["status"], verdict["difference"]
    if status == "random":
        return f"Random: {who} has random weights, so there is nothing to judge; others are held against it."
    if status == "collapsed":
        flat = _flat(report, held, learned=False) or {}
        same, by = (
            ("nearly the same vector", f"uniformity {flat['uniformity']:.3f}, where 0 is one vector for all")
            if flat["uniformity"] > COLLAPSED
            else (
                "a vector on one and the same line",
                f"effective rank {flat['effective_rank']:.1f}, where 1 is a line",
            )
        )
        return (
            f"Collapsed: {who} gives {same} for every image ({by}). "
            "Its other figures mean little: train anew with a lower lr, or a higher temperature or key_momentum."
        )
    if held["untrained"]:
        return f"Not learned: every weight of {who}'s backbone is the one that training starts from."
    if d is None:
        return f"Cannot tell whether {who} has learned: the views vary nothing. Test with --views standard."
    figures = _figures(report, verdict)
    if status == "learned":
        return (
            f"Learned: {who} tells images apart better than {LIKE}: {figures}. "
            "That does not say how well it transfers; hetcl probe and hetcl finetune do."
        )
    if status == "partly":
        embedding = _hardest(report, held["embedding"], held["random_embedding"])
        assert embedding is not None
        return (
            f"Learned in part: {who}'s embedding tells images apart better than {LIKE}: {_figures(report, embedding)}. "
            f"The backbone, which is what goes on, does not: {figures}."
        )
    if status == "too few":
        return (
            f"Too few images to tell whether {who} has learned: against {LIKE} {figures}. "
            f"About {verdict['needed']:,} images would tell."
        )
    if status == "not learned":
        than = "worse" if d["high"] < 0 else "no better"
        return (
            f"Not learned: {who} tells images apart {than} than {LIKE}: {figures}. "
            "That does not say that it never will: look at lr and at accuracy within the batch over time."
        )
    if verdict["yardstick_top1"]["value"] >= EASY:
        why, mend = "the test is too easy", "Give more images, or views that change more (--views hcl)"
    else:
        why = "these views keep the colours, by which random weights find much and which training unlearns"
        mend = "Test with --views standard"
    return f"Cannot tell whether {who} has learned, since {why}: against {LIKE} {figures}. {mend}."


def _figures(report: Report, verdict: Mapping[str, Any]) -> str:
    """``+10.1 points (95% interval 8.3 to 11.9; 18.4% against 8.3%; pooled features, 64 pixels, views standard)``."""
    d, model = verdict["difference"], next(m for m in report["models"] if m["name"] == verdict["judged"])
    return (
        f"{signed(100 * d['value'])} points ({100 * report['test']['confidence']:.4g}% interval "
        f"{100 * d['low']:.1f} to {100 * d['high']:.1f}; {percent(verdict['top1']['value'])} against "
        f"{percent(verdict['yardstick_top1']['value'])}; {model['features']} features, {model['size']} pixels, "
        f"views {shortened(verdict['views'], 30)})"
    )


def remarks(report: Report) -> Iterator[str]:
    """What else stands beside the verdicts: other kinds of views, and what a model began with."""
    for held, verdict in zip(report["yardsticks"], report["verdict"], strict=True):
        who = short_of(report, held["model"])
        for row in _differences(report, held["judged"], held["random"]):
            if row["views"] != verdict["views"]:
                behind = row["difference"]["high"] < 0 and not _colors(report, row["views"])
                why = ", which go by colours that training unlearns" if behind else ""
                yield f"{row['views']}: {who} {_against(row, f'random weights{why}')}."
        for row in _differences(report, held["judged"], held["before"]):
            yield f"{row['views']}: {who} {_against(row, short_of(report, held['before']))}."


def boxes_known(report: Report) -> Iterator[str]:
    """What it is worth to know where the crops were cut, for models that were tested with and without."""
    tops = {(r["views"], r["model"]): r["top1"]["value"] for r in report["results"] if r["vector"] == "full"}
    for model in report["models"]:
        if model["features"] != "aligned" or model["role"] != "model":
            continue
        plain = [m for m in report["models"] if m["of"] == model["of"] and m["features"] == "embedding"]
        for views in report["views"] if plain else ():
            known, unknown = (percent(tops[views, m["name"]]) for m in (model, plain[0]))
            yield (
                f"{views}: {short_of(report, model['of'])} finds the partner {known} of the time with the crops' boxes "
                f"known (aligned), {unknown} with boxes unknown (embedding)."
            )


def _against(row: Row, other: str) -> str:
    """``finds the partner more often than ...``."""
    d = row["difference"]
    verb = "finds the partner more often than" if d["low"] > 0 else "cannot be told from"
    verb = "finds the partner less often than" if d["high"] < 0 else verb
    return (
        f"{verb} {other} ({signed(100 * d['value'])} points, {100 * d['low']:.1f} to {100 * d['high']:.1f}; "
        f"{percent(row['top1']['value'])} against {percent(row['yardstick_top1']['value'])})"
    )
