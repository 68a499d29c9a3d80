"""The paper's tables and figures as data: rows, columns, the paper's numbers, and claims with their thresholds.

Each lies in ``paper/NAME.yaml``. What a row or a column is run as says a scale (``scales.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetcl.trees import parse_yaml

PAPER = Path(__file__).parent / "paper"
TABLES = ("table1", "table2", "table3", "table4", "table5", "table6", "fig2", "fig4")
BESIDES = ("fused", "flip", "overhead", "frozen")
"""What the paper says in its text, and ``frozen``, which is ours."""
EXPERIMENTS = TABLES + BESIDES


@dataclass(frozen=True)
class Column:
    """One figure of one task, such as ``box_ap`` of ``coco-fpn-1x``."""

    task: str
    figure: str


@dataclass(frozen=True)
class Claim:
    """A difference, and what it must be for the claim to hold. Figures are in percent, so differences in points."""

    text: str
    plus: Sequence[tuple[str, Column]]
    """Method and column of the terms that are added."""
    minus: Sequence[tuple[str, Column]]
    bound: str
    """``above``, ``below`` or ``within`` (plus or minus) the threshold."""
    threshold: float

    def value(self, figures: Mapping[tuple[str, Column], float | None]) -> float | None:
        """The difference; None where a figure is missing."""
        plus, minus = ([figures.get(term) for term in terms] for terms in (self.plus, self.minus))
        if None in plus or None in minus:
            return None
        return sum(v for v in plus if v is not None) - sum(v for v in minus if v is not None)

    def verdict(self, low: float, high: float) -> str:
        """``confirmed``, ``refuted`` or ``not resolved``: does the interval lie inside, outside, or neither?"""
        bound = self.threshold
        inside = {"above": low > bound, "below": high < bound, "within": -bound < low and high < bound}[
            self.bound
        ]
        outside = {"above": high < bound, "below": low > bound, "within": high < -bound or low > bound}[
            self.bound
        ]
        return "confirmed" if inside else "refuted" if outside else "not resolved"

    @property
    def condition(self) -> str:
        """``above 0``, ``within -0.5 and 0.5``."""
        t = f"{self.threshold:g}"
        return f"within -{t} and {t}" if self.bound == "within" else f"{self.bound} {t}"


@dataclass(frozen=True)
class Experiment:
    """One table or figure."""

    name: str
    title: str
    source: str
    columns: Sequence[Column]
    rows: Mapping[str, Sequence[float | None]]
    """Method -> the paper's numbers, one for each column; None where it has none."""
    claims: Sequence[Claim]
    note: str = ""

    @property
    def paper(self) -> dict[tuple[str, Column], float | None]:
        """The paper's numbers by method and column."""
        return {(m, c): v for m, row in self.rows.items() for c, v in zip(self.columns, row, strict=True)}


def methods() -> dict[str, str]:
    """Name of a way to pre-train -> what a table calls it."""
    return dict(parse_yaml((PAPER / "methods.yaml").read_text("utf-8")))


def experiment(name: str) -> Experiment:
    """A table or figure by name, of :data:`EXPERIMENTS`."""
    tree = parse_yaml((PAPER / f"{name}.yaml").read_text("utf-8"))
    columns = [Column(task, figure) for task, figures in tree["columns"].items() for figure in figures]
    rows = {method: row or [None] * len(columns) for method, row in tree["rows"].items()}
    claims = [_claim(claim) for claim in tree["claims"]]
    return Experiment(name, tree["title"], tree["source"], columns, rows, claims, tree.get("note", ""))


def _claim(tree: Mapping[str, Any]) -> Claim:
    """``first`` minus ``second`` at ``task`` and ``figure``; minus the same at ``less`` or ``less_figure``, if any."""
    at = Column(tree["task"], tree["figure"])
    plus, minus = [(tree["first"], at)], list[tuple[str, Column]]()
    if "second" in tree:
        minus.append((tree["second"], Column(at.task, tree.get("second_figure", at.figure))))
    if "less" in tree or "less_figure" in tree:
        other = Column(tree.get("less", at.task), tree.get("less_figure", at.figure))
        plus, minus = [*plus, (tree["second"], other)], [*minus, (tree["first"], other)]
    bound = next(b for b in ("above", "below", "within") if b in tree)
    return Claim(tree["text"], plus, minus, bound, float(tree[bound]))
