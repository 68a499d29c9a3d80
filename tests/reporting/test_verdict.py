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
        ("fell", "fell", "less often than with random weights", "--init timm:resnet10t:c3_in1k"),
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


@pytest.mark.parametrize("fate", [*folders.FATES])
def test_weights_are_offered_for_use_only_where_they_learned(tmp_path: Path, fate: str) -> None:
    commands = [a.command for a in verdict_on(folders.make_run(tmp_path / "run", fate)).next]
    assert any("hetcl export" in c for c in commands) == (fate == "good")


@pytest.mark.parametrize(("first", "offered"), [(0.30, False), (0.20, True)])
def test_weights_whose_neighbours_got_no_better_are_to_be_tested_first(
    tmp_path: Path, first: float, offered: bool
) -> None:
    """So few queries that neither a fall nor a rise of kNN can be told from chance."""
    run = folders.make_run(tmp_path / "run", "good", **{"knn.queries": 20})
    table = (run / "metrics.csv").read_text().splitlines()
    header = table[0].split(",")
    cells = [line.split(",") for line in table[1:]]
    cells[0][header.index("knn")], cells[-1][header.index("knn")] = str(first), "0.25"
    (run / "metrics.csv").write_text("\n".join([table[0], *(",".join(row) for row in cells)]) + "\n")
    found = verdict_on(run)
    assert found.status == "training"
    assert any("hetcl export" in a.command for a in found.next) == offered


def test_it_is_held_against_what_it_began_with(tmp_path: Path) -> None:
    """A file is found by hetcl contrast itself; a name must be given, since it may have to be downloaded."""
    name = "torchvision:resnet50:IMAGENET1K_V2"
    (tmp_path / "x.pth").touch()
    for i, (init, named) in enumerate([(None, ""), (name, f" {name}"), (f"moco:{tmp_path / 'x.pth'}", "")]):
        run = folders.make_run(tmp_path / f"run{i}", "good", init=init, **{"knn.queries": 1})
        first = verdict_on(run).next[0]
        assert first.command.startswith(f"hetcl contrast {run}{named} --data ")
        assert ("what it began with" in first.text) == (init is not None)


def test_a_fall_is_told_of_what_the_run_began_with(tmp_path: Path) -> None:
    found = verdict_on(folders.make_run(tmp_path / "run", "fell", init="moco:x.pth"))
    assert found.status == "fell"
    assert "than with the weights it began with" in found.headline
    assert any("Use the weights that it began with, moco:x.pth" in a.text for a in found.next)
    assert not any("random weights" in line for line in [*found.learned, found.headline])


def test_a_probe_of_places_may_speak_for_a_run_whose_knn_fell(tmp_path: Path) -> None:
    run = folders.make_run(tmp_path / "run", "fell")
    assert verdict_on(run, folders.make_where(tmp_path / "good", run)).status == "mixed"
    assert (
        verdict_on(run, folders.make_where(tmp_path / "bad", run, against_random=-0.1)).status == "doubtful"
    )


def test_the_time_that_is_left_goes_by_the_last_rows(tmp_path: Path) -> None:
    """Two of four epochs of stage 1 are over after 200 steps of 32 images at 50 a second; stage 2 has four more."""
    left = verdict_on(folders.make_run(tmp_path / "run", "half")).learned
    assert "About 6 min 24 s are left, at the pace of its last rows." in left  # 600 steps
    assert not any(
        "are left" in line for line in verdict_on(folders.make_run(tmp_path / "new", "new")).learned
    )


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


@pytest.mark.parametrize("part", ["semantic", "spatial"])
def test_a_part_that_has_collapsed_is_the_verdict(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = {f"{part}_uniformity": -0.03, f"{part}_accuracy_batch": 0.03}
    rows = [r | dead if r["stage"] == "stage2" and "loss" in r else r for r in folders.FATES["good"]]
    monkeypatch.setitem(folders.FATES, "part", rows)
    found = verdict_on(folders.make_run(tmp_path / "run", "part"))
    assert found.status == "part"
    assert found.headline.startswith(f"The {part} part gives nearly every image the same numbers")
    assert [line.split(" itself")[0] for line in found.spatial if "has collapsed" in line] == [
        f"The {part} part"
    ]
    assert "lower learning rate" in found.next[0].text


def test_a_learning_rate_far_above_the_usual_is_named(tmp_path: Path) -> None:
    run = folders.make_run(tmp_path / "run", "level", **{"stage1.lr": 0.06, "stage2.lr": 0.06})
    first, *_ = verdict_on(run).next
    assert "it was 0.06, 16 times MoCo's for such a batch" in first.text
    usual = folders.make_run(tmp_path / "usual", "level", **{"stage1.lr": 0.0075, "stage2.lr": 0.0125})
    assert not any("times MoCo's" in one.text for one in verdict_on(usual).next)


def test_a_stage_that_goes_on_is_not_said_to_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [folders.row("stage1", 100 * i, 0.1 + 0.05 * i) for i in range(1, 5)]
    rows.append(folders.row("stage2", 100, 0.4, **folders.parts(0.3, 0.2)))
    monkeypatch.setitem(folders.FATES, "half", rows)
    found = verdict_on(folders.make_run(tmp_path / "run", "half"))
    assert "so far in stage2" in found.spatial[0]
    assert "too early to say what it adds" in found.spatial[0]
    assert found.figures is not None
    assert found.figures.rows[-1][1] == ""  # one row is no beginning


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
