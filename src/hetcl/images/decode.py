"""Bytes to pixels: any image as RGB, upright, or ``BadImage`` with the reason. (Other channels: ``channels.py``.)

- Transparent images are laid over white, as a viewer shows them. Of animated ones the first frame is taken.
- 16-bit grayscale is scaled to 8 bits (value / 257, rounded), never clipped. Colour profiles are not applied.
- EXIF orientation is applied, and width and height are those of the upright image.
- Plain JPEGs are decoded by libjpeg-turbo without the detour over Pillow's own layout, with equal pixels
  (``tests/images/test_turbo.py``). Pillow decodes all else, and whatever libjpeg-turbo remarks on: it alone says what
  is a bad image.

What becomes of a bad image is decided elsewhere: ``views/loader.py`` puts another in its place, the passes of
``analysis`` leave it out, and ``training/bad_images.py`` counts and lists it.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, features

try:
    import simplejpeg
except ImportError:  # a bare checkout; everything works without, more slowly
    simplejpeg = None

from hetcl.images.formats import EXTENSIONS, HEAD, why_unreadable
from hetcl.types import RGB, BadImage, OtherPixels, PixelFormat, Sample

if TYPE_CHECKING:
    from hetcl.images.channels import ChannelImage

MAX_PIXELS = 200_000_000
"""Images with more pixels than this are taken for decompression bombs."""
MAX_BYTES = 2 << 30
"""The largest file; as many pixels as there may be, of 16 bits and with transparency, take 1.6e9."""
FORMATS = tuple(
    sorted(
        {kind for end, kind in Image.registered_extensions().items() if end in EXTENSIONS} & set(Image.OPEN)
    )
)
"""Pillow's names of the formats that are read. (It knows others, one of which is a program that it would run.)"""

# Our own limit stands in for Pillow's warning (not for its error, at twice that size); damaged metadata do no
# harm.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_TURBO = simplejpeg is not None and features.check_feature("libjpeg_turbo")
"""Whether both decoders are libjpeg-turbo: the original libjpeg rounds otherwise."""
_REST = re.compile(r"extraneous bytes before marker 0xd[0-79]$")
"""libjpeg-turbo's remark on rows that it was not asked for, up to a restart or end marker."""
_SEGMENTS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
"""Markers of a JPEG's tables, comments and applications, the usual company of a frame."""
_EXIF_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def too_large(size: int) -> str:
    """Why a file of more than ``MAX_BYTES`` is no image."""
    return f"{size:,} bytes, more than any image has"


