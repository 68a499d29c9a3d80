"""Ids, flags and numbers in every way that people's programs write them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.datasets.values import Ids, flag, key, number, numbers, whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (7.0, 7),
        ("7", 7),
        (" 7 ", 7),
        ("\ufeff7\r", 7),
        ("7.0", 7),
        ("+7", 7),
        ("-7", -7),
        (0, 0),
        (7.5, None),
        ("7.5", None),
        ("seven", None),
        ("", None),
        (None, None),
        (True, None),
        ([7], None),
        (math.inf, None),
        (math.nan, None),
    ],
)
def test_whole_numbers(value: Any, expected: int | None) -> None:
    assert whole(value) == expected


@given(st.integers(-(10**17), 10**17), st.sampled_from(["{}", " {} ", "{}.0", "{}.", "\t{}\n"]))
def test_any_whole_number_comes_back(n: int, form: str) -> None:
    assert whole(form.format(n)) == n == key(form.format(n))


@pytest.mark.parametrize("value", [1, 1.0, True, "1", " 1 ", "true", "True", "YES", "1.0", 2])
def test_flags_that_are_set(value: Any) -> None:
    assert flag(value) is True


@pytest.mark.parametrize("value", [0, 0.0, False, None, "", "0", "false", " No ", "0.0"])
def test_flags_that_are_not(value: Any) -> None:
    assert flag(value) is False


@pytest.mark.parametrize("value", ["maybe", "Unspecified", [1], {}, 0.5])
def test_flags_that_are_none(value: Any) -> None:
    assert flag(value) is None


def test_numbers() -> None:
    assert numbers(["1", 2, 3.5, " 4e1 "], 4) == [1.0, 2.0, 3.5, 40.0]
    assert numbers([1, 2, 3], 4) is numbers([1, 2, 3, None], 4) is numbers("1234", 4) is None
    assert number(10**400) == math.inf
    assert number(True) is number("left") is number([]) is None
    assert math.isnan(number("nan") or 0)


def test_text_with_zeros_in_front_stays_text_and_is_found_by_number() -> None:
    assert [key(v) for v in ("000139", "abc ", "", None, "7", 7.0)] == ["000139", "abc", None, None, 7, 7]
    ids = Ids([key("000139"), 5, "abc"])  # type: ignore[list-item]
    assert [ids.find(v) for v in (139, "139", "000139", "5", "005", 5.0, "abc", "x", None, True)] == [
        *["000139", "000139", "000139", 5, 5, 5, "abc"],
        *[None, None, None],
    ]
    assert ids.by_name == 0


def test_names_stand_for_ids_where_they_are_one_id_s_alone() -> None:
    ids = Ids([1, 2, 3], [("a.jpg", 1), ("a", 1), ("b.jpg", 2), ("b", 2), ("b", 3)], {"old": 3})
    assert [ids.find(v) for v in ("a", " a.jpg", "b.jpg", "b", "old")] == [1, 1, 2, None, 3]
    assert ids.by_name == 3
