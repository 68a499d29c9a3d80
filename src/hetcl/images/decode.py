"""Bytes to pixels: any picture as RGB, upright, or ``BadPicture`` with the reason.

- Transparent pictures are laid over white, as a viewer shows them. Of animated ones the first frame is taken.
- 16-bit grayscale is scaled to 8 bits (value / 257, rounded), never clipped. Colour profiles are not applied.
- EXIF orientation is applied, and width and height are those of the upright picture.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin

from hetcl.images.formats import HEAD, why_unreadable
from hetcl.types import BadPicture, Sample

MAX_PIXELS = 200_000_000
"""Pictures with more pixels than this are taken for decompression bombs."""

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
_EXIF_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


class Picture:
    """A picture whose header has been read; the pixels are decoded when asked for.

    Attributes:
        width, height: size of the upright original in pixels.
    """

    def __init__(self, data: bytes | np.ndarray, max_pixels: int, *, upright: bool = True) -> None:
        self._data = data
        self._max_pixels = max_pixels
        self._header: Image.Image | None = None
        self._turn = 1
        if isinstance(data, np.ndarray):
            if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3 or 0 in data.shape:
                raise BadPicture(f"pixels are {data.dtype} {list(data.shape)}, not uint8 [H, W, 3]")
            self.height, self.width = data.shape[:2]
            return
        self._header = _open(data, max_pixels)
        self._turn = _orientation(self._header, data) if upright else 1
        self.width, self.height = self._header.size
        if self._turn in _SIDEWAYS:
            self.width, self.height = self.height, self.width

    def image(self, reduce: int = 1) -> Image.Image:
        """As ``pixels``, as a Pillow image of mode RGB."""
        if isinstance(self._data, np.ndarray):
            return Image.fromarray(self._data)
        # The header's image is used up by decoding it once.
        picture = self._header or _open(self._data, self._max_pixels)
        self._header = None
        try:
            if reduce > 1 and isinstance(picture, JpegImagePlugin.JpegImageFile):
                w, h = picture.size
                picture.draft(None, (max(1, w // reduce), max(1, h // reduce)))
            picture.load()
            rgb = _to_rgb(picture)
            return rgb if self._turn == 1 else rgb.transpose(_TURNS[self._turn])
        except Exception as error:  # a damaged file may fail in any way
            raise BadPicture(_reason(error)) from error

    def pixels(self, reduce: int = 1) -> np.ndarray:
        """Decode.

        Args:
            reduce: 1, 2, 4 or 8. A JPEG is decoded at about 1 / ``reduce`` of its size (each side rounded
                up), which is much quicker; other pictures come out whole. Compare the shape with ``width``
                and ``height``.

        Returns:
            uint8 ``[h, w, 3]``, RGB, upright; possibly read-only.

        Raises:
            BadPicture: truncated or damaged data, or a kind of pixels without a way to RGB.
        """
        if reduce not in (1, 2, 4, 8):
            raise ValueError(f"reduce={reduce}: it is 1, 2, 4 or 8")
        if isinstance(self._data, np.ndarray):
            return self._data
        return np.asarray(self.image(reduce))


def open_picture(sample: Sample | bytes, *, max_pixels: int = MAX_PIXELS, upright: bool = True) -> Picture:
    """Read a picture's header.

    Args:
        sample: a sample of a source, or the bytes of an image file.
        max_pixels: width times height above which the picture is refused, undecoded. (Pillow itself refuses,
            above twice ``PIL.Image.MAX_IMAGE_PIXELS``, what is not a JPEG.)
        upright: turn it as its EXIF orientation says; otherwise it stays as it is stored.

    Raises:
        BadPicture: empty, not a picture, damaged header, no pixels, or too many.
    """
    return Picture(sample if isinstance(sample, bytes) else sample.data, max_pixels, upright=upright)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BadPicture("the file is empty")
    try:
        stream = io.BytesIO(data)
        picture: ImageFile.ImageFile
        if data[:3] == b"\xff\xd8\xff":
            picture = JpegImagePlugin.JpegImageFile(stream)  # spares asking every format
        else:
            picture = Image.open(stream)
    except Image.DecompressionBombError as error:
        raise BadPicture(f"too many pixels, a decompression bomb? ({str(error).split(',')[0]})") from error
    except Image.UnidentifiedImageError as error:
        raise BadPicture(why_unreadable(data[:HEAD])) from error
    except Exception as error:
        raise BadPicture(_reason(error)) from error
    w, h = picture.size
    if w < 1 or h < 1:
        raise BadPicture(f"no pixels ({w} x {h})")
    if w * h > max_pixels:
        raise BadPicture(f"{w} x {h} is more than {max_pixels:,} pixels: a decompression bomb?")
    return picture


def _reason(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0][:200]
    if "truncated" in text.lower():
        return f"truncated ({text})"
    return f"damaged ({type(error).__name__}: {text})" if text else f"damaged ({type(error).__name__})"


def _orientation(picture: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or it makes no sense."""
    if picture.format == "TIFF" or (picture.format == "JXL" and not getattr(picture, "jpeg", False)):
        return 1  # its decoder has turned it already
    try:
        if picture.format == "PNG" and "exif" not in picture.info and b"eXIf" in data:
            picture.load()  # EXIF may stand behind the pixels
        if not any(key in picture.info for key in _EXIF_KEYS):
            return 1
        turn = picture.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return turn if turn in _TURNS else 1


def _to_rgb(picture: Image.Image) -> Image.Image:
    """RGB pixels of a loaded picture."""
    mode = picture.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return Image.fromarray(_to_8_bits(np.asarray(picture))).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        if rgba.getchannel("A").getextrema()[0] == 255:
            return rgba.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if mode == "RGB":
        return picture
    return picture.convert("RGB")


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
