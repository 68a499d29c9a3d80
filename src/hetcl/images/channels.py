"""Images of any number of channels and any depth: bytes to float32 ``[H, W, C]`` in [0, 1] (docs/channels.md).

- Files: what Pillow reads, TIFF of any number of channels and bits (with tifffile, ``pip install 'hetcl[tiff]'``), and
  ``.npy`` arrays ``[H, W, C]``.
- Channels: as many as asked for, as they are stored. Besides: transparency is laid over white, colour becomes one gray
  value (0.299 red + 0.587 green + 0.114 blue), and one channel is repeated where three are asked for.
- Values: divided by the top that is asked for, else by the largest of their type (1 of floats). What is below 0 or
  above the top is refused, never clipped.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

try:
    import tifffile
except ImportError:  # an extra
    tifffile = None  # type: ignore[assignment]

from hetcl.images import decode
from hetcl.types import BadImage, OtherPixels, PixelFormat

NUMPY = b"\x93NUMPY"
"""How an ``.npy`` file begins."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How a TIFF begins; the last two are BigTIFF."""
GRAY = np.array([0.299, 0.587, 0.114], np.float32)
"""Red, green and blue in a gray value (ITU-R BT.601, as Pillow has it)."""
MOST_CHANNELS = 512
_ALPHA = (1, 2)
"""TIFF's numbers of extra samples that are transparency."""
_NEEDS_TIFFFILE = "a TIFF that needs tifffile: pip install 'hetcl[tiff]'"


class ChannelImage:
    """An image that is read as another pixel format than RGB of 8 bits; the interface is that of ``EncodedImage``.

    Raises:
        BadImage: it cannot be read; ``OtherPixels`` where it is sound and of other channels or values.
    """

    def __init__(
        self, data: bytes | np.ndarray, pixels: PixelFormat, max_pixels: int, *, upright: bool = True
    ) -> None:
        values, alpha = stored(data, max_pixels, upright=upright, channels=pixels.channels)
        top = pixels.top or largest(values.dtype)
        self._values = scaled(fitted(values, pixels.channels, alpha), top)
        self.height, self.width = self._values.shape[:2]

    def pixels(self, reduce: int = 1, rows: int | None = None) -> np.ndarray:
        """float32 ``[H, W, C]`` in [0, 1], whole whatever is asked for."""
        return self._values


def stored(
    data: bytes | np.ndarray, max_pixels: int, *, upright: bool = True, channels: int = 0
) -> tuple[np.ndarray, bool]:
    """The values of an image as its file has them, ``[H, W, C]`` of any type, and whether the last is transparency.

    Args:
        channels: how many are wanted, by which it is told where a TIFF of several pages has them; 0: any.

    Raises:
        BadImage: it cannot be read.
    """
    if isinstance(data, np.ndarray):
        return data, False
    if data[:6] == NUMPY:
        return _array(data, max_pixels), False
    found = _tiff(data, max_pixels, upright, channels) if data[:4] in TIFF and tifffile is not None else None
    return _pillow(data, max_pixels, upright) if found is None else found


def largest(dtype: np.dtype[Any]) -> float:
    """The largest value that a type of pixels can hold; 1 of floats."""
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def fitted(values: np.ndarray, channels: int, alpha: bool) -> np.ndarray:
    """``[H, W, C]`` with as many channels as are wanted (the module's rules). Raises ``OtherPixels``."""
    found = values.shape[2]
    if alpha and found != channels:
        top = largest(values.dtype)
        share = values[..., -1:].astype(np.float32) / np.float32(top)
        values = values[..., :-1] * share + np.float32(top) * (1 - share)
    count = values.shape[2]
    if count == channels:
        return values
    if count == 1 and channels == 3:
        return values.repeat(3, axis=2)
    if count == 3 and channels == 1:
        return (values.astype(np.float32) @ GRAY)[..., None]
    raise OtherPixels(
        f"{found} channel{'s'[: found != 1]}, where {channels} {'is' if channels == 1 else 'are'} read",
        f"in_chans to {found}",
    )


