"""What became of a run of fine-tuning, and what now: in words, from its folder alone. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hetcl.reporting.advice import Advice, in_words_of
from hetcl.reporting.commands import command_of, quoted
from hetcl.reporting.read import Result, mapping, number
from hetcl.reporting.verdict import Verdict

FIGURES = {"mask_ap": "mask AP", "box_ap": "box AP", "miou": "mIoU"}
"""Figure of an evaluation, 0 to 100, the first that is there first -> its name in words."""
NOTHING = 1.0
"""A figure below this says that next to nothing is found."""
RISES, FALLS = 1.05, 0.9
"""Last evaluation over the one before, and over the best one, that is called a rise or a fall."""


def judge_finetune(run: Result) -> Verdict:
    """The verdict on a run of fine-tuning, ended or not."""
    losses = [(int(r["step"]), v) for r in run.rows if (v := number(r.get("loss"))) is not None]
    name = next((n for n in FIGURES if any(number(r.get(n)) is not None for r in run.rows)), "")
    found = [(int(r["step"]), v) for r in run.rows if (v := number(r.get(name))) is not None]
    status = "half" if not run.summary else "nothing" if found and found[-1][1] < NOTHING else "ended"
    lines = [*_of_training(losses), *_of_evaluations(name, found), *(f"{line}." for line in run.damage)]
    return Verdict(
        run.name,
        status,
        _headline(run, losses, found, name),
        lines,
        [],
        list(in_words_of(run, _advice(run, status, found))),
    )


def _headline(
    run: Result, losses: Sequence[tuple[int, float]], found: Sequence[tuple[int, float]], name: str
) -> str:
    if not losses and not found:
        return "Nothing was logged yet, so nothing can be said."
    last = run.rows[-1]
    on = mapping(run.summary.get("data")).get("test")
    final = mapping(run.summary.get("figures"))
    figures = [f"{word} {v:.1f}" for n, word in FIGURES.items() if (v := number(final.get(n))) is not None]
    if run.summary:
        return f"{', '.join(figures) or 'No figure was found'}{f' on {on}' if on else ''}."
    so_far = f", {FIGURES[name]} {found[-1][1]:.1f} at step {found[-1][0]:,}" if found else ""
    return f"It has not ended: step {int(last['step']):,}{so_far}."


def _of_training(losses: Sequence[tuple[int, float]]) -> Iterator[str]:
    if len(losses) > 1:
        late = [v for _, v in losses[-max(1, len(losses) // 10) :]]
        yield f"Loss: {losses[0][1]:.3f} at first, {sum(late) / len(late):.3f} at last."


def _of_evaluations(name: str, found: Sequence[tuple[int, float]]) -> Iterator[str]:
    if len(found) > 1:
        course = ", ".join(f"{v:.1f}" for _, v in found[-6:])
        trend = "still rising" if _rising(found) else "fallen since its best" if _fallen(found) else "level"
        yield f"{FIGURES[name]} at the last evaluations: {course}; {trend}."


def _rising(found: Sequence[tuple[int, float]]) -> bool:
    values = [v for _, v in found]
    return len(values) > 1 and values[-1] == max(values) and values[-1] > RISES * values[-2]


def _fallen(found: Sequence[tuple[int, float]]) -> bool:
    values = [v for _, v in found]
    return len(values) > 1 and values[-1] < FALLS * max(values)


def _advice(run: Result, status: str, found: Sequence[tuple[int, float]]) -> Iterator[Advice]:
    out, data = quoted(run.path), quoted(run.tree.get("data", "DATASET"))
    if status == "half":
        yield Advice(
            "Unless it is still running, go on with it: it continues from its last checkpoint.",
            f"hetcl finetune --out {out} --resume",
        )
        return
    yield Advice(
        f"Look at {quoted(run.path / 'predictions.png')}: the truth on the left, what was found on the right."
    )
    if status == "nothing":
        recipe = quoted(run.tree.get("recipe") or "coco-mask-rcnn-r50-fpn-1x")
        yield Advice(
            "Before you train again, see what hetcl makes of the data: classes, boxes, how often each image is seen.",
            f"hetcl doctor --data {data} --recipe {recipe}",
        )
    if (status == "nothing" or _rising(found)) and (steps := number(run.settings.get("steps"))):
        changes = {"steps": int(2 * steps)}
        if isinstance(held := run.settings.get("milestones"), list):
            changes |= {"milestones": [2 * m for m in held]}  # type: ignore[dict-item]
        yield Advice("Train longer.", command_of(run, out="NEW-RUN", changes=changes))
    if _fallen(found) and (lr := number(run.settings.get("lr"))):
        yield Advice(
            "It was better before: train with a lower learning rate, or for fewer steps.",
            command_of(run, out="NEW-RUN", changes={"lr": lr / 3}),
        )
    if status == "ended":
        yield Advice("Try it on images of your own.", f"hetcl predict {out} photos/ --out predictions")
        yield Advice(
            "Evaluate it on other data, or with other thresholds.",
            f"hetcl evaluate {out} --data {data} --out evaluation",
        )
