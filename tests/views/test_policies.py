"""Policies as one types them: names, names with changes, files; every fault in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.errors import InputError
from hetcl.types import ViewPolicy
from hetcl.views.policies import POLICIES, policy_of


@pytest.mark.parametrize("name", list(POLICIES))
def test_names(name: str) -> None:
    assert policy_of(name) == (name, POLICIES[name])
    assert not POLICIES[name].faults()


def test_the_papers_policies() -> None:
    assert POLICIES["crop"] == ViewPolicy(jitter_p=0, grayscale_p=0, blur_p=0, flip_p=0)
    standard = POLICIES["standard"]
    assert (standard.jitter_p, standard.flip_p, standard.grayscale_p, standard.blur_p) == (0.8, 0.5, 0, 0)


@given(p=st.floats(0, 1), low=st.floats(0.01, 0.5), high=st.floats(0.5, 1))
def test_changes(p: float, low: float, high: float) -> None:
    text = f"crop:grayscale_p={p}:area={low}..{high}"
    assert policy_of(text) == (text, replace(POLICIES["crop"], grayscale_p=p, area=(low, high)))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: crop\narea: [0.5, 1]\nflip_p: 1\ngrayscale_first: true\n")
    expected = replace(POLICIES["crop"], area=(0.5, 1.0), flip_p=1.0, grayscale_first=True)
    assert policy_of(str(path)) == ("mine", expected)
    path.write_text("flip_p: 0\n")
    assert policy_of(str(path))[1] == replace(POLICIES["standard"], flip_p=0.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("crops", r"did you mean 'crop'"),
        ("", "no views named ''"),
        ("crop:gray=1", "no field 'gray'"),
        ("crop:flip=1", "did you mean 'flip_p'"),
        ("crop:flip_p", "FIELD=VALUE"),
        ("crop:flip_p=2", "probability"),
        ("crop:flip_p=nan", "probability"),
        ("crop:flip_p=often", "flip_p must be a number, not 'often'"),
        ("crop:flip_p=0..1", "flip_p must be a number"),
        ("crop:area=0.5..0.2", "least and most"),
        ("crop:area=0.5", "area must be 2 numbers"),
        ("crop:jitter=1..1..1..0.6", "hue at most 0.5"),
        ("crop:jitter=nan..1..1..0", "jitter"),
        ("crop:blur_sigma=1..inf", "least and most"),
        ("crop:grayscale_first=2", "true or false"),
        ("nothing.yaml", "cannot read nothing.yaml"),
    ],
)
def test_faults(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        policy_of(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- a\n", "must hold fields"),
        (b"a: [1\n", "not valid YAML"),
        (b"base: 3\n", "no views named '3'"),
        (b"area: {a: 1}\n", "area must be 2 numbers"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not text"),
    ],
)
def test_files_with_faults(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        policy_of(str(path))
