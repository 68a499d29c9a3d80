"""What tests say of a run of pre-training: against random weights, and against what it began with. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hetcl.analysis.text import percent
from hetcl.analysis.where import report_text
from hetcl.analysis.where.report_text import points
from hetcl.paths import expand
from hetcl.reporting.read import Result, mapping

HEADLINES = {
    (question, measure, level): f"{words[0].upper()}{words[1:]}, {level.upper()}"
    for question, measure, level, _, words in report_text.HEADLINES
    if words
}
"""Question, measure and level of ``where.json`` -> what they say, as the probe itself says it."""


STAGE1 = Path("checkpoints", "stage1.ckpt")
"""What a run began its second stage with, where a test names it."""


def told(row: Mapping[str, Any]) -> str:
    """A difference, and which way it goes, if any."""
    word = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "no difference can be told"
    return f"{points(row)}: {word}"


def belongs(model: str, name: str, run: Result) -> bool:
    """Whether a MODEL of a test is this run: by its path, or by its name where the path led there from elsewhere."""
    path = Path(expand(model)).absolute()
    if path.name in ("last.ckpt", "stage2.ckpt"):
        path = path.parent
    return run.path in (path, path.parent) or (not path.exists() and name in (run.name, run.path.name))


def contrast_row(run: Result, others: Sequence[Result]) -> Mapping[str, Any] | None:
    """The verdict on this run in a contrastive test, where one was given."""
    for test in others:
        models = {m["name"]: m["model"] for m in test.tree["models"]} if test.kind == "contrast" else {}
        for row in test.tree["verdict"] if models else ():
            if belongs(str(models.get(row["model"], "")), str(row["model"]), run):
                return mapping(row)
    return None


def vectors(run: Result, others: Sequence[Result]) -> Iterator[str]:
    """The embedding with and without its other parts, in contrastive tests; boxes known and unknown apart."""
    for test in (t for t in others if t.kind == "contrast"):
        for model in test.tree["models"]:
            if model.get("role") != "model" or not belongs(str(model["model"]), str(model["name"]), run):
                continue
            rows = {
                (r["views"], r["vector"]): r["top1"]
                for r in test.tree["results"]
                if r["model"] == model["name"]
            }
            known = ", the crops' boxes known" if model.get("features") == "aligned" else ""
            together = "both parts" if len(model.get("dims", ())) in (0, 2) else "all parts together"
            for (views, vector), alone in rows.items():
                if vector == "semantic" and (both := rows.get((views, "full"))):
                    yield (
                        f"Among {test.tree['test']['gallery']:,} other images (views {views}{known}): {together} find "
                        f"{percent(both['value'])} ({percent(both['low'])} to {percent(both['high'])}), the semantic "
                        f"part alone {percent(alone['value'])} ({percent(alone['low'])} to {percent(alone['high'])})."
                    )


def differences(run: Result, others: Sequence[Result], role: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What was compared, and this run minus another model, in tests of places and, with ``before``, of contrast.

    Args:
        role: of the other model: ``before``, what this one began with, or ``random``.
    """
    for test in (t for t in others if t.kind in ("contrast", "where")):
        models = {m["name"]: m for m in test.tree["models"]}
        for row in test.tree["differences"]:
            names = row["models"] if test.kind == "contrast" else [row["first"], row["second"]]
            first, second = (models[n] for n in names)
            ours = first["role"] != role and belongs(str(first["model"]), str(first.get("of", names[0])), run)
            named = role == "before" and Path(expand(str(second["model"]))).absolute() == run.path / STAGE1
            if not ours or (second["role"] != role and not named):
                continue
            if test.kind == "where" and (row["question"], row["measure"], row["level"]) in HEADLINES:
                yield (
                    f"{HEADLINES[row['question'], row['measure'], row['level']]}, {names[0]} minus {names[1]}",
                    row,
                )
            elif test.kind == "contrast" and role == "before" and row["vector"] == "full":
                yield f"Other view found, {names[0]} minus {names[1]}, views {row['views']}", row["top1"]
