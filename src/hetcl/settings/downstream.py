"""The settings of ``hetcl finetune``, ``hetcl evaluate`` and ``hetcl predict``.

The defaults of the first are recipe ``coco-mask-rcnn-r50-fpn-1x``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from hetcl.settings.compute import (
    ComputeSettings,
    PixelSettings,
    check_compute,
    check_finite,
    check_pixels,
    check_track,
)
from hetcl.settings.parse import resolve_as
from hetcl.settings.recipes import recipe_tree

DEFAULT = "coco-mask-rcnn-r50-fpn-1x"
"""The recipe of `hetcl finetune` where none is named."""


@dataclass(frozen=True)
class DownstreamSettings(ComputeSettings):
    """Where and how to compute."""

    follow_links: bool = False
    """Follow links in a data set that lead out of it; else they are refused."""


@dataclass(frozen=True)
class FinetuneSettings(PixelSettings, DownstreamSettings):
    """Everything that decides a fine-tuning run, but for the weights, the data and the folder it writes."""

    in_chans: int = 0
    """Channels of an image: 0 as the weights have them, 1 gray, 3 RGB, others as stored (TIFF, .npy); first layers of
    RGB weights are adapted."""
    pixel_max: float = 0.0
    """The stored value that becomes 1, e.g. 4095 for 12 bits; 0: as the weights have it."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """fp32, as the paper and detectron2; auto: bf16 autocast on a GPU that has it, fp32 elsewhere. Losses and boxes are
    never below fp32. (PyTorch rounds the inputs of fp32 convolutions to TF32 on GPUs that have it.)"""
    model: Literal["mask-rcnn", "faster-rcnn", "fcn"] = "mask-rcnn"
    """What to train: mask-rcnn (boxes and masks), faster-rcnn (boxes), fcn (a class for each pixel)."""
    neck: Literal["fpn", "c4"] = "fpn"
    """What lies between backbone and heads of a detector: fpn (a feature pyramid), c4 (nothing; layer4 is the head;
    ResNets only)."""
    norm: Literal["tuned", "sync", "frozen"] = "sync"
    """Batch norm of backbone and FPN: tuned on each device by itself, synchronised over them (the same on one device),
    or frozen."""
    inherit_fpn: bool = False
    """Start the FPN's laterals from the spatial branch's (paper section 4.3.2), which must have 256 channels."""
    precise_bn: int = 200
    """Batches over which batch norm's statistics are measured anew at the end (PreciseBN, which MoCo's settings switch
    on; 200 is detectron2's number); 0: they stay as they are."""
    batch: int = 16
    """Images in a step, over all devices."""
    base_batch: int = 16
    """The batch that lr, steps, milestones and warmup are for: another batch scales them (the linear rule), and it is
    said. 0: nothing is scaled."""
    steps: int = 90000
    """Steps of training."""
    lr: float = 0.02
    """Learning rate at the start."""
    milestones: tuple[int, ...] = (60000, 80000)
    """Steps at which the learning rate is multiplied by 0.1."""
    warmup: int = 1000
    """Steps of linear rise to the learning rate."""
    sgd_momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of SGD, on all weights but those of norms (as in detectron2)."""
    norm_weight_decay: float = 0.0
    """Weight decay of norms."""
    clip_grad: float = 0.0
    """Largest norm of the gradient, beyond which it is scaled down; 0: none (the paper)."""
    min_size: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Detectors: short sides in pixels, one of which is drawn for each training image."""
    max_size: int = 1333
    """Detectors: most pixels of the long side."""
    test_size: int = 800
    """Detectors: short side in evaluation."""
    crop: int = 513
    """FCN: side of the crops that it is trained on, in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """FCN: range of the random scale before the crop."""
    flip_p: float = 0.5
    """Chance of a mirrored image."""
    anchor_scale: float = 1.0
    """Detectors: multiplies the anchors' sizes of 32 to 512 pixels, for images much smaller than 800 pixels."""
    regions: int = 512
    """Detectors: regions drawn from each image for the heads' losses."""
    test_proposals: int = 1000
    """Detectors: regions that the heads look at in evaluation; on a CPU take fewer."""
    score_threshold: float = 0.05
    """Least score of a detection (LVIS: 0.0001)."""
    detections: int = 100
    """Most detections of an image (LVIS: 300)."""
    repeat_threshold: float = 0.0
    """Images with classes in fewer than this share of all images come more often (LVIS: 0.001); 0: all alike."""
    empty: bool = False
    """Train on images without objects too."""
    train_list: str = ""
    """VOC: the list that the recipe's source trains on (train_aug for pixels, trainval for boxes); where the data has
    another, it is said. Empty: any will do."""
    dilation: int = 6
    """FCN: of the two 3x3 convolutions of its head."""
    evaluations: int = 1
    """Evaluations on the validation part, evenly over the steps; the last one is at the end."""
    seed: int = 0
    """Where every random number comes from."""
    log_every: int = 20
    """Steps between rows of metrics.csv."""
    track: tuple[str, ...] = ()
    """Send the figures to wandb, to mlflow, or to both (extras of those names), besides metrics.csv and TensorBoard;
    to whom, their own variables say. Nothing is sent unless it is named here."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; 0: at evaluations only (and on a signal)."""
    checkpoint_minutes: float = 15.0
    """Minutes after which there is a checkpoint in any case, so that a kill costs no more; 0: none by time."""


