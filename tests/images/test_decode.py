"""Any image becomes RGB the right way up; anything else is a BadImage."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from hetcl.images.decode import open_image
from hetcl.types import BadImage, Sample
from tests.images.make import encoded, pixels

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def decoded(data: bytes, reduce: int = 1) -> np.ndarray:
    image = open_image(data)
    out = image.pixels(reduce)
    assert out.dtype == np.uint8
    assert out.ndim == 3
    assert out.shape[2] == 3
    if reduce == 1:
        assert out.shape[:2] == (image.height, image.width)
    return out


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG"])
def test_formats(kind: str) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    original = pixels()
    options: dict[str, object] = (
        {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    )
    error = np.abs(decoded(encoded(original, kind, **options)).astype(int) - original)
    assert error.mean() < {"GIF": 12, "JPEG": 3}.get(kind, 1e-9)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grayscale(kind: str) -> None:
    gray = pixels()[..., 0]
    out = decoded(encoded(gray, kind))
    assert (out[..., 0] == out[..., 2]).all()
    assert np.abs(out[..., 1].astype(int) - gray).max() <= (0 if kind == "PNG" else 12)


def test_one_bit() -> None:
    bits = pixels()[..., 0] > 128
    assert (decoded(encoded(Image.fromarray(bits), "PNG"))[..., 0] == bits * 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    expected = np.rint(values / 257.0)
    assert (decoded(encoded(Image.fromarray(values), kind))[..., 0] == expected).all()


def test_floats() -> None:
    values = np.linspace(0.2, 0.8, 1200, dtype=np.float32).reshape(30, 40)
    out = decoded(encoded(Image.fromarray(values), "TIFF"))
    assert np.abs(out[..., 0] - values * 255).max() <= 0.51


def test_cmyk() -> None:
    """A CMYK JPEG (Pillow writes Adobe's inverted kind) looks like its RGB original."""
    original = Image.fromarray(pixels())
    out = decoded(encoded(original.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(out.astype(int) - np.asarray(original)).mean() < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    color = Image.fromarray(pixels())
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1)))
    image = color.convert(mode)
    image.putalpha(alpha)
    share = np.asarray(alpha)[..., None] / 255
    base = np.asarray(color.convert("L").convert("RGB") if mode == "LA" else color)
    expected = base * share + 255 * (1 - share)
    assert np.abs(decoded(encoded(image, "PNG")) - expected).max() <= 1.01


def test_palette_with_and_without_transparency() -> None:
    palette = Image.fromarray(pixels()).quantize(8)
    expected = np.array(palette.convert("RGB"))
    assert (decoded(encoded(palette, "PNG")) == expected).all()
    clear = int(np.asarray(palette)[0, 0])
    expected[np.asarray(palette) == clear] = 255
    assert (decoded(encoded(palette, "PNG", transparency=clear)) == expected).all()
    assert (decoded(encoded(palette, "GIF", transparency=clear)) == expected).all()


def exif(turn: int) -> bytes:
    out = Image.Exif()
    out[0x0112] = turn
    return out.tobytes()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("reduce", [1, 2])
