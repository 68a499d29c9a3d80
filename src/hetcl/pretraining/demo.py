"""``hetcl demo``: the whole story on the built-in scenes, in a few minutes on two cores."""

from __future__ import annotations

import io
from pathlib import Path

from hetcl.errors import InputError, Stopped
from hetcl.images.sources import open_source
from hetcl.paths import expand
from hetcl.pretraining.monitors import in_batch_alone
from hetcl.pretraining.run import pretrain
from hetcl.printable import say
from hetcl.runs.folder import RunFolder, write_atomic
from hetcl.settings import resolve
from hetcl.views.sheet import sheet

DATA, RECIPE = "scenes:4000", "demo"


def demo(out: str | Path) -> None:
    """Draw scenes, show the views, train both stages, say what was learned.

    Raises:
        InputError: ``out`` holds something that is not a finished or stopped demo.
    """
    out = Path(expand(out))
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(p.name not in ("run", "views.png", "views.png.part") for p in out.iterdir()):
        raise InputError(f"--out {out} holds something that is no demo; name a new or empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"cannot make the folder {out}: {e.strerror}; name another with --out") from None
    settings = resolve(RECIPE)
    images = out / "views.png"
    source = open_source(DATA)
    say(f"1. Images: {source.description}. Nothing is stored or downloaded.")
    page = io.BytesIO()
    sheet(source, settings.stage2.views, size=settings.size).save(page, "PNG")
    write_atomic(images, page.getvalue())
    say(f"   {images}: eight of them with two crops drawn in, and the two views as the encoder gets them.")
    say("2. Training: first MoCo-v2, then HCL, which adds a spatial vector to the semantic one.")
    run = RunFolder(out / "run")
    rows = run.read_metrics()
    if run.backbone.is_file():
        say(f"   {run.path} holds a finished demo already; remove it to train again.")
    else:
        try:
            run = pretrain(data=DATA, out=run.path, recipe=RECIPE, resume=True)
        except Stopped as e:
            raise Stopped(
                e.signum, f"stopped after saving; `hetcl demo --out {out}` goes on from there"
            ) from None
        rows = run.read_metrics()
    say("3. What was learned, without a label:")
    for line in lessons(rows):
        say(f"   {line}")
    say(f"   The backbone: {run.backbone}. Every figure over time: {run.metrics}.")
    say("   Next, with images of your own: hetcl pretrain --data my-photos --out run --recipe small")


def lessons(rows: list[dict[str, float | str]]) -> list[str]:
    """The story of a run in plain sentences, from its metrics."""
    knn = [float(r["knn"]) for r in rows if "knn" in r]
    stated = []
    if knn:
        stated.append(
            f"kNN finds the class of {knn[-1]:.1%} of unseen images from the backbone's features; "
            f"with random weights it was {knn[0]:.1%}, by chance 10%. Classes take longer than a demo."
        )
    trained = [r for r in rows if "accuracy_batch" in r]
    if not trained:
        return [*stated, "The table of figures is damaged: it no longer says how training went."]
    first, last = trained[0], trained[-1]
    stated.append(
        f"A view finds the other view of its image among those of its batch in "
        f"{float(last['accuracy_batch']):.1%} of cases; at the start in {float(first['accuracy_batch']):.1%}."
    )
    if alone := list(in_batch_alone(last).items()):
        (first_part, value), *others = alone
        stated.append(
            f"The {first_part} vector alone does so in {value:.1%}, "
            + "".join(f"the {part} one alone in {v:.1%}, " for part, v in others).removesuffix(", ")
            + ": each knows something of its own."
        )
    return stated
