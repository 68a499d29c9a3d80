"""The features on disk: written in any order, stopped anywhere, whole at the end."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.analysis.store import Store
from hetcl.errors import WorkFailed
from tests.damage import DAMAGES, Damage, spoil

COLUMNS = {
    "query": ("float32", (5,)),
    "key": ("float32", (5,)),
    "boxes": ("float32", (2, 4)),
    "label": "int64",
}


def folder(root: Path, *, images: int = 23, batch: int = 5, seed: int = 0) -> Store:
    key = {"seed": seed, "area": (0.2, 1.0)}
    return Store(root, "a/b:c", key, COLUMNS, images=images, batch=batch)


def rows(step: int, count: int) -> dict[str, np.ndarray]:
    """What a step computes: a function of the step alone."""
    rng = np.random.default_rng(step)
    return {
        "query": rng.random((count, 5), np.float32),
        "key": rng.random((count, 5), np.float32),
        "index": np.arange(count) + 1000 * step,
        "boxes": rng.random((count, 2, 4), np.float32),
        "label": rng.integers(0, 9, count),
    }


@settings(max_examples=20, deadline=None)
@given(data=st.data(), images=st.integers(1, 40), batch=st.integers(1, 9))
def test_any_order_any_stops_any_bad_images_give_the_rows_in_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, images: int, batch: int
) -> None:
    root = tmp_path_factory.mktemp("features")
    steps = -(-images // batch)
    usable = [data.draw(st.integers(0, min(batch, images - s * batch)), label="usable") for s in range(steps)]
    order = data.draw(st.permutations(range(steps)), label="order")
    stop = data.draw(st.integers(0, steps), label="stop")
    one = folder(root, images=images, batch=batch)
    one.prepare()
    for step in order[:stop]:
        one.write(step, **rows(step, usable[step]))
    one.close()
    other = folder(root, images=images, batch=batch)
    other.prepare()
    assert sorted(other.todo()) == sorted(order[stop:])
    assert not other.finished
    for step in other.todo().tolist():
        other.write(step, **rows(step, usable[step]))
    other.close()
    other.finish()
    assert folder(root, images=images, batch=batch + 1).finished  # whole is whole, whatever the batch
    got = folder(root, images=images, batch=batch).read()
    expected = [rows(s, usable[s]) for s in range(steps)]
    for name in ("query", "key", "index", "boxes", "label"):
        np.testing.assert_array_equal(got[name], np.concatenate([e[name] for e in expected]))


def test_steps_that_were_not_flushed_are_done_again(tmp_path: Path) -> None:
    one = folder(tmp_path)
    one.prepare()
    one.write(0, **rows(0, 5))
    one.flush()
    one.write(1, **rows(1, 5))  # the process dies here
    assert folder(tmp_path).todo().tolist() == [1, 2, 3, 4]


def test_another_key_is_another_folder_and_another_batch_starts_anew(tmp_path: Path) -> None:
    one = folder(tmp_path)
    assert one.path != folder(tmp_path, seed=1).path
    assert one.path.parent == tmp_path
    one.prepare()
    one.write(0, **rows(0, 5))
    one.close()
    other = folder(tmp_path, batch=4)
    other.prepare()
    assert len(other.todo()) == 6


@pytest.mark.parametrize("name", ["query.npy", "steps.npy", "facts.json"])
def test_a_damaged_unfinished_folder_starts_anew(tmp_path: Path, name: str) -> None:
    one = folder(tmp_path)
    one.prepare()
    one.write(0, **rows(0, 5))
    one.close()
    (one.path / name).write_bytes(b"junk")
    one.prepare()
    assert len(one.todo()) == 5


def test_a_damaged_finished_folder_is_refused_by_name(tmp_path: Path) -> None:
    one = folder(tmp_path, images=5)
    one.prepare()
    one.write(0, **rows(0, 4))
    one.finish()
    (one.path / "key.npy").write_bytes((one.path / "key.npy").read_bytes()[:100])
    with pytest.raises(WorkFailed, match="remove that folder"):
        one.read()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["query", "key", "index", "label", "steps"])
@pytest.mark.parametrize("seed", range(3))
def test_damaged_steps_of_a_stopped_pass_are_computed_again(
    damage: Damage, name: str, seed: int, tmp_path: Path
) -> None:
    one = folder(tmp_path)
    one.prepare()
    for step in (0, 1, 3):
        one.write(step, **rows(step, 4))
    one.close()
    spoil(one.path / f"{name}.npy", damage, seed)
    again = folder(tmp_path)
    again.prepare()
    assert {2, 4} <= set(again.todo().tolist())
    for step in again.todo().tolist():
        again.write(step, **rows(step, 3 if step == 4 else 4))
    again.close()
    again.finish()
    got, expected = again.read(), [rows(s, 3 if s == 4 else 4) for s in range(5)]
    for part in ("query", "key", "index", "boxes", "label"):
        np.testing.assert_array_equal(got[part], np.concatenate([e[part] for e in expected]))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["query.npy", "label.npy", "index.npy", "boxes.npy", "facts.json"])
@pytest.mark.parametrize("usable", [4, 5])
def test_damaged_features_are_not_read_but_computed_again(
    damage: Damage, name: str, usable: int, tmp_path: Path
) -> None:
    one = folder(tmp_path, images=10)
    one.prepare()
    for step in range(2):
        one.write(step, **rows(step, usable))
    one.finish()
    assert folder(tmp_path, images=10).finished
    before = {p.name: p.read_bytes() for p in one.path.iterdir()}
    spoil(one.path / name, damage, seed=usable)
    again = folder(tmp_path, images=10)
    if (one.path / name).read_bytes() == before[name]:
        assert again.finished
        return
    assert not again.finished
    with pytest.raises(WorkFailed, match="damaged"):
        again.read()
    again.prepare()
    for step in again.todo().tolist():
        again.write(step, **rows(step, usable))
    again.finish()
    assert {p.name: p.read_bytes() for p in one.path.iterdir() if p.name != "steps.npy"} == {
        n: b for n, b in before.items() if n != "steps.npy"
    }


def test_whole_features_lose_only_the_steps_that_are_damaged(tmp_path: Path) -> None:
    one = folder(tmp_path, images=10)
    one.prepare()
    for step in range(2):
        one.write(step, **rows(step, 5))
    one.finish()
    data = bytearray((one.path / "key.npy").read_bytes())
    data[-1] ^= 1
    (one.path / "key.npy").write_bytes(data)
    again = folder(tmp_path, images=10)
    again.prepare()
    assert again.todo().tolist() == [1]


def test_a_kill_between_the_renames_at_the_end_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = folder(tmp_path, images=10)
    one.prepare()
    for step in range(2):
        one.write(step, **rows(step, 4))
    real, renamed = os.replace, list[str]()

    def killed(source: Any, target: Any) -> None:
        if str(target).endswith(".npy"):
            renamed.append(str(target))
            if len(renamed) == 3:
                raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as dying:
        dying.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            one.finish()
    assert len(folder(tmp_path, images=10).read()["index"]) == 8


def test_unfinished_features_are_not_called_whole(tmp_path: Path) -> None:
    one = folder(tmp_path)
    one.prepare()
    with pytest.raises(WorkFailed, match="--resume"):
        one.finish()


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = folder(tmp_path)
    one.prepare()

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(WorkFailed, match="disk is full"):
        one.write(0, **rows(0, 5))


def test_its_size_on_disk_is_told_beforehand(tmp_path: Path) -> None:
    one = folder(tmp_path, images=1000, batch=10)
    one.prepare()
    held = sum(p.stat().st_size for p in one.path.glob("*.npy"))
    assert one.size <= held <= one.size + 6 * 1024
