"""YAML and JSON that nest, repeat or contradict themselves: one line each, at once."""

from __future__ import annotations

import pytest
import yaml

from hetcl.trees import TreeError, parse_json, parse_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


def test_what_is_in_order_comes_out() -> None:
    tree = {"a": [1, 2.5, None, True, "ä"], "b": {"c": []}, "d": "2026-01-01"}
    assert parse_yaml(yaml.safe_dump(tree)) == tree
    assert parse_yaml("base: &b {lr: 0.1}\nstage: *b") == {"base": {"lr": 0.1}, "stage": {"lr": 0.1}}
    assert parse_yaml("base: &b {lr: 0.1, k: 1}\nstage: {<<: *b, lr: 0.2}")["stage"] == {"lr": 0.2, "k": 1}
    assert parse_yaml("") is None
    assert parse_json(b'{"a": [1, 2]}') == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "repeats itself too often"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {b: {c: *a}}", "contains itself"),
        ("[" * 100_000, "not valid YAML in line 1"),
        ("[" * 400 + "]" * 400 + "\n", None),
        ("- " * 3000 + "x", None),
        ("".join(" " * i + "a:\n" for i in range(1500)), None),
        ("a: 1\na: 2", "'a' comes twice"),
        ("s:\n  a: 1\n  b: 2\n  a: 1", "line 4: 'a' comes twice"),
        ("a: [", "not valid YAML in line 1"),
        ("\0", "not valid YAML"),
        ("!!python/object/apply:os.system ['touch evil']", "not valid YAML in line 1"),
        ("2026-99-99", "not valid YAML"),
        ("!!timestamp x", "not valid YAML"),
        ("!!bool x", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("--- a\n--- b", "not valid YAML"),
        ("x" * 5_000_000, "too long"),
    ],
)
def test_what_is_not_is_refused_in_one_line(text: str, why: str | None) -> None:
    try:
        parse_yaml(text)
    except TreeError as e:
        said = str(e)
    else:
        assert why is None  # deep, and no more than that
        return
    assert (why or "nest") in said or "not valid YAML" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
    ],
)
def test_json_likewise(data: bytes, why: str) -> None:
    with pytest.raises(TreeError, match=why):
        parse_json(data)


@pytest.mark.parametrize(
    "text", ["size: " + ":".join(["1"] * 100_000), "x: 1" + ":59" * 50_000 + ".5", "x: " + "1" * 401]
)
def test_numbers_without_end_are_refused_at_once(text: str) -> None:
    """In base 60, as YAML 1.1 has it, time would grow with the square of the length."""
    with pytest.raises(TreeError, match=r"line 1: a number of [0-9,]+ characters"):
        parse_yaml(text)
