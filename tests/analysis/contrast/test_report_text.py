"""The sentences name the right winner, and say so when nothing can be told."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hetcl.analysis.contrast.report_text import sentences, table
from hetcl.analysis.text import percent, short_names, shortened
from tests.analysis.contrast.report_content import HCL, MOCO, e, report

TWO = {"hcl": HCL, "moco": MOCO}


def said(models: dict[str, dict[str, int]] | None = None, **more: Any) -> str:
    return "\n".join(sentences(report(models or TWO, **more)))


def printed(content: dict[str, Any]) -> str:
    page = io.StringIO()
    Console(file=page, width=140).print(table(content))
    return page.getvalue()


# ---- who finds more ------------------------------------------------------------------------------------------------


def test_the_winner_and_by_how_much() -> None:
    text = said(level={"hcl": 0.6, "moco": 0.5})
    assert "crop, at 64 dimensions: hcl finds the partner more often than moco, 59.7% against 49.9%" in text
    assert "(+10.0 points, 95% interval 9.0 to 11.0)" in text


def test_the_winner_may_be_the_second_model_named() -> None:
    text = said(level={"hcl": 0.3, "moco": 0.5})
    assert "moco finds the partner more often than hcl, 49.9% against 29.7%" in text
    assert "(+20.0 points, 95% interval 19.0 to 21.0)" in text
    assert "hcl finds" not in text


def test_no_difference_is_called_none() -> None:
    text = said(level={"hcl": 0.5, "moco": 0.499})
    assert "no difference can be told between" in text
    assert "more often" not in text


@pytest.mark.parametrize(("low", "high", "told"), [(0.0, 0.2, False), (-0.1, 0.0, False), (1e-6, 0.2, True)])
def test_an_interval_that_touches_zero_tells_nothing(low: float, high: float, told: bool) -> None:
    content = report(TWO)
    for row in content["differences"]:
        row["top1"] = {"value": (low + high) / 2, "low": low, "high": high}
    text = "\n".join(sentences(content))
    assert ("more often" in text) == told
    assert ("no difference" in text) != told


def test_without_a_shared_pca_full_vectors_are_compared() -> None:
    assert "crop, with full vectors: hcl finds the partner more often than moco" in said(dims=())
    content = report(TWO)
    content["results"] = [
        r for r in content["results"] if r["model"] == "hcl" or not r["vector"].startswith("pca-")
    ]
    assert "crop, with full vectors: hcl finds" in "\n".join(sentences(content))


def test_the_shortest_pca_that_all_have_counts_whatever_the_order() -> None:
    assert "at 8 dimensions: hcl" in said(dims=(512, 64, 8))
    assert "at 64 dimensions" not in said(dims=(512, 64, 8))


def test_the_best_of_several_stands_against_each_other_model() -> None:
    models = {"a": MOCO, "b": MOCO, "c": MOCO}
    text = said(models, level={"a": 0.3, "b": 0.6, "c": 0.595})
    assert "by b 60.0%, c 59.5%, a 30.0%" in text
    assert "b finds the partner more often than a, 59.9% against 29.9% (+30.0 points" in text
    assert "no difference can be told between b and c (+0.5 points, 95% interval -0.5 to 1.5)" in text


# ---- what is wrong -------------------------------------------------------------------------------------------------


def test_near_chance() -> None:
    text = said(level={"hcl": 0.0003, "moco": 0.5})
    assert text.startswith(
        "Found no more often than near chance (0.02%): hcl (crop) 0.03%, hcl (standard) 0.03%."
    )
    assert "near chance" not in said()
    assert "hcl, each part alone" not in text


def test_a_tiny_gallery_is_not_called_near_chance_when_all_is_found() -> None:
    text = said(gallery=1, level={"hcl": 1.0, "moco": 1.0})
    assert "among 1 other only: by chance 50.0% are found" in text
    assert "near chance" not in text
    assert "near chance" in said(gallery=1, level={"hcl": 0.505, "moco": 1.0})


def test_ties_collapse_and_small_galleries() -> None:
    text = said(ties=0.2)
    assert "hcl (crop) 20.0%, moco (crop) 20.0%" in text
    assert "exactly as similar as the partner" in text
    assert "exactly as similar" not in said(ties=0.001)
    assert "among 9 others only" in said(gallery=9)
    assert "wide intervals" in said(gallery=400)
    content = report({"hcl": HCL})
    for part in content["parts"]:
        if part["part"] == "spatial":
            part["uniformity"] = -0.001
    text = "\n".join(sentences(content))
    assert text.count("collapsed") == 1
    assert "hcl: the spatial part has collapsed" in text
    assert "(views crop, standard;" in text


def test_the_same_view_twice_below_all_means_duplicates() -> None:
    text = said(views=("none",), level={"hcl": 0.9, "moco": 1.0})
    assert "missed are 10.0% by hcl (none)" in text
    assert "come twice in the data" in text
    assert "come twice" not in said(views=("none",), level={"hcl": 1.0, "moco": 1.0})
    assert "overlap" not in said(views=("none",))


# ---- overlap, parts, PCA -------------------------------------------------------------------------------------------


def edges(low: dict[str, float], high: dict[str, float], none: dict[str, Any] | None = None) -> str:
    content = report({"hcl": HCL}, views=("crop",))
    for row in content["results"]:
        row["bins"][1]["top1"], row["bins"][-1]["top1"] = low, high
        if none:
            row["bins"][0] |= none
    return "\n".join(sentences(content))


def test_whether_accuracy_rises_with_overlap() -> None:
    text = edges(e(0.2), e(0.9))
    assert (
        "accuracy rises with overlap: hcl from 20.0% below an IoU of 0.2 to 90.0% above an IoU of 0.8."
        in text
    )
    assert "0.1% of the pairs do not overlap at all" in text
    assert "accuracy falls with overlap" in edges(e(0.9), e(0.2))
    assert "accuracy does not clearly rise with overlap" in edges(e(0.5), e(0.51))


def test_pairs_without_overlap_count_when_there_are_enough() -> None:
    some = {"count": 20, "top1": e(0.1)}
    assert "from 10.0% without overlap to" in edges(e(0.2), e(0.9), some)
    assert "without overlap" not in edges(e(0.2), e(0.9), some | {"count": 19})


def test_what_each_part_finds() -> None:
    content = report(TWO)
    for row in content["results"]:
        if row["model"] == "hcl" and row["vector"] in ("semantic", "spatial", "full"):
            top = {"semantic": 0.2, "spatial": 0.3, "full": 0.45}[row["vector"]]
            row["top1"] = e(top if row["views"] == "crop" else top / 2)
    text = "\n".join(sentences(content))
    assert (
        "hcl, each part alone. crop: semantic 20.0%, spatial 30.0%, together 45.0%, +15.0 points over spatial"
        in text
    )
    assert "standard: semantic 10.0%, spatial 15.0%, together 22.5%, +7.5 points over spatial" in text
    assert "moco, each part" not in text


def test_what_pca_loses() -> None:
    content = report(TWO)
    for row in content["results"]:
        if row["model"] == "hcl" and row["vector"] == "pca-64":
            row["top1"] = e(0.5)
    assert "crop, PCA: hcl -10.0 points from 272 to 64 dimensions; moco -0.1 points from 128" in "\n".join(
        sentences(content)
    )


# ---- length, names, the table --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("models", "most"), [(1, 6), (2, 8), (8, 10)])
def test_short(models: int, most: int) -> None:
    names = {f"m{i}": HCL for i in range(models)} if models != 2 else TWO
    level = {name: 0.9 - 0.1 * i for i, name in enumerate(names)}
    assert len(sentences(report(names, level=level))) <= most


def test_the_table_holds_the_numbers_and_no_splits() -> None:
    content = report(
        {"run [bold]x": HCL, "moco": MOCO}, level={"run [bold]x": 0.612, "moco": 0.5}, splits=(0.25, 0.5)
    )
    text = printed(content)
    assert "run [bold]x" in text
    assert "@" not in text
    line = next(t for t in text.splitlines() if "128 + 144" in t)
    assert line.split()[-6:] == ["61.2%", "60.2", "to", "62.2", "71.2%", "0.612"]


@settings(max_examples=30, deadline=None)
@given(
    models=st.integers(1, 9),
    level=st.sampled_from([0.0, 0.4, 1.0]),
    dims=st.sampled_from([(), (8,), (64, 8)]),
    views=st.lists(st.sampled_from(["none", "crop", "moco-v1"]), min_size=1, max_size=3, unique=True),
    kept=st.sampled_from([0.0, 0.5, 1.0]),
    random=st.randoms(use_true_random=False),
)
def test_never_crashes_and_stays_short(
    models: int, level: float, dims: tuple[int, ...], views: list[str], kept: float, random: Any
) -> None:
    names = {f"{'long/' * 20}m{i}.ckpt": HCL if i % 2 else MOCO for i in range(models)}
    content = report(names, level=dict.fromkeys(names, level), dims=dims, views=tuple(views))
    for key in ("results", "parts", "differences"):
        content[key] = [row for row in content[key] if random.random() <= kept]
    for row in content["results"]:
        for b in row["bins"]:
            if random.random() > kept:
                b |= {"count": 0, "top1": None}
    before = copy.deepcopy(content)
    lines = sentences(content)
    assert lines or not any(row["vector"] == "full" for row in content["results"])
    assert all(len(line) < 700 for line in lines)
    assert "top-1" in printed(content)
    assert content == before


def test_percent() -> None:
    shares = (0, 0.712, 1, 0.00002, 1 / 65537, 1 / 1_280_000, 0.00049)
    assert [percent(x) for x in shares] == [
        "0.0%",
        "71.2%",
        "100.0%",
        "0.002%",
        "0.0015%",
        "0.000078%",
        "0.049%",
    ]


def test_names_are_left_alone_while_they_fit() -> None:
    assert short_names(["a", "b" * 10], 10) == ["a", "b" * 10]
    assert shortened("abcdefghij", 5) == "ab…ij"


@settings(deadline=None)
@given(
    names=st.lists(st.text("ab/", min_size=1, max_size=30), min_size=1, max_size=9, unique=True),
    head=st.text("xy/", max_size=60),
    tail=st.text("xy.", max_size=60),
    longest=st.integers(12, 60),
)
def test_short_names_fit_and_tell_models_apart(names: list[str], head: str, tail: str, longest: int) -> None:
    short = short_names([f"{head}{n}{tail}" for n in names], longest)
    assert len(set(short)) == len(names)
    assert all(len(n) <= longest for n in short)
