"""The curves of runs: one run's figures over its steps, and several runs' beside each other. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hetcl.reporting.charts import Chart, Line, curves
from hetcl.reporting.read import Result, mapping
from hetcl.reporting.stages import parts_in

TABLE_ROWS = 2_000
"""Rows of the folded tables of curves of a whole page, about."""
POINTS = 25_000
"""Drawn rows of all curves of a page, about."""


def budget(runs: Sequence[Result]) -> dict[str, int]:
    """How many rows a chart may draw and list, so that a page of many runs stays small."""
    charts = max(1, 8 * sum(r.kind in ("pretrain", "finetune") for r in runs))
    return {"points": max(80, min(400, POINTS // charts)), "table": max(12, min(60, TABLE_ROWS // charts))}


def placed(
    run: Result, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[tuple[float, str]]]:
    """Rows with ``x``, the step of the whole run, and where its stages begin (of several)."""
    ends: dict[str, float] = {}
    for row in [*run.rows, *run.timing]:
        ends[str(row.get("stage"))] = max(ends.get(str(row.get("stage")), 0), row["step"])
    starts, at = {}, 0.0
    for stage in sorted(ends):
        starts[stage], at = at, at + ends[stage]
    marks = [(start, stage) for stage, start in starts.items()] if len(starts) > 1 else []
    order = list(starts)
    out = [
        {**row, "x": starts[stage] + row["step"], "part": order.index(stage)}
        for row in rows
        if (stage := str(row.get("stage"))) in starts
    ]
    return sorted(out, key=lambda row: row["x"]), marks


def of_pretraining(run: Result, *, points: int, table: int) -> Iterator[Chart]:
    """The charts of a run of pre-training, those that have figures."""
    rows, marks = placed(run, run.rows)
    timing, _ = placed(run, run.timing)
    batch = run.settings.get("batch")
    if isinstance(batch, int) and batch > 0:
        rows = [row | ({"by_chance": 1 / batch} if "accuracy_batch" in row else {}) for row in rows]
    in_queue = [row for row in rows if "accuracy_queue" in row and row.get("chance")]
    for row in in_queue:  # log(1 + K)
        row["queue_chance"] = math.exp(-row["chance"])
    random = next((row["knn"] for row in rows if "knn" in row and not row["x"]), None)
    if random is not None:
        rows = [row | ({"knn_random": random} if "knn" in row else {}) for row in rows]
    share = {"unit": "%"}
    chance = Line("chance", "by_chance", dashed=True)
    queue_chance = Line("chance", "queue_chance", dashed=True)
    drawn: list[tuple[str, Sequence[Mapping[str, Any]], list[Line], dict[str, Any]]] = [
        ("Loss", rows, [Line("loss", "loss"), Line("chance, log(1 + negatives)", "chance", dashed=True)], {}),
        ("Right within the batch", rows, [*_parts(rows, "accuracy_batch"), chance], share),
        ("Right against the queue", rows, [*_parts(rows, "accuracy_queue"), queue_chance], share),
        ("Training accuracy, of labels", rows, [Line("accuracy", "accuracy")], share),
        ("Alignment: distance of two views (0: none)", rows, _parts(rows, "alignment"), {}),
        ("Uniformity (0: collapsed, -4: spread out)", rows, _parts(rows, "uniformity"), {}),
        (
            "kNN accuracy of the backbone",
            rows,
            [Line("kNN", "knn"), Line("random weights", "knn_random", dashed=True)],
            share,
        ),
        ("Learning rate", rows, [Line("lr", "lr")], {}),
        ("Images a second", timing, [Line("images a second", "images_per_second")], {}),
    ]
    for title, held, lines, more in drawn:
        chart = curves(title, held, lines, marks=marks, points=points, table=table, **more)
        if chart is not None:
            yield chart


def _parts(rows: Sequence[Mapping[str, Any]], figure: str) -> list[Line]:
    """The embedding, and each of its parts where it has several."""
    alone = [
        Line(f"{part} alone", f"{part}_{figure}")
        for part in parts_in(rows)
        if any(f"{part}_{figure}" in r for r in rows)
    ]
    together = {0: "the embedding", 2: "both parts"}.get(len(alone), "all parts")
    return [Line(together, figure), *alone]


def of_finetuning(run: Result, *, points: int, table: int) -> Iterator[Chart]:
    """Loss and figures of a fine-tuning."""
    rows, _ = placed(run, run.rows)
    known = {"stage", "epoch", "step", "lr", "x", "part"}
    keys = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in known]
    losses = [k for k in keys if k.startswith("loss")]
    figures = [k for k in keys if "_ap" in k or k in ("miou", "pixel_accuracy")][:8]
    for title, names in (
        ("Losses", losses),
        ("Figures on the test images, in percent", figures),
        ("Learning rate", ["lr"]),
    ):
        chart = curves(title, rows, [Line(name, name) for name in names], points=points, table=table)
        if chart is not None:
            yield chart


def side_by_side(runs: Sequence[Result], *, points: int, table: int) -> Iterator[Chart]:
    """Several runs of pre-training in one chart each; the loss as a share of chance, since queues differ."""
    placed_rows = []
    for i, run in enumerate(runs):
        rows, _ = placed(run, run.rows)
        for row in rows:
            found = {"x": row["x"], "part": row["part"]}
            for figure in ("accuracy_batch", "knn", "uniformity"):
                if figure in row:
                    found[f"{figure}{i}"] = row[figure]
            if row.get("chance") and "loss" in row:
                found[f"loss{i}"] = row["loss"] / row["chance"]
            placed_rows.append(found)
    placed_rows.sort(key=lambda row: row["x"])
    for title, figure, unit in (
        ("Right within the batch", "accuracy_batch", "%"),
        ("Loss as a share of chance", "loss", "%"),
        ("Uniformity (0: collapsed)", "uniformity", ""),
        ("kNN accuracy of the backbone", "knn", "%"),
    ):
        lines = [Line(run.name, f"{figure}{i}") for i, run in enumerate(runs)]
        chart = curves(title, placed_rows, lines, unit=unit, points=2 * points, table=table)
        if chart is not None:
            yield chart


def last_figures(run: Result) -> Mapping[str, Any]:
    """Figures of an evaluation or a fine-tuning, as it ended."""
    return mapping((run.summary or run.tree).get("figures"))
