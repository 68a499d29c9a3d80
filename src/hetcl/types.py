"""The objects that pass between rooms. Read this file first.

Shape legend, used in every tensor file::

    B  images in a batch        V  views of each image (2 in training, 1 for features)
    C  channels                 H W  height and width in pixels
    S  side of the spatial grid D  dimensions of a part, or of the concatenation
    K  length of the queue      N  images in the data set
    G  batch-norm groups        R  ranks (processes)

Torch and numpy are imported for annotations only, so that the command line answers before they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class PixelFormat:
    """As what the pixels of images are read (docs/channels.md).

    RGB of 8 bits is uint8 ``[H, W, 3]``. Anything else is float32 ``[H, W, C]`` in [0, 1], the stored values over the
    top value.
    """

    channels: int = 3
    """C."""
    top: float = 0.0
    """The stored value that becomes 1; 0: the largest that its type can hold (1 of floats)."""

    @property
    def rgb(self) -> bool:
        """Whether that is RGB of 8 bits."""
        return self.channels == 3 and not self.top

    @property
    def dtype(self) -> str:
        """Type of the values as read."""
        return "uint8" if self.rgb else "float32"

    @property
    def bytes(self) -> int:
        """Bytes of a pixel as read."""
        return self.channels * (1 if self.rgb else 4)

    def __str__(self) -> str:
        if self.rgb:
            return "RGB of 8 bits"
        channels = "1 channel" if self.channels == 1 else f"{self.channels} channels"
        return f"{channels}, values up to {f'{self.top:g}' if self.top else 'the largest of their type'}"


RGB = PixelFormat()
"""What images are read as, if nothing else is asked for."""


@dataclass(frozen=True)
class Sample:
    """One image as it is stored."""

    data: bytes | np.ndarray
    """The bytes of an image file, or pixels already: uint8 ``[H, W, 3]``, RGB, upright."""
    label: int | None = None
    """Class index where the data has labels."""
    name: str = ""
    """What to call the image in a message: a path, or shard and key."""


@runtime_checkable
class Source(Protocol):
    """Images by index. Opened once, cheap to send to worker processes, thread-safe to read.

    Nothing it holds in memory grows with the number of images (``images/sources.py``).
    """

    classes: tuple[str, ...] | None
    """Names of the classes, or None when the data has no labels."""
    fingerprint: str
    """Short hash of what images there are and in which order; a resumed run compares it."""
    description: str
    """A line for the console: how many images, where from."""
    unlabelled: int
    """Where the data has labels: how many images have none."""
    prefers_window: int
    """0, or mix images within windows of that many: not all remote shards fit on the disk (``images/copies.py``)."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """The image at ``index`` in ``[0, len)``. Raises ``BadImage`` when it cannot be read."""
        ...

    def label(self, index: int) -> int | None:
        """The label alone, without reading the image."""
        ...

    def name(self, index: int) -> str:
        """What ``sample`` calls the image, without reading it."""
        ...

    def blocks(self) -> np.ndarray | None:
        """Starts of runs of images that are best read together (shards), int64, or None."""
        ...


@dataclass(frozen=True)
class ViewPolicy:
    """How a view is drawn from an image: the crop, then colour, blur and flip (docs/facts.md).

    The defaults are MoCo-v2's. ``settings/pretrain.py`` nests this class: each line is also the help of a setting.
    """

    area: tuple[float, float] = (0.2, 1.0)
    """Share of the image's area that a crop covers, least and most."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop, least and most."""
    square: bool = False
    """Draw all crops of an image in one square of it, as large as can be and placed at random, so that where they lie
    says nothing of its aspect ratio (hcl-geo compares places)."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of the colour jitter: brightness, contrast, saturation, hue."""
    jitter_p: float = 0.8
    """Probability of colour jitter."""
    grayscale_p: float = 0.2
    """Probability of turning gray."""
    grayscale_first: bool = False
    """Turn gray before the colour jitter (MoCo-v1) instead of after it (MoCo-v2)."""
    blur_p: float = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the Gaussian blur in pixels of the view, least and most."""
    flip_p: float = 0.5
    """Probability of a horizontal flip. HCL's stage 2 uses 0 (paper section 4.3.3)."""

    def faults(self) -> list[tuple[str, str]]:
        """``(field, what is wrong with its value)`` for values that each have the right type."""
        out = []
        for key in ("jitter_p", "grayscale_p", "blur_p", "flip_p"):
            if not 0 <= getattr(self, key) <= 1:
                out.append((key, "is a probability between 0 and 1"))
        if not 0 < self.area[0] <= self.area[1] <= 1:
            out.append(("area", f"must be least and most, above 0 and up to 1, not {list(self.area)}"))
        for key in ("ratio", "blur_sigma"):
            low, high = getattr(self, key)
            if not 0 < low <= high < 1e30:
                out.append((key, f"must be least and most, above 0, not {[low, high]}"))
        if not min(self.jitter) >= 0:
            out.append(("jitter", "has a negative strength"))
        elif not (max(self.jitter[:3]) <= 1 and self.jitter[3] <= 0.5):
            out.append(("jitter", "must be at most 1, hue at most 0.5"))
        return out


