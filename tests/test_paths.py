"""``~`` in paths, with and without a home folder, and the spellings of a name."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from hetcl.errors import InputError
from hetcl.paths import expand, expand_spec, home, shelter, spellings


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


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("~/run", "/homes/ada/run"),
        ("coco:~/set", "coco:/homes/ada/set"),
        ("torchvision:resnet50:~/w.pth", "torchvision:resnet50:/homes/ada/w.pth"),
        ("~/a:b", "/homes/ada/a:b"),
        *(
            (s, s)
            for s in ("run", "coco:/a/~b", "https://host/~ada/x.tar", "timm:resnet10t:random", "scenes:9", "")
        ),
    ],
)
def test_the_path_in_a_spec(spec: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/ada")
    assert expand_spec(spec) == path


def test_other_libraries_get_a_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    shelter()
    assert os.environ["XDG_CACHE_HOME"] == ""  # those with a home folder keep their habits
    nobody(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "/mine")
    shelter()
    spare = os.environ["XDG_CACHE_HOME"]
    assert Path(spare).parent == tmp_path
    assert os.stat(spare).st_mode & 0o777 == 0o700
    assert os.environ["XDG_CONFIG_HOME"] == "/mine"
    assert f"caches go to {spare}; set HOME or HETCL_CACHE" in caplog.text


def test_spellings() -> None:
    whole = "Z\u00fcrich\\a.jpg"
    found = list(spellings(whole))
    assert found[0] == whole
    assert {"Z\u00fcrich/a.jpg", unicodedata.normalize("NFD", "Z\u00fcrich/a.jpg")} <= set(found)
    assert os.fsdecode(b"Z\xfcrich/a.jpg") in found
    assert list(spellings("a.jpg")) == ["a.jpg"]
    assert "set/my a.jpg" in spellings("\ufeffset /my\u00a0a.jpg\r")
