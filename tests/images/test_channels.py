"""Images of other channels and depths than RGB of 8 bits: read as they are stored, or refused in a line."""

from __future__ import annotations

import contextlib
import io
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hetcl.errors import InputError
from hetcl.images import channels
from hetcl.images.channels import drawable, turned
from hetcl.images.decode import open_image
from hetcl.images.image_files import ImageFiles
from hetcl.images.look import Depth, look_at
from hetcl.images.sources import open_source
from hetcl.types import RGB, BadImage, OtherPixels, PixelFormat, Sample
from tests.images.make import encoded, pixels

tifffile = pytest.importorskip("tifffile")


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def tiff(values: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **{"photometric": "minisblack", **options})  # type: ignore[arg-type]
    return stream.getvalue()


def contiguous(values: np.ndarray) -> bytes:
    return tiff(values, planarconfig="contig")


def planar(values: np.ndarray) -> bytes:
    return tiff(values.transpose(2, 0, 1), planarconfig="separate")


def pages(values: np.ndarray) -> bytes:
    """A page for each channel, as ImageJ and many microscopes write them."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as out:
        for channel in values.transpose(2, 0, 1):
            out.write(channel, photometric="minisblack", contiguous=True)
    return stream.getvalue()


def read(data: bytes | np.ndarray, count: int, top: float = 0.0) -> np.ndarray:
    image = open_image(Sample(data), pixels=PixelFormat(count, top))
    out = image.pixels()
    assert out.dtype == np.float32
    assert out.shape == (image.height, image.width, count)
    return out


def drawn(count: int, dtype: str, height: int = 9, width: int = 7, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = height, width, count
    if dtype.startswith("float"):
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("write", [npy, contiguous, planar, pages, lambda values: tiff(values)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("count", [2, 5, 12])
def test_every_channel_comes_as_it_is_stored(
    write: Callable[[np.ndarray], bytes], dtype: str, count: int
) -> None:
    stored = drawn(count, dtype)
    top = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    np.testing.assert_array_equal(read(write(stored), count), (stored / np.float32(top)).astype(np.float32))


@pytest.mark.parametrize("compression", ["deflate", None])
def test_compressed_tiff(compression: str | None) -> None:
    stored = drawn(5, "uint16", 40, 30)
    data = tiff(stored, planarconfig="contig", compression=compression)
    np.testing.assert_array_equal(read(data, 5), (stored / np.float32(65535)).astype(np.float32))


def test_a_12_bit_set_keeps_its_gray_levels() -> None:
    levels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    data = encoded(levels, "PNG")
    assert len(np.unique(open_image(data).pixels())) == 17  # as RGB of 8 bits: what this is about
    for count, top in ((1, 0.0), (1, 4095.0), (3, 4095.0)):
        assert len(np.unique(read(data, count, top))) == 4096
    gray = read(data, 1, 4095)
    assert gray.min() == 0
    assert gray.max() == 1
    np.testing.assert_allclose(gray[..., 0], levels / 4095, atol=1e-7)
    assert len(np.unique(read(encoded(levels, "TIFF"), 1, 4095))) == 4096


def test_gray_of_colour_is_that_of_pillow() -> None:
    original = pixels()
    ours = read(encoded(original, "PNG"), 1)[..., 0] * 255
    assert np.abs(ours - np.asarray(Image.fromarray(original).convert("L"))).max() < 1


def test_transparency_lies_over_white_or_is_a_channel() -> None:
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (8, 9, 4), np.uint8)
    data = encoded(Image.fromarray(rgba, "RGBA"), "PNG")
    np.testing.assert_array_equal(read(data, 4), rgba / np.float32(255))
    share = rgba[..., 3:] / 255
    np.testing.assert_allclose(
        read(data, 3, 255), (rgba[..., :3] * share + 255 * (1 - share)) / 255, atol=1e-6
    )


@settings(deadline=None, max_examples=40)
@given(turn=st.integers(1, 8), height=st.integers(1, 6), width=st.integers(1, 6))
def test_turning_is_that_of_pillow(turn: int, height: int, width: int) -> None:
    values = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    image = Image.fromarray(values)
    image.getexif()[0x0112] = turn
    np.testing.assert_array_equal(turned(values, turn), np.asarray(ImageOps.exif_transpose(image)))


def test_rgb_of_8_bits_is_as_ever() -> None:
    for kind in ("PNG", "JPEG", "TIFF"):
        data = encoded(pixels(), kind)
        plain = open_image(data).pixels()
        assert plain.dtype == np.uint8
        np.testing.assert_array_equal(read(data, 3, 255), plain / np.float32(255))
    np.testing.assert_array_equal(open_image(npy(pixels())).pixels(), pixels())


@pytest.mark.parametrize(
    ("data", "count", "top", "said", "fix"),
    [
        (npy(drawn(5, "uint8")), 4, 0, "5 channels, where 4 are read", "in_chans to 5"),
        (npy(drawn(5, "uint8")), 3, 0, "5 channels, where 3 are read", "in_chans to 5"),
        (contiguous(drawn(5, "uint8")), 3, 0, "5 channels of 8 bits, where RGB", "in_chans to as many"),
        (tiff(drawn(5, "uint8"), photometric="rgb"), 3, 0, "5 channels of 8 bits, where RGB", "in_chans to"),
        (npy(drawn(3, "uint16")), 3, 0, "values of uint16, where RGB of 8 bits", "pixel_max to"),
        (npy(drawn(5, "uint16")), 5, 4095, "values up to .*, and the top is 4095", "pixel_max to"),
        (npy(drawn(5, "float32") * 9), 5, 0, "values up to .*, and the top is 1", "pixel_max to"),
        (npy(drawn(2, "float32") - 3), 2, 0, "values from -.* on, and pixels begin at 0", ""),
        (pages(drawn(7, "uint16")), 5, 0, "shape .*, where 5 channels are read", "in_chans to 7"),
    ],
)
def test_other_pixels_are_said_in_a_line_with_the_setting(
    data: bytes, count: int, top: float, said: str, fix: str
) -> None:
    with pytest.raises(OtherPixels, match=said) as caught:
        open_image(data, pixels=PixelFormat(count, top)).pixels()
    assert caught.value.fix.startswith(fix)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            npy(np.where(drawn(5, "float32") > 0.5, np.nan, 0.5).astype("float32")),
            r"\d+ values are not finite",
        ),
        (npy(drawn(5, "uint8"))[:-9], "truncated"),
        (npy(drawn(5, "uint8"))[:40], "damaged"),
        (npy(drawn(5, "uint8")[..., 0]), r"array of uint8 \[9, 7\], not numbers \[height, width, channels\]"),
        (npy(drawn(7, "uint8", 5, 900).transpose(0, 2, 1)), "channels are its last axis"),
        (contiguous(drawn(5, "uint16"))[:60], "."),
        (b"", "empty"),
    ],
)
def test_bad_files_are_bad_images(data: bytes, said: str) -> None:
    with pytest.raises(BadImage, match=said):
        open_image(data, pixels=PixelFormat(5))


def test_pickles_in_arrays_are_not_run() -> None:
    with pytest.raises(BadImage, match="not numbers"):
        open_image(npy(np.array([[[print]]], object)), pixels=PixelFormat(1))


def test_too_many_pixels() -> None:
    with pytest.raises(BadImage, match="decompression bomb"):
        open_image(npy(drawn(5, "uint8")), pixels=PixelFormat(5), max_pixels=62)


def test_without_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "tifffile", None)
    for data in (contiguous(drawn(5, "uint16")), tiff(drawn(3, "uint16"), photometric="rgb")):
        with pytest.raises(OtherPixels, match=re.escape("pip install 'hetcl[tiff]'")):
            open_image(data, pixels=PixelFormat(5))
    gray = drawn(1, "uint16")
    np.testing.assert_array_equal(read(tiff(gray[..., 0]), 1), gray / np.float32(65535))


def test_a_compression_that_needs_another_package_says_which() -> None:
    pytest.importorskip("tifffile")
    with contextlib.suppress(ImportError):
        import imagecodecs  # noqa: F401

        pytest.skip("imagecodecs is here")
    data = tiff(drawn(5, "uint16", 40, 30), planarconfig="contig", compression="deflate")
    entry = struct.pack("<HHI", 259, 3, 1)  # the tag of the compression: 5 is LZW
    at = data.index(entry) + len(entry)
    with pytest.raises(OtherPixels, match="pip install imagecodecs"):
        open_image(data[:at] + struct.pack("<H", 5) + data[at + 2 :], pixels=PixelFormat(5))


def test_signed_and_packed_tiff() -> None:
    levels = np.arange(4096, dtype=np.int16).reshape(64, 64)
    np.testing.assert_allclose(read(tiff(levels), 1)[..., 0], levels / 32767, atol=1e-7)
    packed = encoded(levels.astype(np.uint16), "TIFF", compression="tiff_lzw")
    np.testing.assert_allclose(read(packed, 1, 4095)[..., 0], levels / 4095, atol=1e-7)


def test_arrays_are_images_where_they_have_height_width_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", drawn(5, "uint16"))
    np.save(tmp_path / "map.npy", drawn(5, "uint16")[..., 0])
    np.save(tmp_path / "vectors.npy", drawn(5, "float32")[0])
    assert [Path(p).name for p in ImageFiles([tmp_path]).paths] == ["a.npy"]
    source = open_source(str(tmp_path))
    assert len(source) == 1
    assert source.name(0).endswith("a.npy")


def test_mean_and_std_are_those_of_the_pixels(tmp_path: Path) -> None:
    stored = [drawn(5, "uint16", 12 + i, 20 - i, seed=i) // 16 for i in range(6)]
    for i, values in enumerate(stored):
        np.save(tmp_path / f"{i}.npy", values)
    found = look_at(open_source(str(tmp_path)), PixelFormat(5, 4095))
    assert found is not None
    unit = [values / 4095 for values in stored]
    mean = np.mean([u.mean((0, 1)) for u in unit], 0)
    square = np.mean([(u**2).mean((0, 1)) for u in unit], 0)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.std, np.sqrt(square - mean**2), rtol=1e-5)


def test_a_folder_of_mixed_channels_is_refused_by_name(tmp_path: Path) -> None:
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", drawn(4 if i == 5 else 5, "uint8"))
    source = open_source(str(tmp_path))
    with pytest.raises(
        InputError, match=r"5\.npy: 4 channels, where 5 are read; set in_chans to 4, or put such"
    ):
        look_at(source, PixelFormat(5))
    with pytest.raises(InputError, match=r"0\.npy: 5 channels, where 3 are read; set in_chans to 5"):
        look_at(source, RGB)
    with pytest.raises(InputError, match=r"0\.npy: 5 channels, where 3 are read; give another$"):
        look_at(source, RGB, fix="give another")


def test_what_is_lost_is_said() -> None:
    depth = Depth()
    depth.add(encoded(np.arange(4096, dtype=np.uint16).reshape(64, 64), "PNG"))
    (line,) = depth.lines(RGB)
    assert "values up to 4,095 of 65,535 become 16 levels of 256" in line
    assert "set pixel_max to" in line
    assert "such as 4095" in line
    (line,) = depth.lines(PixelFormat(1))
    assert "reach 4,095 of 65,535 alone" in line
    assert not [*depth.lines(PixelFormat(1, 4095))]
    plain = Depth()
    plain.add(encoded(pixels(), "PNG"))
    assert not [*plain.lines(RGB)]


def test_drawable() -> None:
    rgb = pixels()
    assert drawable(rgb) is rgb
    for count in (1, 2, 5):
        shown = drawable(drawn(count, "float32"))
        assert shown.dtype == np.uint8
        assert shown.shape == (9, 7, 3)
        assert (shown.min(), shown.max()) == (0, 255)
    assert drawable(np.zeros((4, 4, 5), np.float32)).max() == 0
