"""What to do with a run of pre-training, by its verdict: a sentence, and a command to paste. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hetcl.guidance import LEAST_IMAGES, start_from
from hetcl.reporting.commands import command_of, own_backbone, python_of, quoted
from hetcl.reporting.comparisons import belongs
from hetcl.reporting.read import Result, mapping, number
from hetcl.reporting.stages import knn_of

USABLE = ("learned", "partly", "training")
"""Statuses of weights that are worth a closer look."""


LARGE = 8
"""So many times MoCo's learning rate taught nothing in our own trials (docs/results.md)."""


def usual_rate(run: Result) -> float:
    """MoCo-v2's learning rate, 0.03 for a batch of 256, scaled to the run's batch."""
    return 0.03 * max(1.0, number(run.settings.get("batch")) or 256) / 256


@dataclass(frozen=True)
class Advice:
    """What to do next."""

    text: str
    command: str = ""


def in_words_of(run: Result, advice: Iterator[Advice]) -> Iterator[Advice]:
    """The same, in Python where the run's backbone was given from Python and the command line does not know it."""
    own = own_backbone(run)
    if own:
        yield Advice(
            "Its backbone was given from Python, and the command line does not know it: what follows is for Python, "
            f"after hetcl.register_backbone({own}) with the same class or a module like it."
        )
    for one in advice:
        yield replace(one, command=python_of(one.command, own)) if own and one.command else one


def advice_on(
    run: Result, status: str, ended: bool, test: Mapping[str, Any] | None, others: Sequence[Result]
) -> Iterator[Advice]:
    """The next steps, the first one first.

    Args:
        status: the verdict's (``verdict.LABELS``).
        ended: whether the run has ended.
        test: the verdict on it of a contrastive test, where there is one.
        others: tests that may be of it.
    """
    out, data = quoted(run.path), quoted(run.tree.get("data", "DATA"))
    stage = mapping(
        run.settings.get("stage2" if any(r.get("stage") == "stage2" for r in run.rows) else "stage1")
    )
    lr, usual = number(stage.get("lr")) or 0.03, usual_rate(run)
    large = lr > LARGE * usual and stage.get("method") != "supervised"
    if status in ("collapsed", "part") or (
        large and status in ("not learned", "doubtful", "fell", "unclear")
    ):
        lower = min(lr / 10, 0.03)
        high = f", {lr / usual:,.0f} times MoCo's for such a batch" if large else ""
        collapsed = status in ("collapsed", "part")
        again = (
            "; if it collapses again, raise temperature or key_momentum. Do not use these weights."
            if collapsed
            else "."
        )
        yield Advice(
            f"Begin again in a new folder with a lower learning rate (it was {lr:g}{high}){again}",
            command_of(run, out="NEW-RUN", changes={"stage1.lr": lower, "stage2.lr": lower}),
        )
        return
    if not ended:
        yield Advice(
            "Unless it is still running, go on with it: it continues from its last checkpoint.",
            f"hetcl pretrain --out {out} --resume",
        )
        return
    if status in ("training", "unclear") and (test is None or test.get("needed")):
        yield _contrast_advice(run, int(number((test or {}).get("needed")) or 0))
    if status in ("doubtful", "mixed", "fell") and test is None:
        yield Advice(
            "Ask besides whether it tells images apart better than random weights: what is learned first.",
            f"hetcl contrast {out} --data {data} --out contrast",
        )
    if status in ("not learned", "doubtful", "mixed", "fell"):
        yield from _other_weights(run)
        yield Advice(
            "Train longer, on more images, or with a higher learning rate; hetcl doctor says what the recipe would "
            "take here. A tenth of a long training should already show a gain.",
            f"hetcl doctor --data {data} --recipe {quoted(run.tree.get('recipe') or 'hcl-r50')}",
        )
    if status in USABLE:
        tested = any(
            belongs(str(m["model"]), str(m["name"]), run)
            for t in others
            if t.kind == "where"
            for m in t.tree["models"]
        )
        if not tested and run.settings.get("in_chans", 3) == 3 and not run.settings.get("pixel_max"):
            yield Advice(
                f"Ask what the frozen backbone knows of places, beside {_yardsticks(run)}.",
                f"hetcl probe {out} --data {data} --ask where --out where",
            )
        if status == "learned" and not any(t.kind == "finetune" for t in others):
            yield Advice(
                "Fine-tune it on a set with boxes, masks or pixels: that is what it is for.",
                f"hetcl finetune --init {out} --data DATASET --out detector",
            )
        knn = knn_of(run)
        if status == "training" and knn is not None and knn.after < knn.before:
            return
        library = str(run.settings.get("backbone", "torchvision:")).partition(":")[0]
        if library == "module":
            yield Advice(
                "Use its backbone: its weights have your module's own names. "
                "module.load_state_dict(safetensors.torch.load_file('backbone.safetensors'))"
            )
            return
        yield Advice(
            "Use its backbone elsewhere (hetcl export --help lists other formats).",
            f"hetcl export {out} --format {library} --out backbone.pth",
        )


def _other_weights(run: Result) -> Iterator[Advice]:
    """Published weights for a run that had too few images, or its own first ones where it made them worse."""
    images = number(mapping(run.summary.get("data")).get("images"))
    if run.tree.get("init"):
        yield Advice(f"Use the weights that it began with, {run.tree['init']}, unless a test says otherwise.")
    elif images is not None and images < LEAST_IMAGES:
        words = start_from(str(run.settings.get("backbone", ""))).split()
        changes = dict(zip((w.removeprefix("--") for w in words[::2]), words[1::2], strict=True))
        yield Advice(
            f"{images:,.0f} images are few to learn from random weights (about {LEAST_IMAGES:,} is the least that is "
            "advised): start from published weights, which are downloaded by their name.",
            command_of(run, out="NEW-RUN", changes=changes),
        )


def _yardsticks(run: Result) -> str:
    """What tests hold it against."""
    before = " and what it began with" if run.tree.get("init") else ""
    if not before and len({row.get("stage") for row in run.rows}) > 1:
        before = " and its stage 1"
    return f"random weights{before}"


def _contrast_advice(run: Result, needed: int) -> Advice:
    """To hold it against random weights, on as many images as would tell."""
    held, data = number(mapping(run.summary.get("data")).get("images")), quoted(run.tree.get("data", "DATA"))
    if needed and held is not None and held < needed:
        text = f"Test it on more images: about {needed:,} would tell, and its own data has {held:,.0f}."
        return Advice(text, f"hetcl contrast {quoted(run.path)} --data MORE-IMAGES --out contrast")
    init = run.tree.get("init")
    # A file that it began with is found by itself; weights by name are fetched only where they are named.
    named = f" {quoted(init)}" if init and not Path(str(init).rpartition(":")[2]).exists() else ""
    return Advice(
        f"Hold it against {_yardsticks(run)}; then give that folder, too, to hetcl report or doctor.",
        f"hetcl contrast {quoted(run.path)}{named} --data {data} --out contrast"
        + (f" --images {needed}" if needed else ""),
    )
