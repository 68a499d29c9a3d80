"""Predictions stopped, resumed, grown; images that cannot be used; what was finished stays until there is better."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from hetcl.errors import InputError, Stopped, WorkFailed
from tests.downstream.predicting import contents, counted, found, run

pytestmark = pytest.mark.usefixtures("light")


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_stopped_and_resumed_no_image_is_done_twice(
    kind: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    model, out = request.getfixturevalue(kind), tmp_path / "p"
    whole = run(model, photos, tmp_path / "whole")
    asked = counted(monkeypatch, stop_at=1)
    with pytest.raises(Stopped, match="stopped after 2 of 4 images; go on with --resume"):
        run(model, photos, out)
    with pytest.raises(InputError, match="--resume to go on with them, --overwrite to replace them"):
        run(model, photos, out)
    with open(out / "progress-0.jsonl", "ab") as f:
        f.write(b'{"image": {"file_na')  # a kill in the middle of a line
    again = run(model, photos, out, resume=True)
    assert asked == [0, 1, 2, 3]
    assert found(again) == found(whole)
    for path in (tmp_path / "whole").rglob("*.*"):
        if path.suffix in (".jpg", ".png", ".csv"):
            assert (out / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())


def test_with_resume_new_and_changed_images_alone_are_done(
    detector: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p"
    run(detector, photos, out)
    first = (out / "predictions.json").read_bytes()
    asked = counted(monkeypatch)
    run(detector, photos, out, resume=True)
    assert asked == []
    assert found(json.loads(first)) == found(json.loads((out / "predictions.json").read_bytes()))
    Image.open(photos / "0.png").rotate(180).save(photos / "0.png")
    Image.open(photos / "2.png").save(photos / "1b.jpg")
    (photos / "deep" / "3.png").unlink()
    tree = run(detector, photos, out, resume=True)
    assert [image["file_name"] for image in tree["images"]] == ["0.png", "1b.jpg", "2.png", "deep/1.png"]
    assert asked == [0, 1]
    with pytest.raises(InputError, match=r"other settings: score_threshold was 0\.001, now 0\.5"):
        run(detector, photos, out, resume=True, score_threshold=0.5)
    assert run(detector, photos, out, overwrite=True, score_threshold=0.99)["annotations"] == []


def test_what_cannot_be_read_is_named_and_tried_again(
    detector: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (photos / "cut.jpg").write_bytes(b"not an image")
    tree = run(detector, photos, tmp_path / "p")
    assert len(tree["images"]) == 4
    assert tree["info"]["bad_images"] == 1
    assert "cut.jpg cannot be used (not an image" in capsys.readouterr().out
    assert "cut.jpg" in (tmp_path / "p" / "bad_images.csv").read_text()
    Image.open(photos / "0.png").convert("RGB").save(photos / "cut.jpg")
    asked = counted(monkeypatch)
    assert len(run(detector, photos, tmp_path / "p", resume=True)["images"]) == 5
    assert len(asked) == 1
    assert not (tmp_path / "p" / "bad_images.csv").exists()
    (tmp_path / "alone.png").write_bytes(b"no")
    with pytest.raises(WorkFailed, match="more than max_bad = 50%"):
        run(detector, tmp_path / "alone.png", tmp_path / "q")
    with pytest.raises(WorkFailed, match="none of the images can be used"):
        run(detector, tmp_path / "alone.png", tmp_path / "r", max_bad=1)


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_the_share_of_bad_images_is_one_of_all_of_them(
    kind: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two of six cannot be used; with --resume they alone are left, and half of all is allowed."""
    model, out = request.getfixturevalue(kind), tmp_path / "p"
    for name in ("cut.jpg", "none.png"):
        (photos / name).write_bytes(b"")
    first = run(model, photos, out)
    before = contents(out)
    assert found(run(model, photos, out, resume=True)) == found(first)
    after = contents(out)
    assert before.keys() == after.keys()
    assert [n for n in before if before[n] != after[n]] in ([], ["predictions.json"])  # the time it took
    before = after
    for i in range(5):
        (photos / f"more{i}.png").write_bytes(b"no image")
    with pytest.raises(WorkFailed, match=r"7 of (the first )?11 images .*max_bad = 50%"):
        run(model, photos, out, resume=True)
    after = contents(out)
    assert all(after[name] == content for name, content in before.items() if name != "bad_images.csv")
    assert after["bad_images.csv"].count(b"more") == 5
    for i in range(5):
        (photos / f"more{i}.png").unlink()
    assert found(run(model, photos, out, resume=True)) == found(first)
    assert {n: c for n, c in contents(out).items() if n != "predictions.json"} == {
        n: c for n, c in before.items() if n != "predictions.json"
    }


def test_a_reason_that_changed_is_the_one_that_is_listed(
    detector: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "cut.jpg").write_bytes(b"")
    run(detector, photos, tmp_path / "p")
    (photos / "cut.jpg").write_bytes(b"version https://git-lfs")
    run(detector, photos, tmp_path / "p", resume=True)
    with open(tmp_path / "p" / "bad_images.csv", newline="") as f:
        (row,) = csv.DictReader(f)
    assert row["name"] == "cut.jpg"
    assert "git lfs pull" in row["reason"]


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_with_resume_the_folder_is_as_if_made_anew(
    kind: str,
    photos: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, out = request.getfixturevalue(kind), tmp_path / "p"
    run(model, photos, out)
    (out / "drawn" / "mine.txt").write_text("a note of somebody's own")
    (photos / "2.png").unlink()
    (photos / "deep" / "3.png").write_bytes(b"no image any more")
    (out / "drawn" / "deep" / "1.jpg").unlink()
    Image.open(photos / "0.png").rotate(90).save(photos / "0.jpg")  # both keep their endings now
    asked = counted(monkeypatch)
    tree = run(model, photos, out, resume=True)
    assert asked == [0, 1, 2, 3]
    assert found(tree) == found(run(model, photos, tmp_path / "anew"))
    (out / "drawn" / "mine.txt").unlink()
    ours, anew = contents(out), contents(tmp_path / "anew")
    assert ours.keys() == anew.keys()
    assert all(ours[name] == anew[name] for name in ours if name != "predictions.json")


def test_a_result_that_names_other_files_removes_none_of_them(
    detector: Path, photos: Path, tmp_path: Path
) -> None:
    out, mine = tmp_path / "p", tmp_path / "mine.txt"
    mine.write_text("x")
    run(detector, photos, out)
    tree = json.loads((out / "predictions.json").read_text())
    for image, name in zip(tree["images"], ("drawn/../../mine.txt", str(mine), "../mine.txt"), strict=False):
        image["drawn"] = name
    (out / "predictions.json").write_text(json.dumps(tree))
    run(detector, photos, out, resume=True)
    assert mine.exists()


def test_a_damaged_result_is_not_gone_on_with(detector: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    run(detector, photos, out)
    whole = (out / "predictions.json").read_bytes()
    for broken in (whole[:-20], whole.replace(b'"images": [', b'"images": [3, '), b"[]"):
        (out / "predictions.json").write_bytes(broken)
        with pytest.raises(InputError, match="is damaged; add --overwrite"):
            run(detector, photos, out, resume=True)
        assert (out / "predictions.json").read_bytes() == broken
    run(detector, photos, out, overwrite=True)