class EncodedImage:
    """An image whose header has been read; the pixels are decoded when asked for.

    Attributes:
        width, height: size of the upright original in pixels.
    """

    def __init__(self, data: bytes | np.ndarray, max_pixels: int, *, upright: bool = True) -> None:
        self._data = data
        self._max_pixels = max_pixels
        self._header: Image.Image | None = None
        self._turn = 1
        self._frame: _Frame | None = None
        if isinstance(data, np.ndarray):
            if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3 or 0 in data.shape:
                raise BadImage(f"pixels are {data.dtype} {list(data.shape)}, not uint8 [H, W, 3]")
            self.height, self.width = data.shape[:2]
            return
        self._frame = frame = _frame(data) if _TURBO else None
        if frame is not None and not frame.tagged and 0 < frame.width * frame.height <= max_pixels:
            self.width, self.height = frame.width, frame.height
            return
        self._header = opened(data, max_pixels)
        self._turn = orientation(self._header, data) if upright else 1
        self.width, self.height = self._header.size
        if self._turn in _SIDEWAYS:
            self.width, self.height = self.height, self.width

    @property
    def deep(self) -> bool:
        """Whether it is gray of more than 8 bits, as far as a header that has been read says."""
        return self._header is not None and self._header.mode.startswith(("I", "F"))

    def image(self, reduce: int = 1) -> Image.Image:
        """As ``pixels``, as a Pillow image of mode RGB."""
        if isinstance(self._data, np.ndarray):
            return Image.fromarray(self._data)
        # The header's image is used up by decoding it once.
        image = self._header or opened(self._data, self._max_pixels)
        self._header = None
        try:
            if reduce > 1 and isinstance(image, JpegImagePlugin.JpegImageFile):
                w, h = image.size
                image.draft(None, (max(1, w // reduce), max(1, h // reduce)))
            image.load()
            rgb = _to_rgb(image)
            return rgb if self._turn == 1 else rgb.transpose(_TURNS[self._turn])
        except Exception as error:  # a damaged file may fail in any way
            raise BadImage(reason(error)) from error

    def pixels(self, reduce: int = 1, rows: int | None = None) -> np.ndarray:
        """Decode.

        Args:
            reduce: 1, 2, 4 or 8. A JPEG is decoded at about 1 / ``reduce`` of its size (each side rounded
                up), which is much quicker; other images come out whole. Compare the shape with ``width``
                and ``height``.
            rows: how many rows of the upright original are needed, from the top; None for all. What lies below
                may be black. A file that ends early is refused whatever the rows; other damage below may go unseen.

        Returns:
            uint8 ``[h, w, 3]``, RGB, upright; possibly read-only.

        Raises:
            BadImage: truncated or damaged data, or a kind of pixels without a way to RGB.
        """
        if reduce not in (1, 2, 4, 8):
            raise ValueError(f"reduce={reduce}: it is 1, 2, 4 or 8")
        if isinstance(self._data, np.ndarray):
            return self._data
        if self._frame is not None:
            upright = self._turn == 1
            quick = _turbo(self._data, self._frame, reduce, rows if upright else None)
            if quick is not None:
                return quick if upright else np.asarray(Image.fromarray(quick).transpose(_TURNS[self._turn]))
        return np.asarray(self.image(reduce))


def open_image(
    sample: Sample | bytes, *, max_pixels: int = MAX_PIXELS, upright: bool = True, pixels: PixelFormat = RGB
) -> EncodedImage | ChannelImage:
    """Read an image's header; of other pixel formats than RGB of 8 bits the whole image.

    Args:
        sample: a sample of a source, or the bytes of an image file.
        max_pixels: width times height above which the image is refused, undecoded. (Pillow itself refuses,
            above twice ``PIL.Image.MAX_IMAGE_PIXELS``, what is not a JPEG.)
        upright: turn it as its EXIF orientation says; otherwise it stays as it is stored.
        pixels: as what it is read.

    Raises:
        BadImage: empty, not an image, damaged header, no pixels, or too many; ``OtherPixels`` where it does not go with
            ``pixels``.
    """
    from hetcl.images import channels  # (it asks Pillow by the functions below)

    data = sample if isinstance(sample, bytes) else sample.data
    if not pixels.rgb:
        return channels.ChannelImage(data, pixels, max_pixels, upright=upright)
    if isinstance(data, bytes) and data[:6] == channels.NUMPY:
        data = channels.rgb_array(data, max_pixels)
    return EncodedImage(data, max_pixels, upright=upright)


def opened(data: bytes, max_pixels: int) -> Image.Image:
    """A file's header, read by Pillow. Raises ``BadImage``."""
    if not data:
        raise BadImage("the file is empty")
    try:
        stream = io.BytesIO(data)
        image: ImageFile.ImageFile
        if data[:3] == b"\xff\xd8\xff":
            image = JpegImagePlugin.JpegImageFile(stream)  # spares asking every format
        else:
            image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"too many pixels, a decompression bomb? ({str(error).split(',')[0]})") from error
    except Image.UnidentifiedImageError as error:
        raise _many_channels(data) or BadImage(why_unreadable(data[:HEAD])) from error
    except Exception as error:
        raise BadImage(reason(error)) from error
    w, h = image.size
    if w < 1 or h < 1:
        raise BadImage(f"no pixels ({w} x {h})")
    if w * h > max_pixels:
        raise BadImage(f"{w} x {h} is more than {max_pixels:,} pixels: a decompression bomb?")
    if image.format == "TIFF" and image.tag_v2.get(277, 1) > 4:  # type: ignore[attr-defined]
        raise _many_channels(data) or BadImage("a TIFF of more than 4 channels: set in_chans")
    return image


def _many_channels(data: bytes) -> BadImage | None:
    """What to say of a TIFF that Pillow does not know, where its channels are why."""
    from hetcl.images import channels

    found = channels.tiff_channels(data)
    return (
        None if found is None else OtherPixels(f"{found}, where RGB of 8 bits is read", "in_chans to as many")
    )


class _Frame(NamedTuple):
    """What the header of a plain JPEG says: 8 bits, gray or in colour."""

    width: int
    height: int
    layers: int
    """1 or 3."""
    at: int
    """Where its marker stands in the file."""
    scan: int
    """Where the marker of the first scan stands."""
    baseline: bool
    """Whether its rows are stored one after the other, all colours together."""
    tagged: bool
    """Whether there may be an orientation (EXIF or XMP)."""


def _frame(data: bytes) -> _Frame | None:
    """Run over the segments of a JPEG; None: something is there, or missing, that Pillow has to look at."""
    at, found, tagged = 2, None, False
    try:
        while data[0:2] == b"\xff\xd8" and data[at] == 0xFF:
            kind, length = struct.unpack_from(">BH", data, at + 1)
            if kind in (0xC0, 0xC1, 0xC2) and found is None:  # baseline, extended, progressive
                found = at, kind, *struct.unpack_from(">BHHB", data, at + 4)
            elif kind == 0xDA and found is not None:
                start, frame, bits, height, width, layers = found
                if bits != 8 or layers not in (1, 3):
                    return None
                baseline = frame == 0xC0 and data[at + 4] == layers
                return _Frame(width, height, layers, start, at, baseline, tagged)
            elif kind not in _SEGMENTS:
                return None
            tagged |= kind == 0xE1
            at += 2 + length
    except (IndexError, struct.error):
        pass
    return None


def _turbo(data: bytes, frame: _Frame, reduce: int, rows: int | None) -> np.ndarray | None:
    """Pixels of a JPEG as it is stored, uint8 ``[h, w, 3]``; None: Pillow has to look at it.

    Below the first ``rows`` of the original, what is not decoded is black.
    """
    if min(frame.width, frame.height) < 8 * reduce:  # the scale is chosen by the size, which must tell it
        return None
    w, h = -(-frame.width // reduce), -(-frame.height // reduce)
    # Boxes are rounded by up to two rows, and colour is interpolated with the next two.
    keep = h if rows is None else min(h, -(-rows // reduce) + 2)
    short = _shortened(data, frame, (keep + 2) * reduce)
    out = np.empty((h, w, 3), np.uint8)
    try:
        simplejpeg.decode_jpeg(
            short or data, min_height=h if short is None else keep + 2, min_width=w, buffer=out
        )
    except (ValueError, RuntimeError) as error:  # any remark; the pixels are there all the same
        if short is None or not _REST.search(str(error)):
            return None
    if short is not None:
        out[keep:] = 0
    return out


def _shortened(data: bytes, frame: _Frame, lines: int) -> bytes | None:
    """The same JPEG with ``lines`` rows in its header, so that decoding stops there.

    Rows are stored from the top, so what comes later has no say in them. The decoder still runs over the rest in
    search of the end marker and remarks on it (:data:`_REST`), unless there was something to remark on before. Only
    a missing end could hide behind that, after a restart marker, so it is looked for here.

    Returns:
        None where little would be won, where rows are not stored like that, and where the end is missing.
    """
    if lines + 16 > frame.height or not frame.baseline or data.rfind(b"\xff\xd9", frame.scan) < 0:
        return None
    at = frame.at + 5
    return data[:at] + struct.pack(">H", lines) + data[at + 2 :]


def reason(error: Exception) -> str:
    """What a decoder's error says, in a line."""
    text = (str(error).strip().splitlines() or [""])[0][:200]
    if "truncated" in text.lower():
        return f"truncated ({text})"
    return f"damaged ({type(error).__name__}: {text})" if text else f"damaged ({type(error).__name__})"


def orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or it makes no sense."""
    if image.format == "TIFF" or (image.format == "JXL" and not getattr(image, "jpeg", False)):
        return 1  # its decoder has turned it already
    try:
        if image.format == "PNG" and "exif" not in image.info and b"eXIf" in data:
            image.load()  # EXIF may stand behind the pixels
        if not any(key in image.info for key in _EXIF_KEYS):
            return 1
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return turn if turn in _TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB pixels of a loaded image."""
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema()[0] == 255:
            return rgba.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if mode == "RGB":
        return image
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grayscale of more than 8 bits (or floats) to uint8.

    Up to 65,535: as 16-bit. Floats within [0, 1]: times 255. Anything else: its own range stretched to [0,
    255].
    """
    if values.dtype == np.uint16 or (
        values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 65535
    ):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    real = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = real.min(), real.max()
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.rint((real - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
