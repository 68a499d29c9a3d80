"""The DATA argument: brace patterns, and one clear line for what cannot be opened."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.errors import InputError
from hetcl.images.sources import absolute_data, braces, open_source
from tests.images.make import encoded, folder, shard


@given(first=st.integers(0, 1200), count=st.integers(1, 30), width=st.integers(1, 6), down=st.booleans())
def test_brace_range(first: int, count: int, width: int, down: bool) -> None:
    ends = [first, first + count - 1]
    if down:
        ends.reverse()
    texts = [str(e).zfill(width) for e in ends]
    padded = max(map(len, texts)) if any(t.startswith("0") and len(t) > 1 for t in texts) else 0
    step = -1 if down else 1
    expected = [f"x-{str(i).zfill(padded)}.tar" for i in range(ends[0], ends[1] + step, step)]
    got = list(braces("x-{" + "..".join(texts) + "}.tar"))
    assert got == (expected if count > 1 else expected[:1])


def test_braces() -> None:
    assert list(braces("plain.tar")) == ["plain.tar"]
    assert list(braces("x-{0000..0002}.tar")) == ["x-0000.tar", "x-0001.tar", "x-0002.tar"]
    assert list(braces("{8..11}")) == ["8", "9", "10", "11"]
    assert list(braces("{a,b}/{1..2}")) == ["/".join(p) for p in product("ab", "12")]
    assert list(braces("odd{1}.tar")) == ["odd{1}.tar"]
    assert list(braces("x-{0..11}.tar"))[:2] == ["x-0.tar", "x-1.tar"]  # as a shell does: 0 pads nothing
    assert list(braces("x{1,{2..3}}")) == ["x1", "x2", "x3"]
    assert list(braces("half{1,2.tar")) == ["half{1,2.tar"]


def refused(data: str, match: str) -> str:
    with pytest.raises(InputError, match=match) as caught:
        open_source(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETCL_CACHE", str(tmp_path / "cache"))


def test_missing_folder_suggests_near_names(tmp_path: Path) -> None:
    folder(tmp_path / "photos", ["1.jpg"])
    assert str(tmp_path / "photos") in refused(str(tmp_path / "phtos"), "does not exist: did you mean")
    refused(str(tmp_path / "quite" / "elsewhere"), "does not exist: DATA is a folder")
    assert str(tmp_path / "photos") in refused(str(tmp_path / "phtoos" / "train"), "did you mean")
    refused("", "DATA is empty")


def test_patterns_that_match_nothing(tmp_path: Path) -> None:
    shard(tmp_path / "x-0000.tar")
    refused(str(tmp_path / "y-{0000..0003}.tar"), r"matches no file \(.*y-0000.tar is not there\)")
    refused(str(tmp_path / "z-*.tar"), "matches no file")
    refused(str(tmp_path / "x-{0000..0003}.tar"), r"3 of 4 shards are missing, first .*x-0001\.tar")


def test_single_image(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded())
    refused(str(tmp_path / "1.jpg"), "single image: name the folder")


def test_some_other_file(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    refused(str(tmp_path / "list.txt"), "is a list, which is not read: DATA is a folder")
    (tmp_path / "notes").write_text("hello " * 1000)
    refused(str(tmp_path / "notes"), "not a tar")


def test_names_with_special_characters(tmp_path: Path) -> None:
    """An existing path is taken as it is, whatever characters it has."""
    assert len(open_source(str(folder(tmp_path / "a{1..2},[b]", ["1.jpg"])))) == 1
    assert len(open_source(str(shard(tmp_path / "x[1]{0,1}.tar", 2)))) == 2


def test_unknown_scheme() -> None:
    refused("nosuch://bucket/x.tar", "nosuch")


def test_paths_as_other_systems_write_them(tmp_path: Path) -> None:
    """Backslashes, accents in another form, an address of a file, white space from copying."""
    folder(tmp_path / "a b/u\u0308", ["1.jpg"])
    for data in (
        f"{tmp_path}/a b\\u\u0308",
        f"{tmp_path}/a b/\u00fc",
        f" {tmp_path}/a b ",
        f"file://{tmp_path}/a b",
        f"file://{tmp_path}/a%20b",
    ):
        assert len(open_source(data)) == 1, data
        assert absolute_data(data).startswith(f"{tmp_path}/a b")


def test_several_folders_or_images_are_refused(tmp_path: Path) -> None:
    folder(tmp_path / "a", ["1.jpg"])
    shard(tmp_path / "x.tar")
    refused(
        f"{tmp_path}/a,{tmp_path}/x.tar",
        "a is one of several, and a folder: name it alone, or a folder with links",
    )
    refused(f"{tmp_path}/a/*.jpg", r"1\.jpg is a single image: name the folder")
    refused(f"{tmp_path}/a/*.png", r"matches no file: name the folder of the images, .*/a")
    for name in ("x.zip", "x.tar.gz"):
        refused(
            f"https://localhost/{name}", f"{name} is packed, which is not read from afar: fetch and unpack it"
        )


def test_a_run_elsewhere_would_name_the_data_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        shard(tmp_path / f"x-{i}.tar")
    for data in ("x-{0..1}.tar", "x-{0,1}.tar", "x-0.tar,x-1.tar", "x-?.tar", "."):
        there = absolute_data(data)
        monkeypatch.chdir("/")
        assert len(open_source(there)) == 6, data
        monkeypatch.chdir(tmp_path)
    for data in ("scenes:9", "s3://bucket/x-{0..1}.tar"):
        assert absolute_data(data) == data


def test_what_systems_leave_is_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "d", ["a/1.jpg", "lost+found/2.jpg", "#recycle/3.jpg", "__MACOSX/a/4.jpg", "a/._1.jpg"])
    scandir = os.scandir

    def refuse(path: bytes | str) -> object:
        if b"lost+found" in os.fsencode(path):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(open_source(str(tmp_path / "d"))) == 1


def test_links_to_what_is_there_anyway_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path / "d", ["train/a/1.jpg", "train/b/2.jpg"])
    folder(tmp_path / "elsewhere", ["3.jpg"])
    (root / "away").symlink_to(tmp_path / "elsewhere")
    (root / "train/a/up").symlink_to("..")
    caplog.set_level("INFO")
    open_source(str(root))
    assert "is read twice" not in caplog.text
    told = f"links in {root} lead out of it (1, e.g. away -> {tmp_path / 'elsewhere'}) and are followed"
    assert told in caplog.text
    (root / "val").symlink_to("train")
    (root / "train/a/3.jpg").symlink_to("../b/2.jpg")
    open_source(str(root))
    assert f"links in {root} lead to what lies there too (" in caplog.text
    assert "maybe to train and to test on" in caplog.text
