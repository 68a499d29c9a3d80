"""What ``contrast`` and ``probe --ask where`` look at: the models that were named, and what each is held against.

A model is held against its own architecture with random weights, at the same size and by the same features, and
against what it began with: stage 1 of a run of two stages, or the weights given to ``--init``. The statistics of the
random encoder's batch norms are measured on the images of the test: a trained one's were measured on images too, and
that alone tells images apart (docs/contrast.md has figures), so without it a run that learned nothing would win.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric

from hetcl.analysis.extractor import EMBEDDINGS, Extractor, crop_features_of
from hetcl.errors import InputError
from hetcl.images.look import GLANCED, look_at
from hetcl.model.embedding import Embedding
from hetcl.model.frames import sides_of
from hetcl.model.norm_statistics import batch_norms, is_unmeasured, measuring
from hetcl.model.own_backbone import undrawn
from hetcl.model.pyramid import Pyramid
from hetcl.printable import printable
from hetcl.runs.folder import RunFolder
from hetcl.types import PixelFormat, Source
from hetcl.views.pairs import Pairs
from hetcl.views.photometric import Photometric
from hetcl.views.policies import POLICIES
from hetcl.weights.encoder import Encoder, digest_of, load_encoder
from hetcl.weights.facts import view_normalization

Role = Literal["model", "backbone", "before", "random"]
MEASURED = 512
"""Images by whose views the statistics of a random encoder's batch norms are measured: another 512, or 1,024 of them
under other views, moved top-1 by less than a point."""
MEASURED_BATCH = 64
"""How many of them at once, whatever the batch of the test, so that the statistics are the same."""


@dataclass(frozen=True)
class Entry:
    """A model, or what one is held against, by one kind of features."""

    name: str
    encoder: Encoder
    digest: str
    """Hash of all that the features are a function of, besides images and views."""
    features: str
    size: int
    role: Role
    """``model``: it was named; ``backbone``: the pooled features of a model that was named; ``before``: what a model
    began with; ``random``: random weights."""
    of: str
    """The model's name without its features; of a random encoder its own."""


@dataclass(frozen=True)
class Held:
    """Which entries speak for a model, and what each is held against, by name; None where there is none."""

    model: str
    judged: str
    """By what the model is judged: its pooled features, unless others alone were asked for."""
    random: str | None
    """The same of random weights; None for a model that is itself random."""
    embedding: str | None
    """The embedding beside them, where it was asked for as well."""
    random_embedding: str | None
    before: str | None
    """What the model began with, by the features that it is judged by."""
    untrained: bool
    """Whether every weight of the backbone is the one that its architecture starts from."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What is compared with what."""
        pairs = (
            (self.judged, self.random),
            (self.embedding, self.random_embedding),
            (self.judged, self.before),
        )
        return [(a, b) for a, b in pairs if a and b]


def distinct(models: Sequence[str], allow_partial: str | Sequence[str]) -> list[Encoder]:
    """The encoders, with names that tell them apart. Raises ``InputError``."""
    if not models:
        raise InputError("no MODEL to test")
    twice = next((m for i, m in enumerate(models) if m in models[:i]), None)
    if twice is not None:
        raise InputError(f"{twice} is named twice")
    encoders = [load_encoder(model, allow_partial=allow_partial) for model in models]
    for i, e in enumerate(encoders):
        same = next((o for o in encoders[:i] if o.digest == e.digest), None)
        if same is not None:
            raise InputError(f"{same.model} and {e.model} hold the same weights; leave one out")
    encoders = [replace(e, name=printable(e.name)) for e in encoders]
    other = next((e for e in encoders if e.facts.pixels != encoders[0].facts.pixels), None)
    if other is not None:
        one = encoders[0]
        raise InputError(
            f"{one.model} takes images of {one.facts.pixels}, {other.model} of {other.facts.pixels}: models are "
            "compared on the same images; test them apart"
        )
    names = [e.name for e in encoders]
    return [replace(e, name=e.model) if names.count(e.name) > 1 else e for e in encoders]


def check_images(source: Source, encoder: Encoder) -> PixelFormat:
    """As what images are read for an encoder. Raises ``InputError`` where those of ``source`` are others."""
    pixels = encoder.facts.pixels
    fix = (
        f"{encoder.model} takes images of {pixels}: give it such, or weights of these images (hetcl pretrain --init "
        f"{encoder.model} with in_chans and pixel_max)"
    )
    look_at(source, pixels, fix=fix, most=GLANCED)
    return pixels


