"""``~`` in paths, with and without a home folder, and the spellings of a name."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from hetcl.errors import InputError
from hetcl.paths import expand, home, spellings


def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without HOME and without an entry in passwd."""

    def unknown(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


def test_home_is_put_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/ada")
    assert expand("~/photos") == "/homes/ada/photos"
    assert expand(Path("~/photos")) == "/homes/ada/photos"
    assert expand("~") == "/homes/ada"
    monkeypatch.setenv("HOME", "/")
    assert (expand("~"), expand("~/a")) == ("/", "/a")


@pytest.mark.parametrize(
    "path", ["a/~/b", "/a", "", ".", "a~", "~nobody-of-this-name/x", "photos~/a", "a\nb"]
)
def test_other_paths_stay(path: str) -> None:
    assert expand(path) == path


def test_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nobody(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert home() is None
    with pytest.raises(InputError, match="~/photos: this user has no home folder; set HOME, or write"):
        expand("~/photos")
    os.makedirs("~/photos")  # what a program that knew no better made
    assert expand("~/photos") == "~/photos"
    monkeypatch.setenv("HOME", "")
    assert home() is None


def test_spellings() -> None:
    whole = "Caf\u00e9\\a.jpg"
    found = list(spellings(whole))
    assert found[0] == whole
    assert {"Caf\u00e9/a.jpg", unicodedata.normalize("NFD", "Caf\u00e9/a.jpg")} <= set(found)
    assert os.fsdecode(b"Caf\xe9/a.jpg") in found
    assert list(spellings("a.jpg")) == ["a.jpg"]
