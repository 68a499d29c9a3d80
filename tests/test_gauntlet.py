"""The gauntlet's short form: some tries of each kind, through real processes (experiments/gauntlet.py has all)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from experiments.gauntlet import KINDS, gauntlet


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "verbs", "tries"),
    [("damaged-files", ["pretrain"], 6), ("locks", ["pretrain"], 2)],
)
def test_nothing_is_lost(
    kind: str, verbs: list[str], tries: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(10**6)
    table = gauntlet(tmp_path, kinds=[kind], verbs=verbs, tries=tries, seed=seed, limit=120)
    assert sum(row["tries"] for row in table.values()) == tries
    assert not any(row["lost"] for row in table.values()), f"seed {seed}: {capsys.readouterr().out}"


def test_every_kind_says_what_it_tries() -> None:
    assert all(function.__doc__ for function in KINDS.values())
