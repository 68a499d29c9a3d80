"""The settings of pre-training. The defaults are the paper's main run, recipe ``hcl-r50``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from hetcl.methods import METHODS
from hetcl.settings.compute import (
    PixelSettings,
    StreamSettings,
    check_compute,
    check_finite,
    check_pixels,
    check_track,
)
from hetcl.settings.parse import resolve_as, to_dict
from hetcl.settings.recipes import recipe_tree
from hetcl.types import PixelFormat, ViewPolicy

Method: TypeAlias = Literal[tuple(METHODS)]  # type: ignore[valid-type]


@dataclass(frozen=True)
class StageSettings:
    """One stage of pre-training. A stage of 0 epochs is skipped."""

    method: Method = "moco-v2"
    """What to train: {methods}."""
    epochs: int = 200
    """Passes over the data; 0 skips the stage."""
    lr: float = 0.03
    """Learning rate at the start, for the batch that is set (it is not scaled by itself). Paper: 0.03, stage 2 0.05."""
    schedule: Literal["cosine", "cosine-step", "step"] = "cosine"
    """cosine: changes once an epoch, as in MoCo and the paper; cosine-step: changes every step; step: times 0.1 at the
    milestones."""
    milestones: tuple[int, ...] = (120, 160)
    """Epochs at which the step schedule multiplies the learning rate by 0.1 (MoCo-v1)."""
    warmup: float = 0.0
    """Epochs of linear warm-up from zero, changed every step. MoCo has none."""
    sgd_momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of SGD, on every parameter as in MoCo."""
    temperature: float = 0.2
    """Divides the inner products (MoCo-v1: 0.07)."""
    key_momentum: float = 0.999
    """m of the momentum update: key = m * key + (1 - m) * query."""
    queue: int = 65536
    """Keys in the queue; shortened to the number of images when the data has fewer (see fit_queue)."""
    views: ViewPolicy = field(default_factory=ViewPolicy)
    """How views are drawn."""


@dataclass(frozen=True)
class SemanticSettings:
    """The semantic branch: pooled C5 to a vector, by a linear layer (moco-v1) or an MLP."""

    dim: int = 128
    """Length of the semantic vector."""


@dataclass(frozen=True)
class SpatialSettings:
    """The spatial branch: a small feature pyramid giving one map (paper section 3.3)."""

    side: int = 14
    """Side of the map; its square is the length of the spatial vector. 14 at 224 pixels."""
    width: int = 256
    """Channels of the lateral and the 3x3 convolution."""
    fused: bool = True
    """Pool large levels before the lateral convolution (paper section 4.3.2); false is the plain FPN."""


@dataclass(frozen=True)
class KnnSettings:
    """The kNN check by which a person sees learning, where the data has labels (they are used for nothing else)."""

    every: int = 1
    """Epochs between checks; 0 never checks. The first check is made before training."""
    bank: int = 10000
    """Labelled images to search among."""
    queries: int = 2000
    """Images to classify: held out if the data has a validation part, else other training images."""
    k: int = 20
    """Neighbours that vote, weighted by exp(cosine / 0.07)."""


@dataclass(frozen=True)
class PretrainSettings(PixelSettings, StreamSettings):
    """Everything that decides a pre-training run, but for the data and the folder it writes."""

    backbone: str = "torchvision:resnet50"
    """Architecture: torchvision:NAME or timm:NAME, any with four stages."""
    size: int = 224
    """Side of a view in pixels."""
    batch: int = 256
    """Images in a step, over all devices."""
    groups: int = 8
    """Batch-norm groups in that batch: each normalises apart, as the paper's 8 GPUs of 32 do, on any number of
    devices."""
    accumulate: int = 1
    """Pieces in which each device takes its part of the batch, one after the other, to save memory."""
    seed: int = 0
    """Where every random number comes from."""
    semantic: SemanticSettings = field(default_factory=SemanticSettings)
    """The semantic branch."""
    spatial: SpatialSettings = field(default_factory=SpatialSettings)
    """The spatial branch (hcl)."""
    stage1: StageSettings = field(default_factory=StageSettings)
    """First stage."""
    stage2: StageSettings = field(
        default_factory=lambda: StageSettings(method="hcl", lr=0.05, views=METHODS["hcl"].views)
    )
    """Second stage; it starts from the query and key encoders of the first."""
    fit_queue: bool = True
    """Shorten the queue to the number of images when the data has fewer."""
    mask_own: bool = True
    """Keep earlier keys of the query's own image out of its negatives. The official code does not."""
    batch_negatives: bool = False
    """Take the keys of the step's other images as negatives, too, and not earlier ones alone as MoCo does: they are of
    the same weights, which matters in short runs (needs mask_own)."""
    knn: KnnSettings = field(default_factory=KnnSettings)
    """The kNN check."""
    folder_classes: bool = False
    """Take sub-folders as classes (for the kNN check and supervised training)."""
    data_split: Literal["train", "val", "test", "all"] = "train"
    """What to train on where the data has splits, by the names of folders or shards (docs/data.md): train, and what is
    unlabelled; all: everything, splits put aside."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """auto: bf16 autocast on a GPU that has it, fp32 elsewhere. The loss is never below fp32."""
    compile: bool = False
    """Use torch.compile on both encoders: fewer passes over memory, for about a minute at the start."""
    deterministic: bool = False
    """Only GPU operations whose bits repeat, so that a resumed run equals an undisturbed one; somewhat slower."""
    log_every: int = 50
    """Steps between rows of metrics.csv."""
    track: tuple[str, ...] = ()
    """Send the figures to wandb, to mlflow, or to both (extras of those names), besides metrics.csv and TensorBoard;
    to whom, their own variables say. Nothing is sent unless it is named here."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: every epoch only (it is also saved every epoch, and on a signal)."""
    checkpoint_minutes: float = 15.0
    """Minutes after which there is a checkpoint in any case, so that a kill costs no more; 0: none by time."""

    @property
    def pixels(self) -> PixelFormat:
        """As what images are read."""
        return PixelFormat(self.in_chans, self.pixel_max)


