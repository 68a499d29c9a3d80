"""Figures of finished cells to tables: values by seed with mean and interval, differences, verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hetcl.reproduce.cells import Plan
from hetcl.reproduce.experiments import Column, Experiment, methods

SCHEMA = 1
"""Version of reproduction.json; it rises when a name changes its meaning or goes away."""
KIND = "hetcl-reproduction"
# Two-sided 95% quantiles of Student's t distribution, by degrees of freedom from 1.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def estimate(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean and 95% interval over seeds (Student's t), None without values; one value has no interval."""
    if not values:
        return None
    mean, n = statistics.fmean(values), len(values)
    half = math.inf
    if n > 1:
        t = T95[min(n - 2, len(T95) - 1)]  # of more seeds a little too wide
        half = t * statistics.stdev(values) / math.sqrt(n)
    known = math.isfinite(half)
    return {
        "values": list(values), "mean": mean, "low": mean - half if known else None,
        "high": mean + half if known else None,
    }  # fmt: skip


def tables(plan: Plan, experiments: Sequence[Experiment], records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every experiment with the paper's figures, ours, and the verdict on each claim.

    Args:
        records: key of a cell -> what :mod:`hetcl.reproduce.runner` saved of it, of those that are done.
    """
    return [_table(plan, experiment, records) for experiment in experiments]


def _table(plan: Plan, experiment: Experiment, records: Mapping[str, Any]) -> dict[str, Any]:
    named, found = methods(), dict[int, dict[tuple[str, Column], float | None]]()
    for seed in range(plan.seeds):
        found[seed] = {}
        for method in experiment.rows:
            for column in experiment.columns:
                place = plan.places.get((experiment.name, method, column, seed))
                record = records.get(place.cell) if place else None
                if place and record:
                    value = record["figures"].get(place.method, {}).get(place.figure)
                    found[seed][method, column] = value
    rows = []
    for method, paper in experiment.rows.items():
        ours = [
            estimate([v for f in found.values() if (v := f.get((method, c))) is not None])
            for c in experiment.columns
        ]
        why = [
            "" if one else _why(plan, experiment, method, c, records)
            for one, c in zip(ours, experiment.columns, strict=True)
        ]
        rows.append(
            {"method": method, "label": named[method], "paper": list(paper), "ours": ours, "why_not": why}
        )
    return {
        "name": experiment.name, "title": experiment.title, "source": experiment.source, "note": experiment.note,
        "columns": [
            {"task": c.task, "figure": c.figure, "data": plan.data_of(c.task)} for c in experiment.columns
        ],
        "rows": rows,
        "claims": [_judged(experiment, claim, found) for claim in experiment.claims],
    }  # fmt: skip


def _why(plan: Plan, experiment: Experiment, method: str, column: Column, records: Mapping[str, Any]) -> str:
    """Why a row has no figure in a column."""
    if lacking := plan.missing.get((experiment.name, method, column)):
        return lacking
    places = [plan.places[experiment.name, method, column, seed] for seed in range(plan.seeds)]
    if any(place.cell in records for place in places):
        if column.figure.startswith("mask_"):
            return f"the detectors of the scale {plan.scale.name} have no masks"
        return "too few pairs, dimensions or images to give this figure"
    return "its cells are not done"


def _judged(experiment: Experiment, claim: Any, found: Mapping[int, Any]) -> dict[str, Any]:
    values = [v for figures in found.values() if (v := claim.value(figures)) is not None]
    ours = estimate(values)
    verdict = "not run" if ours is None else "not resolved"
    if ours is not None and ours["low"] is not None:
        verdict = claim.verdict(ours["low"], ours["high"])
    return {
        "text": claim.text, "condition": claim.condition, "paper": claim.value(experiment.paper), "ours": ours,
        "verdict": verdict,
    }  # fmt: skip
