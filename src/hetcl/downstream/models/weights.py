"""Weights of a backbone into a detector or segmenter and out again, by the pyramid's own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hetcl.errors import InputError
from hetcl.model.pyramid import Pyramid


def pyramid_of(model: nn.Module) -> Pyramid:
    """The backbone inside a model of this package."""
    backbone: Any = model.backbone
    return backbone if isinstance(backbone, Pyramid) else backbone.body


def pyramid_state(model: nn.Module) -> dict[str, Tensor]:
    """The backbone's weights, named as ``build_pyramid(arch).state_dict()`` names them, layer4 included."""
    return dict(pyramid_of(model).state_dict())


def load_pyramid(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Weights of a pyramid into a model over the same kind of pyramid: all of them, and nothing else.

    Raises:
        InputError: a key is missing, unknown or of another shape; nothing has been loaded then.
    """
    pyramid = pyramid_of(model)
    _compare(state, pyramid.state_dict(), f"backbone {pyramid.arch}", "give the weights of this backbone")
    pyramid.load_state_dict(dict(state))


@torch.no_grad()
def load_fpn(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Laterals of our spatial branch into the detector's FPN (paper section 4.3.2; off in its main tables).

    Only the 1x1 laterals have a counterpart: the branch's ``smooth`` and ``project`` are left where they are.
    An FPN with batch norm has no offsets in its laterals, so the branch's are dropped there.

    Args:
        model: a detector with neck ``fpn``.
        state: ``SpatialBranch.state_dict()``.

    Raises:
        InputError: the model has no FPN, or a key is missing, unknown or of another shape; nothing has been
            loaded then.
    """
    fpn: Any = getattr(model.backbone, "fpn", None)
    if fpn is None:
        raise InputError("FPN weights: this model has no FPN; use neck fpn, or do not ask for them")
    theirs = {k: v for k, v in state.items() if k.partition(".")[0] not in ("smooth", "project")}
    ours: dict[str, Tensor] = {}
    for i, block in enumerate(fpn.inner_blocks):
        ours[f"lateral.{i}.weight"] = block[0].weight
        # without an offset of its own, only the shape of the one that is dropped can be compared
        ours[f"lateral.{i}.bias"] = block[0].weight[:, 0, 0, 0] if block[0].bias is None else block[0].bias
    _compare(theirs, ours, "FPN weights", "give the spatial branch of this backbone, with 256 channels")
    for i, block in enumerate(fpn.inner_blocks):
        block[0].weight.copy_(theirs[f"lateral.{i}.weight"])
        if block[0].bias is not None:
            block[0].bias.copy_(theirs[f"lateral.{i}.bias"])


def _compare(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str, fix: str) -> None:
    """Raises InputError with the first keys that do not agree."""
    wrong = [f"{k} is missing" for k in wanted if k not in given]
    wrong += [f"{k} is unknown" for k in given if k not in wanted]
    wrong += [
        f"{k} is {list(given[k].shape)}, not {list(v.shape)}"
        for k, v in wanted.items()
        if k in given and given[k].shape != v.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{what}: {'; '.join(wrong[:3])}{more}; {fix}")