def stages_of(settings: PretrainSettings) -> dict[str, StageSettings]:
    """The stages that train, by name, in order."""
    both = {"stage1": settings.stage1, "stage2": settings.stage2}
    return {name: stage for name, stage in both.items() if stage.epochs > 0}


def resolve(
    recipe: str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    then: PretrainSettings | None = None,
) -> PretrainSettings:
    """Settings of a recipe (default ``hcl-r50``) with overrides on top.

    Args:
        recipe: the name of a recipe or a YAML file.
        overrides: dotted names with values, or command-line words ``["--stage1.epochs", "3"]``.
        then: what a run began with: takes the place of the default recipe.

    Raises:
        InputError: every fault of names, types and values found, gathered in one message, one to a line.
    """
    name = "hcl-r50" if recipe is None else recipe
    if recipe is None and then is not None:
        return resolve_as(PretrainSettings, check, overrides, to_dict(then), "the run")
    return resolve_as(PretrainSettings, check, overrides, recipe_tree(name, "pretrain"), f"recipe {name}")


def from_dict(tree: Mapping[str, Any], origin: str) -> PretrainSettings:
    """Settings from what ``to_dict`` gave (a saved run)."""
    return resolve_as(PretrainSettings, check, base=tree, origin=origin)


def check(settings: PretrainSettings) -> list[str]:
    """What is wrong with values that each have the right type, a line each."""
    s, faults = settings, [*check_finite(settings)]

    def want(ok: bool, message: str) -> None:
        if not ok:
            faults.append(message)

    if faults:
        return faults
    faults += [*check_compute(s), *check_pixels(s), *check_track(s.track)]
    for name in ("size", "batch", "groups", "accumulate", "log_every"):
        want(getattr(s, name) >= 1, f"setting {name} must be at least 1, not {getattr(s, name)}")
    for name in ("checkpoint_every", "checkpoint_minutes"):
        want(getattr(s, name) >= 0, f"setting {name} must be 0 or more, not {getattr(s, name)}")
    want(abs(s.seed) < 2**63, f"setting seed must fit in 64 bits, not {s.seed}")
    want(s.semantic.dim >= 1, "setting semantic.dim must be at least 1")
    want(
        s.spatial.side >= 1 and s.spatial.width >= 1,
        "settings spatial.side and spatial.width must be at least 1",
    )
    want(
        s.spatial.side <= s.size,
        f"setting spatial.side: a map of {s.spatial.side} x {s.spatial.side} cells is finer than views of {s.size} "
        f"pixels; set at most {s.size}",
    )
    want(s.size >= 32, f"setting size must be at least 32 (C5 has stride 32), not {s.size}")
    want(s.knn.every >= 0, "setting knn.every must be 0 (never) or more")
    want(
        min(s.knn.bank, s.knn.queries, s.knn.k) >= 1,
        "settings knn.bank, knn.queries and knn.k must be at least 1",
    )
    if s.batch >= 1 and s.groups >= 1:
        want(
            s.batch % s.groups == 0,
            f"a batch of {s.batch} does not split into {s.groups} batch-norm groups; set groups to a divisor of batch",
        )
        want(
            s.accumulate < 1 or s.groups % s.accumulate == 0,
            f"{s.groups} batch-norm groups do not split into accumulate = {s.accumulate} pieces; "
            "make groups a multiple",
        )
        want(
            s.batch // s.groups != 1 or s.batch == 1,
            f"batch-norm groups of one image each cannot normalise; lower groups (now {s.groups}) or raise batch",
        )
    want(
        s.mask_own or not s.batch_negatives,
        "with batch_negatives a query's own key is in the queue: set mask_own to true",
    )
    want(bool(stages_of(s)), "both stages have 0 epochs: nothing to do; set stage1.epochs or stage2.epochs")
    for name, stage in (("stage1", s.stage1), ("stage2", s.stage2)):
        want(stage.epochs >= 0, f"setting {name}.epochs must be 0 (skip) or more, not {stage.epochs}")
        for key in ("lr", "temperature"):
            want(getattr(stage, key) > 0, f"setting {name}.{key} must be above 0, not {getattr(stage, key)}")
        for key in ("warmup", "weight_decay"):
            want(
                getattr(stage, key) >= 0, f"setting {name}.{key} must be 0 or more, not {getattr(stage, key)}"
            )
        want(
            stage.epochs <= 0 or stage.warmup <= stage.epochs,
            f"setting {name}.warmup must not exceed {name}.epochs ({stage.epochs}), not {stage.warmup}",
        )
        rising = all(a < b for a, b in pairwise((0, *stage.milestones)))
        want(
            rising, f"setting {name}.milestones must be epochs that rise from 1, not {list(stage.milestones)}"
        )
        want(stage.queue >= 1, f"setting {name}.queue must be at least 1, not {stage.queue}")
        for key in ("key_momentum", "sgd_momentum"):
            want(0 <= getattr(stage, key) <= 1, f"setting {name}.{key} must lie between 0 and 1")
        for key, what in stage.views.faults():
            faults.append(f"setting {name}.views.{key} {what}")
    return faults
