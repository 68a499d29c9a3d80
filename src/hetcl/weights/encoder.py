"""A whole encoder from a MODEL: the pyramid, and the branches where the weights have them.

``load_backbone`` gives the pyramid alone; this is for those who look at embeddings (``analysis``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hetcl.errors import InputError
from hetcl.methods import METHODS, method_of, words_in
from hetcl.model.build import build_embedding
from hetcl.model.embedding import Embedding
from hetcl.model.pyramid import Pyramid, build_pyramid
from hetcl.runs.folder import RunFolder
from hetcl.weights.facts import InputFacts
from hetcl.weights.sources import Weights, install, no_arch, pyramid_of, read_weights, stated_facts


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder in eval mode, on the host."""

    model: str
    """The MODEL it was read from."""
    name: str
    """What to call it in a table: short, and told apart from others by :func:`name_of`."""
    pyramid: Pyramid
    """Gives C2..C5."""
    embedding: Embedding | None
    """Pyramid (the same) and branches; None where the weights have no contrastive branches."""
    size: int | None
    """Side of the views it was trained with, in pixels; None where the weights do not say."""
    facts: InputFacts
    """How images are given to it."""
    digest: str
    """Hash of all weights and statistics, and of ``facts``: equal for equal features."""
    fresh: Callable[..., nn.Module]
    """``fresh(seed=...)``: an encoder of the same architecture (an embedding, or a pyramid) with initial weights."""
    laid_back: tuple[str, ...] = ()
    """Parts that its method compares in the image's frame (``model/frames.py``)."""

    @property
    def dims(self) -> dict[str, int]:
        """Dimensions of the embedding's parts; empty when there is none."""
        return {} if self.embedding is None else self.embedding.dims


def load_encoder(model: str, *, allow_partial: str | Sequence[str] = ()) -> Encoder:
    """The query encoder that ``model`` names.

    Args:
        allow_partial: as :func:`hetcl.weights.sources.read_weights`.

    Raises:
        InputError: no such weights, broken ones, or a file that does not say its architecture.
    """
    weights = read_weights(model, allow_partial=allow_partial)
    if weights.arch is None:
        raise InputError(no_arch(model))
    facts = stated_facts(weights, model)
    branches = {n.split(".")[1] for n in weights.query if n.startswith("branches.")}
    size = weights.facts.get("size")
    if branches and "class" not in branches:
        method = method_of(branches, weights.facts.get("method"))
        words, laid_back = words_in(weights.facts), tuple(METHODS[method].laid_back)
        fresh: Callable[..., nn.Module] = partial(
            build_embedding, method, weights.arch, words=words, in_chans=weights.in_chans
        )
        embedding = _embedding(weights, fresh(seed=0))
        digest = digest_of(embedding.state_dict(), facts)
        assert isinstance(embedding.pyramid, Pyramid)
        name = name_of(model)
        return Encoder(model, name, embedding.pyramid, embedding, size, facts, digest, fresh, laid_back)
    pyramid, fresh = pyramid_of(weights), partial(build_pyramid, weights.arch, in_chans=weights.in_chans)
    digest = digest_of(pyramid.state_dict(), facts)
    return Encoder(model, name_of(model), pyramid, None, size, facts, digest, fresh)


def _embedding(weights: Weights, embedding: nn.Module) -> Embedding:
    """The embedding with the checkpoint's weights in it."""
    notes = install(embedding, weights.query, weights.origin, arch=weights.arch)
    broken = [n for n, v in weights.query.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if notes or broken:
        stated = weights.facts.get("method")
        name = stated[-1] if isinstance(stated, list | tuple) and stated else stated
        strange = (
            ""
            if name in METHODS or not name
            else f"; it is of a method {name!r}, which this hetcl does not know"
        )
        raise InputError(
            f"{weights.origin}: its branches cannot be used ({notes[0] if notes else f'not finite: {broken[0]}'}"
            f"{strange}); "
            "give the run's backbone.safetensors to use the backbone alone"
        )
    assert isinstance(embedding, Embedding)
    return embedding.eval()


def digest_of(state: Mapping[str, Tensor], facts: InputFacts) -> str:
    """A hash of names, shapes and bytes of a state dict, and of how images are given: 16 hexadecimal digits."""
    h = hashlib.blake2b(digest_size=8)
    if not facts.ours:
        top = f" {facts.pixel_max}" if facts.pixel_max else ""
        h.update(f"{facts.mean} {facts.std} {facts.channel_order}{top};".encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        h.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        h.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return h.hexdigest()


def name_of(model: str) -> str:
    """A short name for a MODEL: the run's folder, ``RUN/stage1`` for its checkpoints, a file's name, or as given."""
    if model.startswith(("torchvision:", "timm:", "moco:")):
        kind, *rest = model.split(":")
        return ":".join([kind, *(Path(r).stem if "/" in r else r for r in rest)])
    path = Path(model)
    if path.is_dir():
        return path.resolve().name
    if path.parent.name == "checkpoints" and RunFolder(path.parent.parent).settings.is_file():
        return f"{path.parent.parent.resolve().name}/{path.stem}"
    if path.suffix == ".safetensors" and RunFolder(path.parent).settings.is_file():
        return f"{path.parent.resolve().name}/{path.stem}"
    return path.stem
