"""A backbone of the user's own, given from Python: any module that gives four maps, under a name that a run can record.

    name = register_backbone(MyNet)        # a class or function: weights are drawn anew for each seed
    name = register_backbone(MyNet())      # or a module: its ``reset_parameters`` draw them
    build_pyramid(name, seed=0)

The name holds the class's name and a hash of its weights' names and shapes, so a run that recorded it can tell whether
it is given the same backbone again. The code itself is recorded nowhere. Shapes: ``hetcl/types.py``.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hetcl.errors import InputError
from hetcl.model.pyramid import GIVEN, OWN, PROBES, STRIDES, WrappedPyramid
from hetcl.types import PyramidSpec

Backbone = nn.Module | Callable[[], nn.Module]
"""A module, or what makes one: a class that needs no arguments, or a function."""
RECORDED = (
    ". Its name is recorded, not its code: to open this run in another process, call hetcl.register_backbone first, "
    "with the same class or a module like it"
)
"""What follows the name of such a backbone in a run's notes."""


def register_backbone(backbone: Backbone, *, size: int | None = None, in_chans: int = 3) -> str:
    """Make a backbone known to this process; every function that opens a run trained with it can do so from then on.

    Args:
        backbone: takes normalised float images ``[B, in_chans, H, W]`` and gives maps
            ``[B, C, H / stride, W / stride]`` in a tuple, list or dictionary, with one of each stride 4, 8, 16 and 32
            (of several the last is taken). A module is copied, so that nothing happens to the one that is given.
        size: side in pixels of the images that it must take, where it does not take all sizes; None: 224.
        in_chans: channels of its images.

    Returns:
        its name, ``module:CLASS-HASH``, which the setting ``backbone`` takes.

    Raises:
        InputError: it gives no such maps.
    """
    draw = _redrawn(backbone) if isinstance(backbone, nn.Module) else backbone
    module = copy_of(backbone) if isinstance(backbone, nn.Module) else _made(backbone)
    what = type(module).__name__
    probes = (PROBES[0], PROBES[1] if size is None else (size, size))
    spec, pick, only = _maps(module, what, probes, in_chans)
    shapes = sorted((name, tuple(value.shape)) for name, value in module.state_dict().items())
    name = f"{OWN}:{what}-{hashlib.blake2b(repr(shapes).encode(), digest_size=4).hexdigest()}"

    def build() -> WrappedPyramid:
        body = draw()
        return WrappedPyramid(name, spec, body.train(), last=(False,) * 4, pick=pick, size=only)

    GIVEN[name] = build
    return name


def copy_of(module: nn.Module) -> nn.Module:
    """A copy on the host. Raises ``InputError`` for a module that cannot be copied."""
    try:
        return copy.deepcopy(module).cpu()
    except (RuntimeError, TypeError) as e:
        raise InputError(
            f"backbone {type(module).__name__} cannot be copied ({type(e).__name__}); give its class, or a function "
            "that makes it"
        ) from e


def _made(make: Callable[[], Any]) -> nn.Module:
    """What a class or a function makes. Raises ``InputError`` when that is no module."""
    name = getattr(make, "__name__", type(make).__name__)
    try:
        module = make()
    except TypeError as e:
        raise InputError(
            f"backbone {name} cannot be called without arguments ({e}); give a module, or a function of none"
        ) from e
    if not isinstance(module, nn.Module):
        raise InputError(
            f"backbone {name} made {type(module).__name__}; it must be, or make, a torch.nn.Module"
        )
    return module


def _redrawn(given: nn.Module) -> Callable[[], nn.Module]:
    """What makes copies of ``given`` whose weights are drawn anew; ``undrawn`` names a weight that could not be."""
    template = copy_of(given)

    def make() -> nn.Module:
        module = copy.deepcopy(template)
        left = None
        for name, part in module.named_modules():
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif own := next((n for n, value in part._parameters.items() if value is not None), None):
                left = left or ".".join(filter(None, (name, own)))
        module.undrawn = left  # type: ignore[assignment]
        return module

    return make


def undrawn(pyramid: nn.Module) -> str | None:
    """The name of a weight that is the given module's and not random; None where all are drawn, as mostly."""
    return getattr(getattr(pyramid, "body", None), "undrawn", None)


@torch.no_grad()
def _maps(
    module: nn.Module, what: str, probes: Sequence[tuple[int, int]], in_chans: int
) -> tuple[PyramidSpec, tuple[int | str, ...], tuple[int, int] | None]:
    """Channels, which outputs are C2..C5, and the only size of images, if so, by images of the sizes ``probes``.

    Raises ``InputError``.
    """
    training, failure = module.training, ""
    try:
        for size in probes:
            try:
                out = module.eval()(torch.zeros(1, in_chans, *size))
            except Exception as e:  # of somebody else's code
                why = (str(e).strip().splitlines() or [""])[0][:120]
                failure = (
                    f"it fails on images of {in_chans} channels and {size[0]} x {size[1]} pixels, the size that "
                    f"is asked for ({type(e).__name__}: {why})"
                )
                continue
            found = _strides(out, size)
            if isinstance(found, str):
                failure = found
            elif tuple(sorted(found)) == STRIDES:
                pick = tuple(found[s][0] for s in STRIDES)
                channels = tuple(found[s][1] for s in STRIDES)
                return PyramidSpec(channels), pick, None if size == probes[0] else size
            else:
                strides = ", ".join(map(str, sorted(found))) or "none of these"
                failure = f"it gives maps of strides {strides}"
            break
    finally:
        module.train(training)
    raise InputError(
        f"backbone {what} must give four maps of strides 4, 8, 16 and 32, [B, C, H / stride, W / stride], in a tuple, "
        f"list or dictionary: {failure}"
    )


def _strides(out: Any, size: tuple[int, int]) -> dict[int, tuple[int | str, int]] | str:
    """``{stride: (which output, channels)}`` of the last map of each stride; in words what it is instead of maps."""
    if isinstance(out, Tensor):
        return f"it gives one tensor of shape {list(out.shape)}"
    if not isinstance(out, tuple | list | Mapping):
        return f"it gives {type(out).__name__}"
    named = out.items() if isinstance(out, Mapping) else enumerate(out)
    grids = {tuple(-(-side // stride) for side in size): stride for stride in STRIDES}
    return {
        grids[tuple(x.shape[2:])]: (name, x.shape[1])
        for name, x in named
        if isinstance(x, Tensor) and x.ndim == 4 and tuple(x.shape[2:]) in grids
    }
