"""Tar shards: grouping, labels, order, random reads, and shards that cannot be used."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import pickle
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetcl.errors import InputError
from hetcl.images.labels import class_names
from hetcl.images.shard_index import RECORD
from hetcl.images.sources import open_source, open_validation
from hetcl.types import BadImage, Source
from tests.images.make import encoded, folder, pixels, shard, tar
from tests.reference.images import grouped


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def contents(source: Source) -> list[tuple[object, int | None]]:
    return [(source.sample(i).data, source.sample(i).label) for i in range(len(source))]


key = st.sampled_from(["a", "b", "dir/a", "dir/sub/c", ".hidden", "00"])
extension = st.sampled_from(["jpg", "png", "cls", "txt", "JPG"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(st.tuples(key, extension), max_size=14),
    kind=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]),
    data=st.data(),
)
def test_grouping(
    tmp_path_factory: pytest.TempPathFactory, members: list, kind: int, data: st.DataObject
) -> None:
    """What is read back equals the obvious grouping of the members."""
    place = tmp_path_factory.mktemp("grouping")
    full = [
        (f"{k}.{e}", b"%d" % data.draw(st.integers(0, 9)) if e == "cls" else os.urandom(i * 97 % 1100))
        for i, (k, e) in enumerate(members)
    ]
    path = tar(place / "x.tar", full, kind)
    expected = grouped([(name.replace("JPG", "jpg"), body) for name, body in full])
    if not expected:
        with pytest.raises(InputError, match="no images in"):
            open_source(str(path), cache=place)
        return
    source = open_source(str(path), cache=place)
    read = contents(source)
    assert [image for image, _ in read] == [image for image, _ in expected]
    assert [label for _, label in read] == [label for _, label in expected]
    assert source.unlabelled == sum(y is None for _, y in read) * (source.classes is not None)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path: Path, cache: Path, kind: int) -> None:
    long = "folder/" + "n" * 180
    path = tar(
        tmp_path / "x.tar",
        [(f"{long}.jpg", b"one"), (f"{long}.cls", b"4"), ("ü.jpg", b"two"), ("ü.cls", b"1")],
        kind,
    )
    assert contents(open_source(str(path), cache=cache)) == [(b"one", 4), (b"two", 1)]


def test_source(tmp_path: Path, cache: Path) -> None:
    for i in range(3):
        shard(tmp_path / f"x-{i}.tar", 4, 4 * i, classes=3)
    source = open_source(str(tmp_path / "x-{0..2}.tar"), cache=cache)
    assert isinstance(source, Source)
    assert len(source) == 12
    assert source.classes == ("0", "1", "2")
    assert [source.label(i) for i in range(12)] == [i % 3 for i in range(12)]
    starts = source.blocks()
    assert starts is not None
    assert starts.dtype == np.int64
    assert starts.tolist() == [0, 4, 8]
    assert source.sample(5).name == "x-1.tar/0005.jpg"
    assert RECORD.itemsize == 20
    # A hole in the middle and an order of one's own.
    some = open_source(",".join(str(tmp_path / f"x-{i}.tar") for i in (2, 0)), cache=cache)
    assert contents(some) == contents(source)[8:] + contents(source)[:4]
    assert some.fingerprint != source.fingerprint
    assert contents(open_source(str(tmp_path / "x-?.tar"), cache=cache)) == contents(source)


def test_same_images_as_a_folder(tmp_path: Path, cache: Path) -> None:
    names = [f"{i:03d}.jpg" for i in range(9)]
    root = folder(tmp_path / "d", names)
    members = [(name, (root / name).read_bytes()) for name in names]
    tar(tmp_path / "s-0.tar", members[:4])
    tar(tmp_path / "s-1.tar", members[4:])
    assert contents(open_source(str(root), cache=cache)) == contents(
        open_source(str(tmp_path / "s-{0..1}.tar"), cache=cache)
    )


def test_random_reads_in_threads_and_after_pickling(tmp_path: Path, cache: Path) -> None:
    for i in range(70):  # more shards than files are kept open
        tar(tmp_path / f"x-{i:02d}.tar", [(f"{i}_{j}.jpg", b"%d %d" % (i, j)) for j in range(3)])
    source = open_source(str(tmp_path / "x-{00..69}.tar"), cache=cache)
    source.sample(0)
    packed = pickle.dumps(source)
    assert len(packed) < 2000
    copy = pickle.loads(packed)
    order = [i % 210 for i in range(1000)]
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: copy.sample(i).data, order))
    assert read == [b"%d %d" % divmod(i, 3) for i in order]


def test_reads_in_forked_workers(tmp_path: Path, cache: Path) -> None:
    import multiprocessing

    source = open_source(str(shard(tmp_path / "x.tar", 20)), cache=cache)
    expected = [source.sample(i).data for i in range(20)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert [s.data for s in pool.map(source.sample, range(20))] == expected


def test_labels_from_json(tmp_path: Path, cache: Path) -> None:
    members = [
        ("a.jpg", b"1"), ("a.json", b'{"label": 2, "other": "x"}'),
        ("b.json", b'{"cls": "1"}'), ("b.png", b"2"),
        ("c.jpg", b"3"), ("c.cls", b" 0\n"), ("c.json", b'{"label": 7}'),
    ]  # fmt: skip
    source = open_source(str(tar(tmp_path / "x.tar", members)), cache=cache)
    assert [source.label(i) for i in range(3)] == [2, 1, 0]
    assert source.classes == ("0", "1", "2")


@pytest.mark.parametrize("text", [b"cat", b"-1", b"", b"\xff", b"99999999999"])
def test_labels_that_are_no_numbers_are_left_aside_aloud(
    tmp_path: Path, cache: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"2"), ("b.cls", text)])
    with caplog.at_level(logging.WARNING):
        source = open_source(str(path), cache=cache)
    assert source.classes == ("0",)
    assert [source.label(i) for i in range(2)] == [0, None] == [source.sample(i).label for i in range(2)]
    assert "b.cls says" in caplog.text


def test_partly_labelled(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tar(
        tmp_path / "x.tar",
        [("a.jpg", b"1"), ("a.cls", b"2"), ("b.jpg", b"2"), ("c.jpg", b"3"), ("c.cls", b"0")],
    )
    source = open_source(str(path), cache=cache)
    assert source.classes == ("0", "1", "2")
    assert [source.label(i) for i in range(3)] == [2, None, 0] == [source.sample(i).label for i in range(3)]
    assert source.unlabelled == 1
    assert "without a label: 1 of 3 images in" in caplog.text
    assert "left out where labels are used" in caplog.text
    caplog.clear()
    open_source(str(path), cache=cache)  # from the cache: said again
    assert "1 of 3 images" in caplog.text


def test_several_images_under_one_key(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tar(tmp_path / "x.tar", [("a.seg.png", b"mask"), ("a.jpg", b"image"), ("b.v2.jpg", b"other")])
    source = open_source(str(path), cache=cache)
    assert [source.sample(i).data for i in range(2)] == [b"image", b"other"]
    assert "1 more images share the key" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        ["cat", "dog"],
        [{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}],
        {"0": "cat", "1": "dog"},
        {"0": ["n0", "cat"], "1": ["n1", "dog"]},
        {"cat": 0, "dog": 1},
        {"classes": ["cat", "dog"]},
        {"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]},
    ],
)
def test_class_names(tmp_path: Path, cache: Path, data: object) -> None:
    assert class_names(json.dumps(data).encode(), "classes.json") == ("cat", "dog")
    shard(tmp_path / "x.tar")
    (tmp_path / "classes.json").write_text(json.dumps(data))
    assert open_source(str(tmp_path / "x.tar"), cache=cache).classes == ("cat", "dog")


@pytest.mark.parametrize(
    "text", ["[", "{}", "[]", "7", '{"a": "b"}', "[1, 2]", "null", '[{"id": -1, "name": "x"}]']
)
def test_class_names_of_another_shape(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert class_names(text.encode(), "here/classes.json") is None
    assert "here/classes.json" in caplog.text


def test_label_beyond_the_class_names(tmp_path: Path, cache: Path) -> None:
    shard(tmp_path / "x.tar", 3, classes=3)
    (tmp_path / "classes.json").write_text('["a", "b"]')
    with pytest.raises(InputError, match="label 2, but there are only 2"):
        open_source(str(tmp_path / "x.tar"), cache=cache)


def test_folder_of_shards_with_splits(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "d"
    root.mkdir()
    for i in range(3):
        shard(root / f"train-{i:04d}.tar", 4, 4 * i, classes=4)
    shard(root / "val-0000.tar", 2, 90)
    (root / "classes.json").write_text('["a", "b", "c", "d"]')
    (root / "README.txt").write_text("x")
    source, held = open_source(str(root), cache=cache), open_validation(str(root), cache=cache)
    assert len(source) == 12
    assert held is not None
    assert len(held) == 2
    assert source.classes == held.classes == ("a", "b", "c", "d")
    assert len(open_source(str(root), split="all", cache=cache)) == 14
    assert len(open_source(str(root), split="val", cache=cache)) == 2
    (root / "classes.json").unlink()
    held = open_validation(str(root), cache=cache)
    assert held is not None
    assert held.classes == ("0", "1", "2", "3")  # as many as the training images have
    assert open_validation(str(root / "train-{0000..0002}.tar"), cache=cache) is None


@pytest.mark.parametrize(
    ("names", "train", "held"),
    [
        (["a-0.tar", "a-1.tar"], 2, None),
        (["train.tar", "test.tar"], 1, None),
        (["train-0.tar", "val-0.tar", "test-0.tar"], 1, 1),
        (["x-0.tar", "x-1.tar", "x_val.tar"], 2, 1),
        (["val-0.tar", "val-1.tar"], 2, None),
        (["training_0.tar", "validation_0.tar", "extra.tar"], 1, 1),
        (["retrain-0.tar", "interval-1.tar"], 2, None),
    ],
)
def test_splits_by_name(tmp_path: Path, cache: Path, names: list[str], train: int, held: int | None) -> None:
    root = tmp_path / "d"
    root.mkdir()
    for i, name in enumerate(names):
        shard(root / name, 1, i)
    assert len(open_source(str(root), cache=cache)) == train
    found = open_validation(str(root), cache=cache)
    assert (None if found is None else len(found)) == held


def test_train_and_val_folders_of_shards(tmp_path: Path, cache: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        (tmp_path / "d" / split).mkdir(parents=True)
        shard(tmp_path / "d" / split / "0.tar", count, classes=count)
    assert len(open_source(str(tmp_path / "d"), cache=cache)) == 4
    held = open_validation(str(tmp_path / "d"), cache=cache)
    assert held is not None
    assert len(held) == 2
    assert held.classes == ("0", "1", "2", "3")


def test_shards_beside_sub_folders(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "d"
    (root / "notes").mkdir(parents=True)
    shard(root / "x.tar", 2)
    assert len(open_source(str(root), cache=cache)) == 2
    folder(root, ["notes/1.jpg"])
    assert len(open_source(str(root), cache=cache)) == 1
    assert "tars are left aside" in caplog.text


def test_changed_shard_is_indexed_again(tmp_path: Path, cache: Path) -> None:
    path = shard(tmp_path / "x.tar", 2)
    assert len(open_source(str(path), cache=cache)) == 2
    shard(path, 5)
    assert len(open_source(str(path), cache=cache)) == 5
    for name, when in (("p.jpg", 1e9), ("q.jpg", 1.1e9)):  # of one size
        os.utime(tar(path, [(name, b"x")]), (when, when))
        assert open_source(str(path), cache=cache).sample(0).name == f"x.tar/{name}"


def test_index_is_read_from_the_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "x.tar", 2)
    first = open_source(str(path), cache=cache)
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: pytest.fail("indexed again"))
    assert contents(open_source(str(path), cache=cache)) == contents(first)


@pytest.mark.parametrize("members", [1, 2, 3])
def test_cut_short_anywhere(tmp_path: Path, cache: Path, members: int) -> None:
    path = tar(tmp_path / "x.tar", [(f"{i}.jpg", bytes([i + 1]) * 700) for i in range(members)])
    whole = path.read_bytes()
    end = members * (512 + 1024)
    for cut in (0, 1, 100, 511, 512, 600, end - 1024, end - 500, end - 1, end, end + 100):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"x\.tar is cut short .* download it again"):
            open_source(str(path), cache=cache)
    path.write_bytes(whole[: end + 1024])  # both zero blocks: whole
    assert len(open_source(str(path), cache=cache)) == members


def test_damaged_or_joined(tmp_path: Path, cache: Path) -> None:
    path = shard(tmp_path / "x.tar", 3)
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    with pytest.raises(InputError, match="joined"):
        open_source(str(path), cache=cache)
    damaged = bytearray(whole)
    second = whole.index(b"0001.jpg")
    damaged[second + 110 : second + 130] = b"\xff" * 20
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="damaged"):
        open_source(str(path), cache=cache)


def test_compressed(tmp_path: Path, cache: Path) -> None:
    body = shard(tmp_path / "x.tar").read_bytes()
    for name in ("y.tar", "z.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(body))
        with pytest.raises(InputError, match=rf"{name} is compressed .*gzip -d"):
            open_source(str(tmp_path / name), cache=cache)
    root = tmp_path / "only"
    root.mkdir()
    (root / "a.tar.gz").write_bytes(gzip.compress(body))
    with pytest.raises(InputError, match="gzip -d"):
        open_source(str(root), cache=cache)


def test_not_a_tar(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"hello " * 1000)
    with pytest.raises(InputError, match="not a tar"):
        open_source(str(tmp_path / "x.tar"), cache=cache)


def test_links_and_folders_in_a_tar(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as out:
        for name, kind in (("d", tarfile.DIRTYPE), ("d/l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere"
            out.addfile(info)
        info = tarfile.TarInfo("d/p.jpg")
        info.size = 3
        out.addfile(info, io.BytesIO(b"abc"))
    assert contents(open_source(str(path), cache=cache)) == [(b"abc", None)]


def test_shard_that_shrank_gives_bad_images(tmp_path: Path, cache: Path) -> None:
    path = shard(tmp_path / "x.tar", 3)
    source = open_source(str(path), cache=cache)
    os.truncate(path, 600)
    with pytest.raises(BadImage, match="shorter"):
        source.sample(1)
    gone = pickle.loads(pickle.dumps(source))
    path.unlink()
    with pytest.raises(BadImage, match="No such file"):
        gone.sample(0)


def test_empty_shard_among_others(tmp_path: Path, cache: Path) -> None:
    shard(tmp_path / "x-0.tar", 2)
    tar(tmp_path / "x-1.tar", [("a.txt", b"x")])
    shard(tmp_path / "x-2.tar", 2, 2)
    source = open_source(str(tmp_path / "x-{0..2}.tar"), cache=cache)
    starts = source.blocks()
    assert starts is not None
    assert starts.tolist() == [0, 2]
    assert source.sample(2).data == encoded(pixels(8, 8, seed=2))
