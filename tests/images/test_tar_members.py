"""Members of a tar that are links, labels that stand elsewhere or end otherwise, and what is said of the rest."""

from __future__ import annotations

import io
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetcl.errors import InputError
from hetcl.images.shard_index import RECORD, merged
from hetcl.images.sources import open_source
from hetcl.images.tars import TarRest, members
from hetcl.types import Source
from tests.images.make import encoded, pixels, shard, tar


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def contents(source: Source) -> list[tuple[object, int | None]]:
    return [(source.sample(i).data, source.sample(i).label) for i in range(len(source))]


def mixed(path: Path, entries: list[tuple[str, bytes | str, bytes]]) -> Path:
    """A tar of (name, data or what it links to, type of member)."""
    with tarfile.open(path, "w") as out:
        for name, what, kind in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(what, bytes):
                info.size = len(what)
                out.addfile(info, io.BytesIO(what))
            else:
                info.linkname = what
                out.addfile(info)
    return path


FILE, HARD, SOFT, FOLDER = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE


def test_links_are_resolved_within_the_tar(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = mixed(
        tmp_path / "x.tar",
        [
            ("store", "", FOLDER),
            ("store/one.bin", b"one", FILE),
            ("store/0", b"0", FILE),
            ("store/1", b"1", FILE),
            ("set/a.jpg", "../store/one.bin", SOFT),
            ("set/a.cls", "../store/0", SOFT),
            ("set/b.jpg", "./set/c.jpg", HARD),  # as tar writes them: from the root of the archive
            ("set/b.cls", "set/../store//1", HARD),
            ("set/c.jpg", b"three", FILE),
            ("set/c.cls", "b.cls", SOFT),  # a link to a link
            ("set/d.jpg", "c.jpg", SOFT),
            ("latest", "set", SOFT),  # a folder, whose files are members anyway
            ("here", ".", SOFT),
            ("set/up", "..", SOFT),
            ("empty", "", FOLDER),
            ("to_empty", "empty", SOFT),
            ("set/h.jpg", "../latest/up/store/one.bin", SOFT),  # by way of two links to folders
            ("set/e.jpg", "/data/e.jpg", SOFT),
            ("set/e.cls", "store/0", HARD),
            ("set/f.jpg", "g.jpg", SOFT),
            ("set/g.jpg", "f.jpg", SOFT),  # in a circle
        ],
    )
    source = open_source(str(path), cache=cache)
    assert contents(source) == [(b"one", 0), (b"three", 1)]
    assert (
        f"3 links in {path} to images that are there under another name too: each image is read once"
        in caplog.text
    )
    assert source.classes == ("0", "1")
    assert f"3 stray links (set/e.jpg -> /data/e.jpg) in {path} cannot be read" in caplog.text
    assert "tar --dereference --hard-dereference" in caplog.text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_links_equal_what_unpacking_gives(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Against the files that tarfile itself writes when it unpacks the archive."""
    place = tmp_path_factory.mktemp("links")
    names = [f"{folder}{i}.jpg" for folder in ("", "a/", "a/b/") for i in range(3)]
    entries: list[tuple[str, bytes | str, bytes]] = []
    for number, name in enumerate(data.draw(st.permutations(names))):
        earlier = [n for n, what, _ in entries if isinstance(what, bytes)]
        kind = data.draw(st.sampled_from([FILE, FILE, SOFT, HARD] if earlier else [FILE]))
        if kind == FILE:
            entries.append((name, b"%d" % number, FILE))
        elif kind == HARD:
            entries.append((name, data.draw(st.sampled_from(earlier)), HARD))
        else:
            up = "../" * name.count("/")
            entries.append((name, up + data.draw(st.sampled_from([*names, "nowhere.jpg"])), SOFT))
    path = mixed(place / "x.tar", entries)
    (place / "out").mkdir()
    with tarfile.open(path) as archive:
        archive.extractall(place / "out", filter="data")
    expected = {}
    for name in names:
        try:
            expected[name] = (place / "out" / name).read_bytes()
        except OSError:  # a link to nothing, or in a circle
            continue
    whole = path.read_bytes()
    found = {m.name: whole[m.offset : m.offset + m.size] for m in members(str(path))}
    assert found == expected


def test_an_image_that_links_repeat_is_read_once(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the label that any of its names has, wherever that stands; with none where two differ."""
    path = mixed(
        tmp_path / "x.tar",
        [
            *((f"store/{i}.jpg", b"image %d" % i, FILE) for i in range(4)),
            ("train/a.jpg", "../store/2.jpg", SOFT),
            ("train/a.cls", b"1", FILE),
            ("train/b.jpg", "store/0.jpg", HARD),
            ("train/b.cls", b"0", FILE),
            ("train/c.jpg", "a.jpg", SOFT),
            ("train/c.cls", b"1", FILE),
            ("train/d.jpg", "../store/3.jpg", SOFT),
            ("train/d.cls", b"0", FILE),
            ("train/e.jpg", "../store/3.jpg", SOFT),
            ("train/e.cls", b"1", FILE),
        ],
    )
    source = open_source(str(path), cache=cache)
    assert sorted(contents(source), key=str) == [
        (b"image 0", 0),
        (b"image 1", None),
        (b"image 2", 1),
        (b"image 3", None),
    ]
    assert f"5 links in {path} to images that are there under another name too" in caplog.text
    assert "labels of 1 image differ between its names, so it has none" in caplog.text
    assert f"without a label: 2 of 4 images in {path}" in caplog.text
    again = mixed(tmp_path / "y.tar", [("a.jpg", b"image", FILE), ("b.jpg", "a.jpg", SOFT)])
    twice = mixed(tmp_path / "w.tar", [("a.jpg", b"image", FILE), ("b.jpg", b"other", FILE)])
    prints = {open_source(str(tar), cache=cache).fingerprint for tar in (again, twice)}
    assert len(prints) == 2  # a run that began when links counted as images goes on with no others
    once = mixed(tmp_path / "z.tar", [("a.jpg", b"image", FILE)])
    assert len(open_source(f"{again},{once}", cache=cache)) == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 2)), max_size=12))
