"""The sentences name the right winner, and say so when nothing can be told."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hetcl.analysis.words import percent, sentences, table
from tests.analysis.made_up import HCL, MOCO, report


def said(**more: object) -> str:
    return "\n".join(sentences(report({"hcl": HCL, "moco": MOCO}, **more)))  # type: ignore[arg-type]


def test_the_winner_and_by_how_much() -> None:
    text = said(level={"hcl": 0.6, "moco": 0.5})
    assert "crop, at 64 dimensions: hcl finds the partner more often than moco, 59.7% against 49.9%" in text
    assert "hcl minus moco: +10.0 points, interval +9.0 to +11.0" in text
    assert "moco finds the partner more often than hcl" in said(level={"hcl": 0.3, "moco": 0.5})


def test_no_difference_is_called_none() -> None:
    text = said(level={"hcl": 0.5, "moco": 0.499})
    assert "no difference can be told between hcl and moco" in text
    assert "more often" not in text


def test_chance_ties_collapse_and_small_galleries() -> None:
    assert "near chance" in said(level={"hcl": 0.0003, "moco": 0.5})
    assert "exactly as similar as the partner" in said(ties=0.2)
    assert "among 9 others only" in said(gallery=9)
    assert "wide intervals" in said(gallery=400)
    content = report({"hcl": HCL})
    content["parts"][1]["uniformity"] = -0.001
    assert "the spatial part has collapsed" in "\n".join(sentences(content))
    assert "come twice in the data" in said(views=("none",))


def test_overlap_and_parts() -> None:
    text = said()
    assert "accuracy rises with overlap" in text
    assert "the two are worth +0.1 points over the semantic part" in text
    assert "of the pairs do not overlap at all" in text


@settings(max_examples=30, deadline=None)
@given(
    models=st.integers(1, 9),
    level=st.sampled_from([0.0, 0.4, 1.0]),
    dims=st.sampled_from([(), (8,)]),
    views=st.lists(st.sampled_from(["none", "crop", "moco-v1"]), min_size=1, max_size=3, unique=True),
)
def test_never_crashes_and_stays_short(
    models: int, level: float, dims: tuple[int, ...], views: list[str]
) -> None:
    names = {f"m{i}": HCL if i % 2 else MOCO for i in range(models)}
    content = report(names, level=dict.fromkeys(names, level), dims=dims, views=tuple(views))
    lines = sentences(content)
    assert lines
    assert all(len(line) < 400 for line in lines)
    page = io.StringIO()
    Console(file=page, width=120).print(table(content))
    assert "top-1" in page.getvalue()


def test_percent() -> None:
    assert [percent(x) for x in (0, 0.712, 1, 0.00002)] == ["0.0%", "71.2%", "100.0%", "2e-05"]