class BadImage(Exception):
    """An image that cannot be used; the message is the reason. The loader replaces and counts it."""


class OtherPixels(BadImage):
    """A sound image that does not go with the pixel format: other channels, or values above the top.

    Attributes:
        fix: the setting that would take it, in words; empty where none does.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.fix)


@dataclass(frozen=True)
class BadRecord:
    """An image that was replaced: its index and name in the source, and why."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class ViewBatch:
    """A batch of views as it leaves the loader; colour changes and flips are still to be applied."""

    images: Tensor
    """``[V, B, C, H, W]``: cut and resized, not yet flipped, uint8 RGB or float32 in [0, 1] (:class:`PixelFormat`); in
    any memory format."""
    boxes: Tensor
    """float32 ``[V, B, 4]``: crop rectangles (left, top, right, bottom) in pixels of the upright original."""
    frames: Tensor
    """float32 ``[B, 4]``: the rectangle of the original, likewise, that all its crops were drawn in: the whole of it,
    or a square (``ViewPolicy.square``)."""
    color: Tensor
    """float32 ``[V, B, P]``: photometric draws, columns named in ``views/photometric.py``; stays on the host."""
    index: Tensor
    """int64 ``[B]``: which image of the source (after replacement of bad ones)."""
    label: Tensor | None
    """int64 ``[B]``, or None when the data has no labels."""
    bad: tuple[BadRecord, ...] = ()
    """Images of this batch that had to be replaced."""

    def to(self, device: torch.device | str) -> ViewBatch:
        """The same batch with everything but ``color`` on ``device`` (no wait for the copy)."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        return replace(
            self,
            images=move(self.images),
            boxes=move(self.boxes),
            frames=move(self.frames),
            index=move(self.index),
            label=None if self.label is None else move(self.label),
        )

    def pin_memory(self) -> ViewBatch:
        """The same batch in page-locked memory (called by the data loader)."""
        return replace(
            self,
            images=self.images.pin_memory(),
            boxes=self.boxes.pin_memory(),
            frames=self.frames.pin_memory(),
            index=self.index.pin_memory(),
            label=None if self.label is None else self.label.pin_memory(),
        )


@dataclass(frozen=True)
class Crops:
    """Where one view of each image was cut."""

    boxes: Tensor
    """float32 ``[B, 4]``: (left, top, right, bottom) as shares, 0 to 1, of the sides of the frame that all crops of an
    image are drawn in (``ViewBatch.frames``)."""
    flipped: Tensor
    """bool ``[B]``: the view was mirrored left and right after it was cut."""

    def __getitem__(self, rows: slice) -> Crops:
        return Crops(self.boxes[rows], self.flipped[rows])

    def to(self, device: torch.device | str) -> Crops:
        """The same on ``device``."""
        return Crops(self.boxes.to(device), self.flipped.to(device))


Parts = dict[str, "Tensor"]
"""Named vectors of a batch: ``{"semantic": [B, 128], "spatial": [B, 196]}``, each of unit length."""


@dataclass(frozen=True)
class PyramidSpec:
    """What a backbone gives: four maps, finest first (C2, C3, C4, C5)."""

    channels: tuple[int, ...]
    strides: tuple[int, ...] = field(default=(4, 8, 16, 32))
