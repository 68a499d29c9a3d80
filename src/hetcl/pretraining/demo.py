"""``hetcl demo``: the whole story on the built-in scenes, in a few minutes on two cores."""

from __future__ import annotations

import io
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetcl.analysis.contrast.run import contrast
from hetcl.errors import Stopped
from hetcl.images.sources import open_source
from hetcl.paths import expand
from hetcl.pretraining.run import pretrain
from hetcl.printable import say
from hetcl.reporting.page import report as page_of
from hetcl.runs.folder import RunFolder, write_atomic
from hetcl.runs.output import held_in, making
from hetcl.runs.resume import check_own
from hetcl.settings import resolve
from hetcl.views.sheet import sheet

DATA, RECIPE = "scenes:4000", "demo"
UNSEEN = "scenes:2500"
"""Its validation scenes are those that the backbone is tested on."""
TEST = {"data_split": "val", "views": ["hcl"], "dims": [64], "examples": 1}
"""Settings of the contrastive test: the views that stage 2 is trained on, of scenes that it never saw."""
OURS = ("run", "contrast", "views.png", "found.png", "report.html")
"""What the folder of a demo holds."""


def demo(out: str | Path) -> None:
    """Draw scenes, show the views, train both stages, test on scenes that were not trained on, say what was learned.

    Raises:
        InputError: ``out`` holds something that is not a finished or stopped demo.
        Stopped: a signal came; what was done is kept.
    """
    out = Path(expand(out))
    held = {name.removesuffix(".part") for name in held_in(out)}
    check_own(out, "a demo", foreign=not held <= set(OURS), again=False)
    with making(out, "folder"):
        out.mkdir(parents=True, exist_ok=True)
    settings = resolve(RECIPE)
    source = open_source(DATA)
    say(f"1. Images: {source.description}. Nothing is stored or downloaded.")
    page = io.BytesIO()
    sheet(source, settings.stage2.views, size=settings.size).save(page, "PNG")
    write_atomic(out / "views.png", page.getvalue())
    say(
        f"   {out / 'views.png'}: eight of them with two crops drawn in, and the two views as the encoder gets them."
    )
    say("2. Training: first MoCo-v2, then HCL, which adds a spatial vector to the semantic one.")
    run = RunFolder(out / "run")
    try:
        if run.backbone.is_file():
            say(f"   {run.path} holds a finished demo already; remove it to train again.")
        else:
            run = pretrain(data=DATA, out=run.path, recipe=RECIPE, resume=True)
        say("3. Test, on scenes that it has not seen: which view is the other view of this one?")
        tested = out / "contrast"
        report = contrast(str(run.path), data=UNSEEN, out=tested, resume=tested.exists(), overrides=TEST)
    except (Stopped, KeyboardInterrupt) as e:
        number = e.signum if isinstance(e, Stopped) else signal.SIGINT
        raise Stopped(number, f"stopped after saving; `hetcl demo --out {out}` goes on from there") from None
    write_atomic(out / "found.png", (tested / "figures" / "parts-run-hcl.png").read_bytes())
    say("4. What was learned, without a label:")
    for line in [*found(report), *lessons(run.read_metrics())]:
        say(f"   {line}")
    page_of([run.path, tested], out=out / "report.html", examples=4)
    say(f"   {out / 'found.png'}: examples of what each part found, with the spatial maps. Look at it.")
    say(f"   {out / 'report.html'}: all of it on one page, to open in a browser.")
    say(f"   The backbone: {run.backbone}. Every figure over time: {run.metrics}.")
    say("   Next, with images of your own: hetcl pretrain --data my-photos --out run --recipe small")


def found(report: Mapping[str, Any]) -> list[str]:
    """What the content of ``contrast.json`` says of the run beside random weights, in plain sentences."""
    top1 = {(r["model"], r["vector"]): r["top1"] for r in report["results"]}
    (held,) = report["yardsticks"]
    run, random = held["embedding"], held["random_embedding"]
    change = next(d for d in report["differences"] if d["models"] == [run, random])["top1"]
    parts = next(m["dims"] for m in report["models"] if m["name"] == run)
    alone = " and ".join(f"the {part} part alone {top1[run, part]['value']:.1%}" for part in parts)
    told = "" if change["low"] > 0 else "; so many images cannot tell the two apart"
    return [
        f"The embedding finds the other view of an unseen image among {report['test']['gallery'] + 1:,} in "
        f"{top1[run, 'full']['value']:.1%} of cases; with random weights in {top1[random, 'full']['value']:.1%}, by "
        f"chance in {report['test']['chance']:.1%}.",
        f"That is {100 * change['value']:+.1f} points, 95% interval {100 * change['low']:+.1f} to "
        f"{100 * change['high']:+.1f}{told}; {alone}.",
    ]  # fmt: skip


def lessons(rows: list[dict[str, float | str]]) -> list[str]:
    """What the table of figures of a run says of classes, in plain sentences."""
    knn = [float(r["knn"]) for r in rows if "knn" in r]
    if not knn:
        return ["The table of figures is damaged: it no longer says what the kNN checks found."]
    return [
        f"kNN finds the class of {knn[-1]:.1%} of unseen images from the backbone's features; with random weights it "
        f"was {knn[0]:.1%}, by chance 10%. Classes take longer than a demo."
    ]