@dataclass(frozen=True)
class EvaluateSettings(DownstreamSettings):
    """What is evaluated, and how."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: as the run was trained. Losses and boxes are never below fp32."""
    split: Literal["val", "train"] = "val"
    """Which part of the data set."""
    images: int = 0
    """Evaluate on the first that many images; 0: all."""
    test_size: int = 0
    """Detectors: short side in pixels; 0: as the run was trained to."""
    score_threshold: float = -1.0
    """Least score of a detection; -1: as the run was trained to."""
    detections: int = 0
    """Most detections of an image; 0: as the run was trained to."""
    test_proposals: int = 0
    """Detectors: regions that the heads look at; 0: as the run was trained to."""
    examples: int = 8
    """Images drawn on the sheet of predictions; 0: no sheet."""


@dataclass(frozen=True)
class PredictSettings(ComputeSettings):
    """What is looked for in images, and what is written."""

    max_bad: float = 0.5
    """Share of unreadable images above which the work stops; the others are left out and counted."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: as the run was trained. Losses and boxes are never below fp32."""
    score_threshold: float = 0.5
    """Detectors: least score of a detection, drawn and in the files; -1: as the run was trained to (for figures: 0.05
    in most recipes)."""
    drawn: int = 1600
    """Longest side of a drawn image in pixels, at most; 0: none are drawn."""
    batch: int = 0
    """Images of one size that go through the model at once, where they follow each other; 0: 8 on a GPU, 1 on a
    CPU."""
    test_size: int = 0
    """Detectors: short side in pixels; 0: as the run was trained to."""
    detections: int = 0
    """Detectors: most detections of an image; 0: as the run was trained to."""
    test_proposals: int = 0
    """Detectors: regions that the heads look at; 0: as the run was trained to."""


def resolve_finetune(
    recipe: str | None = None, overrides: Mapping[str, Any] | Sequence[str] = ()
) -> FinetuneSettings:
    """Settings of a recipe (default :data:`DEFAULT`) with overrides on top.

    Raises:
        InputError: every fault of names, types and values found, one to a line.
    """
    name = DEFAULT if recipe is None else recipe
    tree = recipe_tree(name, "finetune")
    return resolve_as(FinetuneSettings, check_finetune, overrides, tree, f"recipe {name}")


def finetune_from_dict(tree: Mapping[str, Any], origin: str) -> FinetuneSettings:
    """Settings from what ``to_dict`` gave (a saved run)."""
    return resolve_as(FinetuneSettings, check_finetune, base=tree, origin=origin)


def resolve_evaluate(overrides: Mapping[str, Any] | Sequence[str] = ()) -> EvaluateSettings:
    """The defaults with overrides on top. Raises ``InputError``."""
    return resolve_as(EvaluateSettings, check_evaluate, overrides)


def resolve_predict(overrides: Mapping[str, Any] | Sequence[str] = ()) -> PredictSettings:
    """The defaults with overrides on top. Raises ``InputError``."""
    return resolve_as(PredictSettings, check_predict, overrides)


