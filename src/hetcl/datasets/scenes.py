"""The built-in scenes (``images/scenes.py``) with their boxes, masks and pixels, drawn when asked for."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from hetcl.datasets.annotations import Annotations, Category, Skipped
from hetcl.datasets.masks import encode
from hetcl.draws import digest
from hetcl.errors import InputError
from hetcl.images import scenes
from hetcl.images.decode import open_image
from hetcl.images.scenes import Scene
from hetcl.quantities import count
from hetcl.types import RGB, Sample

SERIES = {"train": 0, "val": 1}
"""Seed of the scenes of each split, as in pre-training: the backbone has not seen the validation scenes either."""
_LEAST, _MOST = 32, 4096


@lru_cache(maxsize=4)
def _scene(index: int, seed: int, size: int) -> Scene:
    """A scene; the last few are kept, since an image and its truth are asked for one after the other."""
    return scenes.scene(index, seed=seed, size=size)


class _Scenes:
    """What both sets of scenes share: which scenes they are."""

    kind = "scenes"

    def __init__(self, spec: str, split: str) -> None:
        number, self.size = _parse(spec)
        self.count = number if split == "train" else max(50, number // 5)
        self.seed = SERIES[split]
        self.skipped = Skipped()
        self.pixels = RGB
        """As what its images are read."""
        self.fingerprint = f"{digest('downstream scenes', self.count, self.seed, self.size):032x}"[:16]
        self.description = f"{count(self.count, 'built-in scene')} of {self.size} pixels ({split})"

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        """``[H, W, C]`` of the type that ``pixels`` says. Raises ``BadImage`` for other than 1 or 3 channels."""
        drawn = self._draw(index).pixels.copy()
        return drawn if self.pixels.rgb else open_image(Sample(drawn), pixels=self.pixels).pixels()

    def _draw(self, index: int) -> Scene:
        return _scene(range(self.count)[index], self.seed, self.size)


class SceneDetection(_Scenes):
    """Scenes with boxes and masks (``annotations.DetectionSet``)."""

    classes = tuple(Category(i, name) for i, name in enumerate(scenes.CLASSES, 1))
    has_masks = True

    def annotations(self, index: int) -> Annotations:
        """What is in a scene. Ids of objects: 100 times the scene's number plus 1, 2, ..."""
        index = range(self.count)[index]
        drawn = self._draw(index)
        n = len(drawn.labels)
        return Annotations(
            image_id=index,
            name=f"scene {index}",
            size=(self.size, self.size),
            boxes=drawn.boxes.astype(np.float64),
            labels=drawn.labels.copy(),
            crowd=np.zeros(n, bool),
            difficult=np.zeros(n, bool),
            areas=drawn.masks.sum((1, 2)).astype(np.float64),
            ids=tuple(100 * index + 1 + i for i in range(n)),
            segments=tuple(encode(mask) for mask in drawn.masks),
        )


class SceneMaps(_Scenes):
    """Scenes with a class for each pixel (``annotations.SegmentationSet``): 0 is the background, then the classes."""

    classes = ("background", *scenes.CLASSES)

    def name(self, index: int) -> str:
        """The scene's number."""
        return f"scene {index}"

    def label_map(self, index: int) -> np.ndarray:
        """uint8 ``[H, W]``: class of each pixel."""
        drawn = self._draw(index)
        # No pixel is in two masks.
        return (drawn.masks * (drawn.labels + 1)[:, None, None]).sum(0).astype(np.uint8)


def scenes_detection(spec: str, split: str) -> SceneDetection:
    """Open ``scenes:N`` or ``scenes:N@SIZE``. Raises ``InputError``."""
    return SceneDetection(spec, split)


def scenes_segmentation(spec: str, split: str) -> SceneMaps:
    """Open ``scenes:N`` or ``scenes:N@SIZE``. Raises ``InputError``."""
    return SceneMaps(spec, split)


def _parse(spec: str) -> tuple[int, int]:
    """Number of scenes and their side in pixels."""
    match = re.fullmatch(r"scenes:([0-9_]{1,20})(?:@([0-9]{1,5}))?", spec)
    number = int((match[1].replace("_", "") or 0) if match else 0)
    size = int((match[2] or scenes.SIZE) if match else 0)
    if not 0 < number < 1 << 50:
        raise InputError(
            f"{spec}: scenes:N or scenes:N@SIZE, N from 1 on, such as scenes:1000 or scenes:1000@128"
        )
    if not _LEAST <= size <= _MOST:
        raise InputError(f"{spec}: SIZE is the side of a scene in pixels, {_LEAST} to {_MOST}")
    return number, size
