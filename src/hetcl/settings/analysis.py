"""The settings of ``hetcl contrast``, ``hetcl probe`` and ``hetcl embed``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hetcl.settings.compute import StreamSettings, check_compute
from hetcl.settings.parse import resolve_as


@dataclass(frozen=True)
class AnalysisSettings(StreamSettings):
    """Where and how to compute; none of these changes what is measured."""

    batch: int = 256
    """Images that go through a model at once."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the encoder: auto is bf16 autocast on a GPU that has it, fp32 elsewhere. Similarities are
    computed in fp32 at least, and near ties decided in float64 by contrast, whatever is set."""


@dataclass(frozen=True)
class ContrastSettings(AnalysisSettings):
    """Offline contrastive testing (paper sections 3.2 and 3.4)."""

    features: tuple[str, ...] = ("auto",)
    """What to test of each model: embedding (its parts, for our checkpoints), aligned (the same, maps laid back by the
    box of each crop), pooled (C5 averaged), c2..c5 (a level averaged), c4x7 (a level on a 7 x 7 grid); auto: embedding
    where there is one (of hcl-geo aligned as well), else pooled."""
    views: tuple[str, ...] = ("crop", "standard")
    """How the two views are drawn, one test for each: none, crop (Figure 2), standard (Figure 4), moco-v1, moco-v2,
    hcl, hcl-geo, a name with changes (crop:grayscale_p=1) or a YAML file."""
    gallery: int = 65536
    """Other images that the partner is to be found among; all others when the data has fewer."""
    images: int = 0
    """Test on that many images drawn at random; 0: all."""
    dims: tuple[int, ...] = (64, 96, 128)
    """Dimensions after PCA, over all parts."""
    splits: tuple[float, ...] = (0.5,)
    """Shares of those dimensions that the spatial part gets: 0 is the semantic part alone, 1 the spatial one."""
    bins: int = 10
    """Bins of overlap (IoU of the two crops) between 0 and 1; pairs without overlap are a bin of their own."""
    confidence: float = 0.95
    """Confidence of the intervals: the share of such intervals that hold the true figure."""
    examples: int = 2
    """Successes and failures of each bin that are drawn for each model; 0: no images."""
    size: int = 0
    """Side of a view in pixels; 0: what each model was trained at; where that is not known, what the others were
    trained at if they agree, else 224."""
    data_split: Literal["train", "val", "test", "all"] = "train"
    """What to read where the data has splits, by the names of folders or shards (docs/data.md); all: everything."""
    yardstick: Literal["auto", "none"] = "auto"
    """What each model is held against for the verdict: auto adds the same architecture with random weights, and stage
    1 of a run (or what it began with); none adds nothing and gives no verdict."""
    seed: int = 0
    """Where every random number comes from: the same seed gives every model the same views."""


@dataclass(frozen=True)
class ProbeSettings(AnalysisSettings):
    """kNN and linear probe of frozen features."""

    features: str = "pooled"
    """What to probe: pooled (C5 averaged), c2..c5 (a level averaged), c4x7 (a level on a 7 x 7 grid), embedding."""
    knn: tuple[int, ...] = (20, 200)
    """Numbers of neighbours that vote, weighted by exp(cosine / 0.07); []: no kNN."""
    linear: Literal["none", "lbfgs", "moco"] = "lbfgs"
    """Linear probe: lbfgs (logistic regression on features of central views, minutes), moco (the MoCo recipe: SGD on
    augmented views for 100 epochs), none."""
    epochs: int = 100
    """Epochs of the moco recipe; the learning rate falls tenfold after 60% and 80% of them."""
    lr: float = 30.0
    """Learning rate of the moco recipe at a batch of 256; it is scaled to the batch that is set."""
    size: int = 0
    """Side of a view in pixels; 0: what the model was trained at, 224 where that is not known."""
    holdout: float = 0.2
    """Share of the images to test on, where the data has no validation part of its own."""
    images: int = 0
    """Train on that many images drawn at random; 0: all."""
    folder_classes: bool = True
    """Take sub-folders as classes."""
    data_split: Literal["train", "all"] = "train"
    """What to train on where the data has splits, by the names of folders or shards (docs/data.md); all: splits put
    aside, and a share held out to test on."""
    test_split: Literal["auto", "val", "test"] = "auto"
    """What to test on then; auto: val, or test where val has no labels."""
    ask: tuple[str, ...] = ("auto",)
    """what (kNN and linear accuracy on labels), where, or by name: correspondence (cells of two crops), localization
    (the main object's box), dense-knn and dense-linear (the class of each cell); auto: where of annotated sets
    (coco:ROOT ...) and of several MODELs, else what."""
    boxes: str = ""
    """Where: a CSV file (key,left,top,right,bottom; pixels, the last one included) with the main object's box of each
    image, by its name without ending."""
    test_images: int = 0
    """Where: test on that many images drawn at random; 0: all."""
    grid: int = 0
    """Where: cells of a side of the grid, at least 2; 0: one for every 8 pixels."""
    cells: int = 20000
    """Where: most cells to fit and to search among, drawn at random; 0: all."""
    views: str = "hcl"
    """Where: how the two crops of correspondence are drawn, as in contrast; without flips."""
    seed: int = 0
    """Where every random number comes from."""


@dataclass(frozen=True)
class EmbedSettings(AnalysisSettings):
    """Features of central views, to a file."""

    features: str = "pooled"
    """What to write: pooled (C5 averaged), c2..c5 (a level averaged), c4x7 (a level on a 7 x 7 grid), each as the
    backbone gives it; for weights with branches also embedding (all parts side by side), semantic or spatial, each part
    of unit length."""
    size: int = 0
    """Side of a view in pixels; 0: what the model was trained at, 224 where that is not known."""
    data_split: Literal["train", "val", "test", "all"] = "all"
    """What to read where the data has splits, by the names of folders or shards (docs/data.md); all: everything."""
    seed: int = 0
    """Which views measure the batch-norm statistics of weights that have none (random ones)."""


def resolve_contrast(overrides: Mapping[str, Any] | Sequence[str] = ()) -> ContrastSettings:
    """Settings of ``hetcl contrast``. Raises ``InputError`` with every fault found, a line each."""
    return resolve_as(ContrastSettings, _check_contrast, overrides)


def resolve_probe(overrides: Mapping[str, Any] | Sequence[str] = ()) -> ProbeSettings:
    """Settings of ``hetcl probe``. Raises ``InputError`` with every fault found, a line each."""
    return resolve_as(ProbeSettings, _check_probe, overrides)


def resolve_embed(overrides: Mapping[str, Any] | Sequence[str] = ()) -> EmbedSettings:
    """Settings of ``hetcl embed``. Raises ``InputError`` with every fault found, a line each."""
    return resolve_as(EmbedSettings, _check_common, overrides)


def _check_common(s: ContrastSettings | ProbeSettings | EmbedSettings) -> list[str]:
    faults = check_compute(s)
    if s.batch < 1:
        faults.append(f"setting batch must be 1 or more, not {s.batch}")
    if s.size and not 32 <= s.size <= 8192:
        faults.append(
            f"setting size must be 0 (the model's own) or 32 to 8192 (C5 has stride 32), not {s.size}"
        )
    if abs(s.seed) >= 2**63:
        faults.append(f"setting seed must fit in 64 bits, not {s.seed}")
    if not isinstance(s, EmbedSettings) and s.images < 0:
        faults.append(f"setting images must be 0 (all) or more, not {s.images}")
    return faults


def _check_contrast(s: ContrastSettings) -> list[str]:
    faults = _check_common(s)
    if s.gallery < 1:
        faults.append(f"setting gallery must be at least 1, not {s.gallery}")
    if not 1 <= s.bins <= 1000:
        faults.append(f"setting bins must be 1 to 1000, not {s.bins}")
    if s.examples < 0:
        faults.append(f"setting examples must be 0 (none) or more, not {s.examples}")
    if not 0 < s.confidence < 1:
        faults.append(f"setting confidence must lie between 0 and 1, not {s.confidence}")
    if any(d < 1 for d in s.dims):
        faults.append(f"setting dims must be whole numbers from 1, not {list(s.dims)}")
    if not all(0 <= share <= 1 for share in s.splits) or (s.dims and not s.splits):
        faults.append(f"setting splits must be shares between 0 and 1, not {list(s.splits)}")
    for name in ("features", "views"):
        if not getattr(s, name) or not all(text.strip() for text in getattr(s, name)):
            faults.append(f"setting {name} names nothing")
    for name in ("features", "views", "dims", "splits"):
        values = getattr(s, name)
        if len(set(values)) < len(values):
            faults.append(f"setting {name} names something twice: {', '.join(map(str, values))}")
    return faults


def _check_probe(s: ProbeSettings) -> list[str]:
    faults = _check_common(s)
    if any(k < 1 for k in s.knn):
        faults.append(f"setting knn must be whole numbers from 1, not {list(s.knn)}")
    if not 0 < s.holdout < 1:
        faults.append(f"setting holdout is a share between 0 and 1, not {s.holdout}")
    if s.epochs < 1:
        faults.append(f"setting epochs must be at least 1, not {s.epochs}")
    if not 0 < s.lr < 1e6:
        faults.append(f"setting lr must be above 0, not {s.lr}")
    if s.test_images < 0:
        faults.append(f"setting test_images must be 0 (all) or more, not {s.test_images}")
    if s.grid < 0 or s.grid == 1:
        faults.append(f"setting grid must be 0 (one cell for every 8 pixels) or at least 2, not {s.grid}")
    if s.cells and s.cells < 100:
        faults.append(f"setting cells must be 0 (all) or at least 100, not {s.cells}")
    return faults
