"""Figures hold the report's numbers, are the same bytes each time, and cope with what is missing."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from hetcl.analysis.contrast import figures, plotting, sheets
from hetcl.analysis.contrast.sheets import Example, examples
from tests.analysis.contrast.report_content import HCL, MOCO, report

TWO = {"hcl": HCL, "moco": MOCO}
Estimate = dict[str, float]


def series(figure: Figure, axes: int = 0) -> dict[str, tuple[list[float], list[Estimate]]]:
    """Label -> x, and values with intervals, of each series, read off the figure."""
    out = {}
    for c in figure.axes[axes].containers:
        if isinstance(c, ErrorbarContainer):
            x, y = c.lines[0].get_data()
            (bars,) = c.lines[2]
            ends = [np.asarray(s)[:, 1].tolist() for s in bars.get_segments()]
            estimates = [
                {"value": v, "low": a, "high": b}
                for v, (a, b) in zip(np.asarray(y).tolist(), ends, strict=True)
            ]
            out[c.get_label()] = (np.asarray(x).tolist(), estimates)
    return out


def same(drawn: list[Estimate], held: list[Estimate]) -> bool:
    return len(drawn) == len(held) and all(d == pytest.approx(h) for d, h in zip(drawn, held, strict=True))


def rows(content: dict[str, Any], model: str, views: str, prefix: str) -> list[dict[str, Any]]:
    return [
        r
        for r in content["results"]
        if r["model"] == model and r["views"] == views and r["vector"].startswith(prefix)
    ]


def with_no_overlap(content: dict[str, Any], count: int = 60) -> dict[str, Any]:
    """The same with pairs in the bin of no overlap."""
    for i, row in enumerate(content["results"]):
        row["bins"][0] |= {"count": count, "top1": {"value": 0.05 + i / 1000, "low": 0.0, "high": 0.2}}
    return content


# ---- what is drawn is what was measured ----------------------------------------------------------------------------


def test_overlap_shows_the_bins_with_their_intervals_and_no_overlap_apart() -> None:
    content = with_no_overlap(report(TWO))
    shown = series(figures.overlap(content, "crop"))
    for model in TWO:
        (row,) = rows(content, model, "crop", "full")
        none, *others = row["bins"]
        x, drawn = shown[model]
        assert same(drawn, [b["top1"] for b in others])
        assert all(b["low"] < at < b["high"] for at, b in zip(x, others, strict=True))
        (at,), drawn = shown[f"{model}, no overlap"]
        assert same(drawn, [none["top1"]])
        assert at < 0


def test_overlap_shows_the_parts_alone_while_they_can_be_told_apart() -> None:
    content = with_no_overlap(report(TWO))
    lines = {line.get_label(): line for line in figures.overlap(content, "crop").axes[0].lines}
    for part in HCL:
        (row,) = rows(content, "hcl", "crop", part)
        none, *others = [b["top1"]["value"] for b in row["bins"]]
        assert np.asarray(lines[f"hcl, {part}"].get_ydata()).tolist() == others
        assert np.asarray(lines[f"hcl, {part}, no overlap"].get_ydata()).tolist() == [none]
    many = figures.overlap(report({f"m{i}": HCL for i in range(4)}), "crop")
    assert not [line for line in many.axes[0].lines if "semantic" in str(line.get_label())]


def test_overlap_shows_how_many_pairs_each_bin_holds() -> None:
    content = with_no_overlap(report(TWO, bins=4))
    for row in content["results"]:
        for b, count in zip(row["bins"], (7, 0, 1234, 12_600, 1_300_000), strict=True):
            b["count"] = count
    axes = figures.overlap(content, "crop").axes[1]
    (bars,) = [c for c in axes.containers if isinstance(c, BarContainer)]
    assert [bar.get_height() for bar in bars] == [7, 0, 1234, 12_600, 1_300_000]
    assert [t.get_text() for t in axes.texts] == ["7", "0", "1.2k", "13k", "1.3M"]


def test_dimensions_shows_pca_at_the_left_and_full_vectors_at_the_right() -> None:
    content = report(TWO, splits=(0.25, 0.5))
    figure = figures.dimensions(content, "standard")
    left, right = series(figure), series(figure, 1)
    for model, dims in TWO.items():
        some = [r for r in rows(content, model, "standard", "pca-") if "@" not in r["vector"]]
        x, drawn = left[model]
        assert same(drawn, [r["top1"] for r in some])
        assert x == pytest.approx([64, 96, 128], rel=0.03)
        for vector in ("full", *(dims if len(dims) > 1 else ())):
            (row,) = rows(content, model, "standard", vector)
            assert same(right.pop(f"{model}, {vector}")[1], [row["top1"]])
    assert not right
    labels = [t.get_text() for t in figure.axes[1].get_xticklabels()]
    assert labels == ["full\n128 / 272", "semantic\n128", "spatial\n144"]


def test_splits_shows_every_total() -> None:
    content = report(TWO, splits=(0.0, 0.25, 0.5, 1.0))
    shown = series(figures.splits(content, "crop"))
    assert list(shown) == ["hcl, 64", "hcl, 96", "hcl, 128"]
    for total in (64, 96, 128):
        some = list(rows(content, "hcl", "crop", f"pca-{total}"))
        some.sort(key=lambda r: r["dims"].get("spatial", 0))
        x, drawn = shown[f"hcl, {total}"]
        assert x == pytest.approx([0, 0.25, 0.5, 1], abs=0.03)
        assert same(drawn, [r["top1"] for r in some])


@pytest.mark.parametrize("draw", [figures.overlap, figures.dimensions, figures.splits])
def test_chance_and_the_test_are_stated(draw: Any) -> None:
    content = report(TWO, level={"hcl": 0.3, "moco": 0.001})
    content["test"] |= {"chance": 0.0123, "queries": 12_345, "gallery": 6_789, "confidence": 0.995}
    figure = draw(content, "crop")
    title = figure.get_suptitle()
    assert all(word in title for word in ("12,345", "6,789", "chance 1.2%", "99.5%", "crop"))
    shared = figure.axes[:1] if draw is figures.overlap else figure.axes
    for axes in shared:
        assert [line for line in axes.lines if np.all(np.asarray(line.get_ydata()) == 0.0123)]


def test_models_at_the_same_place_are_both_seen() -> None:
    level = dict.fromkeys(TWO, 0.5)
    content = report(TWO, level=level)
    for row in content["results"]:
        row["top1"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    for figure in (figures.overlap(content, "crop"), figures.dimensions(content, "crop")):
        shown = series(figure)
        assert not set(shown["hcl"][0]) & set(shown["moco"][0])


def test_all_that_is_drawn_is_within_the_axes() -> None:
    for level in (0.0, 0.001, 0.5, 0.97, 1.0):
        content = report(TWO, level=dict.fromkeys(TWO, level), splits=(0.0, 0.5, 1.0))
        for row in content["results"]:
            for e in (row["top1"], *(b["top1"] for b in row["bins"] if b["top1"])):
                e["low"], e["high"] = max(0.0, e["low"]), min(1.0, e["high"])
        for draw in (figures.overlap, figures.dimensions, figures.splits):
            figure = draw(content, "crop")
            low, high = figure.axes[0].get_ylim()
            for axes in range(2 if draw is figures.dimensions else 1):
                left, right = figure.axes[axes].get_xlim()
                for x, drawn in series(figure, axes).values():
                    assert left < min(x)
                    assert max(x) < right
                    assert all(low < e["low"] and e["high"] < high for e in drawn), (level, draw)


def test_a_cut_axis_says_so() -> None:
    alike = figures.dimensions(report(TWO, level={"hcl": 0.71, "moco": 0.69}), "crop")
    assert alike.axes[0].get_ylim()[0] > 0.5
    assert "axis cut" in alike.axes[0].get_ylabel()
    assert "far below" in alike.get_suptitle()
    apart = figures.dimensions(report(TWO, level={"hcl": 0.71, "moco": 0.2}), "crop")
    assert apart.axes[0].get_ylim()[0] <= 0
    assert "cut" not in apart.axes[0].get_ylabel()


# ---- legends and names ---------------------------------------------------------------------------------------------


def legend(figure: Figure) -> list[str]:
    return [t.get_text() for page in figure.legends for t in page.get_texts()]


def test_the_legend_tells_long_and_odd_names_apart_and_covers_no_data() -> None:
    long = "torchvision:resnet50:experiments/a-rather-long-folder/checkpoints-of-{}/stage2-last.ckpt (pooled)"
    names = [*(long.format(i) for i in range(5)), "_private", "a$b$c", "模型"]
    content = report(dict.fromkeys(names, HCL))
    for draw in (figures.overlap, figures.dimensions):
        figure = draw(content, "crop")
        shown = [t.strip() for t in legend(figure)][: len(names)]
        assert len(set(shown)) == len(names)
        assert max(map(len, shown)) <= 56
        assert "_private" in shown
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")
            figure.savefig(io.BytesIO(), dpi=50)
            (page,) = figure.legends
            box = page.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_saved_twice_gives_the_same_bytes_whatever_the_caller_has_set(tmp_path: Path) -> None:
    plotting.save(figures.overlap(report(TWO), "crop"), tmp_path / "a")
    with mpl.rc_context(
        {"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 10, "svg.hashsalt": "other"}
    ):
        before = dict(mpl.rcParams)
        plotting.save(figures.overlap(report(TWO), "crop"), tmp_path / "b")
        assert dict(mpl.rcParams) == before
    for kind in ("svg", "png", "pdf"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert Image.open(tmp_path / "a.png").size[0] == 1050
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{n}.{kind}" for n in "ab" for kind in ("pdf", "png", "svg")
    ]


def test_the_pdf_has_no_title_and_letters_that_are_text(tmp_path: Path) -> None:
    """Read from its streams: glyphs by number, through each font's own table, so by the number of large letters."""
    figure = figures.overlap(report(TWO), "crop")
    title = figure.get_suptitle()
    plotting.save(figure, tmp_path / "a")
    assert figure.get_suptitle() == title
    assert "each sought among" in title
    page = (tmp_path / "a.pdf").read_bytes()
    assert b"/Type3" not in page
    assert b"/CreationDate" not in page
    drawn = b"".join(_inflated(page))
    size = rb"/F\d+ ([\d.]+) Tf"
    sizes = {float(found) for found in re.findall(size, drawn)}
    assert sizes
    assert 9.5 not in sizes  # the title's alone
    figure.savefig(tmp_path / "titled.pdf")
    assert b"9.5 Tf" in b"".join(_inflated((tmp_path / "titled.pdf").read_bytes()))