def scaled(values: np.ndarray, top: float) -> np.ndarray:
    """float32 in [0, 1]: the values over ``top``.

    Raises:
        BadImage: values that are not finite; ``OtherPixels``: below 0 or above ``top``.
    """
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        count = int(finite.size - finite.sum())
        raise BadImage(f"{count:,} values are not finite (NaN, infinite): put a number in their place")
    low, high = float(values.min()), float(values.max())
    if low < 0:
        raise OtherPixels(f"values from {low:g} on, and pixels begin at 0: add an offset to them")
    if high > top * (1 + 1e-5):  # (what rounding of floats adds is no fault)
        raise OtherPixels(f"values up to {high:g}, and the top is {top:g}", f"pixel_max to {high:g} or more")
    out = values.astype(np.float32) if top < 1 << 24 else values.astype(np.float64)
    return np.ascontiguousarray((out / out.dtype.type(top)).clip(0, 1), dtype=np.float32)


def drawable(pixels: np.ndarray) -> np.ndarray:
    """An image for people, uint8 ``[H, W, 3]``; what is that already stays.

    Of others the first three channels are shown (the first, where there are fewer), each stretched from its least to
    its greatest value.
    """
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return pixels
    few = pixels[..., : 3 if pixels.shape[2] >= 3 else 1].astype(np.float32)
    low, high = few.min((0, 1)), few.max((0, 1))
    spread = np.where(high > low, high - low, 1)
    out = np.rint((few - low) * (255 / spread)).astype(np.uint8)
    return out if out.shape[2] == 3 else out.repeat(3, axis=2)


def rgb_array(data: bytes, max_pixels: int) -> np.ndarray:
    """uint8 ``[H, W, 3]`` of an ``.npy`` file of 8 bits. Raises ``BadImage``."""
    values = fitted(_array(data, max_pixels), 3, alpha=False)
    if values.dtype != np.uint8:
        raise OtherPixels(
            f"values of {values.dtype}, where RGB of 8 bits is read", "pixel_max to the largest value"
        )
    return np.ascontiguousarray(values)


def size_of(data: bytes) -> tuple[int, int] | None:
    """Height and width of an ``.npy`` file or a TIFF, from its header; None where that cannot be said."""
    try:
        if data[:6] == NUMPY:
            shape, _ = _header(io.BytesIO(data))
            return (int(shape[0]), int(shape[1])) if len(shape) == 3 else None
        if data[:4] in TIFF and tifffile is not None:
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                page: Any = file.pages[0]
                return int(page.imagelength), int(page.imagewidth)
    except Exception:  # a damaged file may fail in any way
        pass
    return None


def tiff_channels(data: bytes) -> str | None:
    """``5 channels of 16 bits`` of a TIFF; None where that cannot be said."""
    if data[:4] not in TIFF or tifffile is None:
        return None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            count = page.samplesperpixel
            return f"{count} channel{'s'[: count != 1]} of {page.bitspersample} bits"
    except Exception:  # a damaged file may fail in any way
        return None