def test_orientation(turn: int, kind: str, reduce: int) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    data = encoded(pixels(40, 20), kind, exif=exif(turn))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    image = open_image(data)
    assert (image.height, image.width) == expected.shape[:2] == ((40, 20) if turn > 4 else (20, 40))
    out = image.pixels(reduce)
    if kind == "JPEG" and reduce == 2:
        assert out.shape == (expected.shape[0] // 2, expected.shape[1] // 2, 3)
        expected = np.asarray(Image.fromarray(expected).reduce(2))
        assert np.abs(out.astype(int) - expected).mean() < 6
    else:
        assert (out == expected).all()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_orientation_behind_the_pixels_of_a_png() -> None:
    data = encoded(pixels(40, 20), "PNG")
    data = data[:-12] + chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0")) + data[-12:]
    image = open_image(data)
    assert (image.width, image.height) == (20, 40)
    assert (image.pixels() == np.rot90(pixels(40, 20), -1)).all()


def test_orientation_that_makes_no_sense_is_left_aside() -> None:
    assert open_image(encoded(pixels(40, 20), exif=exif(99))).width == 40
    assert open_image(encoded(pixels(40, 20), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).width == 40


@settings(deadline=None, max_examples=40)
@given(w=st.integers(1, 70), h=st.integers(1, 70), reduce=st.sampled_from([1, 2, 4, 8]))
def test_reduced_jpeg_has_the_sides_rounded_up(w: int, h: int, reduce: int) -> None:
    out = decoded(encoded(pixels(w, h)), reduce)
    full = out.shape[:2] == (h, w)  # a side shorter than `reduce` is not reduced so far
    assert out.shape[:2] == (-(-h // reduce), -(-w // reduce)) or full or min(w, h) < reduce


def test_reduced_png_comes_out_whole_and_twice_the_same() -> None:
    image = open_image(encoded(pixels(), "PNG"))
    assert (image.pixels(4) == pixels()).all()
    assert (image.pixels(1) == pixels()).all()
    image = open_image(encoded(pixels()))
    assert image.pixels(2).shape == (15, 20, 3)
    assert image.pixels().shape == (30, 40, 3)


def test_reduce_is_checked() -> None:
    with pytest.raises(ValueError, match="reduce=3"):
        open_image(encoded()).pixels(3)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(pixels(seed=i)) for i in range(3)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert (decoded(data) == pixels(seed=0)).all()


def test_array_sample() -> None:
    image = open_image(Sample(pixels(40, 20)))
    assert (image.width, image.height) == (40, 20)
    assert (image.pixels(2) == pixels(40, 20)).all()
    assert image.image().size == (40, 20)
    for wrong in (pixels()[..., 0], pixels().astype(np.float32), np.empty((0, 4, 3), np.uint8)):
        with pytest.raises(BadImage):
            open_image(Sample(wrong))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("reduce", [1, 2, 4])
def test_truncated_jpeg_is_refused_wherever_it_is_cut(progressive: bool, reduce: int) -> None:
    """Either the whole image comes out, or none: never gray rows."""
    rng = np.random.default_rng(1)
    data = encoded(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), progressive=progressive, quality=80)
    whole = decoded(data, reduce)
    refused = 0
    for cut in range(0, len(data) - 1, 37):
        try:
            assert (decoded(data[:cut], reduce) == whole).all()
        except BadImage:
            refused += 1
    assert refused > len(range(0, len(data), 37)) - 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
def test_truncated_others(kind: str) -> None:
    rng = np.random.default_rng(1)
    data = encoded(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), kind)
    for share in (0.01, 0.3, 0.6, 0.9):
        with pytest.raises(BadImage):
            decoded(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is a text", "not an image"),
        (b"\xff\xd8\xff", "."),
        (b"\xff\xd8\xff" + b"\0" * 100, "."),
        (b"<html><body>404</body></html>", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "."),
        (b"\0" * 1000, "not an image"),
    ],
)
def test_not_a_image(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decoded(data)


def test_misnamed_images_are_read_by_content() -> None:
    assert (decoded(encoded(pixels(), "PNG")) == pixels()).all()  # whatever the file is called


def png_header(w: int, h: int) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_bombs_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    for side in (14_143, 60_000):
        with pytest.raises(BadImage, match="bomb"):
            open_image(png_header(side, side))
    with pytest.raises(BadImage, match="bomb"):
        open_image(encoded(), max_pixels=1199)
    assert open_image(encoded(), max_pixels=1200).width == 40
    # A JPEG's header is changed to 60,000 x 60,000.
    data = encoded()
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(BadImage, match="bomb"):
        open_image(data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4 :])


def test_zero_size() -> None:
    with pytest.raises(BadImage):
        decoded(png_header(0, 5))
    data = encoded()
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(BadImage):
        decoded(data[:at] + struct.pack(">HH", 0, 0) + data[at + 4 :])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"]))
    body = bytearray(encoded(pixels(), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadImage):
        decoded(bytes(body))