def entries_of(
    encoders: Sequence[Encoder],
    features: Sequence[str],
    *,
    size: int,
    yardstick: bool,
    maps: bool = False,
) -> tuple[list[Entry], list[Held], list[str]]:
    """Every model with every kind of features, then what the models are held against.

    Args:
        encoders: with names that tell them apart.
        features: as the setting has them.
        size: of the views; 0: each model's own.
        yardstick: add what the models are held against.
        maps: spatial maps are looked at besides ``features``: random encoders that differ in them alone are two.

    Returns:
        the entries; for each model what it is held against (none without ``yardstick``); what could not be had.
    """
    entries = [entry for e in encoders for entry in _given(e, features, size or size_of(e, encoders))]
    held, missing = [], []
    judged = {e.name: _judged(e, features, entries) for e in encoders if yardstick}
    entries += [one for one in judged.values() if one not in entries]
    with_maps_first = sorted(encoders, key=lambda e: not sides_of(e.embedding)) if maps else encoders
    for encoder in with_maps_first if yardstick else ():
        one = judged[encoder.name]
        if is_random(encoder.model):
            held.append(Held(encoder.name, one.name, None, None, None, None, untrained=True))
            continue
        before, random_embedding = None, None
        try:
            if (start := _before(encoder, one.features, encoders)) is not None:
                before = _add(entries, start, start.digest, one, "before")
        except InputError as e:
            missing.append(f"{encoder.name} is not held against what it began with: {e}")
        fresh = _fresh(encoder)
        if maps and (same := _same_backbone(entries, fresh)) and not sides_of(fresh.embedding):
            random = same
        else:
            sides = sides_of(fresh.embedding) if maps else {}  # which no weight shows
            digest = _digest(fresh, "embedding" if sides else one.features) + "".join(
                f"-{s}" for s in sides.values()
            )
            random = _add(entries, fresh, digest, one, "random")
        own = [e for e in entries if e.of == encoder.name and e is not one]
        embeddings = sorted((e for e in own if e.features in EMBEDDINGS), key=lambda e: e.features)
        for like in reversed(embeddings):  # that of the first one speaks for the model
            random_embedding = _add(entries, fresh, _digest(fresh, like.features), like, "random")
        embedding = embeddings[0].name if embeddings else None
        untrained = _same_weights(encoder.pyramid, fresh.pyramid)
        held.append(Held(encoder.name, one.name, random, embedding, random_embedding, before, untrained))
    order = [e.name for e in encoders]
    return entries, sorted(held, key=lambda one: order.index(one.model)), missing


def _same_backbone(entries: Sequence[Entry], fresh: Encoder) -> str | None:
    """The name of random weights that are there already and have this backbone."""
    arch = fresh.pyramid.arch
    there = (e for e in entries if e.role == "random" and e.encoder.pyramid.arch == arch)
    return next((e.name for e in there if _same_weights(e.encoder.pyramid, fresh.pyramid)), None)


def _add(entries: list[Entry], encoder: Encoder, digest: str, like: Entry, role: Role) -> str:
    """The name of what a model is held against: it is there already, or is added with a name of its own."""
    for entry in entries:
        if (entry.digest, entry.features, entry.size) == (digest, like.features, like.size):
            return entry.name
    name = f"{encoder.name} {like.features}"
    if any(e.name == name for e in entries):
        name = f"{name} for {like.of}"
    entries.append(Entry(name, encoder, digest, like.features, like.size, role, encoder.name))
    return name


def size_of(encoder: Encoder, encoders: Sequence[Encoder]) -> int:
    """Side of an encoder's views: its own, else that of the others where they have one, else 224 pixels."""
    known = {e.size for e in encoders if e.size}
    return encoder.size or (known.pop() if len(known) == 1 else 224)


def say_model(say: Callable[[str], None], encoder: Encoder, size: int, shown: str, *, asked: bool) -> None:
    """Introduce a model: architecture, ``size`` of its views in pixels (``asked``: as the user said), features."""
    sure = asked or encoder.size
    unsure = "" if sure else " (its weights do not say at which size it was trained; see --size)"
    say(f"model     {encoder.name}: {encoder.pyramid.arch} at {size} pixels, {shown}{unsure}")
    if not encoder.facts.ours:
        say(f"          its images with {encoder.facts}")


def _given(encoder: Encoder, features: Sequence[str], size: int) -> Iterator[Entry]:
    wanted = dict.fromkeys(one for f in features for one in crop_features_of(encoder, f))
    for one in wanted:
        name = encoder.name if len(wanted) == 1 else f"{encoder.name} {one}"
        digest = _digest(encoder, one) if is_unmeasured(encoder.pyramid) else encoder.digest
        yield Entry(name, encoder, digest, one, size, "model", encoder.name)


def _judged(encoder: Encoder, features: Sequence[str], entries: Sequence[Entry]) -> Entry:
    """By which features a model is judged: pooled, which people take away, unless others alone were asked for."""
    own = [e for e in entries if e.of == encoder.name]
    pooled = next((e for e in own if e.features == "pooled"), None)
    if pooled or "auto" not in features:
        return pooled or own[0]
    return replace(own[0], name=f"{encoder.name} pooled", features="pooled", role="backbone")


# ---- random weights ------------------------------------------------------------------------------------------------


