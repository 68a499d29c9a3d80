"""Checkpoints: whole or not at all, the one before as a spare, no code from a stranger."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from hetcl.errors import InputError
from hetcl.runs import checkpoint
from hetcl.runs.resume import latest


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    state = {
        "stage": "stage1",
        "epoch": 3,
        "task": {"x": torch.randn(3, dtype=torch.float64), "l": [1, 2.5, "a"]},
    }
    checkpoint.save(tmp_path / "last.ckpt", state)
    back = checkpoint.load(tmp_path / "last.ckpt")
    assert back["task"]["l"] == [1, 2.5, "a"]
    torch.testing.assert_close(back["task"]["x"], state["task"]["x"], rtol=0, atol=0)
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_the_one_before_is_kept_when_asked(tmp_path: Path) -> None:
    for number in range(3):
        checkpoint.save(tmp_path / "last.ckpt", {"number": number}, keep_previous=True)
    assert checkpoint.load(tmp_path / "last.ckpt")["number"] == 2
    assert checkpoint.load(tmp_path / "previous.ckpt")["number"] == 1
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_checkpoint_that_is_cut_short_gives_way_to_the_one_before(share: float, tmp_path: Path) -> None:
    for number in range(2):
        state = {"number": number, "x": torch.randn(3000)}
        checkpoint.save(tmp_path / "last.ckpt", state, keep_previous=True)
    data = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(data[: int(len(data) * share)])
    found = latest(tmp_path)
    assert found is not None
    assert (found[0].name, found[1]["number"]) == ("previous.ckpt", 0)


def test_nothing_found_is_none_and_only_broken_ones_are_an_error(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 half a")
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read checkpoint .*last\.ckpt"):
        latest(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil",)


def test_no_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"hetcl": 1, "task": Evil()}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps({"hetcl": 1, "task": Evil()}))
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(InputError, match="cannot read checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "evil").exists()


def test_strangers_and_newer_ones_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="is not a hetcl checkpoint"):
        checkpoint.load(tmp_path / "other.ckpt")
    torch.save({"hetcl": checkpoint.FORMAT + 1}, tmp_path / "newer.ckpt")
    with pytest.raises(InputError, match="upgrade hetcl"):
        checkpoint.load(tmp_path / "newer.ckpt")
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoint.load(tmp_path / "missing.ckpt")