def _inflated(page: bytes) -> Iterator[bytes]:
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", page, re.DOTALL):
        with contextlib.suppress(zlib.error):
            yield zlib.decompress(stream)


def test_a_name_without_a_glyph_or_with_formulas_is_drawn_in_silence(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plotting.save(figures.overlap(report({"模型 $\\frac$": HCL}), "crop"), tmp_path / "a.b")
    assert (tmp_path / "a.b.svg").is_file()


def test_an_interval_that_rounding_turned_round_can_be_drawn() -> None:
    content = report(TWO)
    for row in content["results"]:
        row["top1"] = {"value": 1.0, "low": 1.0, "high": 1.0 - 1e-16}
    for draw in (figures.overlap, figures.dimensions):
        draw(content, "crop").savefig(io.BytesIO(), dpi=30)


# ---- whatever is missing -------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(
    models=st.integers(1, 8),
    level=st.sampled_from([0.0, 0.001, 0.5, 1.0]),
    dims=st.sampled_from([(), (64,), (8, 512), (1, 2, 3, 100, 101, 102, 4096)]),
    bins=st.integers(1, 20),
    data=st.data(),
)
def test_anything_can_be_drawn(
    models: int, level: float, dims: tuple[int, ...], bins: int, data: st.DataObject
) -> None:
    names = {
        f"a rather long name of a model, number {i} " * 2: HCL if i % 2 else {"c4x7": 12544}
        for i in range(models)
    }
    content = report(names, level=dict.fromkeys(names, level), dims=dims, bins=bins, splits=(0.5, 1.0))
    kept = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    random = data.draw(st.randoms(use_true_random=False))
    content["results"] = [r for r in content["results"] if random.random() <= kept]
    for row in content["results"]:
        for b in row["bins"]:
            if random.random() > kept:
                b |= {"count": 0, "top1": None}
    before = copy.deepcopy(content)
    draw = data.draw(st.sampled_from([figures.overlap, figures.dimensions, figures.splits]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(content, "crop").savefig(io.BytesIO(), dpi=30)
    assert content == before


# ---- sheets of examples --------------------------------------------------------------------------------------------


def image(h: int, w: int, shade: int) -> np.ndarray:
    return np.full((h, w, 3), shade, np.uint8)


def example(place: int, success: bool, **more: Any) -> Example:
    values: dict[str, Any] = {
        "bin": f"IoU 0.{place} to 0.{place + 1}",
        "success": success,
        "original": image(300, 200, 200),
        "boxes": ((10, 10, 90, 90), (0, 0, 200, 300)),
        "query": image(32, 32, 90),
        "partner": image(32, 32, 120),
        "found": None if success else image(224, 224, 10),
        "found_original": None if success else image(20, 500, 60),
        "found_box": None if success else (0, 0, 20, 20),
        "iou": 0.3,
        "right": 0.5,
        "wrong": 0.6,
    }
    return Example(**values | more)


def shares(page: np.ndarray, shade: int) -> tuple[bool, bool]:
    """Whether there is a lot of a shade of grey among the successes, among the failures."""
    hit = (page == shade).all(axis=2)
    return bool(hit[:, : sheets.RIGHT].sum() > 2000), bool(hit[:, sheets.RIGHT :].sum() > 2000)


def test_a_sheet_shows_successes_at_the_left_and_failures_at_the_right() -> None:
    left = np.asarray(examples([example(1, True)], "a model"))
    assert [shares(left, shade) for shade in (90, 120, 10)] == [(True, False), (True, False), (False, False)]
    right = np.asarray(examples([example(1, False)], "a model"))
    assert [shares(right, shade) for shade in (90, 120, 10)] == [(False, True)] * 3


def test_the_crops_are_drawn_where_they_were_cut() -> None:
    row = example(1, True, original=image(100, 100, 200), boxes=((0, 0, 50, 50), (50, 50, 100, 100)))
    cell = np.asarray(
        sheets.drawn(row.original, [(row.boxes[0], sheets.QUERY), (row.boxes[1], sheets.PARTNER)])
    )
    for color, (low, high) in ((sheets.QUERY, (0, 56)), (sheets.PARTNER, (56, 112))):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        y, x = np.nonzero((cell == rgb).all(axis=2))
        assert (x.min(), x.max(), y.min(), y.max()) == (low, high - 1, low, high - 1)


def test_a_sheet_grows_with_the_longer_side_of_each_bin() -> None:
    some = [example(1, True), example(1, True), example(1, False), example(2, False)]
    one, all_ = (examples(rows, "a model").height for rows in (some[-1:], some))
    assert all_ - one == sheets.HEAD + 2 * sheets.ROW
    assert examples([], "nothing").height < one


@pytest.mark.parametrize(
    "more",
    [
        {"original": image(1, 900, 1)},
        {"original": image(900, 1, 1)},
        {"boxes": ((0, 0, 0, 0), (-5, -5, 900, 900))},
        {"boxes": ((199.9, 299.9, 200, 300), (0.2, 0.2, 0.3, 0.3))},
        {"found": None, "found_original": None, "found_box": None},
        {"wrong": float("-inf"), "right": float("nan")},
        {"query": image(1, 1, 1), "partner": image(600, 600, 1)},
    ],
)
def test_a_sheet_of_odd_examples(more: dict[str, Any]) -> None:
    page = examples([example(1, False, **more)], "a title 模型 " * 40)
    assert page.width == sheets.WIDTH
