"""Fresh, resume, or refuse: which folders are taken for runs, and what must be as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetcl.errors import InputError
from hetcl.runs.folder import RunFolder
from hetcl.runs.resume import (
    begin,
    check_own,
    check_run,
    refuse_changes,
    refuse_other,
    refuse_other_data,
    saved_by,
)


def test_a_new_or_empty_folder_is_taken(tmp_path: Path) -> None:
    begin(RunFolder(tmp_path / "a" / "b"), resume=False, known=False)
    assert (tmp_path / "a" / "b" / "checkpoints").is_dir()
    (tmp_path / "empty").mkdir()
    check_run(RunFolder(tmp_path / "empty"), resume=True)


def test_what_a_folder_may_not_hold(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_settings({"data": "x"})
    with pytest.raises(InputError, match="add --resume"):
        check_run(run, resume=False)
    check_run(run, resume=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    for resume in (False, True):
        with pytest.raises(InputError, match="not empty and holds no run"):
            check_run(RunFolder(tmp_path / "photos"), resume=resume)
        with pytest.raises(InputError, match="is a file"):
            check_run(RunFolder(tmp_path / "photos" / "a.jpg"), resume=resume)


def test_checkpoints_without_settings_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    check_run(RunFolder(tmp_path), resume=True)  # killed before its settings were written
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(InputError, match="holds no run"):
        check_run(RunFolder(tmp_path), resume=True)


def test_a_run_that_was_begun_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    """Two jobs with --resume find no run; one begins it and is killed before the other comes to write."""
    late, early = RunFolder(tmp_path), RunFolder(tmp_path)
    with early.lock:
        begin(early, resume=True, known=False)
        early.write_settings({"settings": {}})
        with pytest.raises(InputError, match="is being written"):
            begin(late, resume=True, known=False)
    with late.lock, pytest.raises(InputError, match=r"a run was begun in .* meanwhile"):
        begin(late, resume=True, known=False)
    with late.lock, pytest.raises(InputError, match="add --resume"):
        begin(late, resume=False, known=False)
    with late.lock:
        begin(late, resume=True, known=True)


def test_a_folder_of_results_is_given_back_to_its_verb_alone(tmp_path: Path) -> None:
    check_own(tmp_path, "a probe", foreign=False, again=False)
    with pytest.raises(InputError, match="holds something that is no probe; name a new"):
        check_own(tmp_path, "a probe", foreign=True, again=False)
    with pytest.raises(InputError, match="holds an evaluation; add --overwrite to replace it, or"):
        check_own(tmp_path, "an evaluation", foreign=False, again=True, add="--overwrite to replace it")


def test_other_work_than_the_folder_began_with_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    init = str(tmp_path / "a.pth")
    saved = {"init": init, "data": "scenes:9", "allow_partial": ["fc.*"], "fingerprint": "1"}
    run.write_settings({"kind": "hetcl-finetune", "settings": {}})
    assert saved_by(run, "hetcl-finetune")["settings"] == {}
    with pytest.raises(InputError, match=r"holds a run of another command .hetcl-finetune.; name a new"):
        saved_by(run, None)
    refuse_other(run, saved, {"init": init, "data": None}, ())
    others: list[tuple[dict[str, str | None], list[str], str]] = [
        ({"init": "b.pth"}, [], "--init b.pth: the run in .* began with .*a.pth; leave it out"),
        ({"data": "scenes:8"}, ["fc.*"], "--data scenes:8: the run in .* began with scenes:9; leave it out"),
        ({}, ["x.*"], r"--allow-partial: the run in .* began with fc\.\*; leave it out"),
    ]
    for given, allow, why in others:
        with pytest.raises(InputError, match=why):
            refuse_other(run, saved, given, allow)
    refuse_changes(run, {"lr": 1, "workers": 1}, {"lr": 1, "workers": 2}, but={"workers"})
    with pytest.raises(InputError, match=r"began with: lr was 1, now 2\. Leave"):
        refuse_changes(run, {"lr": 1, "workers": 1}, {"lr": 2, "workers": 2}, but={"workers"})
    refuse_other_data(run, "d", {}, {"fingerprint": "2"})
    refuse_other_data(run, "d", saved, {"fingerprint": "1"})
    with pytest.raises(InputError, match="d does not hold what the run in"):
        refuse_other_data(run, "d", saved, {"fingerprint": "2"})
