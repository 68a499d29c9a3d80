"""Figures hold the report's numbers, are the same bytes each time, and cope with what is missing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from hetcl.analysis import figures
from hetcl.analysis.sheets import Example, examples
from tests.analysis.made_up import HCL, MOCO, report

TWO = {"hcl": HCL, "moco": MOCO}


def lines(figure: Figure, axes: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> x and y of each series with intervals."""
    out = {}
    for i, c in enumerate(figure.axes[axes].containers):
        if isinstance(c, ErrorbarContainer):
            x, y = c.lines[0].get_data()
            out[c.get_label() or f"series {i}"] = (np.asarray(x).tolist(), np.asarray(y).tolist())
    return out


def rows(content: dict[str, Any], model: str, views: str, prefix: str) -> list[dict[str, Any]]:
    return [
        r
        for r in content["results"]
        if r["model"] == model and r["views"] == views and r["vector"].startswith(prefix)
    ]


def test_overlap_shows_the_bins() -> None:
    content = report(TWO)
    shown = lines(figures.overlap(content, "crop"))
    for model in TWO:
        (row,) = rows(content, model, "crop", "full")
        assert shown[model][1] == [b["top1"]["value"] for b in row["bins"] if b["top1"]]
        assert shown[model][0] == pytest.approx(
            [(b["low"] + b["high"]) / 2 for b in row["bins"] if b["top1"]]
        )


def test_dimensions_shows_pca_at_the_left_and_full_vectors_at_the_right() -> None:
    content = report(TWO)
    figure = figures.dimensions(content, "standard")
    for model in TWO:
        some = rows(content, model, "standard", "pca-")
        assert lines(figure)[model] == ([64, 96, 128], [r["top1"]["value"] for r in some])
    right = sorted(y for _, ys in lines(figure, 1).values() for y in ys)
    wanted = [
        r["top1"]["value"]
        for r in content["results"]
        if r["views"] == "standard" and "pca" not in r["vector"]
    ]
    assert right == sorted(wanted)


def test_splits_shows_every_total() -> None:
    content = report(TWO, splits=(0.0, 0.25, 0.5, 1.0))
    shown = lines(figures.splits(content, "crop"))
    assert list(shown) == ["hcl, 64", "hcl, 96", "hcl, 128"]
    assert shown["hcl, 64"][0] == [0, 0.25, 0.5, 1.0]


def test_saved_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        figures.save(figures.overlap(report(TWO), "crop"), tmp_path / name)
    for kind in ("svg", "png"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert Image.open(tmp_path / "a.png").size[0] >= 1000


@settings(max_examples=8, deadline=None)
@given(
    models=st.integers(1, 8),
    level=st.sampled_from([0.0, 0.001, 0.5, 1.0]),
    dims=st.sampled_from([(), (64,), (8, 512)]),
    bins=st.integers(1, 20),
)
def test_anything_can_be_drawn(models: int, level: float, dims: tuple[int, ...], bins: int) -> None:
    names = {
        f"a rather long name of a model, number {i} " * 2: HCL if i % 2 else {"c4x7": 12544}
        for i in range(models)
    }
    content = report(names, level=dict.fromkeys(names, level), dims=dims, bins=bins, splits=(0.5, 1.0))
    for draw in (figures.overlap, figures.dimensions, figures.splits):
        draw(content, "crop").savefig(io.BytesIO(), dpi=30)


def picture(h: int, w: int, shade: int) -> np.ndarray:
    return np.full((h, w, 3), shade, np.uint8)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_sheet_of_examples(count: int) -> None:
    made = [
        Example(
            bin=f"IoU 0.{i} to 0.{i + 1}",
            success=i % 2 == 0,
            original=picture(300, 200, 200),
            boxes=((10, 10, 90, 90), (0, 0, 200, 300)),
            query=picture(32, 32, 90),
            partner=picture(32, 32, 120),
            found=picture(224, 224, 10) if i % 2 else None,
            found_original=picture(20, 500, 60) if i % 2 else None,
            found_box=(0, 0, 20, 20) if i % 2 else None,
            iou=0.3,
            right=0.5,
            wrong=0.6,
        )
        for i in range(count)
    ]
    page = np.asarray(examples(made, "a model"))
    assert page.ndim == 3
    assert (page != 255).any()
