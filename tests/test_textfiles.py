"""Text as people's own systems write it gives the same entries, whatever its marks, line ends and encoding."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.errors import InputError
from hetcl.textfiles import decode, lines, read_text, visible

WORDS = ["cam0/a", "Hündchen", "b c"]
TEXT = "\n".join(WORDS) + "\n"


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"]
)
def test_every_usual_encoding_and_line_end_gives_the_same_lines(encoding: str, ends: str) -> None:
    data = TEXT.replace("\n", ends).encode(encoding)
    assert decode(data, "list.txt") == TEXT
    assert [line for _, line in lines(decode(data, "list.txt"))] == WORDS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-8-sig"])
def test_a_single_number(encoding: str) -> None:
    assert lines(decode("1".encode(encoding), "a.cls")) == [(1, "1")]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfa\nb\n\xef\xbb\xbfc\n",  # cat of files that each have a mark
        b"a\nb\nc\n\x1a",  # the end of a file in DOS
        b"a\nb\nc\n\0\0\0",  # a block of a disk, filled up
        "a\u200b\n\u200eb\n\u00a0c\u00a0\n".encode(),  # copied from a web page or a chat
        b"\n\na \t\n\n  b\nc",
    ],
)
def test_invisible_characters_cost_no_entry(data: bytes) -> None:
    assert [line for _, line in lines(decode(data, "list.txt"))] == ["a", "b", "c"]


def test_lines_keep_their_numbers() -> None:
    assert lines("\n\na\n\nb") == [(3, "a"), (5, "b")]


def test_separators_that_are_no_line_ends_stay_in_the_line() -> None:
    assert lines("a\u0085b\u2028c\x0cd\n") == [(1, "a\u0085b\u2028c\x0cd")]


def test_windows_text_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hetcl"):
        assert decode("Käfer".encode("latin-1"), "names.txt") == "Käfer"
    assert "names.txt is not UTF-8 (byte 1) and was read as Windows-1252" in caplog.text


@given(st.binary(min_size=1, max_size=40).filter(lambda b: not any(c < 32 for c in b)))
def test_bytes_of_an_unknown_encoding_stay_different(data: bytes) -> None:
    other = bytes([data[0] ^ 0x80]) + data[1:]  # never equal to it
    try:
        texts = decode(data, "x"), decode(other, "x")
    except InputError:
        return
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", b"\xff\xd8\xff\xe0\0\x10JFIF\0\1", bytes(range(256))]
)
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"a\.yaml is not text"):
        decode(data, "a.yaml")


def test_half_a_character_of_utf_16() -> None:
    with pytest.raises(InputError, match=r"a\.txt is not whole text .*save it as UTF-8"):
        decode("ab".encode("utf-16")[:-1], "a.txt")


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfx\r\n")
    assert read_text(tmp_path / "a.txt") == read_text(str(tmp_path / "a.txt")) == "x\n"
    with pytest.raises(InputError, match=r"cannot read .*b\.txt \(No such file"):
        read_text(tmp_path / "b.txt")


def test_a_name_as_it_looks() -> None:
    assert visible("\ufeffa\u200bb\u00a0\t c.jpg\r\n") == "ab c.jpg"
    assert visible(" a /\u00a0b \\ c ") == "a/b\\c"
    assert visible("ä b/c") == "ä b/c"
