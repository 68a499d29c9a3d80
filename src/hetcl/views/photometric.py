"""Colour jitter, grayscale, blur, flip and normalisation of whole batches, on the device.

Each sample has its own draws (:func:`draw`) and its own order of jitter; the result equals torchvision's functional
operations applied sample by sample in floats. B images, H W pixels, P columns of draws (:data:`COLUMNS`).

Samples are grouped by what is next for them, so that nothing is computed for a sample that does not need it and
nothing waits for the device: the groups are formed from draws that stay on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hetcl.types import ViewPolicy

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of the channels over ImageNet, for pixels in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the channels over ImageNet, for pixels in [0, 1]."""

COLUMNS = (
    "brightness",  # factor, 1 = leave
    "contrast",  # factor, 1 = leave
    "saturation",  # factor, 1 = leave
    "hue",  # shift in turns of the colour circle, 0 = leave
    "first",  # which of the four above comes first (0 brightness .. 3 hue),
    "second",  # second,
    "third",  # third
    "fourth",  # and last
    "gray",  # 1 = turn gray
    "sigma",  # of the Gaussian blur in pixels of the view, 0 = none
    "flip",  # 1 = mirror left and right
)
"""What the P columns of the draws mean."""
BRIGHTNESS, CONTRAST, SATURATION, HUE, FIRST, GRAY, SIGMA, FLIP = 0, 1, 2, 3, 4, 8, 9, 10
NOTHING = np.array([1, 1, 1, 0, 0, 1, 2, 3, 0, 0, 0], np.float32)
"""The draws of a view that is only normalised."""

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
"""Red, green and blue in a gray value (torchvision's ``rgb_to_grayscale``)."""

CPU_CHUNK = 400_000
"""Pixels (B * H * W) done together on a CPU: few enough for its caches, many enough for the overhead of a call."""


def draw(policy: ViewPolicy, rng: np.random.Generator) -> np.ndarray:
    """The photometric draws of one view, float32 ``[P]`` (:data:`COLUMNS`).

    The same numbers are consumed whatever the policy, so that policies that differ in one probability (MoCo-v2 and
    HCL's flip) give otherwise equal views.
    """
    u = rng.random(9)
    order = rng.permutation(4)
    row = NOTHING.copy()
    if u[0] < policy.jitter_p:
        for column in (BRIGHTNESS, CONTRAST, SATURATION):
            low, high = max(0.0, 1 - policy.jitter[column]), 1 + policy.jitter[column]
            row[column] = low + (high - low) * u[1 + column]
        row[HUE] = policy.jitter[HUE] * (2 * u[1 + HUE] - 1)
    row[FIRST : FIRST + 4] = order
    row[GRAY] = u[5] < policy.grayscale_p
    if u[6] < policy.blur_p:
        row[SIGMA] = policy.blur_sigma[0] + (policy.blur_sigma[1] - policy.blur_sigma[0]) * u[7]
    row[FLIP] = u[8] < policy.flip_p
    return row


def gray_of(x: Tensor) -> Tensor:
    """Gray values of ``x [B, 3, H, W]``: ``[B, 1, H, W]``."""
    r, g, b = x.unbind(1)
    gray = r * GRAY_WEIGHTS[0]
    return gray.add_(g, alpha=GRAY_WEIGHTS[1]).add_(b, alpha=GRAY_WEIGHTS[2]).unsqueeze(1)


def brightness_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply ``x [B, C, H, W]`` by ``factor [B, 1, 1, 1]``, in place."""
    return x.mul_(factor).clamp_(0, 1)


def contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Move every pixel away from the mean gray of its image, in place; other channels than three weigh alike."""
    channels = x.shape[1]
    weights = torch.tensor(GRAY_WEIGHTS if channels == 3 else [1 / channels] * channels, dtype=torch.float64)
    weights = weights.to(x.dtype).to(x.device, non_blocking=True).view(1, -1, 1, 1)
    mean = (x.mean((2, 3), keepdim=True) * weights).sum(1, keepdim=True)
    return x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """Move every pixel away from its own gray, in place."""
    rest = gray_of(x).mul_(1 - factor)
    return x.mul_(factor).add_(rest).clamp_(0, 1)


