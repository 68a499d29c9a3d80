"""Between a library's names of weights and a pyramid's, both ways, derived from the models themselves.

A pyramid of torchvision keeps the library's names. timm's ``features_only`` models rename some
(``stages.0.blocks`` -> ``stages_0.blocks``) and may wrap others (``model.``). Both models are built without
memory (``meta`` device) and their names paired where they differ in separators only, shapes compared; nothing
here is a list of models. States here have no ``pyramid.`` in front of their names.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hetcl.errors import InputError
from hetcl.model.pyramid import OWN, build_pyramid, set_in_chans

T = TypeVar("T")


@dataclass(frozen=True)
class Names:
    """The two sets of names of one architecture."""

    arch: str
    """Library and name, e.g. ``timm:convnext_atto``."""
    to_pyramid: Mapping[str, str]
    """Library's name -> pyramid's name, for all that the pyramid has."""
    to_library: Mapping[str, str]
    """The way back."""
    shapes: Mapping[str, tuple[int, ...]]
    """By pyramid name."""
    beyond: Mapping[str, tuple[int, ...]]
    """Library's names, with shapes, of what its whole model has and the pyramid has not: classifier, last norm."""
    indexed: Mapping[str, str]
    """Name in ``nn.Sequential(*model.children())`` (``4.0.conv1.weight``) -> pyramid's name."""
    channels: tuple[int, ...]
    """Channels of C2..C5."""
    integers: frozenset[str]
    """Pyramid's names of what holds no floating numbers: batch norm's counters, index tables."""


def is_constant(name: str) -> bool:
    """Whether a pyramid's name is of a constant that torch.fx made while cutting a model: no weight, in no file."""
    return name.split(".")[-1].startswith("_tensor_constant")


def library_names(arch: str, state: Mapping[str, T]) -> dict[str, T]:
    """``state`` with the pyramid's names replaced by the library's; all other names stay, but for ``is_constant``'s."""
    table = names_of(arch).to_library
    return {table.get(name, name): value for name, value in state.items() if not is_constant(name)}


@lru_cache(maxsize=32)
def names_of(arch: str, in_chans: int = 3) -> Names:
    """The names of ``arch`` (``torchvision:NAME``, ``timm:NAME``, or bare as ``build_pyramid`` takes it).

    Raises:
        InputError: no such architecture, or one whose names cannot be paired one to one.
    """
    pyramid = build_pyramid(arch, seed=0, in_chans=in_chans)
    state = pyramid.state_dict()
    model = library_model(pyramid.arch, in_chans=in_chans)
    theirs = _shapes(model.state_dict())
    ours = {n: shape for n, shape in _shapes(state).items() if not is_constant(n)}
    to_library = _paired(ours, theirs)
    lost = [n for n in ours if n not in to_library or theirs[to_library[n]] != ours[n]]
    if lost or len(set(to_library.values())) != len(to_library):
        raise InputError(
            f"{pyramid.arch}: its weights have other names in its library than in its pyramid, and cannot be "
            f"paired (e.g. {(lost or list(to_library))[0]}); choose another architecture"
        )
    to_pyramid = {library: own for own, library in to_library.items()}
    beyond = {n: shape for n, shape in theirs.items() if n not in to_pyramid}
    place = {child: str(i) for i, (child, _) in enumerate(model.named_children())}
    indexed = {
        f"{place[first]}.{rest}": own
        for own, library in to_library.items()
        for first, _, rest in [library.partition(".")]
        if first in place
    }
    integers = frozenset(n for n in ours if not state[n].is_floating_point())
    return Names(pyramid.arch, to_pyramid, to_library, ours, beyond, indexed, pyramid.spec.channels, integers)


def input_layers(arch: str, in_chans: int) -> tuple[str, ...]:
    """Pyramid's names of the weights that see the image: those whose shape goes by the channels."""
    rgb, others = names_of(arch).shapes, names_of(arch, in_chans).shapes
    return tuple(name for name, shape in rgb.items() if others.get(name) != shape)


def channels_in(state: Mapping[str, Tensor], keys: Mapping[str, str], names: Names) -> int:
    """Channels of the images that a file's weights take, by the shapes of what sees them; 3 where they do not tell.

    Args:
        keys: pyramid's name -> key of ``state``.
        names: of the architecture for RGB.
    """
    found = set()
    for name, shape in names.shapes.items():
        if len(shape) == 4 and shape[1] == 3 and name in keys:
            theirs = tuple(state[keys[name]].shape)
            if len(theirs) == 4 and (theirs[0], *theirs[2:]) == (shape[0], *shape[2:]):
                found.add((name, theirs[1]))
    counts = {count for _, count in found}
    if len(counts) != 1 or (count := counts.pop()) == 3 or not 0 < count <= 512:
        return 3
    others = names_of(names.arch, count)
    return count if all(others.shapes[n] == tuple(state[keys[n]].shape) for n, _ in found) else 3


def library_model(arch: str, *, device: str = "meta", in_chans: int = 3) -> nn.Module:
    """The library's whole model with its classifier: without memory on ``meta``, else with random weights.

    Args:
        arch: ``torchvision:NAME`` or ``timm:NAME``, known to exist, or a backbone that was given from Python, which is
            all of its model.
    """
    library, _, name = arch.partition(":")
    if library == OWN:
        whole: Any = build_pyramid(arch, seed=0)
        return whole.body

    def build() -> nn.Module:
        if library == "torchvision":
            from torchvision.models import get_model_builder

            return set_in_chans(get_model_builder(name)(weights=None), in_chans)
        import timm

        return timm.create_model(name, pretrained=False, in_chans=in_chans)

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            with torch.device(device):
                return build()
        except (
            RuntimeError,
            NotImplementedError,
        ):  # a model that computes with its own weights while it is built
            return build()


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {n: tuple(v.shape) for n, v in state.items()}


def _paired(ours: Mapping[str, object], theirs: Mapping[str, object]) -> dict[str, str]:
    """Pyramid's name -> library's name: the same, or the same but for separators (and a wrapper's ``model.``)."""
    plain: dict[str, list[str]] = {}
    for name in theirs:
        plain.setdefault(name.replace("_", "."), []).append(name)
    out = {}
    for name in ours:
        if name in theirs:
            out[name] = name
            continue
        for candidate in (name, name.removeprefix("model.")):
            found = [candidate] if candidate in theirs else plain.get(candidate.replace("_", "."), [])
            if len(found) == 1:
                out[name] = found[0]
                break
    return out
