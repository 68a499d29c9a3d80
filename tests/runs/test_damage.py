"""Damaged files of a run: noticed whatever was damaged, mended where that can be, never believed."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetcl.errors import InputError
from hetcl.printable import csv_row
from hetcl.runs import checkpoint
from hetcl.runs.checkpoint import Damaged
from hetcl.runs.files import seal, set_aside, unseal
from hetcl.runs.folder import RunFolder, Table
from hetcl.runs.resume import checkpoint_of, latest, settle
from hetcl.trees import TreeError
from tests.damage import DAMAGES, Damage, spoil

COLUMNS = ("stage", "epoch", "step", "loss", "knn")
in_folder = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def state(number: int) -> dict[str, Any]:
    """A loop's state, with all kinds of things in it."""
    draw = torch.Generator().manual_seed(number)
    return {
        "stage": "stage1",
        "epoch": number,
        "step": 0,
        "metrics_bytes": 0,
        "task": {
            "w": torch.randn(3000, generator=draw),
            "b": torch.randn(3, 5, generator=draw).double(),
            "l": [1, "a"],
        },
        "meters": {"sums": {}, "count": number},
    }


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@in_folder
@given(damage=st.sampled_from(DAMAGES), seed=st.integers(0, 2**32))
def test_a_damaged_checkpoint_is_refused_or_gives_the_same_numbers(
    tmp_path: Path, damage: Damage, seed: int
) -> None:
    path, saved = tmp_path / "last.ckpt", state(3)
    checkpoint.save(path, saved)
    spoil(path, damage, seed)
    try:
        found = checkpoint.load(path)
    except Damaged as e:
        why = str(e)
    else:  # only bytes between the parts were damaged
        assert same(found, {"hetcl": checkpoint.FORMAT, **saved})
        return
    assert str(path) in why
    assert "\n" not in why


def test_torch_alone_believes_a_damaged_one(tmp_path: Path) -> None:
    """What the check is for: without it, other weights come out in silence."""
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, state(3))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert not same(torch.load(path, weights_only=True)["task"], state(3)["task"])
    with pytest.raises(Damaged, match="do not match their checksum"):
        checkpoint.load(path)


def save_all(folder: Path) -> None:
    for number in (1, 2):
        checkpoint.save(folder / "last.ckpt", state(number), keep_previous=True)
    checkpoint.save(folder / "stage1.ckpt", state(0))


def test_the_spare_and_then_the_end_of_a_stage_take_its_place(tmp_path: Path) -> None:
    save_all(tmp_path)
    names = ("last.ckpt", "previous.ckpt", "stage1.ckpt")
    for number, name in ((2, names[0]), (1, names[1]), (0, names[2])):
        found = latest(tmp_path, ["stage1.ckpt"])
        assert found is not None
        assert (found.path.name, found.state["epoch"]) == (name, number)
        assert (found.notes is None) == (name == "last.ckpt")
        if found.notes:
            assert "last.ckpt cannot be read" in found.notes
            assert f"{found.path} takes its place" in found.notes
        spoil(tmp_path / name, DAMAGES[0], seed=number + 40)
    with pytest.raises(InputError, match="there is no other to go on from"):
        latest(tmp_path, ["stage1.ckpt"])


def test_a_damaged_one_never_becomes_the_spare(tmp_path: Path) -> None:
    """A kill after the first save of a run that went on from the spare must leave something to go on from."""
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    save_all(run.checkpoints)
    spoil(run.checkpoints / "last.ckpt", DAMAGES[2])
    found = checkpoint_of(run, ["stage1"])
    told = settle(found, Table(run.metrics, COLUMNS), Table(run.timing, COLUMNS))
    assert "takes its place" in told[0]
    checkpoint.save(run.checkpoints / "last.ckpt", state(5), keep_previous=True)
    for name in ("last.ckpt", "previous.ckpt"):
        checkpoint.load(run.checkpoints / name)
    assert (run.checkpoints / "last.ckpt.damaged").is_file()


def test_a_newer_one_is_not_passed_over(tmp_path: Path) -> None:
    save_all(tmp_path)
    torch.save({"hetcl": checkpoint.FORMAT + 1}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="upgrade hetcl"):
        latest(tmp_path)


@pytest.mark.parametrize("layout", ["x", torch.zeros(3), None, True])
def test_a_layout_that_is_no_number_is_no_checkpoints(layout: object, tmp_path: Path) -> None:
    torch.save({"hetcl": layout}, tmp_path / "last.ckpt")
    with pytest.raises(checkpoint.Damaged, match="is not a hetcl checkpoint"):
        checkpoint.load(tmp_path / "last.ckpt")


