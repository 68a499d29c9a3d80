"""Did it learn, what did the spatial branch add, what now? In words, each with the figures it rests on.

What training says of itself is weak: random weights, too, tell many images apart. So a rise during training is called
just that, and ``hetcl contrast`` has the last word where it was given. Free of torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hetcl.analysis.text import percent
from hetcl.methods import METHODS
from hetcl.quantities import duration
from hetcl.reporting.advice import Advice, advice_on, in_words_of
from hetcl.reporting.blocks import Grid
from hetcl.reporting.comparisons import contrast_row, differences, told, vectors
from hetcl.reporting.read import Result, number
from hetcl.reporting.stages import Stage, knn_of, parts_in, seconds_left, stages_of

FLAT = -0.02
"""Uniformity above which an embedding has collapsed: 0 is one vector for all images, -4 is spread out."""
NEARLY_FLAT = -0.1
"""The same of a part that finds no more than chance."""
EARLY = 300
"""Steps before which an encoder that has not ended may be nearly constant and mend by itself."""
LEAST = 0.02
"""A rise below this is called none, however many queries there were."""
EASY = 0.9
"""An accuracy at first above this leaves too little to gain to tell anything by."""
LABELS = {
    "learned": "Learned",
    "partly": "Learned in part",
    "training": "Learns in training; not yet held against random weights",
    "mixed": "Learns in training; better than random weights in one test, worse in another",
    "doubtful": "Learns in training; not better than random weights where it was tested",
    "fell": "Learns in training; kNN is worse than before training",
    "not learned": "Not learned",
    "collapsed": "Collapsed",
    "part": "One part has collapsed",
    "half": "Half-finished",
    "ended": "Ended",
    "nothing": "Finds next to nothing",
    "unclear": "Cannot tell",
}
"""Status -> the words of the page."""
TESTED = {"too few": "unclear", "random": "unclear"}
"""Statuses of contrast.json that have other names here."""


@dataclass(frozen=True)
class Verdict:
    """On one run."""

    run: str
    status: str
    headline: str
    learned: Sequence[str]
    spatial: Sequence[str]
    next: Sequence[Advice]
    figures: Grid | None = None

    @property
    def label(self) -> str:
        return LABELS[self.status]


def judge(run: Result, others: Sequence[Result]) -> Verdict:
    """The verdict on a pre-training run.

    Args:
        others: tests that may be of it: their figures count for more than the run's own.
    """
    stages = stages_of(run)
    begun = [s for s in stages if s.rows]
    ended = bool(run.summary) or (bool(stages) and all(s.over for s in stages))
    test = contrast_row(run, others)
    status = _status(run, begun, ended, test)
    places = list(differences(run, others, "random"))
    if status in ("training", "learned", "fell") and test is None and places:
        better, worse = any(d["low"] > 0 for _, d in places), any(d["high"] < 0 for _, d in places)
        worse = worse or status == "fell"
        status = "mixed" if better and worse else "learned" if better else "doubtful"
    learned = [*_where_it_stands(run, stages, ended), *_of_training(begun), *_of_neighbours(run)]
    if test is not None:
        learned.insert(0, f"Held against random weights (hetcl contrast): {test.get('line', '')}")
    learned += [f"{what}: {told(row)}." for what, row in places]
    return Verdict(
        run.name,
        status,
        _headline(status, begun, ended, _first_weights(run)),
        learned + [f"{line}." for line in run.damage],
        list(_spatial(run, stages, others)),
        list(in_words_of(run, advice_on(run, status, ended, test, others))),
        _figures(begun),
    )


def _first_weights(run: Result) -> str:
    """What the first kNN check saw."""
    return "the weights it began with" if run.tree.get("init") else "random weights"


def _collapsed(stage: Stage, ended: bool, name: str = "") -> bool:
    """One vector for all in the last two rows, and not on the way out of it."""
    values = [v for row in stage.rows if (v := number(row.get(f"{name}uniformity"))) is not None][-2:]
    flat = len(values) == 2 and min(values) > FLAT and values[1] > 1.25 * values[0] - 0.0003
    return flat and (ended or stage.step >= EARLY)


def _dead_part(stage: Stage) -> str | None:
    """The part of an embedding that finds no more than chance, while all images get nearly one vector of it."""
    for part in parts_in(stage.rows):
        right, spread = stage.late(f"{part}_accuracy_batch"), stage.late(f"{part}_uniformity")
        if right is None or spread is None:
            continue
        if right <= stage.chance + LEAST and spread > NEARLY_FLAT:
            return part
    return None


def _status(run: Result, begun: Sequence[Stage], ended: bool, test: Mapping[str, Any] | None) -> str:
    if begun and _collapsed(begun[-1], ended):
        return "collapsed"
    if not ended:
        return "half"
    if begun and _dead_part(begun[-1]) and sum(s.step for s in begun) >= EARLY:
        return "part"
    if test is not None:
        status = str(test.get("status"))
        status = TESTED.get(status, status)
        return status if status in LABELS else "unclear"
    rises = [r for s in begun if (r := s.rise()) is not None]
    if not rises:
        return "unclear"
    value, error = max(rises)
    knn = knn_of(run)
    falls = knn is not None and knn.after < knn.before - knn.error
    if value > max(LEAST, error):
        if falls:
            return "fell"
        return "learned" if knn is not None and knn.after > knn.before + knn.error else "training"
    little_to_gain = run.tree.get("init") or max(s.first(s.measure) or 0 for s in begun) > EASY
    long_enough = sum(s.step for s in begun) >= EARLY
    return "not learned" if value < max(LEAST, error) and long_enough and not little_to_gain else "unclear"


def _headline(status: str, begun: Sequence[Stage], ended: bool, first: str) -> str:
    if not begun:
        return (
            "Nothing was logged yet, so nothing can be said." if not ended else "Its figures cannot be read."
        )
    last = begun[-1]
    value, by_chance = last.late(last.measure), f"by chance {percent(last.chance)}"
    if value is None:
        where = "how much it finds right is not known"
    elif last.measure == "accuracy":
        where = f"it gets {percent(value)} of the labels right, {by_chance}"
    else:
        where = f"it finds {percent(value)} right within the batch, {by_chance}"
    task = f"It got better at its task: {where}."
    return {
        "learned": f"The features do better than {first}; {where}.",
        "partly": f"The embedding learned; its backbone is not shown to be better than random weights; {where}.",
        "training": f"{task} Whether its features are better than random weights is not measured yet.",
        "mixed": f"{task} Frozen, it is better than random weights at one thing and worse at another.",
        "fell": f"{task} But neighbours of an image share its class less often than with {first}.",
        "doubtful": f"{task} Frozen, it is not shown to be better than random weights.",
        "not learned": f"It is no better than what it began with (which may be above chance, too); {where}.",
        "collapsed": f"Nearly every image gets the same vector, so the features are of no use; {where}.",
        "part": f"The {_dead_part(last)} part gives nearly every image the same numbers; {where}.",
        "half": f"It has not ended; so far {where}.",
        "unclear": f"The figures do not settle it; {where}.",
    }[status]


# ---- did it learn ------------------------------------------------------------------------------------------------


def _where_it_stands(run: Result, stages: Sequence[Stage], ended: bool) -> Iterator[str]:
    if not ended:
        if sum(stage.step for stage in stages) < EARLY:
            yield f"Too early to say: the first {EARLY} steps of any run tell little."
        for stage in stages:
            at = f"epoch {stage.epoch} of {stage.epochs} (step {stage.step:,})" if stage.rows else "not begun"
            yield f"{stage.name} ({stage.method}): {'ended' if stage.over else at}."
        left = seconds_left(run, stages)
        if left is not None:
            yield f"About {duration(left)} are left, at the pace of its last rows."


def _of_training(begun: Sequence[Stage]) -> Iterator[str]:
    """Did accuracy rise in each stage, in words; the other figures stand in the table."""
    for stage in begun:
        first, late, rise = stage.first(stage.measure), stage.late(stage.measure), stage.rise()
        if first is None or late is None or rise is None:
            continue
        what = "labels right" if stage.measure == "accuracy" else "right within the batch"
        found = (
            "a rise that chance does not explain"
            if rise[0] > max(LEAST, rise[1])
            else "no rise that can be told"
        )
        yield (
            f"{stage.name} ({stage.method}), {what}: {percent(first)} at first, {percent(late)} at last "
            f"({100 * rise[0]:+.1f} points: {found}); by chance {percent(stage.chance)}."
        )
        spread = stage.late("uniformity")
        if spread is not None and spread > FLAT:
            yield f"{stage.name}: uniformity {round(spread, 3) + 0.0:.3f}, so all images have nearly one vector."
    if any(stage.measure == "accuracy_batch" and stage.rows for stage in begun):
        yield (
            "Right within the batch is the share of images of which one view is nearer to the other than to the views "
            "of all other images of the batch."
        )


def _figures(begun: Sequence[Stage]) -> Grid | None:
    """A row for each stage: the figures at its end, beside what nothing learned would give."""
    rows = []
    for stage in begun:
        two = [stage.late(k) for k in ("loss", "chance", "alignment", "uniformity")]
        first, late = stage.first(stage.measure), stage.late(stage.measure)
        first = first if len(stage.rows) > 1 else None
        shares = ["" if v is None else percent(v) for v in (first, late, stage.chance)]
        rows.append(
            [f"{stage.name}, {stage.method}", *shares, *("" if v is None else f"{v:.2f}" for v in two)]
        )
    header = [
        "stage",
        "right at first",
        "right at last",
        "by chance",
        "loss",
        "loss by chance",
        "alignment",
        "uniformity",
    ]
    caption = (
        "At first: the first row that was logged; at last: the mean of the last tenth of a stage's rows. Loss by "
        "chance is log(1 + negatives). Alignment 0: the two views of an image lie in one place; 2: no relation. "
        "Uniformity 0: one vector for all; -4: spread out."
    )
    return Grid(caption, header, rows) if rows else None


def _of_neighbours(run: Result) -> Iterator[str]:
    knn, first = knn_of(run), _first_weights(run)
    if knn is None:
        yield f"kNN against {first} was not measured: the data has no labels, or the check was off."
        return
    difference = knn.after - knn.before
    found = (
        "no difference that so few images can tell"
        if abs(difference) <= knn.error
        else f"better than {first}"
        if difference > 0
        else f"worse than {first}"
    )
    yield (
        f"kNN of the backbone: {percent(knn.after)} at the last check, {percent(knn.before)} with {first} "
        f"({100 * difference:+.1f} points, on at most {knn.images:,} images: {found}). It is the share of images whose "
        "nearest neighbours name their class: how high is good depends on the images, so the difference counts."
    )


# ---- what the spatial branch added -------------------------------------------------------------------------------


def _several(stage: Stage) -> bool:
    """Whether a stage trains parts beside the semantic one, by its figures, or by its method before there are any."""
    method = METHODS.get(stage.method)
    return len(parts_in(stage.rows)) > 1 or (method is not None and len(method.branches) > 1)


def _spatial(run: Result, stages: Sequence[Stage], others: Sequence[Result]) -> Iterator[str]:
    stage = next((s for s in reversed(stages) if _several(s)), None)
    if stage is None:
        methods = ", ".join(dict.fromkeys(s.method for s in stages)) or "none"
        yield f"This run has no spatial branch (method {methods})."
        return
    both, what = (stage.late(f"{part}accuracy_batch") for part in ("", "semantic_"))
    parts = [part for part in parts_in(stage.rows) if part != "semantic"]
    if both is None or what is None:
        yield f"Not to be seen yet: {stage.name}, which trains the spatial branch, has no figures."
        return
    together = "both parts together" if len(parts) == 1 else "all parts together"
    if _collapsed(stage, True):
        yield f"Nothing of use: the embedding has collapsed ({together} {percent(both)} right in the batch)."
        return
    rows = [r for r in stage.rows if number(r.get("semantic_accuracy_batch")) is not None]
    queries = stage.batch * stage.log_every * max(1, round(0.1 * len(rows)))
    error = 2 * (2 * max(both, 0.01) * (1 - min(both, 0.99)) / queries) ** 0.5
    at = "at the end of" if stage.over else "so far in"
    adds = (
        "too early to say what it adds"
        if len(rows) < 2
        else "it adds to the semantic part in training"
        if both - what > max(LEAST, error)
        else "it takes away from the semantic part in training"
        if what - both > max(LEAST, error)
        else "nothing that can be told in training"
    )
    alone = {part: stage.late(f"{part}_accuracy_batch") for part in parts}
    where = "".join(f", the {part} part alone {percent(v)}" for part, v in alone.items() if v is not None)
    yield (
        f"Right within the batch {at} {stage.name}: {together} {percent(both)}, the semantic part "
        f"alone {percent(what)}{where} (chance {percent(stage.chance)}). "
        f"Beside the semantic part alone that is {100 * (both - what):+.1f} points: {adds}."
    )
    for part in parts_in(stage.rows):
        same = "vector" if part == "semantic" else "map"
        if _collapsed(stage, True, f"{part}_") or _dead_part(stage) == part:
            yield f"The {part} part itself has collapsed: all images get nearly the same {same}."
    before = [f"{asked}: {told(row)}." for asked, row in differences(run, others, "before")]
    known = [*vectors(run, others), *before]
    yield from known
    if not known:
        yield (
            "Whether the backbone gained by it is another question, which training does not answer: hetcl contrast "
            f"and hetcl probe hold it against {'what it began with' if run.tree.get('init') else 'stage 1'}."
        )
