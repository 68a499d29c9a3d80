"""What passes between the files of this room. Read this file first.

Boxes are ``left, top, right, bottom`` in pixels of the upright image, with continuous edges: a box from 0 to W covers
the whole width (VOC's inclusive pixel indices 1..W become 0..W when read). Labels are indices into the data
set's ``classes``, 0..K-1; which number a model gives to the background is the model's own affair.

    n  objects of an image     K  classes     H W  height and width in pixels
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Polygons = tuple[np.ndarray, ...]
"""Each float64 ``[m, 2]``: x and y of m >= 3 corners, in pixels."""
Rle = dict[str, Any]
"""COCO's compressed run lengths: ``{"size": [H, W], "counts": bytes}``."""
Segment = Polygons | Rle
"""What one object covers: polygons (their union), or run lengths."""


@dataclass(frozen=True)
class Category:
    """A class of things."""

    id: int
    """As the data set's own files say; predictions are written with it."""
    name: str
    frequency: str = ""
    """LVIS only: ``r``, ``c`` or ``f``."""


@dataclass(frozen=True)
class Annotations:
    """What is in one image, after bad annotations were left out."""

    image_id: int | str
    """As the data set's own files say."""
    name: str
    """The image's file, for messages."""
    size: tuple[int, int]
    """Height and width in pixels."""
    boxes: np.ndarray
    """float64 ``[n, 4]``, as in the file: not clipped to the image."""
    labels: np.ndarray
    """int64 ``[n]``."""
    crowd: np.ndarray
    """bool ``[n]``: regions of many objects (iscrowd of COCO, groups of Cityscapes); not trained on, not scored."""
    difficult: np.ndarray
    """bool ``[n]``: VOC's flag; trained on, ignored when scored."""
    areas: np.ndarray
    """float64 ``[n]``: square pixels as the file says (COCO's small, medium and large go by it), else the box's."""
    ids: tuple[int | str, ...]
    """Ids of the annotations, for messages and for the evaluators."""
    segments: tuple[Segment | None, ...] | None = None
    """Outline or mask of each object; None where the data set has boxes alone."""
    negative: tuple[int, ...] = ()
    """LVIS: labels known to be absent from this image."""
    not_exhaustive: tuple[int, ...] = ()
    """LVIS: labels of which some objects may not be annotated in this image."""


@dataclass(frozen=True)
class Prediction:
    """What a detector says of one image, in the original image's pixels, best first."""

    image_id: int | str
    boxes: np.ndarray
    """float64 ``[n, 4]``."""
    scores: np.ndarray
    """float64 ``[n]``."""
    labels: np.ndarray
    """int64 ``[n]``: indices into ``classes``."""
    masks: tuple[Rle, ...] | None = None
    """Masks of the original image's size; None from a detector of boxes alone."""


@dataclass(frozen=True)
class Metrics:
    """Figures of an evaluation, in percent (0..100); NaN where nothing could be measured."""

    figures: dict[str, float]
    """By name, e.g. ``box_ap``, ``box_ap50``, ``mask_ap``, ``miou``."""
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    """Class name -> figures."""


@dataclass
class Skipped:
    """What a person should know of a set: annotations and images that were left out or kept with a reservation,
    counted, with the first few named; and remarks on the set as a whole."""

    counts: dict[str, int] = field(default_factory=dict)
    """Reason -> how many were left out."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> the first three: file and id."""
    kept: dict[str, int] = field(default_factory=dict)
    """Reservation -> how many were kept all the same; their examples stand in ``examples`` too."""
    remarks: list[str] = field(default_factory=list)
    """On the set as a whole: which list was taken, which convention its boxes seem to follow."""

    def add(self, reason: str, what: str) -> None:
        """One more that is left out; ``what`` names file and id."""
        self._count(self.counts, reason, what)

    def keep(self, reservation: str, what: str) -> None:
        """One more that is kept."""
        self._count(self.kept, reservation, what)

    def remark(self, text: str) -> None:
        """Something about the whole set, said once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def _count(self, counts: dict[str, int], reason: str, what: str) -> None:
        counts[reason] = counts.get(reason, 0) + 1
        names = self.examples.setdefault(reason, [])
        if len(names) < 3:
            names.append(what)

    def lines(self) -> list[str]:
        """For the console and the log: one line a remark and a reason."""
        counted = [("left out", self.counts), ("kept", self.kept)]
        return self.remarks + [
            f"{verb} {n:,}: {reason} (e.g. {', '.join(self.examples[reason])})"
            for verb, counts in counted
            for reason, n in counts.items()
        ]


class DetectionSet(Protocol):
    """Images with objects. Opened once, cheap to send to worker processes."""

    kind: str
    """``coco``, ``lvis``, ``voc``, ``cityscapes`` or ``scenes``: which rules of evaluation are the set's own."""
    classes: tuple[Category, ...]
    has_masks: bool
    fingerprint: str
    """Short hash of images and annotations; a resumed run compares it."""
    description: str
    """A line for the console."""
    skipped: Skipped

    def __len__(self) -> int: ...

    def annotations(self, index: int) -> Annotations:
        """What is in an image, without reading it."""
        ...

    def image(self, index: int) -> np.ndarray:
        """uint8 ``[H, W, 3]``, RGB, as annotated: as stored, or turned by EXIF where only that has the right size.

        Raises:
            hetcl.types.BadImage: it cannot be read, or has another size than the annotations say.
        """
        ...


class InstanceMaps(Protocol):
    """What a detection set of kind ``cityscapes`` can do besides: its rules of evaluation need to know what is void."""

    def instance_map(self, index: int) -> np.ndarray:
        """Unsigned integers or int32 ``[H, W]``: the ids of ``*_gtFine_instanceIds.png``. Raises ``InputError``."""
        ...


class SegmentationSet(Protocol):
    """Images with a class for each pixel."""

    kind: str
    """``voc``, ``cityscapes`` or ``scenes``."""
    classes: tuple[str, ...]
    fingerprint: str
    description: str
    skipped: Skipped

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's file, for messages."""
        ...

    def image(self, index: int) -> np.ndarray:
        """uint8 ``[H, W, 3]``, RGB, as stored. Raises ``BadImage``."""
        ...

    def label_map(self, index: int) -> np.ndarray:
        """uint8 ``[H, W]``: class of each pixel, 255 where it does not count. Raises ``BadImage``."""
        ...
