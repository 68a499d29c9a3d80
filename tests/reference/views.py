"""Views the slow way: torchvision's functional operations on one sample at a time."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor

from hetcl.types import ViewPolicy

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def photometric(policy: ViewPolicy, image: Tensor, row: Sequence[float], dtype: torch.dtype) -> Tensor:
    """One sample, uint8 ``[3, H, W]``, changed as its draws say; normalised ``[3, H, W]``."""
    brightness, contrast, saturation, hue, *rest = (float(v) for v in row)
    order, (gray, sigma, flip) = [int(v) for v in rest[:4]], rest[4:]
    x = image.to(dtype) / 255
    if policy.grayscale_first and gray:
        x = TF.rgb_to_grayscale(x, 3)
    for which in order:
        if which == 0:
            x = TF.adjust_brightness(x, brightness)
        elif which == 1:
            x = TF.adjust_contrast(x, contrast)
        elif which == 2:
            x = TF.adjust_saturation(x, saturation)
        else:
            x = TF.adjust_hue(x, hue) if dtype == torch.float32 else adjust_hue(x, hue)
    if not policy.grayscale_first and gray:
        x = TF.rgb_to_grayscale(x, 3)
    if sigma:
        width = 2 * min(math.ceil(3 * policy.blur_sigma[1]), x.shape[1] - 1, x.shape[2] - 1) + 1
        x = TF.gaussian_blur(x, [width, width], [sigma, sigma])
    if flip:
        x = TF.hflip(x)
    return TF.normalize(x, MEAN, STD)


def adjust_hue(x: Tensor, hue: float) -> Tensor:
    """Python's own HSV, pixel by pixel: torchvision works in float32 here, whatever it is given."""
    out = x.clone()
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            h, s, v = colorsys.rgb_to_hsv(*x[:, i, j].tolist())
            out[:, i, j] = torch.tensor(colorsys.hsv_to_rgb((h + hue) % 1.0, s, v), dtype=x.dtype)
    return out


def cut(pixels: np.ndarray, boxes: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """torchvision's ``resized_crop`` of a PIL image, box by box: uint8 ``[V, 3, S, S]``."""
    image = Image.fromarray(pixels)
    views = [TF.resized_crop(image, t, l, b - t, r - l, [size, size]) for l, t, r, b in boxes]
    return np.stack([TF.pil_to_tensor(v).numpy() for v in views])
