"""Nothing outside of a data set's folder is opened by what a file in it says, or by a link in it."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hetcl.datasets import open_detection, open_segmentation
from hetcl.datasets.annotations import DetectionSet, SegmentationSet
from hetcl.errors import InputError
from hetcl.settings import resolve_evaluate, resolve_finetune
from tests.downstream import layouts

OPEN = {
    "coco": open_detection,
    "lvis": open_detection,
    "voc": open_detection,
    "voc pixels": open_segmentation,
    "cityscapes": open_detection,
    "cityscapes pixels": open_segmentation,
}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The real paths of all files that are opened for reading."""
    seen: set[str] = set()
    real = io.open

    def spy(file: object, *args: object, **kwargs: object) -> object:
        if not isinstance(file, int):
            seen.add(os.path.realpath(os.fspath(file)))  # type: ignore[call-overload]
        return real(file, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", spy)
    monkeypatch.setattr(io, "open", spy)
    return seen


def written(kind: str, root: Path) -> Path:
    """A set of two images for training and three for validation."""
    if kind.startswith("voc"):
        kit = layouts.write_voc(root.with_name("kit"), train=2, val=3, years=("VOC2012",), devkit=False)
        return (kit / "VOC2012").rename(root)
    if kind.startswith("cityscapes"):
        layouts.write_cityscapes(root, train=2, val=3)
        return root
    if kind == "lvis":
        layouts.write_lvis(root, train=2, val=3)
        return root
    return layouts.write_coco(root, train=2, val=3, masks="polygons", plain=True)


def opens(kind: str, root: Path, *, follow_links: bool = False) -> DetectionSet | SegmentationSet:
    data = OPEN[kind](f"{kind.split()[0]}:{root}", "val", follow_links=follow_links)
    for i in range(len(data)):
        data.image(i)
    return data


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image beside the data set."""
    return layouts.save(tmp_path / "beside" / "secret.png", np.full((64, 64, 3), 77, np.uint8))


@pytest.mark.parametrize("kind", ["coco", "lvis"])
@pytest.mark.parametrize(
    "name",
    ["../../beside/secret.png", "{0}", "..\\..\\beside\\secret.png", "x/../../../beside/secret.png"],
)
def test_names_that_lead_out_of_coco_are_refused(
    kind: str, name: str, tmp_path: Path, secret: Path, opened: set[str]
) -> None:
    root = written(kind, tmp_path / "set")
    path = next(root.glob("**/*val*.json"))
    document = json.loads(path.read_text())
    for folder in [p for p in root.iterdir() if p.is_dir()]:
        (folder / "x").mkdir()
    for image in document["images"]:
        image.pop("coco_url", None)
    document["images"][1]["file_name"] = asked = name.format(secret)
    path.write_text(json.dumps(document))
    opened.clear()
    if kind == "lvis":  # of a name it looks at the last 16 characters
        document["images"][1]["coco_url"] = "http://x/../../beside/" + asked
        with contextlib.suppress(InputError):
            opens(kind, root)
    else:
        told = rf"{path.name}: image \S+ \(.*secret\.png\) leads out of .*secret\.png: .*put the file into"
        with pytest.raises(InputError, match=told):
            opens(kind, root)
    assert str(secret) not in opened


def test_lvis_does_not_follow_addresses(tmp_path: Path, opened: set[str]) -> None:
    root = written("lvis", tmp_path / "set")
    secret = layouts.save(tmp_path / "secret.png", np.full((64, 64, 3), 77, np.uint8))
    path = next(root.glob("**/*val*.json"))
    document = json.loads(path.read_text())
    document["images"][1] |= {"coco_url": "http://x/../secret.png", "file_name": "../../secret.png"}
    path.write_text(json.dumps(document))
    opened.clear()
    with pytest.raises(InputError, match="leads out of"):
        opens("lvis", root)
    assert str(secret) not in opened


@pytest.mark.parametrize("kind", ["voc", "voc pixels"])
@pytest.mark.parametrize(
    "line", ["../../beside/secret", "..\\..\\beside\\secret.png", "x/../../../beside/secret.png"]
)
def test_lists_that_lead_out_of_voc_are_refused(
    kind: str, line: str, tmp_path: Path, secret: Path, opened: set[str]
) -> None:
    root = written(kind, tmp_path / "set")
    for path in root.glob("ImageSets/*/val.txt"):
        path.write_text(path.read_text() + line + "\n")
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (root / folder / "x").mkdir()
    opened.clear()
    with pytest.raises(InputError, match=r"val\.txt: line 4 \(.*secret.*\) leads out of .*put the file into"):
        opens(kind, root)
    assert str(secret) not in opened


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize("what", ["folder", "files"])
def test_links_that_lead_out_are_refused_unless_allowed(
    kind: str, what: str, tmp_path: Path, opened: set[str]
) -> None:
    root, away = written(kind, tmp_path / "set"), tmp_path / "away"
    plain = opens(kind, root)
    images = sorted(p for p in root.rglob("*.[jp][pn]g") if "gtFine" not in p.parts and "val" in str(p))
    images = sorted(root.rglob("JPEGImages/*.jpg")) or images
    if what == "folder":
        folder = images[0].parent
        shutil.move(folder, away)
        folder.symlink_to(away)
    else:
        away.mkdir()
        for path in images:
            shutil.move(path, away / path.name)
            path.symlink_to(away / path.name)
    opened.clear()
    with pytest.raises(InputError, match=r"is a link, .*leads out of .*set follow_links to true"):
        opens(kind, root)
    assert not any(Path(path).is_relative_to(away) for path in opened)
    allowed = opens(kind, root, follow_links=True)
    assert allowed.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("coco", "annotations/instances_val.json"),
        ("voc", "ImageSets/Main/val.txt"),
        ("voc", "Annotations/2012_100000.xml"),
        ("voc pixels", "classes.txt"),
        ("voc pixels", "labelmap.txt"),
        ("voc pixels", "ImageSets/Segmentation/val.txt"),
    ],
)
def test_annotations_that_are_links_out_are_not_read(
    kind: str, name: str, tmp_path: Path, opened: set[str]
) -> None:
    root = written(kind, tmp_path / "set")
    path = root / name
    target = tmp_path / "passwd"
    target.write_text("root:x:0:0:secret\n")
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    opened.clear()
    with pytest.raises(InputError, match="follow_links") as told:
        opens(kind, root)
    assert "secret" not in str(told.value)
    assert str(target) not in opened


@pytest.mark.parametrize("kind", OPEN)
def test_a_root_may_be_a_link_and_links_within_it_are_fine(kind: str, tmp_path: Path) -> None:
    root = written(kind, tmp_path / "set")
    names = [opens(kind, root).name(i) for i in range(3)]
    (tmp_path / "link").symlink_to(root)
    image = root / names[0]
    image.rename(root / ("moved" + image.suffix))
    image.symlink_to(root / ("moved" + image.suffix))
    data = opens(kind, tmp_path / "link")
    assert [data.name(i) for i in range(3)] == names


def test_names_that_lead_about_within_the_set_are_read_and_plain(tmp_path: Path) -> None:
    root = written("coco", tmp_path / "set")
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    before = opens("coco", root)
    name = document["images"][0]["file_name"]
    folder = Path(before.name(0)).parent
    document["images"][0]["file_name"] = f"../{folder}/{name}"
    document["images"][1]["file_name"] = str(root / folder / document["images"][1]["file_name"])
    path.write_text(json.dumps(document))
    data = opens("coco", root)
    assert [data.name(i) for i in range(3)] == [before.name(i) for i in range(3)]


def test_the_setting_is_one_of_both_verbs() -> None:
    assert not resolve_finetune().follow_links
    assert resolve_finetune(None, ["--follow_links", "true"]).follow_links
    assert resolve_evaluate({"follow_links": True}).follow_links
