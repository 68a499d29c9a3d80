"""The methods of pre-training, one entry each; what a method's name decides anywhere is read from here.

``--help``, the columns of metrics.csv, the console, checkpoints, ``contrast`` and the splits of PCA follow from an
entry. ``model/build.py`` builds its branches, ``pretraining/build.py`` its task. A new kind of branch is a class of
``model/branches.py``, an entry of :data:`KINDS`, and a group of settings of that name where users may set its numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hetcl.types import ViewPolicy


@dataclass(frozen=True)
class Kind:
    """One kind of branches."""

    module: str
    """A class of ``model/branches.py``."""
    last: bool
    """Whether it takes the channels of C5 alone, or those of C2..C5."""
    defaults: Mapping[str, int | bool] = field(default_factory=dict)
    """Its keywords that are settings (in the group of the kind's name), and what they are where nothing says so."""


KINDS: dict[str, Kind] = {
    "semantic": Kind("SemanticBranch", True, {"dim": 128}),
    "spatial": Kind("SpatialBranch", False, {"side": 14, "width": 256, "fused": True}),
    "class": Kind("ClassBranch", True),
}
"""Kinds of branches by name."""
WIDEST = 1 << 16
"""The largest number by which a header may describe branches, which are built before their weights are looked at."""


@dataclass(frozen=True)
class BranchEntry:
    """What makes one part of the embedding from the maps of a backbone."""

    kind: str
    """Its name in :data:`KINDS`, which says which module it is, and which group of settings it is built with."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the module that the method fixes, over those of the settings."""
    frame: Literal["view", "image"] = "view"
    """In which frame the part is compared: as it is, or laid back to where the view was cut out of the image
    (``model/frames.py``), which needs a kind with a map (its module has a ``side``)."""


@dataclass(frozen=True)
class Method:
    """One way of pre-training."""

    text: str
    """What it is, for ``--help``."""
    branches: Mapping[str, BranchEntry]
    """By the name of the part, in the order in which parts stand side by side."""
    views: ViewPolicy
    """How its views are drawn where nothing else is said: ``--views NAME`` of contrast."""
    compared: Literal["labels", "concatenated"] = "concatenated"
    """With what the parts of a view are compared: with labels (cross-entropy), or, side by side as one vector, with
    the other view's and the queue's (InfoNCE)."""

    @property
    def labels(self) -> bool:
        """Whether it needs labels."""
        return self.compared == "labels"

    @property
    def laid_back(self) -> list[str]:
        """The parts that are compared in the image's frame."""
        return [part for part, branch in self.branches.items() if branch.frame == "image"]

    @property
    def views_per_image(self) -> int:
        """Views that a step takes of an image."""
        return 1 if self.labels else 2


METHODS: dict[str, Method] = {
    "supervised": Method(
        "needs labels",
        {"class": BranchEntry("class")},
        # Training with labels (torchvision's reference recipe).
        ViewPolicy(area=(0.08, 1.0), jitter_p=0.0, grayscale_p=0.0, blur_p=0.0),
        compared="labels",
    ),
    "moco-v1": Method(
        "linear head",
        {"semantic": BranchEntry("semantic", {"mlp": False})},
        # Gray first, then strong jitter on every view, no blur.
        ViewPolicy(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, grayscale_first=True, blur_p=0.0),
    ),
    "moco-v2": Method("MLP head", {"semantic": BranchEntry("semantic")}, ViewPolicy()),
    "hcl": Method(
        "MLP head and spatial branch",
        {"semantic": BranchEntry("semantic"), "spatial": BranchEntry("spatial")},
        # No flip (paper section 4.3.3: with it, COCO AP falls by 0.4).
        ViewPolicy(flip_p=0.0),
    ),
    "hcl-geo": Method(
        "hcl, its maps laid back to where the crops were cut",
        {"semantic": BranchEntry("semantic"), "spatial": BranchEntry("spatial", frame="image")},
        ViewPolicy(square=True),  # flips are undone
    ),
}
"""Methods by name."""


NAMES_TAKEN = ("full", "class", "aligned", "embedding", "pooled", "random", "crop", "standard", "none")
"""Names of vectors, features and views, which a part or a method must not have."""


def faults_of(name: str) -> list[str]:
    """What is wrong with an entry of the table, a line each."""
    method, faults = METHODS[name], []
    for what in (name, *(() if method.labels else method.branches)):
        if what in NAMES_TAKEN or not all(word.isidentifier() for word in what.split("-")):
            faults.append(
                f"{what!r} is no name for a method or a part: letters, digits and _, and none that is taken"
            )
    for part, branch in method.branches.items():
        if branch.kind not in KINDS:
            faults.append(f"part {part}: no kind {branch.kind!r} in KINDS; there are {', '.join(KINDS)}")
            continue
        for word, value in KINDS[branch.kind].defaults.items():
            if not isinstance(value, bool) and not 0 < value <= WIDEST:
                faults.append(f"kind {branch.kind}: default {word} must be 1 to {WIDEST}, not {value}")
    return [f"method {name}: {fault}" for fault in faults]


def in_words() -> str:
    """The methods for ``--help``."""
    return ", ".join(f"{name} ({method.text})" for name, method in METHODS.items())


def parts_of(names: Iterable[str]) -> list[str]:
    """The parts whose figures a run of some methods keeps: hcl's, which every run has columns for, and theirs."""
    methods = [METHODS[name] for name in ("hcl", *names)]
    return list(dict.fromkeys(part for method in methods if not method.labels for part in method.branches))


def branch_words(settings: Any) -> dict[str, dict[str, Any]]:
    """Keywords by kind of branches: those of the settings' group of that name, or its defaults."""
    return {
        kind: {
            word: getattr(getattr(settings, kind, None), word, value)
            for word, value in entry.defaults.items()
        }
        for kind, entry in KINDS.items()
    }


def facts_of(words: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What :func:`branch_words` gave, as checkpoints hold it: ``semantic_dim``, ``spatial: {side, ...}``."""
    facts: dict[str, Any] = {}
    for kind, given in words.items():
        single = len(given) == 1
        facts |= {f"{kind}_{word}": value for word, value in given.items()} if single else {kind: dict(given)}
    return {name: value for name, value in facts.items() if value != {}}


def fact_names() -> tuple[str, ...]:
    """Facts of a checkpoint or a header that describe its branches, besides ``method``."""
    return tuple(facts_of({kind: entry.defaults for kind, entry in KINDS.items()}))


def words_in(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """The keywords that :func:`facts_of` laid down; None where they cannot be."""
    words: dict[str, dict[str, Any]] = {}
    for kind, entry in KINDS.items():
        held = facts.get(kind) or {}
        if not isinstance(held, Mapping):
            return None
        held = {word: facts.get(f"{kind}_{word}", held.get(word, v)) for word, v in entry.defaults.items()}
        words[kind] = {
            w: bool(held[w]) if isinstance(v, bool) else held[w] for w, v in entry.defaults.items()
        }
    numbers = [n for given in words.values() for n in given.values() if not isinstance(n, bool)]
    return words if all(isinstance(n, int) and 0 < n <= WIDEST for n in numbers) else None


def method_of(parts: Collection[str], stated: object = None) -> str:
    """The method whose encoder has these parts.

    Args:
        stated: what a checkpoint or a header says of it: a name, or those of all stages.
    """
    name = stated[-1] if isinstance(stated, list | tuple) and stated else stated
    if isinstance(name, str) and name in METHODS:
        return name
    # Of several that fit alike the last of those whose parts are vectors of the view alone.
    plain = [m for m, entry in METHODS.items() if not entry.laid_back]
    return max(reversed(plain), key=lambda m: -len(METHODS[m].branches.keys() ^ set(parts)))