def test_repeated_images_against_a_slow_reference(rows: list[tuple[int, int]]) -> None:
    """Rows of (offset, label), merged one by one."""
    records = np.zeros(len(rows), RECORD)
    records["offset"], records["label"] = [o for o, _ in rows], [y for _, y in rows]
    expected = []
    for at, (offset, label) in enumerate(rows):
        labels = {y for o, y in rows if o == offset and y >= 0}
        first = next(i for i, (o, y) in enumerate(rows) if o == offset and (y >= 0) == bool(labels))
        if at == first:
            expected.append((offset, label if len(labels) < 2 else -1))
    found = TarRest()
    out, again = merged(records, found)
    assert list(zip(out["offset"].tolist(), out["label"].tolist(), strict=True)) == expected
    assert again == found.again == len(rows) - len(expected)
    several = {o for o, _ in rows if len({y for p, y in rows if p == o and y >= 0}) > 1}
    assert found.contradicted == len(several)


def test_a_shard_under_two_names_is_read_once(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "d").mkdir()
    shard(tmp_path / "d/a.tar", 3)
    (tmp_path / "d/b.tar").symlink_to("a.tar")
    (tmp_path / "d/c.tar").hardlink_to(tmp_path / "d/a.tar")
    assert len(open_source(str(tmp_path / "d"), cache=cache)) == 3
    assert "b.tar is the same file as" in caplog.text
    assert "(and 1 more are): each is read once" in caplog.text
    assert len(open_source(f"{tmp_path}/d/a.tar,{tmp_path}/d/a.tar", cache=cache)) == 3