def check_finetune(s: FinetuneSettings) -> list[str]:
    """What is wrong with values that each have the right type, a line each."""
    faults = [*check_finite(s), *check_compute(s), *check_pixels(s, least=0), *check_track(s.track)]

    def want(ok: bool, message: str) -> None:
        if not ok:
            faults.append(message)

    for name in (
        *("batch", "steps", "regions", "test_proposals", "detections", "evaluations", "log_every"),
        *("dilation", "crop"),
    ):
        want(getattr(s, name) >= 1, f"setting {name} must be at least 1, not {getattr(s, name)}")
    for name in (
        *("base_batch", "warmup", "precise_bn", "checkpoint_every", "checkpoint_minutes", "weight_decay"),
        *("norm_weight_decay", "clip_grad", "score_threshold", "repeat_threshold"),
    ):
        want(getattr(s, name) >= 0, f"setting {name} must be 0 or more, not {getattr(s, name)}")
    for name in ("lr", "anchor_scale"):
        want(getattr(s, name) > 0, f"setting {name} must be above 0, not {getattr(s, name)}")
    for name in ("sgd_momentum", "flip_p", "score_threshold", "repeat_threshold"):
        want(getattr(s, name) <= 1, f"setting {name} must be at most 1, not {getattr(s, name)}")
    want(s.sgd_momentum >= 0 and s.flip_p >= 0, "settings sgd_momentum and flip_p must be 0 or more")
    want(abs(s.seed) < 2**63, f"setting seed must fit in 64 bits, not {s.seed}")
    rising = all(a < b for a, b in pairwise((0, *s.milestones)))
    want(rising, f"setting milestones must be steps that rise from 1, not {list(s.milestones)}")
    want(
        s.warmup <= s.steps,
        f"setting warmup must not exceed steps ({s.steps}), not {s.warmup}: set warmup too (--warmup {s.steps // 10})",
    )
    want(
        s.evaluations <= max(1, s.steps),
        f"setting evaluations must not exceed steps ({s.steps}), not {s.evaluations}: set evaluations too "
        "(--evaluations 1)",
    )
    want(
        bool(s.min_size) and min((*s.min_size, s.test_size), default=0) >= 32,
        f"settings min_size and test_size must be at least 32 pixels, not {list(s.min_size)} and {s.test_size}",
    )
    want(
        s.max_size >= max((*s.min_size, s.test_size), default=0),
        f"setting max_size must be at least the short sides, not {s.max_size}",
    )
    want(s.crop >= 32, f"setting crop must be at least 32 pixels, not {s.crop}")
    want(
        0 < s.scale[0] <= s.scale[1], f"setting scale must be two rising numbers above 0, not {list(s.scale)}"
    )
    want(
        not s.inherit_fpn or (s.model != "fcn" and s.neck == "fpn"),
        "setting inherit_fpn needs a detector with neck fpn",
    )
    return faults


def check_evaluate(s: EvaluateSettings) -> list[str]:
    """What is wrong with values that each have the right type, a line each."""
    return [*check_finite(s), *check_compute(s), *_check_pass(s, "images", "examples")]


def check_predict(s: PredictSettings) -> list[str]:
    """What is wrong with values that each have the right type, a line each."""
    return [*check_finite(s), *check_compute(s), *_check_pass(s, "drawn", "batch")]


def _check_pass(s: EvaluateSettings | PredictSettings, *counts: str) -> list[str]:
    """What is wrong with settings of a trained model's pass over images; ``counts``: further ones from 0 on."""
    faults = [
        f"setting {name} must be 0 or more, not {getattr(s, name)}"
        for name in (*counts, "detections", "test_proposals")
        if getattr(s, name) < 0
    ]
    if s.test_size and s.test_size < 32:
        faults.append(f"setting test_size must be 0 (as trained) or at least 32 pixels, not {s.test_size}")
    if s.score_threshold > 1 or (s.score_threshold < 0 and s.score_threshold != -1):
        faults.append(f"setting score_threshold must be -1 (as trained) or 0 to 1, not {s.score_threshold}")
    return faults
