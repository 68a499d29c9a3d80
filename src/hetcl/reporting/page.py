"""``hetcl report``: folders of runs and results in, one HTML file out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hetcl import __version__
from hetcl.analysis.text import percent
from hetcl.errors import InputError
from hetcl.paths import expand
from hetcl.printable import printable
from hetcl.reporting import reproduction, sections
from hetcl.reporting.blocks import Grid, Section, Text
from hetcl.reporting.charts import script
from hetcl.reporting.curves import budget, of_pretraining, side_by_side
from hetcl.reporting.read import KINDS, Result, read_results
from hetcl.reporting.stages import knn_of, stages_of
from hetcl.reporting.verdict import Verdict, judge
from hetcl.runs.files import write_atomic
from hetcl.runs.folder import commit

MARK = b'<meta name="generator" content="hetcl report'
"""By this a page is known, so that nothing else is written over."""
WITH_IMAGES = 3
"""Runs whose data and weights are opened; of more, the first."""
ASSETS = Path(__file__).parent / "assets"


def report(runs: str | Path | Sequence[str | Path], *, out: str | Path, examples: int = 6) -> Path:
    """Write one page about some runs and results: a single HTML file that needs no network and no other file.

    Args:
        runs: folders that ``pretrain``, ``contrast``, ``probe``, ``finetune`` and ``evaluate`` wrote, in any mix.
        out: the file to write; a page that is there is replaced.
        examples: images of each run's data that are drawn in each picture; 0: neither data nor weights are opened.

    Returns:
        the file.

    Raises:
        InputError: ``out`` is a folder or another file, or a folder is no run or result; nothing has been written then.
        WorkFailed: the disk refused.
    """
    out = Path(expand(out))
    if examples < 0:
        raise InputError(f"examples must be 0 or more, not {examples}")
    check_out(out)
    results = read_results([runs] if isinstance(runs, str | Path) else runs)
    write_atomic(out, _page(results, examples).encode())
    return out


def check_out(out: Path) -> None:
    """Raises ``InputError`` when no page may be written there."""
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name a file, such as {out / 'report.html'}")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: its folder is not there; make it first")
    try:
        with open(out, "rb") as f:
            ours = MARK in f.read(4096)
    except FileNotFoundError:
        return
    except OSError as e:
        raise InputError(f"--out {out} cannot be read: {e.strerror}; name another file") from None
    if not ours:
        raise InputError(f"--out {out} is a file that hetcl report did not write; name another")


def _page(results: Sequence[Result], examples: int) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda x: printable(x) if type(x) is str else x,
    )  # fmt: skip
    shown = _sections(results, examples)  # first, so that a fault is told of the very file
    code = [script(), (ASSETS / "page.js").read_text("utf-8")]
    return environment.get_template("page.html.j2").render(
        version=__version__,
        commit=commit(),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        results=[(r.name, KINDS[r.kind], str(r.path)) for r in results],
        verdicts=_guarded(results, _verdicts),
        overview=_overview(results),
        reproduced=any(r.kind == "reproduction" for r in results),
        sections=shown,
        style=Markup((ASSETS / "page.css").read_text("utf-8")),
        scripts=[Markup(text) for text in code],
        hashes=[base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code],
    )


def _guarded(results: Sequence[Result], make: Callable[..., Any], *more: Any, **options: Any) -> Any:
    """What ``make(results, ...)`` gives; ``InputError`` where a file does not hold what its kind has."""
    try:
        return make(results, *more, **options)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        whose = ", ".join(str(r.path) for r in results)
        reason = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:100]}"
        raise InputError(
            f"{whose}: its files do not hold what hetcl writes ({reason}); leave it out"
        ) from None


def _verdicts(results: Sequence[Result]) -> list[Verdict]:
    return [judge(r, [o for o in results if o is not r]) for r in results if r.kind == "pretrain"]


def _overview(results: Sequence[Result]) -> Grid | None:
    """The runs of pre-training in a table, where there are several."""
    runs = [r for r in results if r.kind == "pretrain"]
    if len(runs) < 2:
        return None
    rows = []
    for run, verdict in zip(runs, _guarded(results, _verdicts), strict=True):
        last = next((s for s in reversed(stages_of(run)) if s.rows), None)
        knn = knn_of(run)
        right = last.late(last.measure) if last else None
        loss, chance, spread = (last.late(k) if last else None for k in ("loss", "chance", "uniformity"))
        rows.append(
            [
                run.name,
                verdict.label,
                f"{percent(right)} ({percent(last.chance)})" if last and right is not None else "",
                f"{loss:.2f} ({chance:.2f})" if loss is not None and chance is not None else "",
                f"{percent(knn.before)} to {percent(knn.after)}" if knn else "",
                f"{spread:.2f}" if spread is not None else "",
            ]
        )
    header = [
        "run",
        "verdict",
        "right within the batch (chance)",
        "loss (chance)",
        "kNN, random to now",
        "uniformity",
    ]
    return Grid("The runs at a glance", header, rows)


def _sections(results: Sequence[Result], examples: int) -> list[Section]:
    rows = budget(results)
    makers = {"contrast": sections.contrast, "what": sections.what, "where": sections.where}
    tests = [_guarded([r], lambda one: makers[one[0].kind](one[0])) for r in results if r.kind in makers]
    tuned = [r for r in results if r.kind in ("finetune", "evaluation")]
    tests += _guarded(tuned, lambda some: list(sections.downstream(some, **rows)))
    trained, found = [r for r in results if r.kind == "pretrain"], list[Section]()
    if len(trained) > 1:
        found.append(Section("Runs beside each other", list(_guarded(trained, side_by_side, **rows))))
    for i, run in enumerate(trained):
        charts = _guarded([run], lambda one: list(of_pretraining(one[0], **rows)))
        notes = [Text([f"{line}." for line in run.damage], "note")]
        warned = [Text(["The run warned:"]), Text(run.warnings, "list")] if run.warnings else []
        found.append(Section(f"Curves: {run.name}", [*charts, *notes, *warned]))
        found.append(Section(f"Images: {run.name}", _images(run, examples, i)))
    for result in (r for r in results if r.kind == "reproduction"):
        tests += _guarded([result], lambda one: list(reproduction.sections(one[0])))
    found += [*tests, _guarded(results, sections.settings), _guarded(results, sections.origins)]
    for section in found:
        section.blocks = sections.kept(section.blocks)
    return [section for section in found if section.blocks]


def _images(run: Result, examples: int, place: int) -> list[Any]:
    if not examples:
        return [
            Text(["Left out: this page was made without opening data or weights (--examples 0)."], "note")
        ]
    if place >= WITH_IMAGES:
        return [Text([f"Left out: images are shown of the first {WITH_IMAGES} runs only."], "note")]
    from hetcl.reporting.examples import examples_of

    return list(examples_of(run, examples))