# ---- kinds of files --------------------------------------------------------------------------------------------------


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an ``.npy`` file."""
    old = np.lib.format.read_magic(stream) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _array(data: bytes, max_pixels: int) -> np.ndarray:
    """The array in the bytes of an ``.npy`` file. Raises ``BadImage``."""
    stream = io.BytesIO(data)
    try:
        shape, dtype = _header(stream)
    except Exception as error:  # a damaged file may fail in any way
        raise BadImage(f"damaged ({error})") from error
    if len(shape) != 3 or dtype.kind not in "buif" or 0 in shape:
        raise BadImage(f"an array of {dtype} {list(shape)}, not numbers [height, width, channels]")
    _check_size(shape[0], shape[1], max_pixels)
    if shape[2] > MOST_CHANNELS:
        raise BadImage(
            f"an array {list(shape)} of {shape[2]:,} channels: the channels are its last axis, up to {MOST_CHANNELS}"
        )
    stream.seek(0)
    try:
        return np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:
        raise BadImage(f"truncated ({error})") from error


def _tiff(data: bytes, max_pixels: int, upright: bool, channels: int) -> tuple[np.ndarray, bool] | None:
    """A TIFF by tifffile; None for the ordinary ones, which Pillow reads (8 bits, gray or in colour, compressed)."""
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            _check_size(page.imagelength, page.imagewidth, max_pixels)
            series: Any = file.series[0]
            several = page.samplesperpixel == 1 and len(series.shape) > 2
            extra = tuple(int(e) for e in page.extrasamples)
            if not several and _ordinary(page, extra):
                return None
            if several:
                values = _stacked(series, channels)
            else:
                values = page.asarray()
                values = np.moveaxis(values, 0, -1) if page.axes == "SYX" else values
            if values.ndim == 2:
                values = values[..., None]
            if values.ndim != 3:
                raise BadImage(f"a TIFF of axes {page.axes}, not height, width and channels")
            turn = int(page.tags[274].value) if 274 in page.tags else 1
    except BadImage:
        raise
    except Exception as error:  # of many kinds
        if "imagecodecs" in str(error):
            raise OtherPixels(
                "a TIFF whose compression needs imagecodecs: pip install imagecodecs"
            ) from error
        raise BadImage(decode.reason(error)) from error
    return turned(values, turn if upright else 1), len(extra) == 1 and extra[0] in _ALPHA


def _ordinary(page: Any, extra: tuple[int, ...]) -> bool:
    """Whether a TIFF is gray, of up to 16 bits, or in colour of 8 bits, perhaps with transparency."""
    colors = page.samplesperpixel - len(extra)
    known = colors in (1, 3, 4) and (not extra or (colors == 3 and len(extra) == 1 and extra[0] in _ALPHA))
    bits = 16 if page.samplesperpixel == 1 and page.sampleformat == 1 else 8
    return known and page.bitspersample <= bits and page.planarconfig != 2


def _stacked(series: Any, channels: int) -> np.ndarray:
    """The pages of a TIFF, each of one channel, as channels; the first alone, where one or three are wanted."""
    shape = tuple(series.shape)
    if len(shape) == 3 and channels and channels == shape[0]:
        return np.moveaxis(series.asarray(), 0, -1)
    if len(shape) == 3 and channels == shape[2]:  # written without a word of what the axes are
        return series.asarray()
    if channels in (0, 1, 3):
        return series.pages[0].asarray()
    raise OtherPixels(
        f"a TIFF of shape {list(shape)} ({series.axes}), where {channels} channels are read",
        f"in_chans to {shape[0]}" if len(shape) == 3 else "",
    )


def _pillow(data: bytes, max_pixels: int, upright: bool) -> tuple[np.ndarray, bool]:
    """What Pillow reads, with the depth that it has. Raises ``BadImage``."""
    if data[:4] in TIFF and tifffile is None:
        try:
            image = decode.opened(data, max_pixels)
        except BadImage as error:
            raise OtherPixels(_NEEDS_TIFFFILE) from error
    else:
        image = decode.opened(data, max_pixels)
    _check_depth(image, data)
    turn = decode.orientation(image, data) if upright else 1
    try:
        image.load()
        values, alpha = _values(image)
    except BadImage:
        raise
    except Exception as error:  # a damaged file may fail in any way
        raise BadImage(decode.reason(error)) from error
    return turned(values, turn), alpha


def _check_depth(image: Image.Image, data: bytes) -> None:
    """Refuse what Pillow would read as 8 bits though there are more. Raises ``OtherPixels``."""
    if image.format == "PNG" and data[24:25] == b"\x10" and data[25] in (2, 4, 6):
        raise OtherPixels(
            "a PNG of 16 bits in each of several channels, of which 8 would be read: save it as TIFF"
        )
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(277, 1) > 1 and max(tags.get(258, (1,))) > 8:
            raise OtherPixels(_NEEDS_TIFFFILE)


def _values(image: Image.Image) -> tuple[np.ndarray, bool]:
    """The values of a loaded image, ``[H, W, C]``, and whether the last channel is transparency."""
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        values = np.asarray(image)[..., None]
        if mode == "I" and values.min() >= 0 and values.max() <= 65535:
            values = values.astype(np.uint16)  # (16-bit PNGs, by some versions)
        return values, False
    if mode == "LA":
        return np.asarray(image), True
    if mode in ("RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        return np.asarray(image.convert("RGBA")), True
    if mode in ("L", "1"):
        return np.asarray(image.convert("L"))[..., None], False
    return np.asarray(image if mode == "RGB" else image.convert("RGB")), False


def turned(values: np.ndarray, turn: int) -> np.ndarray:
    """``[H, W, C]`` as an EXIF orientation of 1 to 8 says; others are taken for 1."""
    if turn in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    down, right = turn in (3, 4, 7, 8), turn in (2, 3, 6, 7)
    return values[:: -1 if down else 1, :: -1 if right else 1]


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise BadImage(f"no pixels ({width} x {height})")
    if height * width > max_pixels:
        raise BadImage(f"{width} x {height} is more than {max_pixels:,} pixels: a decompression bomb?")
