"""Which files are images, what is said of the others, and what is made of files without an ending."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from hetcl.errors import InputError
from hetcl.images import formats, listing, shard_index, tars
from hetcl.images.decode import open_image
from hetcl.images.formats import EXTENSIONS, HEAD, Aside, looks_like_image
from hetcl.images.sources import open_source
from hetcl.types import BadImage
from tests.images.make import encoded, folder, pixels, tar

HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(40)
JXL = b"\xff\x0a" + bytes(40)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names(root: Path, cache: Path) -> list[str]:
    source = open_source(str(root), cache=cache)
    return [source.sample(i).name for i in range(len(source))]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000"])
def test_images_are_known_by_their_first_bytes(kind: str) -> None:
    assert looks_like_image(encoded(pixels(), kind)[:HEAD])


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"hello",
        b"BM is short for bitmap, but not here.",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"P5 is no",
        b"MM\0",
        b"{}",
    ],
)
def test_others_are_not(head: bytes) -> None:
    assert not looks_like_image(head)


def test_files_without_an_ending_are_judged_by_their_content(tmp_path: Path, cache: Path) -> None:
    root = folder(
        tmp_path / "d", [*(f"{i:06x}" for i in range(40)), "photo.jpg_large", "photo.jpg.1", "x.jpg"]
    )
    for name in ("LICENSE", "notes.1", "x.html_"):
        (root / name).write_text("no image")
    assert len(names(root, cache)) == 43
    source = open_source(str(root), cache=cache)
    assert open_image(source.sample(0)).pixels().shape == (8, 8, 3)


def test_alike_files_are_judged_by_some_of_them(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bytes] = []
    monkeypatch.setattr(
        listing, "looks_like_image", lambda head: not tried.append(head) and looks_like_image(head)
    )
    root = folder(tmp_path / "images", [f"{i:06x}" for i in range(400)])
    assert len(names(root, cache)) == 400
    assert len(tried) <= 16
    for i in range(300):
        (root / f"{i:06x}").write_text("x")
    assert len(names(folder(root, ["zz"]), cache)) == 101  # they differ, so each is looked at
    assert len(tried) > 400


def test_what_is_left_aside_is_said(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path / "d", ["1.jpg", "2.jpg"])
    for name in (
        *(f"IMG_{i}.cr2" for i in range(24)),
        "a.zip",
        "b.zip",
        "README",
        "Thumbs.db",
        ".hidden.zip",
        "1.xml",
    ):
        (root / name).write_text("x")
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "@eaDir").mkdir()
    folder(root / "@eaDir", ["thumbnail.jpg"])
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.INFO, "hetcl"):
            assert len(open_source(str(root), cache=cache)) == 2
        (said,) = [r.getMessage() for r in caplog.records]
        assert said.startswith(f"left aside in {root}: 24 .cr2 (IMG_")
        for part in (
            "2 .zip (",
            "1 broken link (gone.jpg)",
            "1 without an ending (README)",
            "1 .xml (1.xml)",
        ):
            assert part in said
        for part in (
            ".cr2: develop them to JPEG",
            ".zip: unpack them",
            "broken links: fetch what they point to",
        ):
            assert part in said
        assert not any(part in said for part in ("Thumbs", "hidden", "eaDir", "\n"))
        assert caplog.records[0].levelno == logging.WARNING
        os.utime(root, (1e9, 1e9))
    (tmp_path / "nowhere.jpg").write_bytes(
        encoded()
    )  # what the link points to came; the folder did not change
    assert names(root, cache) == ["1.jpg", "2.jpg", "gone.jpg"]


def test_notes_beside_images_are_no_warning(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder(tmp_path / "d", ["1.jpg"])
    (root / "README.md").write_text("x")
    with caplog.at_level(logging.INFO, "hetcl"):
        open_source(str(root), cache=cache)
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.INFO, f"left aside in {root}: 1 .md (README.md)")
    ]


def test_many_kinds_are_summed_up() -> None:
    aside = Aside()
    for i in range(2000):
        aside.add(f".{i}", f"x.{i}")
    for _ in range(3):
        aside.add(".txt", "a.txt")
    assert aside.words().endswith("of other kinds")
    assert len(aside.found) == 1000


def test_a_folder_of_nothing_but_others_says_what_to_do(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/data.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"found 1 \.zip \(data\.zip\); \.zip: unpack them"):
        open_source(str(tmp_path / "d"), cache=cache)
    (tmp_path / "e/.cache").mkdir(parents=True)
    folder(tmp_path / "e/.cache", ["1.jpg"])
    with pytest.raises(InputError, match="it holds no files and 1 hidden, which are not read"):
        open_source(str(tmp_path / "e"), cache=cache)


# ---- formats that need a plugin --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "extra"), [(HEIC, "hetcl[heif]"), (JXL, "hetcl[jxl]")])
def test_without_a_plugin_the_fix_is_said(
    data: bytes, extra: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = EXTENSIONS - {".heic", ".jxl", ".heif", ".hif", ".heics", ".heifs"}
    monkeypatch.setattr(formats, "EXTENSIONS", plain)
    assert extra in formats.why_unreadable(data)
    assert not looks_like_image(data)
    aside = Aside({".heic": (1, "a.heic"), ".jxl": (1, "a.jxl")})
    assert "install hetcl[heif]" in aside.advice()
    assert "install hetcl[jxl]" in aside.advice()


def test_a_jpeg_that_is_called_otherwise_is_read_without_the_plugin(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Phones and messengers call JPEGs .heic; what really is HEIC is left aside, with the fix."""
    plain = EXTENSIONS - {".heic", ".heif", ".jxl", ".avif"}
    for module in (formats, listing, tars, shard_index):
        monkeypatch.setattr(module, "EXTENSIONS", plain)
    members = [(f"{i}.{kind}", encoded(pixels())) for i, kind in enumerate(("heic", "HEIF", "jxl", "avif"))]
    members.append(("9.heic", HEIC))
    (tmp_path / "d").mkdir()
    for name, data in members:
        (tmp_path / "d" / name).write_bytes(data)
    tar(tmp_path / "x.tar", members)
    for data in ("d", "x.tar"):
        caplog.clear()
        source = open_source(str(tmp_path / data), cache=cache)
        assert [source.sample(i).data for i in range(len(source))] == [encoded(pixels())] * 4
        assert "1 .heic (9.heic); .heic: install hetcl[heif] to read them" in caplog.text


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"../../.git/annex/objects/xx", "git annex get"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'<svg xmlns="', "SVG: convert it to PNG"),
        (b"hello, no image", "not an image (starts with b'hello, n')"),
    ],
)
def test_why_a_file_is_no_image(data: bytes, why: str) -> None:
    with pytest.raises(BadImage) as caught:
        open_image(data)
    assert why in str(caught.value)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path: Path, cache: Path) -> None:
    data = encoded(pixels(), "AVIF", quality=95)
    assert looks_like_image(data[:HEAD])
    assert np.abs(open_image(data).pixels().astype(int) - pixels()).mean() < 4
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.AVIF").write_bytes(data)
    assert names(tmp_path / "d", cache) == ["a.AVIF"]


def rotated(kind: str) -> bytes:
    """A file of 40 x 30 pixels whose EXIF asks for a quarter turn."""
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels()).save(stream, kind, quality=95, exif=exif.tobytes())
    return stream.getvalue()


def test_heic(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("pillow_heif")
    data = encoded(pixels(), "HEIF", quality=95)
    assert looks_like_image(data[:HEAD])
    assert np.abs(open_image(data).pixels().astype(int) - pixels()).mean() < 8
    (tmp_path / "d").mkdir()
    (tmp_path / "d/IMG_1.HEIC").write_bytes(data)
    assert names(tmp_path / "d", cache) == ["IMG_1.HEIC"]


def test_jpeg_xl(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("pillow_jxl")
    data = encoded(pixels(), "JXL", quality=95)
    assert looks_like_image(data[:HEAD])
    assert np.abs(open_image(data).pixels().astype(int) - pixels()).mean() < 4
    turned = open_image(rotated("JXL"))  # JPEG XL turns by itself; its EXIF says nothing of the pixels
    assert (turned.width, turned.height) == (40, 30)
