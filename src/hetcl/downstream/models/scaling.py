"""Images to the size a detector works at, and its boxes and masks back to the image's own size.

n  objects     M  side of a predicted mask     H W  of the image as given     h w  after scaling
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from hetcl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from hetcl.weights.facts import InputFacts

IMAGENET = InputFacts(IMAGENET_MEAN, IMAGENET_STD, None, "RGB", "assumed")


def normalized(images: Tensor, facts: InputFacts = IMAGENET) -> Tensor:
    """float ``[..., C, H, W]`` in [0, 1], RGB or as stored, normalised, in the backbone's channel order."""
    mean, std = (
        torch.tensor(v, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        for v in (facts.mean, facts.std)
    )
    return ((images.flip(-3) if facts.channel_order == "BGR" else images) - mean) / std


class Scaling(GeneralizedRCNNTransform):
    """torchvision's transform with detectron2's sizes: side lengths rounded, images shrunk with a filter.

    Masks of targets keep the image's own size (``heads.mask_targets`` looks into them there), and predicted
    masks are pasted continuously, as detectron2 does, not at whole pixels.

    Args:
        min_size: short sides in pixels, one of which is drawn for each training image.
        max_size: most pixels of the long side.
        test_size: short side in evaluation.
        divisible: height and width of a batch are padded to a multiple of it.
        facts: how the backbone wants its images.
    """

    def __init__(
        self,
        min_size: tuple[int, ...],
        max_size: int,
        test_size: int,
        *,
        divisible: int,
        facts: InputFacts = IMAGENET,
    ) -> None:
        super().__init__(min_size, max_size, list(facts.mean), list(facts.std), size_divisible=divisible)
        self.test_size, self.facts = test_size, facts

    def normalize(self, image: Tensor) -> Tensor:
        if not image.is_floating_point():
            raise TypeError(f"a detector takes float images in [0, 1], not {image.dtype}")
        return normalized(image, self.facts)

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """float ``[3, H, W]`` -> ``[3, h, w]``; boxes of the target along. A target may hold ``short``, the side."""
        size = (image.shape[-2], image.shape[-1])
        short = self.test_size
        if self.training:
            drawn = None if target is None else target.pop("short", None)
            short = self.torch_choice(list(self.min_size)) if drawn is None else int(drawn)
        new = scaled_size(size, short, self.max_size)
        if new != size:
            image = F.interpolate(image[None], new, mode="bilinear", align_corners=False, antialias=True)[0]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], list(size), list(new))
            self._drop_slivers(target)
        return image, target

    @staticmethod
    def _drop_slivers(target: dict[str, Tensor]) -> None:
        """Leave out objects whose box has no width or height in the numbers it is now written in."""
        boxes = target["boxes"]
        keep = ((boxes[:, 2:] - boxes[:, :2]) > 1e-5).all(dim=1)
        if not bool(keep.all()):
            for name in ("boxes", "labels", "masks"):
                if name in target:
                    target[name] = target[name][keep]

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes to the image's pixels; masks to bool ``[n, 1, H, W]``."""
        if self.training:
            return result
        for pred, size, original in zip(result, image_shapes, original_image_sizes, strict=True):
            pred["boxes"] = resize_boxes(pred["boxes"], list(size), list(original))
            if "masks" in pred:
                pred["masks"] = paste(pred["masks"][:, 0], pred["boxes"], original)[:, None]
        return result


def scaled_size(size: tuple[int, int], short: int, longest: int) -> tuple[int, int]:
    """Height and width with the short side ``short``, or less if the long side would pass ``longest``."""
    scale = min(short / min(size), longest / max(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Masks in their boxes -> masks of the image.

    Args:
        masks: float ``[n, M, M]``, probabilities.
        boxes: float ``[n, 4]``, in the image's pixels.
        size: height and width of the image.
        threshold: a pixel whose middle has at least this probability is the object's.

    Returns:
        bool ``[n, H, W]``.
    """
    out = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    for place, mask, (left, top, right, bottom) in zip(out, masks, boxes.tolist(), strict=True):
        x, columns = _inside(left, right, size[1], masks)
        y, rows = _inside(top, bottom, size[0], masks)
        if len(x) and len(y):
            grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
            drawn = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
            place[rows, columns] = drawn >= threshold
    return out


def _inside(start: float, end: float, side: int, like: Tensor) -> tuple[Tensor, slice]:
    """Middles of the pixels that an edge-to-edge stretch touches, -1 at its start and 1 at its end, and which."""
    first, last = max(math.floor(start), 0), min(math.ceil(end), side)
    middles = torch.arange(first, max(first, last), device=like.device, dtype=like.dtype) + 0.5
    return (middles - start) / max(end - start, 1e-6) * 2 - 1, slice(first, max(first, last))