def test_labels_that_are_counted_from_one(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The classes that there are, are counted; that there is no class 0 is said."""
    path = tar(
        tmp_path / "x.tar", [m for i in (1, 2, 3) for m in ((f"{i}.jpg", b"x"), (f"{i}.cls", b"%d" % i))]
    )
    source = open_source(str(path), cache=cache)
    assert source.description.startswith("3 images in 3 classes in 1 shard")
    assert [source.label(i) for i in range(3)] == [1, 2, 3]
    assert (
        f"no image in {path} has the label 0, those there are go from 1 to 3: if they were counted"
        in caplog.text
    )
    caplog.clear()
    path = tar(tmp_path / "y.tar", [m for i in (1, 5) for m in ((f"{i}.jpg", b"x"), (f"{i}.cls", b"%d" % i))])
    assert open_source(str(path), cache=cache).description.startswith("2 images in 2 classes")
    assert "has the label 0" not in caplog.text


def test_labels_that_do_not_stand_beside_their_images(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """``tar cf x.tar *.jpg *.cls``."""
    names = [f"{i:02}" for i in range(5)]
    path = tar(tmp_path / "x.tar", [(f"{n}.jpg", b"x") for n in names] + [(f"{n}.cls", b"1") for n in names])
    source = open_source(str(path), cache=cache)
    assert source.classes is None
    assert f"5 labels in {path} (e.g. 00.cls) do not stand beside their images" in caplog.text
    assert "tar --sort=name -cf x.tar FOLDER" in caplog.text


@pytest.mark.parametrize("ending", ["cls", "label", "lbl", "class", "CLS", "cls.txt"])
def test_labels_of_other_endings(ending: str, tmp_path: Path, cache: Path) -> None:
    path = tar(
        tmp_path / "x.tar", [("a.jpg", b"x"), (f"a.{ending}", b"1"), ("b.jpg", b"y"), (f"b.{ending}", b"0")]
    )
    assert [label for _, label in contents(open_source(str(path), cache=cache))] == [1, 0]


@pytest.mark.parametrize("field", ["label", "cls", "class", "class_id", "target"])
@pytest.mark.parametrize("value", ["3", '"3"', "3.0", '" 3 "'])
def test_labels_of_json(field: str, value: str, tmp_path: Path, cache: Path) -> None:
    path = tar(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.json", f'{{"{field}": {value}}}'.encode())])
    assert contents(open_source(str(path), cache=cache)) == [(b"x", 3)]


def test_numbers_under_another_ending_are_pointed_at(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tar(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.txt", b"3\n"), ("b.jpg", b"x"), ("b.txt", b"4\n")])
    assert open_source(str(path), cache=cache).classes is None
    assert f"no labels in {path}, but a.txt holds a number: labels are read from KEY.cls" in caplog.text


@pytest.mark.parametrize("text", ["2", "2\r\n", " 2 ", "\ufeff2", "\u200e2\n", "2\x1a"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_labels_as_other_systems_write_them(text: str, encoding: str, tmp_path: Path, cache: Path) -> None:
    path = tar(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.cls", text.encode(encoding))])
    assert contents(open_source(str(path), cache=cache)) == [(b"x", 2)]


@pytest.mark.parametrize(
    "names",
    [
        '["Käfer", "b"]',
        '{"0": "Käfer", "1": "b"}',
        '{"Käfer": "0", "b": "1"}',
        '[{"id": "0", "name": "Käfer"}, {"id": 1, "name": "b"}]',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_class_names_as_other_systems_write_them(
    names: str, encoding: str, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "classes.json").write_bytes(names.replace(",", ",\r\n").encode(encoding))
    path = tar(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.cls", b"1")])
    assert open_source(str(path), cache=cache).classes == ("Käfer", "b")


def test_class_names_as_lines(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n\r\n")
    path = tar(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.cls", b"1")])
    assert open_source(str(path), cache=cache).classes == ("cat", "dog")


def test_members_that_are_no_images(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tar(
        tmp_path / "x.tar",
        [
            ("a", encoded(pixels())),  # an image without an ending
            ("b.jpg_large", encoded(pixels(), "PNG")),
            ("c.nef", b"II*\0"),
            ("d", b"notes"),
            ("__MACOSX/._a.jpg", b"x"),
            ("e.jpg", b"x"),
            ("e.txt", b"a caption"),
        ],
    )
    with caplog.at_level(logging.INFO, "hetcl"):
        assert len(open_source(str(path), cache=cache)) == 3
    said = f"left aside in {path}: 1 .nef (c.nef), 1 .txt (e.txt), 1 without an ending (d); .nef: develop"
    assert said in caplog.text


def test_a_tar_of_a_folder_with_splits_is_said_to_be_one_set(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tar(tmp_path / "x.tar", [("d/train/cat/0.jpg", b"x"), ("d/test/cat/0.jpg", b"x")])
    assert len(open_source(str(path), cache=cache)) == 2
    assert (
        f"folders named like splits in {path} (d/test, d/train) are read as one set: unpack them"
        in caplog.text
    )
    caplog.clear()
    open_source(str(tar(tmp_path / "y.tar", [("train/0.jpg", b"x"), ("bus/0.jpg", b"x")])), cache=cache)
    assert "splits" not in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "x.zip",
            b"PK\x03\x04" + bytes(600),
            r"is a zip archive, which is not read: unpack it \(unzip x\.zip\)",
        ),
        ("x.tar", b"PK\x03\x04" + bytes(600), r"unpack it \(unzip x\.tar\) and name the folder"),
        ("x.rar", b"Rar!\x1a\x07" + bytes(600), r"unrar x x\.rar"),
        ("x.7z", b"7z\xbc\xaf\x27\x1c" + bytes(600), r"7z x x\.7z"),
        ("x.parquet", b"PAR1", "write the images in them as files or tar shards"),
        ("x.mp4", b"\0\0\0\x18ftypmp42", "take frames out of them"),
        ("x.csv", b"a,b\n", "is a list, which is not read"),
    ],
)
def test_files_of_other_kinds(name: str, data: bytes, said: str, tmp_path: Path, cache: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        open_source(str(tmp_path / name), cache=cache)
    assert "\n" not in str(caught.value)


def test_names_with_dots_are_images_of_their_own(tmp_path: Path, cache: Path) -> None:
    """Neither a date nor a number behind a dot makes two photos one sample; masks of a sample stay no images."""
    path = tar(
        tmp_path / "x.tar",
        [
            ("2020.01.02.jpg", b"a"),
            ("2020.01.02.cls", b"1"),
            ("2020.01.03.jpg", b"b"),
            ("2020.01.03.cls", b"0"),
            ("room.mask.png", b"m"),
            ("room.rgb.png", b"c"),
            ("v1.5/d.jpg", b"d"),
            ("v1.5/d.seg.png", b"m"),
            ("e.left.png", b"e"),
        ],
    )
    assert contents(open_source(str(path), cache=cache)) == [
        (b"a", 1), (b"b", 0), (b"c", None), (b"d", None), (b"e", None),
    ]  # fmt: skip