def test_metrics_that_state_more_bytes_than_there_are_count_as_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    claims = torch.zeros(1, dtype=torch.uint8).expand(10**12)
    checkpoint.save(run.checkpoints / "last.ckpt", state(1) | {"metrics": claims})
    found = checkpoint_of(run, ["stage1"])
    settle(found, Table(run.metrics, COLUMNS), Table(run.timing, COLUMNS))


@pytest.mark.parametrize(
    "spoiled",
    [
        {"stage": "another"},
        {"epoch": "1"},
        {"step": -1},
        {"task": 3},
        {"metrics_bytes": None},
        {"stage": None},
    ],
)
def test_states_of_something_else_are_refused(spoiled: dict[str, Any], tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    checkpoint.save(run.checkpoints / "last.ckpt", state(1) | spoiled)
    with pytest.raises(InputError, match="is of another run"):
        checkpoint_of(run, ["stage1"])


def test_a_file_system_without_hard_links_keeps_a_spare_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    save_all(tmp_path)
    assert checkpoint.load(tmp_path / "previous.ckpt")["epoch"] == 1
    assert checkpoint.load(tmp_path / "last.ckpt")["epoch"] == 2


# ---- runs whose checkpoints are gone ---------------------------------------------------------------------------------


def lonely(path: Path, rows: str) -> RunFolder:
    """A run without a checkpoint."""
    run = RunFolder(path)
    run.checkpoints.mkdir()
    run.metrics.write_text(rows)
    return run


@pytest.mark.parametrize(
    "rows",
    [
        "stage,epoch,step,loss,knn\nstage1,0,3,0.5,\nstage1,1,8,0.4,0.3\nstage1,1,9,0.4,\n",
        "stage1,1,8,0.4,0.3\nstage1,2,16,0.4,0.3\n",  # without a header
        "garb\0ge\nstage1,1,8,x,y\nstage2,0,3,0.1,\n",
    ],
)
def test_a_run_that_lost_its_checkpoints_is_not_begun_again(rows: str, tmp_path: Path) -> None:
    run = lonely(tmp_path, rows)
    with pytest.raises(InputError, match="its checkpoints are gone; put them back"):
        checkpoint_of(run, ["stage1", "stage2"])
    assert run.metrics.read_text() == rows


@pytest.mark.parametrize("name", ["backbone.safetensors", "summary.json"])
def test_a_run_that_has_ended_is_not_begun_again(name: str, tmp_path: Path) -> None:
    run = lonely(tmp_path, "")
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"has ended .{name}. and has no checkpoint to go on from"):
        checkpoint_of(run, ["stage1"])


@pytest.mark.parametrize(
    "rows", ["", "stage,epoch", "stage,epoch,step,loss,knn\nstage1,0,0,,0.1\nstage1,1,8,0.4,0.3\n"]
)
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(rows: str, tmp_path: Path) -> None:
    run = lonely(tmp_path, rows)
    assert checkpoint_of(run, ["stage1"]) is None
    told = settle(None, Table(run.metrics, COLUMNS), Table(run.timing, COLUMNS))
    assert told == (["no checkpoint was saved yet: the run begins again"] if "stage1" in rows else [])
    assert run.metrics.read_text() == "stage,epoch,step,loss,knn\n"


# ---- tables ----------------------------------------------------------------------------------------------------------

ROWS = b"stage,epoch,step,loss,knn\nstage1,0,3,0.5,\nstage1,1,8,0.25,0.5\n"


@in_folder
@given(damage=st.sampled_from(DAMAGES), seed=st.integers(0, 2**32), more=st.booleans())
def test_metrics_are_put_back_as_the_checkpoint_has_them(
    tmp_path_factory: pytest.TempPathFactory, damage: Damage, seed: int, more: bool
) -> None:
    table = Table(tmp_path_factory.mktemp("t") / "metrics.csv", COLUMNS)
    table.path.write_bytes(ROWS + b"stage1,1,9,0.25,\n" * more)
    spoil(table.path, damage, seed)
    there = table.path.read_bytes()
    told = table.cut(len(ROWS), ROWS)
    assert table.path.read_bytes() == ROWS
    assert bytes(table.held) == ROWS
    if not ROWS.startswith(there[: there.rfind(b"\n") + 1]) and not there.startswith(ROWS):
        assert told is not None
        assert table.path.with_name("metrics.csv.damaged").read_bytes() == there
    table.append({"stage": "stage1", "epoch": 1, "step": 9, "loss": 0.125})
    assert table.rows()[-1] == {"stage": "stage1", "epoch": 1, "step": 9, "loss": 0.125}
    assert table.rows() == table.read()


