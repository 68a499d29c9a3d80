"""The DATA argument: brace patterns, and one clear line for what cannot be opened."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.errors import InputError
from hetcl.images.sources import braces, open_source
from tests.images.make import encoded, folder, shard


@given(first=st.integers(0, 1200), count=st.integers(1, 30), width=st.integers(1, 6), down=st.booleans())
def test_brace_range(first: int, count: int, width: int, down: bool) -> None:
    ends = [first, first + count - 1]
    if down:
        ends.reverse()
    texts = [str(e).zfill(width) for e in ends]
    padded = max(map(len, texts)) if any(t.startswith("0") for t in texts) else 0
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


def refused(data: str, match: str) -> str:
    with pytest.raises(InputError, match=match) as caught:
        open_source(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETCL_CACHE", str(tmp_path / "cache"))


def test_missing_folder_suggests_near_names(tmp_path: Path) -> None:
    folder(tmp_path / "pictures", ["1.jpg"])
    assert str(tmp_path / "pictures") in refused(str(tmp_path / "pictues"), "does not exist: did you mean")
    refused(str(tmp_path / "quite" / "elsewhere"), "does not exist: DATA is a folder")
    assert str(tmp_path / "pictures") in refused(str(tmp_path / "pictuers" / "train"), "did you mean")
    refused("", "DATA is empty")


def test_patterns_that_match_nothing(tmp_path: Path) -> None:
    shard(tmp_path / "x-0000.tar")
    refused(str(tmp_path / "y-{0000..0003}.tar"), r"matches no file \(.*y-0000.tar is not there\)")
    refused(str(tmp_path / "z-*.tar"), "matches no file")
    refused(str(tmp_path / "x-{0000..0003}.tar"), r"3 of 4 shards are missing, first .*x-0001\.tar")


def test_single_picture(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded())
    refused(str(tmp_path / "1.jpg"), "single picture: name the folder")


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
