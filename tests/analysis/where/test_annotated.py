"""What is asked of images: boxes from a file, from objects, classes from instances and label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hetcl.analysis.where.annotated import COLUMNS, Located, open_question_images, painted, read_boxes
from hetcl.datasets import open_detection
from hetcl.errors import InputError
from hetcl.types import Sample
from tests.images.make import folder, shard

OPTIONS = {
    "boxes": "", "images": 0, "test_images": 0, "holdout": 0.25, "seed": 0, "data_split": "train",
    "test_split": "auto", "window": 0,
}  # fmt: skip


def test_scenes_answer_everything() -> None:
    asked = open_question_images("scenes:6@64", **{**OPTIONS, "images": 4})
    assert asked.boxes is not None
    assert asked.cells is asked.boxes
    assert asked.images is asked.boxes
    assert asked.classes[0] == "background"
    train, test = asked.boxes
    assert (len(train), len(test)) == (4, 50)
    data = open_detection("scenes:6@64", "train")
    for i in range(4):
        found = data.annotations(int(train.index[i]))
        box = train.box(i)
        assert box is not None
        np.testing.assert_allclose(box * 64, found.boxes[found.areas.argmax()])
        cells = train.cells(i, 64)
        np.testing.assert_array_equal(cells, painted(found))
        assert np.array_equal(train.sample(i).data, data.image(int(train.index[i])))


def test_small_objects_lie_on_top_and_crowds_are_void() -> None:
    found = open_detection("scenes:3@64", "train").annotations(1)
    label_map = painted(found)
    smallest = int(found.areas.argmin())
    from hetcl.datasets import masks

    assert found.segments is not None
    inside = masks.bitmap(found.segments[smallest], found.size) > 0
    assert (label_map[inside] == found.labels[smallest] + 1).all()


def test_boxes_of_a_file(tmp_path: Path) -> None:
    folder(tmp_path / "d", [f"{i}.jpg" for i in range(8)])
    file = tmp_path / "boxes.csv"
    file.write_text(",".join(COLUMNS) + "\n0,0,0,7,7\n3,2,4,5,7\n")
    asked = open_question_images(str(tmp_path / "d"), **{**OPTIONS, "boxes": str(file)})
    assert asked.held_out
    assert asked.cells is None
    assert asked.boxes is not None
    known = {}
    for part in asked.boxes:
        for i in range(len(part)):
            known[part.name(i) if hasattr(part.data, "name") else part.sample(i).name] = part.box(i)
    assert sum(box is not None for box in known.values()) == 2
    np.testing.assert_allclose(known["0.jpg"], [0, 0, 1, 1])  # 8 x 8 pixels, the last one included
    np.testing.assert_allclose(known["3.jpg"], [0.25, 0.5, 0.75, 1])


def test_splits_of_shards(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", 5)
    shard(tmp_path / "val-0.tar", 3, first=5)
    asked = open_question_images(str(tmp_path), **OPTIONS)
    assert not asked.held_out
    assert (len(asked.images[0]), len(asked.images[1])) == (5, 3)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("key,left,top,right\n", "lacks the column bottom"),
        ("key,left,top,right,bottom\n", "holds no box"),
        ("key,left,top,right,bottom\na,1,2,x,4\n", "line 2: a box is four numbers"),
        ("key,left,top,right,bottom\na,1,2,3\n", "line 2: a box is four numbers"),
        ("key,left,top,right,bottom\na,5,2,3,4\n", "line 2: left must not exceed right"),
        (
            "key,left,top,right,bottom\na,nan,2,3,4\n",
            "line 2: a box is four numbers of pixels from 0, not nan",
        ),
        ("key,left,top,right,bottom\na,-1,2,3,4\n", "line 2: a box is four numbers of pixels from 0, not -1"),
        ("key,left,top,right,bottom\na,1,2,3,4\na,0,0,9,9\n", "line 3: the key a stands there a second time"),
        ("key;left;top;right;bottom\na;1;2;3;4\n", "it is parted by ';', save it with commas"),
        (
            "key,left,top,right,bottom\na,0,0,1,1\nb,0.1,0.2,0.4,0.5\n",
            "has no number above 1: these are shares",
        ),
        ("key\tleft\ttop\tright\tbottom\na\t1\t2\t3\t4\n", "it is parted by tabs"),
    ],
)
def test_files_of_boxes_that_cannot_be_used(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(InputError, match=match):
        read_boxes(str(tmp_path / "boxes.csv"))


def test_annotated_sets_have_boxes_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="boxes of its own"):
        open_question_images("scenes:4", **{**OPTIONS, "boxes": "x.csv"})
    folder(tmp_path / "d", ["a.jpg"])
    with pytest.raises(InputError, match="leaves 1 to fit and 0 to test"):
        open_question_images(str(tmp_path / "d"), **OPTIONS)


def test_located_is_a_source() -> None:
    from hetcl.types import Source

    part = Located(open_detection("scenes:3@64", "train"), np.array([0, 2]))
    assert isinstance(part, Source)
    assert part.sample(1).name == "scene 2"


def test_names_that_repeat_need_their_folders(tmp_path: Path) -> None:
    sample = [Sample(np.zeros((20, 30, 3), np.uint8), None, f"{folder}/0.png") for folder in ("cat", "dog")]
    (tmp_path / "boxes.csv").write_text("key,left,top,right,bottom\n0,0,0,9,9\n")
    file = read_boxes(str(tmp_path / "boxes.csv"))
    for _ in range(2):  # the same image may be asked again
        np.testing.assert_allclose(file.main_box(sample[0]), [0, 0, 1 / 3, 0.5])
    with pytest.raises(
        InputError, match=r"cat/0.png and dog/0.png share the key 0; give keys with folders, such as dog/0"
    ):
        file.main_box(sample[1])
    (tmp_path / "boxes.csv").write_text("key,left,top,right,bottom\ncat/0,0,0,9,9\ndog/0,10,10,29,19\n")
    file = read_boxes(str(tmp_path / "boxes.csv"))
    np.testing.assert_allclose(file.main_box(sample[0]), [0, 0, 1 / 3, 0.5])
    np.testing.assert_allclose(file.main_box(sample[1]), [1 / 3, 0.5, 1, 1])


def test_boxes_of_another_resolution_are_refused(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("key,left,top,right,bottom\na,20,0,39,19\nb,21,0,40,19\n")
    file = read_boxes(str(tmp_path / "boxes.csv"))
    image = np.zeros((20, 30, 3), np.uint8)
    np.testing.assert_allclose(
        file.main_box(Sample(image, None, "a.png")), [2 / 3, 0, 1, 1]
    )  # half of it is inside
    with pytest.raises(InputError, match="most of the box of b lies outside its image of 30 x 20 pixels"):
        file.main_box(Sample(image, None, "b.png"))