def hue_(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the colour circle by ``shift [B, 1, 1, 1]`` turns, in place.

    The hexagon formula of HSV: with hue h in [0, 6), each channel is ``least + chroma * w(h)``, where w is a
    trapezium: ``|h - 3| - 1`` for red, ``2 - |h - 2|`` for green, ``2 - |h - 4|`` for blue, held within [0, 1].
    Value and saturation stay, so chroma and the least channel do too. Branches are taken by arithmetic, which is
    several times faster on a CPU than comparing and selecting: scaled to [0, 1], the largest channel is exactly 1.
    """
    r, g, b = x.unbind(1)
    most = torch.maximum(r, g)
    most = torch.maximum(most, b, out=most)
    least = torch.minimum(r, g)
    least = torch.minimum(least, b, out=least)
    chroma = most.sub_(least)
    scale = chroma.clamp_min(torch.finfo(x.dtype).tiny)  # grays: 0 / tiny = 0
    red, green, blue = (torch.sub(c, least).div_(scale) for c in (r, g, b))
    hue = torch.sub(red, green).add_(4)  # where blue is largest,
    other = torch.sub(blue, red, out=scale).add_(2).sub_(hue)
    hue.addcmul_(other, green.floor())  # green,
    other = torch.sub(green, blue, out=other).sub_(hue)
    hue.addcmul_(other, red.floor_())  # red
    hue.add_(shift.view(-1, 1, 1), alpha=6)
    hue.sub_(torch.div(hue, 6, out=other).floor_(), alpha=6)
    w = torch.sub(hue, 3, out=other).abs_().sub_(1).clamp_(0, 1)
    torch.addcmul(least, chroma, w, out=r)
    w = torch.sub(hue, 2, out=w).abs_().sub_(2).clamp_(-1, 0)
    torch.addcmul(least, chroma, w, value=-1, out=g)
    w = torch.sub(hue, 4, out=w).abs_().sub_(2).clamp_(-1, 0)
    torch.addcmul(least, chroma, w, value=-1, out=b)
    return x


JITTER: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness_, contrast_, saturation_, hue_)
"""The jitter operations by their number in the drawn order."""
ANY_CHANNELS = (BRIGHTNESS, CONTRAST)
"""Those that there are for any number of channels; saturation, hue and gray are of colour, which has three."""


def blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur of ``x [B, C, H, W]`` with ``sigma [B]`` in pixels and reflected edges.

    Args:
        kernel: odd width of the kernel in pixels, the same for all.
    """
    count, channels, height, width = x.shape
    half = kernel // 2
    at = torch.arange(-half, half + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (at / sigma[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)  # [B, kernel]
    weights = weights.repeat_interleave(channels, 0, output_size=count * channels)
    x = F.pad(x, (half, half, half, half), mode="reflect").flatten(0, 1)[
        None
    ]  # [1, B * 3, H + 2 half, W + ..]
    x = F.conv2d(x, weights[:, None, None, :], groups=count * channels)
    x = F.conv2d(x, weights[:, None, :, None], groups=count * channels)
    return x.view(count, channels, height, width)


def kernel_size(policy: ViewPolicy, height: int, width: int) -> int:
    """Odd width of the blur kernel: three standard deviations to each side, less on images too small to reflect.

    NOTE(paper): MoCo blurs with PIL, which approximates the Gaussian by three box filters; this is the Gaussian.
    """
    return 2 * max(0, min(math.ceil(3 * policy.blur_sigma[1]), height - 1, width - 1)) + 1


def in_unit(images: Tensor, dtype: torch.dtype = torch.float32, **how: Any) -> Tensor:
    """Pixels in [0, 1], in memory of their own: uint8 over 255, floats as they are; ``how`` as of ``Tensor.to``."""
    x = images.to(dtype, copy=True, **how)
    return x if images.is_floating_point() else x.div_(255)


class Photometric:
    """Applies drawn colour changes to batches (:meth:`__call__`).

    Images of other than three channels have no colour: what is drawn of saturation, hue and gray is left out.

    Args:
        policy: whether gray comes first, and how wide the widest blur is.
        mean, std: of the channels, for pixels in [0, 1]; one number stands for all.
        dtype: of the result and of every step on the way; float64 for comparisons.
    """

    def __init__(
        self,
        policy: ViewPolicy,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.policy, self.mean, self.std, self.dtype = policy, tuple(mean), tuple(std), dtype

    @torch.no_grad()
    def __call__(self, images: Tensor, color: Tensor) -> Tensor:
        """Views as the encoder takes them.

        Args:
            images: uint8 ``[B, C, H, W]``, or floats in [0, 1], on any device, in any memory format; left as it is.
            colour: float32 ``[B, P]`` on the host.

        Returns:
            ``[B, C, H, W]`` of ``dtype``, normalised, on the device of ``images``.
        """
        host = color.numpy(force=True)
        out = torch.empty(images.shape, dtype=self.dtype, device=images.device)
        chunk = max(1, len(images))
        if images.device.type == "cpu":
            chunk = min(chunk, max(1, CPU_CHUNK // (images.shape[2] * images.shape[3])))
        std = torch.tensor(self.std, dtype=torch.float64)
        bias = -torch.tensor(self.mean, dtype=torch.float64) / std
        bias, scale = (
            t.to(self.dtype).to(images.device, non_blocking=True).view(1, -1, 1, 1) for t in (bias, 1 / std)
        )
        with torch.autocast(images.device.type, enabled=False):
            for start in range(0, len(images), chunk):
                part = slice(start, start + chunk)
                x = in_unit(images[part], self.dtype, memory_format=torch.contiguous_format)
                x = self._change(x, host[part])
                torch.addcmul(bias, x, scale, out=out[part])
        return out

    def _change(self, x: Tensor, draws: np.ndarray) -> Tensor:
        """Everything but normalisation, of ``x [b, C, H, W]`` in [0, 1], in place."""
        values = torch.from_numpy(draws).to(x.dtype).to(x.device, non_blocking=True)
        colored = x.shape[1] == 3
        gray, first = (draws[:, GRAY] > 0) & colored, self.policy.grayscale_first

        def some(mask: np.ndarray, change: Callable[[Tensor, Tensor], Tensor]) -> None:
            """Apply ``change(pixels, draws)`` to the samples of ``mask`` alone."""
            if mask.all():
                x.copy_(change(x, values))
            elif mask.any():
                index = torch.from_numpy(np.flatnonzero(mask)).to(x.device, non_blocking=True)
                x.index_copy_(0, index, change(x.index_select(0, index), values.index_select(0, index)))

        def to_gray(y: Tensor, _: Tensor) -> Tensor:
            return gray_of(y).expand_as(y)

        def one_of_four(
            change: Callable[[Tensor, Tensor], Tensor], column: int, y: Tensor, v: Tensor
        ) -> Tensor:
            return change(y, v[:, column].view(-1, 1, 1, 1))

        if first:
            some(gray, to_gray)
        for step in range(FIRST, FIRST + 4):
            for column, change in enumerate(JITTER):
                if not colored and column not in ANY_CHANNELS:
                    continue
                mask = (draws[:, step] == column) & (draws[:, column] != NOTHING[column])
                some(mask, partial(one_of_four, change, column))
        if not first:
            some(gray, to_gray)
        kernel = kernel_size(self.policy, *x.shape[2:])
        some(draws[:, SIGMA] > 0, lambda y, v: blur(y, v[:, SIGMA], kernel))
        some(draws[:, FLIP] > 0, lambda y, _: y.flip(-1))
        return x
