"""Charts keep the extremes of what they thin, hold no markup of data's, and are drawn."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.reporting.charts import Line, curves, intervals, thinned
from tests.reporting.folders import HOSTILE

ROWS = st.lists(
    st.fixed_dictionaries({}, optional={"a": st.floats(-1e6, 1e6), "b": st.floats(-1, 1)}),
    min_size=1,
    max_size=300,
)


@given(ROWS, st.integers(8, 80))
def test_thinned_rows_keep_ends_and_extremes_in_order(rows: list[dict[str, float]], most: int) -> None:
    numbered = [row | {"x": i} for i, row in enumerate(rows)]
    kept = thinned(numbered, ["a", "b"], most)
    assert len(kept) <= max(most, 6)
    assert [r["x"] for r in kept] == sorted({r["x"] for r in kept})
    assert kept[0] == numbered[0]
    assert kept[-1] == numbered[-1]
    for key in ("a", "b"):
        values, left = ([r[key] for r in some if key in r] for some in (numbered, kept))
        assert [f(values) for f in (min, max) if values] == [f(left) for f in (min, max) if left]


def test_names_stay_text_in_the_drawing_and_in_the_data() -> None:
    rows = [{"x": i, "a": i / 7} for i in range(50)]
    for chart in (
        curves("T", rows, [Line(HOSTILE, "a")], marks=[(3, HOSTILE)]),
        intervals("T", [{"label": HOSTILE, "group": HOSTILE, "value": 0.5, "low": 0.4, "high": 0.6}]),
    ):
        assert chart is not None
        assert "<" not in chart.json
        assert HOSTILE[:50] in json.dumps(json.loads(chart.json)).replace('\\"', '"')
        drawn = ElementTree.fromstring(str(chart.svg))
        tags = {element.tag.rpartition("}")[2] for element in drawn.iter()}
        assert tags <= {"svg", "g", "path", "line", "text", "tspan", "rect", "defs", "clipPath"}
        assert drawn.get("role") == "img"
        assert drawn.get("aria-label", "").startswith("T. ")


def test_a_chart_says_its_first_last_and_extreme_values() -> None:
    chart = curves("Loss", [{"x": i, "a": v} for i, v in enumerate([3, 9, 1, 4])], [Line("loss", "a")])
    assert chart is not None
    assert chart.text == "Loss. loss: 3 at first, 4 at last, between 1 and 9."
    assert [row[1] for row in chart.rows] == ["3", "9", "1", "4"]


def test_nothing_to_draw_is_no_chart() -> None:
    assert curves("T", [{"x": 1, "b": 2}], [Line("a", "a")]) is None
    assert intervals("T", []) is None


@pytest.mark.parametrize("most", [10, 100])
def test_the_table_is_no_longer_than_asked(most: int) -> None:
    chart = curves(
        "T", [{"x": i, "a": i % 13} for i in range(5000)], [Line("a", "a")], table=most, points=200
    )
    assert chart is not None
    assert len(chart.rows) <= most
    assert len(chart.spec["data"]["values"]) <= 200
    assert f"{len(chart.rows):,} of 5,000 rows" in chart.note
