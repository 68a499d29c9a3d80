"""The verdict is right for runs of every fate, and tests count for more than what training says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetcl.reporting.read import read_results
from hetcl.reporting.verdict import Verdict, judge
from tests.reporting import folders


def verdict_on(run: Path, *tests: Path) -> Verdict:
    first, *others = read_results([run, *tests])
    return judge(first, others)


@pytest.mark.parametrize(
    ("fate", "status", "word", "command"),
    [
        ("good", "learned", "better than random weights", "hetcl probe"),
        ("level", "not learned", "no better than what it began with", "hetcl doctor"),
        ("collapsed", "collapsed", "the same vector", "--stage1.lr"),
        ("half", "half", "has not ended", "--resume"),
        ("new", "half", "Nothing was logged yet", "--resume"),
    ],
)
def test_each_fate_is_told(tmp_path: Path, fate: str, status: str, word: str, command: str) -> None:
    found = verdict_on(folders.make_run(tmp_path / "run", fate))
    assert found.status == status
    assert word in found.headline
    assert any(command in advice.command for advice in found.next)


def test_a_rise_without_labels_is_no_proof(tmp_path: Path) -> None:
    run = folders.make_run(tmp_path / "run", "good")
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join([lines[0], *lines[2:-1]]))  # without the checks of neighbours
    found = verdict_on(run)
    assert found.status == "training"
    assert "not measured" in found.headline
    assert "hetcl contrast" in found.next[0].command


@pytest.mark.parametrize(
    ("said", "status"), [("learned", "learned"), ("not learned", "not learned"), ("too few", "unclear")]
)
def test_a_contrastive_test_has_the_last_word(tmp_path: Path, said: str, status: str) -> None:
    run = folders.make_run(tmp_path / "run", "good")
    found = verdict_on(run, folders.make_contrast(tmp_path / "contrast", run, status=said))
    assert found.status == status
    assert found.learned[0].endswith("a line")
    assert any("both parts find 50.0%" in line and "alone 40.0%" in line for line in found.spatial)
    assert any("stage 1 pooled" in line and "better" in line for line in found.spatial)


def test_a_test_of_another_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    run, other = (
        folders.make_run(tmp_path / "a" / "run", "good"),
        folders.make_run(tmp_path / "b" / "run", "level"),
    )
    found = verdict_on(run, folders.make_contrast(tmp_path / "contrast", other, status="not learned"))
    assert found.status == "learned"


@pytest.mark.parametrize(("difference", "status"), [(0.1, "learned"), (-0.1, "doubtful"), (0.0, "doubtful")])
def test_places_against_random_weights_count(tmp_path: Path, difference: float, status: str) -> None:
    run = folders.make_run(tmp_path / "run", "good", **{"knn.queries": 1})
    found = verdict_on(run, folders.make_where(tmp_path / "where", run, against_random=difference))
    assert found.status == status
    assert any("minus random" in line for line in found.learned)
    assert any("minus run stage 1" in line and "no difference" in line for line in found.spatial)


def test_what_the_spatial_branch_added_is_said_in_figures(tmp_path: Path) -> None:
    first, *_ = verdict_on(folders.make_run(tmp_path / "run", "good")).spatial
    for figure in ("both parts together 70.0%", "alone 30.0%", "alone 40.0%", "+40.0 points", "chance 3.1%"):
        assert figure in first
    assert (
        "no spatial branch"
        in verdict_on(folders.make_run(tmp_path / "moco", "half", **{"stage2.epochs": 0})).spatial[0]
    )
    assert "Not to be seen yet" in verdict_on(folders.make_run(tmp_path / "half", "half")).spatial[0]
    assert "Nothing of use" in verdict_on(folders.make_run(tmp_path / "collapsed", "collapsed")).spatial[0]


def test_an_encoder_that_is_nearly_constant_at_first_is_not_called_collapsed(tmp_path: Path) -> None:
    run = folders.make_run(tmp_path / "run", "new")
    for step in (10, 20):
        line = folders.row("stage1", step, 0.03, uniformity=-0.001)
        names = (run / "metrics.csv").read_text().splitlines()[0].split(",")
        with open(run / "metrics.csv", "a") as f:
            f.write(",".join(str(line.get(name, "")) for name in names) + "\n")
    found = verdict_on(run)
    assert found.status == "half"
    assert "Too early" in found.learned[0]


def test_a_run_that_began_with_trained_weights_need_not_rise(tmp_path: Path) -> None:
    run = folders.make_run(tmp_path / "run", "level", **{"stage1.epochs": 0})
    text = (run / "settings.yaml").read_text().split("\n", 1)[1]
    (run / "settings.yaml").write_text(text.replace("init: null", "init: other"))
    assert verdict_on(run).status == "unclear"
    (run / "settings.yaml").write_text(text)
    assert verdict_on(run).status == "not learned"
