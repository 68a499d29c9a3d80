"""Which files are images: by the ending of the name, or, where that says nothing, by their first bytes.

HEIC and JPEG XL are read where their Pillow plugins are installed (``pip install 'hetcl[heif]'``, ``'hetcl[jxl]'``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping

from PIL import features


def _endings(words: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in words.split())


_HEIF, _JXL, _AVIF = _endings("heic heics heif heifs hif"), _endings("jxl"), _endings("avif avifs")
_NPY = _endings("npy")
_ALWAYS = _endings(
    "jpg jpeg jpe jfif pjpeg pjp mpo png apng webp bmp dib gif tif tiff ppm pgm pbm pnm jp2 jpx j2k j2c tga"
)


def _readable() -> frozenset[str]:
    """The endings of formats that can be decoded here; registers Pillow's plugins."""
    found = _ALWAYS | (_AVIF if features.check("avif") else frozenset())
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        found |= _HEIF
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401

        found |= _JXL
    return found


EXTENSIONS = _readable()
"""Names that end so (in any case) are taken for images."""

_FRAMES = "take frames out of them (ffmpeg -i FILE frames/%06d.jpg)"
_UNPACK = "unpack them"
_WRITE = "write the images in them as files or tar shards"
_ADVICE: Mapping[frozenset[str], str] = {
    _HEIF: "install hetcl[heif] to read them, or convert them to JPEG",
    _JXL: "install hetcl[jxl] to read them, or convert them to JPEG",
    _AVIF: "update Pillow to read them (11.3 has AVIF), or convert them to JPEG",
    _endings("cr2 cr3 nef nrw arw srf sr2 dng raf orf rw2 pef raw rwl srw 3fr iiq"): "develop them to JPEG",
    _endings("svg eps ai psd xcf exr hdr dcm nii dicom mrc nrrd"): "convert them to PNG",
    _endings("mp4 mov avi mkv webm m4v mpg mpeg wmv flv 3gp"): _FRAMES,
    _endings("zip rar 7z gz tgz bz2 tbz xz txz zst"): _UNPACK,
    _NPY: "arrays of numbers [height, width, channels] are read, others are not",
    _endings("npz h5 hdf5 mat lmdb mdb tfrecord tfrecords rec parquet arrow"): _WRITE,
}
"""Files that may hold images but are not read, and how to make images of them."""
_OTHERS = _endings(
    "tar txt json jsonl xml csv tsv md rst yaml yml toml ini cfg conf html htm css js py ipynb sh bat log lock idx cls "
    "label lbl db sqlite doc docx xls xlsx ppt pptx rtf odt pdf mp3 wav flac m4a bin dat names data prototxt url "
    "webloc lnk part crdownload icloud download sha1 sha256 md5 geojson kml gpx srt vtt pts land xmp aae pkl pickle "
    "pt pth safetensors"
)
OTHERS = _OTHERS | frozenset().union(*_ADVICE) - _HEIF - _JXL - _AVIF - _NPY
"""Endings whose files are known to be no images that can be read here; of others the content decides (that of
``.heic`` may be a JPEG, which phones and messengers call so)."""
NOTES = frozenset(
    "readme license licence copying notice authors contributors changelog changes news todo install makefile "
    "dockerfile version".split()
)
"""Files without an ending that are text (in lower case)."""
SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
"""Files that systems leave everywhere (in lower case): not worth a word."""
SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
)
"""Folders of systems (in lower case); what looks like an image there is a thumbnail or a copy."""

NO_ENDING, BROKEN, SPECIAL, PREDICTED = (
    "without an ending", "broken link", "special file", "hetcl-predict folder"
)  # fmt: skip
"""Kinds of files besides their endings."""
HEAD = 128
"""Bytes that ``looks_like_image`` wants."""
_SHOWN = 5