@in_folder
@given(damage=st.sampled_from(DAMAGES), seed=st.integers(0, 2**32))
def test_what_can_be_read_of_a_table_is_kept(
    tmp_path_factory: pytest.TempPathFactory, damage: Damage, seed: int
) -> None:
    table = Table(tmp_path_factory.mktemp("t") / "timing.csv", COLUMNS)
    lines = [b"stage1,%d,%d,0.5,\n" % (i // 4, i) for i in range(40)]
    table.path.write_bytes(b"stage,epoch,step,loss,knn\n" + b"".join(lines))
    spoil(table.path, damage, seed)
    there = table.path.read_bytes()
    table.cut(None)
    kept = table.path.read_bytes()
    assert kept.startswith(b"stage,epoch,step,loss,knn\n")
    assert all(line in kept for line in there.splitlines(keepends=True)[1:-1] if line in lines)
    table.append({"stage": "stage1", "epoch": 9})
    assert all(set(row) <= set(COLUMNS) for row in table.read())


@pytest.mark.parametrize(
    "text",
    [
        b"stage1,0,3,0.5,\n" * 2,  # a lost header
        b"stage,epoch,step,loss\nstage1,0,3,0.5,\n",  # another header
        b"stage,epoch,step,loss,knn\nstage1,0,3\nstage1,0,3,0.5,\n",  # half a line in the middle
        b"stage,epoch,step,loss,knn\nstage1,0,3,0.5,\n\0\0\0\0\0\n",
        b"stage,epoch,step,loss,knn\nstage1,0,3,zero,\n",
        b'stage,epoch,step,loss,knn\n"stage1,0,3,0.5,\nstage1,0,6,0.5,\n',  # a quote that is not closed
        b"stage,epoch,step,loss,knn\nstage1,0,3,0.5,,,,\n\xff\xfe\n",
        b"stage,epoch,step,loss,knn\nstage,epoch,step,loss,knn\nstage1,0,6,0.5,\n",
    ],
)
def test_a_damaged_table_is_set_aside_and_mended_and_said(text: bytes, tmp_path: Path) -> None:
    table = Table(tmp_path / "timing.csv", COLUMNS)
    for number in ("", "-2"):
        table.path.write_bytes(text)
        told = table.cut(None)
        aside = tmp_path / f"timing.csv.damaged{number}"
        assert told is not None
        assert str(aside) in told
        assert aside.read_bytes() == text
        assert table.cut(None) is None  # said once
        rows = table.read()
        assert all(row["loss"] == 0.5 for row in rows)
        assert len(rows) == sum(
            line.endswith(b",0.5,") and not line.startswith(b'"') for line in text.split(b"\n")
        )


def test_names_of_any_kind_stand_in_a_table(tmp_path: Path) -> None:
    names = ["a,b", 'new\nline, "quoted"', "\udcff", "=cmd", "", '"']
    table = Table(tmp_path / "bad.csv", ("index", "name"), text=("name",))
    for index, name in enumerate(names):
        table.append({"index": index, "name": name})
    assert table.cut(None) is None
    assert [r.get("name", "") for r in table.read()] == csv_row(names)


def test_a_quote_after_quote_is_read_in_no_time(tmp_path: Path) -> None:
    table = Table(tmp_path / "bad.csv", ("index", "name"), text=("name",))
    table.path.write_bytes(b"index,name\n1," + b'"' * 100_001 + b"\n2,b\n")
    assert table.cut(None) is not None
    assert table.read() == [{"index": 2.0, "name": "b"}]


def test_columns_of_another_hetcl_are_refused(tmp_path: Path) -> None:
    table = Table(tmp_path / "metrics.csv", COLUMNS)
    with pytest.raises(InputError, match="has other columns"):
        table.cut(20, b"stage,epoch\nstage1,3\n")


# ---- small files -----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(damage=st.sampled_from(DAMAGES), seed=st.integers(0, 2**32))
def test_sealed_json_is_the_same_or_refused(damage: Damage, seed: int) -> None:
    tree = {"a": [1, 2.5, None, "ü"], "b": {"c": True}, "steps": list(range(50))}
    data = seal(tree)
    assert unseal(data) == tree
    with contextlib.suppress(TreeError):
        assert unseal(damage(data, random.Random(seed))) == tree


def test_what_was_set_aside_is_never_replaced(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "x").write_text(str(number))
        set_aside(tmp_path / "x")
    assert sorted(p.read_text() for p in tmp_path.iterdir()) == ["0", "1", "2"]
