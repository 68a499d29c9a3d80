"""Plain JPEGs, decoded past Pillow: the same pixels, the same refusals, and no more rows than are asked for."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from hetcl.images import decode
from hetcl.images.decode import EncodedImage, open_image
from hetcl.types import BadImage
from hetcl.views import crops
from tests.images.make import encoded, pixels

pytestmark = [
    pytest.mark.skipif(not decode._TURBO, reason="without simplejpeg, or Pillow without libjpeg-turbo"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@st.composite
def jpegs(draw: st.DrawFn, least: int = 1, most: int = 120) -> bytes:
    """Files of any size, quality, layout and content."""
    w, h = draw(st.integers(least, most)), draw(st.integers(least, most))
    seed, gray = draw(st.integers(0, 1000)), draw(st.booleans())
    image = pixels(w, h, seed)
    if draw(st.booleans()):
        image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    options = {
        "quality": draw(st.integers(1, 98)),
        "progressive": draw(st.sampled_from([False, False, True])),
        "optimize": draw(st.booleans()) and w * h > 4000,  # Pillow's buffer may be too small for others
        "restart_marker_blocks": draw(st.sampled_from([0, 0, 1, 5])),
    }
    if not gray:
        options["subsampling"] = draw(st.sampled_from([0, 1, 2]))
        options["keep_rgb"] = options["subsampling"] == 0 and draw(st.booleans())
    return encoded(Image.fromarray(image).convert("L" if gray else "RGB"), **options)


def by_pillow(data: bytes, reduce: int = 1) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    if reduce > 1:
        image.draft(None, (max(1, image.width // reduce), max(1, image.height // reduce)))
    return np.asarray(image.convert("RGB"))


@settings(deadline=None, max_examples=150)
@given(jpegs(), st.sampled_from([1, 2, 4, 8]), st.integers(1, 120), st.booleans())
def test_pixels_equal_pillows(data: bytes, reduce: int, rows: int, all_rows: bool) -> None:
    expected = by_pillow(data, reduce)
    out = open_image(data).pixels(reduce, None if all_rows else rows)
    assert out.shape == expected.shape
    kept = len(out) if all_rows else math.ceil(rows / reduce)
    assert (out[:kept] == expected[:kept]).all()
    assert ((out == expected) | (out == 0)).all()  # below, they are there or black


@settings(deadline=None, max_examples=100)
@given(jpegs(least=16), st.sampled_from([1, 2]), st.data())
def test_crops_equal_those_of_all_rows(data: bytes, reduce: int, draw: st.DataObject) -> None:
    image = open_image(data)
    width, height = plane = image.width, image.height
    boxes = []
    for _ in range(2):
        l, t = draw.draw(st.floats(0, width - 1)), draw.draw(st.floats(0, height - 1))
        boxes.append((l, t, draw.draw(st.floats(l + 1, width)), draw.draw(st.floats(t + 1, height))))
    few = image.pixels(reduce, math.ceil(max(b for *_, b in boxes)))
    assert np.array_equal(
        crops.cut(few, boxes, 9, plane=plane), crops.cut(by_pillow(data, reduce), boxes, 9, plane=plane)
    )


def photo(**options: object) -> bytes:
    """Fine-grained, so that every cut falls into the rows."""
    image = np.random.default_rng(1).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    return encoded(image, quality=80, **options)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 2}, {"restart_marker_blocks": 3}]
)
def test_sound_photographs_are_not_decoded_by_pillow(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photo(**options)
    expected = by_pillow(data)
    monkeypatch.setattr(EncodedImage, "image", None)
    assert (open_image(data).pixels() == expected).all()
    few = open_image(data).pixels(rows=40)
    assert (few[:40] == expected[:40]).all()
    stops = not options.get("progressive")  # whose rows are not stored one after the other
    assert (few[60:] == 0).all() == stops


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("rows", [None, 20, 80])
def test_a_file_that_ends_early_is_refused_whatever_the_rows(
    options: dict[str, object], rows: int | None
) -> None:
    data = photo(**options)
    for cut in [*range(3, len(data), 41), len(data) - 2, len(data) - 1]:
        with pytest.raises(BadImage) as refused:
            open_image(data[:cut]).pixels(rows=rows)
        with pytest.raises(BadImage) as alone:
            open_image(data[:cut]).image()
        assert str(refused.value) == str(alone.value)


def outcome(data: bytes, rows: int | None) -> np.ndarray | str:
    try:
        image = open_image(data, max_pixels=100_000)
        return image.pixels(rows=rows)[:rows]
    except BadImage as error:
        return str(error)


@settings(deadline=None, max_examples=150)
@given(jpegs(), st.data())
def test_damage_has_the_same_outcome_as_with_pillow_alone(data: bytes, draw: st.DataObject) -> None:
    body = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        body[draw.draw(st.integers(2, len(body) - 1))] = draw.draw(st.sampled_from([0xFF, 0xD9, 0, 7, 200]))
    rows = draw.draw(st.none() | st.integers(1, 120))
    ours = outcome(bytes(body), rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "_TURBO", False)
        alone = outcome(bytes(body), rows)
    assert np.array_equal(ours, alone) if isinstance(alone, np.ndarray) else ours == alone


@pytest.mark.parametrize("turn", range(1, 9))
def test_rows_of_a_turned_image_are_those_of_the_upright_one(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(pixels(40, 70), exif=exif.tobytes())
    whole = open_image(data).image()
    few = open_image(data).pixels(rows=20)
    assert few.shape[:2] == whole.size[::-1]
    assert (few[:20] == np.asarray(whole)[:20]).all()


def test_a_thumbnail_in_the_header_is_not_taken_for_the_image() -> None:
    small, exif = encoded(pixels(64, 96, seed=3)), Image.Exif()
    exif[0x0112] = 1
    block = exif.tobytes() + small
    data = encoded(pixels(64, 96, seed=4), exif=block)
    assert small in data
    assert (open_image(data).pixels(rows=30)[:30] == by_pillow(data)[:30]).all()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "CMYK", "array"])
def test_other_images_come_out_whole(kind: str) -> None:
    original = pixels(64, 96)
    if kind == "array":
        assert (decode.EncodedImage(original, 10_000).pixels(rows=3) == original).all()
        return
    data = encoded(Image.fromarray(original).convert("CMYK")) if kind == "CMYK" else encoded(original, kind)
    assert (open_image(data).pixels(rows=3) == by_pillow(data)).all()


@given(jpegs(), st.integers(1, 10_000))
@settings(deadline=None, max_examples=40)
def test_size_and_limit_are_those_of_pillow(data: bytes, limit: int) -> None:
    image = Image.open(io.BytesIO(data))
    opened = open_image(data)
    assert (opened.width, opened.height) == image.size
    assume(limit < image.width * image.height)
    with pytest.raises(BadImage, match="decompression bomb"):
        open_image(data, max_pixels=limit)