def is_random(model: str) -> bool:
    """Whether a MODEL names random weights."""
    library, _, rest = model.partition(":")
    return library in ("torchvision", "timm") and rest.partition(":")[2] in ("", "random")


def _fresh(encoder: Encoder) -> Encoder:
    """The architecture of ``encoder`` with the weights that its run began with, else those of seed 0.

    The statistics of its batch norms are yet to be measured (:func:`measure`).
    """
    seed = _seed(encoder.model)
    module = encoder.fresh(seed=seed).eval()
    embedding = module if isinstance(module, Embedding) else None
    pyramid = module if embedding is None else embedding.pyramid
    assert isinstance(pyramid, Pyramid)
    if kept := undrawn(pyramid):
        raise InputError(
            f"random weights of {pyramid.arch} cannot be drawn, since no reset_parameters draws {kept}: give "
            "hetcl.register_backbone its class, or a function that makes it, or set yardstick to none"
        )
    return replace(
        encoder,
        model=f"random weights of {pyramid.arch}, seed {seed}",
        name=f"random {pyramid.arch.rpartition(':')[2]}",
        pyramid=pyramid,
        embedding=embedding,
    )


def _digest(fresh: Encoder, features: str) -> str:
    """Stands for random weights and for how their statistics are measured: it is known before they are."""
    module = fresh.embedding if features in EMBEDDINGS else fresh.pyramid
    assert module is not None
    text = f"{digest_of(module.state_dict(), fresh.facts)} {MEASURED} {MEASURED_BATCH}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _same_weights(a: Pyramid, b: Pyramid) -> bool:
    other = dict(b.named_parameters())
    return all(torch.equal(p, other[name]) for name, p in a.named_parameters())


@torch.no_grad()
def measure(
    encoder: Encoder, source: Source, *, size: int, fabric: Fabric, seed: int, window: int, images: int,
    workers: int, stop: Callable[[], None],
) -> None:  # fmt: skip
    """Batch-norm statistics of a random encoder, as their mean over batches of views of the first images of ``source``.

    Args:
        encoder: is changed.
        images: how many there are.
        size, seed, window: of the test.
        stop: called before each batch; it may raise.
    """
    policy = POLICIES["standard"]
    features, pixels = "pooled" if encoder.embedding is None else "embedding", encoder.facts.pixels
    photometric = Photometric(policy, *view_normalization(pixels))
    look = Extractor(encoder, [features]).to(fabric.device)
    if not batch_norms(look):
        return
    pairs = Pairs(
        source, [policy], size=size, batch=MEASURED_BATCH, seed=seed, workers=workers, window=window,
        images=images, pixels=pixels,
    )  # fmt: skip
    with contextlib.closing(pairs), measuring(look):
        for _, views in pairs.run(range(max(1, min(images, MEASURED) // MEASURED_BATCH))):
            stop()
            (batch,) = views.values()
            if len(batch.index):
                seen = batch.images.to(fabric.device)
                both = [photometric(x, c) for x, c in zip(seen, batch.color, strict=True)]
                with fabric.autocast():
                    look(torch.cat(both))


# ---- what a model began with ---------------------------------------------------------------------------------------


def _settings(model: str) -> tuple[RunFolder | None, Mapping[str, Any]]:
    """The run that a MODEL lies in, and what its settings file holds."""
    path = Path(model.rpartition(":")[2])
    parent = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    run = RunFolder(path if path.is_dir() else parent)
    if not path.exists() or not run.settings.is_file():
        return None, {}
    try:
        return run, run.read_settings()
    except InputError:
        return run, {}


def _seed(model: str) -> int:
    """The seed that a run's first weights were drawn from; 0 of anything else."""
    seed = _settings(model)[1].get("settings", {}).get("seed", 0)
    return seed if isinstance(seed, int) else 0


def _before(encoder: Encoder, features: str, named: Sequence[Encoder]) -> Encoder | None:
    """Stage 1 of a run of two stages, else what it was given to begin with; None where there is neither.

    Published weights, which would be fetched, are taken where they are among those that were ``named``.

    Raises:
        InputError: it cannot be read, or lacks the features that are looked at.
    """
    run, tree = _settings(encoder.model)
    if run is None:
        return None
    stage1, init = run.checkpoints / "stage1.ckpt", tree.get("init")
    given = next((e for e in named if e.model == init), None)
    if stage1.is_file():
        model, what = str(stage1), "stage 1"
    elif given or (isinstance(init, str) and Path(init.rpartition(":")[2]).exists()):
        model, what = str(init), "before"
    else:
        return None
    found = given if given and what == "before" else load_encoder(model)
    if found.facts.pixels != encoder.facts.pixels:
        raise InputError(f"{model} takes images of {found.facts.pixels}")
    crop_features_of(found, features)
    same = found.pyramid.arch == encoder.pyramid.arch and _same_weights(found.pyramid, encoder.pyramid)
    return None if same else replace(found, name=f"{encoder.name} {what}")
