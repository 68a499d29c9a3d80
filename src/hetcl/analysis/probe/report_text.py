"""What a probe found, as a short table and in sentences. Reads ``probe.json``'s content; free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from hetcl.analysis.text import percent
from hetcl.quantities import count


def table(report: Mapping[str, Any]) -> Table:
    """A row for each classifier."""
    out = Table(box=None, pad_edge=False, header_style="bold")
    out.add_column("classifier", no_wrap=True)
    for title in ("top-1", "interval", "top-5", "interval"):
        out.add_column(title, justify="right", no_wrap=True)
    rows: list[tuple[str, Mapping[str, Any]]] = [(f"kNN, k = {k}", row) for k, row in report["knn"].items()]
    if (how := report["linear"]) is not None:
        lbfgs = how["kind"] == "lbfgs"
        shown = f"L-BFGS, penalty {how['penalty']:g}" if lbfgs else f"SGD, {count(how['epochs'], 'epoch')}"
        rows.append((f"linear, {shown}", how))
    for name, row in rows:
        cells = [cell for top in ("top1", "top5") if top in row for cell in _cells(row[top])]
        out.add_row(name, *cells)
    return out


def points(e: Mapping[str, float]) -> str:
    """``+2.2 points, interval +1.9 to +2.5``."""
    return f"{100 * e['value']:+.1f} points, interval {100 * e['low']:+.1f} to {100 * e['high']:+.1f}"


def _cells(e: Mapping[str, float]) -> tuple[str, str]:
    return percent(e["value"]), f"{100 * e['low']:.1f} to {100 * e['high']:.1f}"


def sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """What was found, the most important first."""
    data, who = report["data"], report["model"]["name"]
    found = [(f"kNN (k = {k})", row["top1"]) for k, row in report["knn"].items()]
    if report["linear"] is not None:
        found.append(("a linear classifier", report["linear"]["top1"]))
    shown = ", ".join(f"{name} {percent(e['value'])}" for name, e in found)
    guessing, commonest = percent(data["chance"]), percent(data["commonest"])
    yield (
        f"{who}: of {data['test_images']:,} unseen images in {data['classes']:,} classes the right one is found by "
        f"{shown}; by guessing {guessing}, by always naming the commonest class {commonest}."
    )
    guess = max(data["chance"], data["commonest"])
    if all(e["low"] <= guess for _, e in found):
        yield "No better than guessing: these features know nothing of the labels that so few images can tell."
    elif not report["model"]["model"].endswith(":random"):
        yield "Random weights find more than guessing, too, so this does not say what was learned; hetcl contrast does."
    if report["difference"] is not None:
        yield _compared(report["difference"])
    yield from _left(data)


def _compared(difference: Mapping[str, Any]) -> str:
    e, k = difference["top1"], difference["k"]
    shown = f"linear minus kNN (k = {k}): {points(e)}"
    if e["low"] > 0:
        return f"The features know more of the classes than their nearest neighbours show ({shown})."
    if e["high"] < 0:
        return f"Neighbours do better than a linear classifier, which may lack images or epochs ({shown})."
    return f"No difference can be told between the linear classifier and the neighbours ({shown})."


def _left(data: Mapping[str, Any]) -> Iterator[str]:
    """What was left out, and what is thin."""
    if data["unlabelled"]:
        yield f"{count(data['unlabelled'], 'image')} without a label left out."
    if data["left_out"]:
        yield f"{count(data['left_out'], 'image')} could not be used; bad_images.csv lists them."
    if data["missing"]["train"]:
        yield f"Classes that are tested but have no training image, so never right: {data['missing']['train']:,}."
    if data["missing"]["test"]:
        yield f"Classes without a test image: {data['missing']['test']:,}."
    if data["alone"]:
        yield f"Classes with a single training image: {data['alone']:,}."
    if data["test_images"] < 1000:
        yield f"{data['test_images']:,} test images make wide intervals; 10,000 give about one point either way."
