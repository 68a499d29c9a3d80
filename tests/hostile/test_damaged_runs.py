"""Runs whose files were damaged, lost or edited: the same numbers in the end, or one line and nothing lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from hetcl.errors import InputError
from hetcl.pretraining import run as pretraining_run
from hetcl.pretraining.plan import MAY_CHANGE
from hetcl.runs.folder import RunFolder
from hetcl.runs.lock import FolderLock
from hetcl.weights.exporters import _lock
from tests.damage import DAMAGES, Damage, spoil
from tests.hostile.conftest import TINY, Says

RESUME = ("pretrain", "--out", "run", "--resume")
RESULTS = ("backbone.safetensors", "metrics.csv")


def files(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def results(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in RESULTS]


def unfinished(run: Path, *lost: str) -> None:
    """Take away what a run leaves at its end, and some checkpoints."""
    for name in ("backbone.safetensors", "summary.json", *(f"checkpoints/{n}.ckpt" for n in lost)):
        (run / name).unlink()


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Damage, run: Path, finished: Path, says: Says
) -> None:
    unfinished(run, "stage2")
    last = run / "checkpoints" / "last.ckpt"
    spoil(last, damage, seed=1)
    damaged = last.read_bytes()
    says(*RESUME, status=0)
    assert "last.ckpt cannot be read; run/checkpoints/previous.ckpt takes its place" in says.out
    assert results(run) == results(finished)
    assert (run / "checkpoints" / "last.ckpt.damaged").read_bytes() == damaged


@pytest.mark.parametrize("lost", [("last", "previous"), ("last", "previous", "stage2")])
@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_the_end_of_a_stage_is_gone_on_from(
    how: str, lost: tuple[str, ...], run: Path, finished: Path, says: Says
) -> None:
    unfinished(run, *(lost if how == "gone" else ()))
    for name in lost if how == "damaged" else ():
        spoil(run / f"checkpoints/{name}.ckpt", DAMAGES[1], seed=1)
    says(*RESUME, status=0)
    assert f"{'stage1' if 'stage2' in lost else 'stage2'}.ckpt takes its place" in says.out
    assert results(run) == results(finished)


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_all_are_damaged_nothing_is_touched(damage: Damage, run: Path, says: Says) -> None:
    for file in (run / "checkpoints").iterdir():
        spoil(file, damage, seed=1)
    before = files(run)
    assert "there is no other to go on from" in says(*RESUME)
    assert files(run) == before


def test_a_run_that_lost_its_checkpoints_is_not_begun_again(run: Path, says: Says) -> None:
    shutil.rmtree(run / "checkpoints")
    before = files(run)
    assert "holds a run that has ended (backbone.safetensors) and has no checkpoint" in says(*RESUME)
    assert files(run) == before
    (run / "backbone.safetensors").unlink()
    (run / "summary.json").unlink()
    before = files(run)
    assert "the run in run got to step 2 of stage2, and its checkpoints are gone" in says(*RESUME)
    assert files(run) == before
    (run / "metrics.csv").unlink()  # the way out that the line names
    says(*RESUME, status=0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_no_model(damage: Damage, run: Path, says: Says) -> None:
    for name in ("checkpoints/stage1.ckpt", "checkpoints/stage2.ckpt", "backbone.safetensors"):
        shutil.copy(run / name, "kept")
        spoil(run / name, damage, seed=1)
        models = [f"run/{name}", *(["run"] if "stage2" in name else [])]
        for model in models:
            assert f"cannot read run/{name} as weights: it is damaged" in says.pretrain("--init", model)
            words = ("export", model, "--format", "timm", "--out", "out.pth")
            assert f"cannot read run/{name} as weights: it is damaged" in says(*words)
            assert not Path("out.pth").exists()
        shutil.copy("kept", run / name)


def test_another_stage_does_not_take_the_place_of_a_lost_one(run: Path, says: Says) -> None:
    (run / "checkpoints/stage2.ckpt").unlink()
    words = ("export", "run", "--format", "timm", "--out", "out.pth")
    assert "run is a run that has ended, but its checkpoint stage2.ckpt is gone" in says(*words)
    assert "run/backbone.safetensors" in says(*words)


# ---- tables ----------------------------------------------------------------------------------------------------------


def lost_header(text: bytes) -> bytes:
    return text.partition(b"\n")[2]


def zeros(text: bytes) -> bytes:
    return text[:40] + bytes(100) + text[140:]


def half_line(text: bytes) -> bytes:
    lines = text.splitlines(keepends=True)
    return b"".join([lines[0], lines[1][:3] + b"\n", *lines[2:]])


def nothing(text: bytes) -> bytes:
    return b""


def binary(text: bytes) -> bytes:
    return b"\xff\xfe\x00" * 400


@pytest.mark.parametrize("change", [lost_header, zeros, half_line, nothing, binary])
def test_a_damaged_table_stops_no_training(change: Any, run: Path, finished: Path, says: Says) -> None:
    unfinished(run, "stage2")
    for name in ("metrics.csv", "timing.csv", "bad_images.csv"):
        table = run / name
        table.write_bytes(change(table.read_bytes() if table.exists() else b"index,name,reason\n3,a,b\n"))
    says(*RESUME, status=0)
    assert results(run) == results(finished)
    assert RunFolder(run).read_summary()["stages"] == RunFolder(finished).read_summary()["stages"]
    if change is not nothing:
        assert "run/metrics.csv was damaged: it was put back as the checkpoint has it" in says.out
        assert "run/timing.csv was damaged" in says.out
        assert "run/bad_images.csv was damaged" in says.out
        assert (run / "metrics.csv.damaged").exists()
    says(*RESUME, status=0)
    assert "was damaged" not in says.out


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("knn"), "some of this could not be shown (KeyError: 'knn'); the files have it"),
        (InputError("new/settings.yaml is damaged"), "! new/settings.yaml is damaged"),
    ],
)
def test_words_that_fail_stop_no_run(
    error: Exception, said: str, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(pretraining_run, "verdict_lines", broken)
    says.pretrain(status=0)
    assert said in says.out
    assert Path("new/summary.json").is_file()


@pytest.mark.parametrize("name", ["metrics.csv", "log.txt", "checkpoints/last.ckpt", "summary.json"])
def test_a_folder_in_a_files_place_is_refused_before_the_work(name: str, run: Path, says: Says) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    before = files(run)
    assert f"run/{name} is no plain file; move it away" in says(*RESUME)
    assert files(run) == before


# ---- settings.yaml ---------------------------------------------------------------------------------------------------


def edited(run: Path, **changes: Any) -> None:
    """As somebody would edit it who removes the checksum; a setting of None is taken out, ``drop`` a field."""
    tree = yaml.safe_load((run / "settings.yaml").read_text())
    for name in changes.pop("drop", ()):
        del tree[name]
    for name, value in changes.items():
        (tree if name in tree else tree["settings"])[name] = value
    (run / "settings.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seed", range(4))
def test_damaged_settings_are_refused(damage: Damage, seed: int, run: Path, says: Says) -> None:
    text = (run / "settings.yaml").read_bytes()
    spoil(run / "settings.yaml", damage, seed)
    if (run / "settings.yaml").read_bytes() != text:
        assert "settings.yaml" in says(*RESUME)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hetcl": "99.0.0"}, "was written by a newer hetcl (99.0.0); upgrade hetcl"),
        ({"drop": ["fingerprint"]}, "lacks 'fingerprint'"),
        ({"drop": ["window"]}, "lacks 'window'"),
        ({"data": 5}, "data cannot be 5"),
        ({"data": None}, "data cannot be None"),
        ({"window": "all"}, "window cannot be 'all'"),
        ({"window": True}, "window cannot be True"),
        ({"allow_partial": "x"}, "allow_partial cannot be 'x'"),
        ({"settings": []}, "does not hold the settings of a run"),
        ({"batch": "eight"}, "setting batch in run/settings.yaml must be a whole number"),
        ({"batch": [8]}, "setting batch in run/settings.yaml must be a whole number"),
        ({"stage1": 3}, "'stage1' in run/settings.yaml is a group of settings"),
        ({"stage1": {"epochs": 1}}, "lacks the setting stage1."),
    ],
)
def test_settings_that_cannot_be_are_refused(
    changes: dict[str, Any], said: str, run: Path, says: Says
) -> None:
    edited(run, **changes)
    before = files(run)
    assert said in says(*RESUME)
    assert files(run) == before


def test_every_setting_that_decides_numbers_must_be_there(run: Path, says: Says) -> None:
    tree = yaml.safe_load((run / "settings.yaml").read_text())
    for name in tree["settings"]:
        spoiled = {**tree, "settings": {k: v for k, v in tree["settings"].items() if k != name}}
        (run / "settings.yaml").write_text(yaml.safe_dump(spoiled))
        if name in MAY_CHANGE:
            continue
        assert "run/settings.yaml lacks the setting" in says(*RESUME), name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("settings: &a {a: *a}", "contains itself"),
        ("[" * 50_000, "not valid YAML"),
        ("settings: {batch: 8, batch: 16}", "'batch' comes twice"),
        ("\x00\x01\x02", "not valid YAML"),
        ("\ufeff", "does not hold the settings"),
        ("!!python/object/apply:os.system [touch evil]", "not valid YAML"),
    ],
)
def test_settings_that_are_no_tree_are_refused_at_once(text: str, said: str, run: Path, says: Says) -> None:
    (run / "settings.yaml").write_text(text)
    for words in (RESUME, ("export", "run", "--format", "timm", "--out", "out.pth")):
        assert said in says(*words)
    assert not Path("evil").exists()


def test_a_recipe_that_repeats_itself_is_refused_at_once(says: Says) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    Path("bomb.yaml").write_text(bomb)
    assert "repeats itself too often" in says.pretrain("--recipe", "bomb.yaml")


def test_who_edits_the_settings_removes_their_first_line(run: Path, says: Says) -> None:
    text = (run / "settings.yaml").read_text().replace("max_bad: 0.1", "max_bad: 0.2")
    (run / "settings.yaml").write_text(text)
    assert "does not match its checksum: it is damaged or was edited" in says(*RESUME)
    (run / "settings.yaml").write_text(text.partition("\n")[2])
    says(*RESUME, status=0)


# ---- two at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        RESUME,
        ("probe", "run", "--data", "scenes:30", "--out", "other", "--resume"),
        ("contrast", "run", "--data", "scenes:30", "--out", "other", "--resume"),
        ("export", "run", "--format", "timm", "--out", "other/x.pth"),
    ],
)
def test_a_folder_that_is_being_written_is_refused(words: tuple[str, ...], run: Path, says: Says) -> None:
    folder = Path("run" if words == RESUME else "other")
    folder.mkdir(exist_ok=True)
    name = _lock(Path("other/x.pth")).file.name if words[0] == "export" else ".lock"
    before = files(folder)
    with FolderLock(folder, name):
        assert f"{folder} is being written by process " in says(*words)
    assert files(folder) == before


def test_a_lock_that_was_left_behind_bars_nobody(run: Path, says: Says) -> None:
    (run / ".lock").write_text("")
    (run / ".lock.json").write_text("{}")
    says(*RESUME, status=0)
    assert not (run / ".lock").exists()
    says("pretrain", "--data", "scenes:16", "--out", "new", *TINY, status=0)
    assert not [p.name for p in Path("new").iterdir() if p.name.startswith(".")]