_BMP = rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}"
_IMAGE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|II\*\0|MM\0\*|P[1-6]\s+[\d#]"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51\0|" + _BMP,
    re.DOTALL,
)
_ARRAY = re.compile(
    rb"\x93NUMPY.{2,6}\{'descr': '[|<>=](?:b1|[uif][1248])', 'fortran_order': \w+, 'shape': \(\d+, \d+, \d{1,3}\)",
    re.DOTALL,
)
"""The beginning of an ``.npy`` file of numbers ``[height, width, channels]``."""
_PLUGINS = (
    (re.compile(rb".{4}ftyp(hei[cfxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "HEIC", _HEIF),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "JPEG XL", _JXL),
    (re.compile(rb".{4}ftypavi[fs]", re.DOTALL), "AVIF", _AVIF),
)
"""First bytes, name and endings of the formats that are not read everywhere."""
_NO_IMAGES = (
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS: fetch the files with `git lfs pull`"),
    (re.compile(rb"\S*/annex/objects/"), "a pointer of git-annex: fetch the files with `git annex get`"),
    (re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE), "a web page: the download went wrong"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?<svg", re.IGNORECASE), "SVG: convert it to PNG"),
)


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (``HEAD`` bytes) is an image of a format that can be read here."""
    if _IMAGE.match(head) or _ARRAY.match(head):
        return True
    return any(start.match(head) and endings <= EXTENSIONS for start, _, endings in _PLUGINS)


def why_unreadable(head: bytes) -> str:
    """What is wrong with bytes that no decoder takes."""
    for start, name, endings in _PLUGINS:
        if start.match(head) and not endings <= EXTENSIONS:
            return f"{name}, which is not read here: {_ADVICE[endings]}"
    for start, what in _NO_IMAGES:
        if start.match(head):
            return f"not an image but {what}"
    return f"not an image (starts with {head[:8]!r})"


def ending(name: str) -> str:
    """The ending of a file's name in lower case, with its dot; empty where there is none."""
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return ending(name) in EXTENSIONS


class Aside:
    """What is no image: how many files of each kind, and one of each by name. Holds 1,000 kinds at most."""

    def __init__(self, found: Mapping[str, tuple[int, str]] | None = None) -> None:
        self.found: dict[str, tuple[int, str]] = dict(found or {})

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Count a file (or ``count`` files) of a kind: an ending or one of the module's words."""
        kind = kind or NO_ENDING
        if kind in self.found or len(self.found) < 1000:
            before, first = self.found.get(kind, (0, example))
            self.found[kind] = before + count, first

    def words(self) -> str:
        """``24 .heic (IMG_1.heic), 3 .zip (a.zip): ...``, the commonest first, and what can be done; or nothing."""
        kinds = sorted(self.found.items(), key=lambda item: (-item[1][0], item[0]))
        shown = [f"{count:,} {_many(kind, count)} ({example})" for kind, (count, example) in kinds[:_SHOWN]]
        if len(kinds) > _SHOWN:
            shown.append(f"{sum(count for _, (count, _) in kinds[_SHOWN:]):,} of other kinds")
        return ", ".join(shown)

    def advice(self) -> str:
        """What makes images of the files that may hold some, in a few words; or nothing."""
        notes = [
            f"{', '.join(kind for kind in self.found if kind in endings)}: {what}"
            for endings, what in _ADVICE.items()
            if not endings <= EXTENSIONS and any(kind in endings for kind in self.found)
        ]
        if BROKEN in self.found:
            notes.append(f"{BROKEN}s: fetch what they point to")
        return "; ".join(notes)


def _many(kind: str, count: int) -> str:
    """A kind of file, of which there are several: ``broken links``, but ``.zip``."""
    return kind if count == 1 or kind[0] == "." or kind == NO_ENDING else f"{kind}s"


def images(count: int) -> str:
    """``1 image``, ``2,000 images``."""
    return f"{count:,} image{'s'[: count != 1]}"


def left_aside(name: str, aside: Aside) -> tuple[int, str] | None:
    """A line on the files that are no images, and its level: a warning where something can be done."""
    if not aside.found:
        return None
    advice = aside.advice()
    return (
        logging.WARNING if advice else logging.INFO,
        f"left aside in {name}: {aside.words()}" + (f"; {advice}" if advice else ""),
    )
