"""What each kind of result shows on the page: its tables, charts and words. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hetcl.analysis.text import percent
from hetcl.reporting.blocks import Grid, Picture, Section, Text, picture
from hetcl.reporting.charts import SERIES, Chart, intervals
from hetcl.reporting.commands import command_of
from hetcl.reporting.comparisons import HEADLINES
from hetcl.reporting.curves import last_figures, of_finetuning
from hetcl.reporting.read import KINDS, Result, mapping, number
from hetcl.settings import flatten

Row = Mapping[str, Any]
CLASSES = 100
"""Classes that a table has; of more, the first."""
WORDS = (
    "Each image gives two views, and the second is looked for by the first. Views crop: two pieces, nothing else "
    "changed; standard: flipped and with other colours, too. Top-1: it was the most similar of all; top-5: among the "
    "five most similar; MRR: the mean of 1 / its rank. Pooled: the backbone's last map averaged; the others are "
    "embeddings, as they were contrasted. Margin: how much more a part adds to the right match than to "
    "the best wrong one."
)
"""What the section on a contrastive test explains."""
SHEETS = 2
"""Sheets of examples of a contrastive test that are shown."""


def interval(row: Row) -> str:
    """``31.5% (30.1 to 32.9)``."""
    return f"{percent(row['value'])} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def difference(row: Row) -> str:
    """``+1.2 (-0.3 to +2.7)``, in points."""
    return f"{100 * row['value']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"


def contrast(result: Result) -> Section:
    """A contrastive test: accuracy against overlap and dimensions, parts, differences."""
    tree = result.tree
    names = {m["name"] for m in tree["models"] if m["role"] == "model"}
    shown = names | {row[k] for row in tree["verdict"] for k in ("judged", "yardstick")}
    section = Section(
        f"Contrastive test: {result.name}", [Text(tree["sentences"], "list"), Text([WORDS], "note")]
    )
    for views in tree["views"]:
        rows = [r for r in tree["results"] if r["views"] == views]
        full = [r for r in rows if r["vector"] == "full"]
        named = [r for r in full if r["model"] in shown][:SERIES]
        bins = [
            {"label": _overlap(b), "group": r["model"], **b["top1"]}
            for r in named
            for b in r["bins"]
            if b["count"] >= 10
        ]
        reduced = [
            {"label": f"{r['vector']} ({r['total']} numbers)", "group": r["model"], **r["top1"]}
            for r in rows
            if r["model"] in names
        ]
        section.blocks += [
            intervals(f"Found first, by overlap of the two views (views {views})", bins, axis="top-1"),
            intervals(f"Found first, by the vector compared (views {views})", reduced, axis="top-1"),
            Grid(
                f"Found first among {tree['test']['gallery']:,} others, views {views}, full vectors",
                ["features", "numbers", "top-1 (95% interval)", "top-5", "MRR"],
                [
                    [r["model"], r["total"], interval(r["top1"]), interval(r["top5"]), f"{r['mrr']['value']:.3f}"]
                    for r in full
                ],
            ),
        ]  # fmt: skip
    spread = ("alignment", "uniformity", "effective_rank")
    section.blocks += [
        Grid(
            "Differences of full vectors, in points of top-1",
            ["first", "second", "views", "first minus second (95% interval)"],
            [[*d["models"], d["views"], difference(d["top1"])] for d in tree["differences"] if d["vector"] == "full"],
        ),
        Grid(
            "Parts of the vectors: spread, and what they add to right and wrong matches",
            ["features", "views", "part", "alignment", "uniformity", "effective rank", "margin"],
            [
                [p["model"], p["views"], p["part"], *(f"{p[k]:.2f}" for k in spread), f"{p['margin']:+.3f}"]
                for p in tree["parts"]
            ],
            folded=True,
        ),
    ]  # fmt: skip
    sheets = sorted((result.path / "figures").glob("examples-*.png"))
    section.blocks += _pictures(
        sheets[:SHEETS], "Right and wrong matches, with the crops drawn on the original"
    )
    if len(sheets) > SHEETS:
        section.blocks.append(
            Text([f"{len(sheets) - SHEETS} more sheets of examples stand in its folder."], "note")
        )
    return section


def _overlap(b: Row) -> str:
    return "no overlap" if not b["high"] else f"IoU {b['low']:.1f} to {b['high']:.1f}"


def what(result: Result) -> Section:
    """A probe of labels."""
    tree = result.tree
    found = [(f"kNN, k = {k}", row) for k, row in tree["knn"].items()]
    found += [(f"linear, {tree['linear']['kind']}", tree["linear"])] if tree["linear"] else []
    rows = [{"label": name, "group": tree["model"]["name"], **row["top1"]} for name, row in found]
    cells = [
        [name, interval(row["top1"]), interval(row["top5"]) if "top5" in row else ""] for name, row in found
    ]
    data = tree["data"]
    floor = f"by guessing {percent(data['chance'])}, by the commonest class {percent(data['commonest'])}"
    return Section(
        f"What frozen features know of labels: {result.name}",
        [
            Text(tree["sentences"], "list"),
            intervals("Labels right, by classifier", rows, axis="top-1"),
            Grid(
                f"Labels right on {data['test_images']:,} unseen images; {floor}",
                ["classifier", "top-1 (95% interval)", "top-5"],
                cells,
            ),
        ],
    )


def where(result: Result) -> Section:
    """A probe of places."""
    tree = result.tree
    section = Section(
        f"What frozen features know of places: {result.name}", [Text(tree["sentences"], "list")]
    )
    for (question, measure, level), title in HEADLINES.items():
        rows = [
            {"label": r["model"], "group": title, **{k: r[k] for k in ("value", "low", "high")}}
            for r in tree["results"]
            if (r["question"], r["measure"], r["level"]) == (question, measure, level)
        ]
        section.blocks.append(intervals(title, rows))
    section.blocks += [
        Grid(
            "Differences, in points",
            ["first", "second", "question", "measure", "level", "first minus second (95% interval)"],
            [
                [d["first"], d["second"], d["question"], d["measure"], d["level"], difference(d)]
                for d in tree["differences"]
            ],
            folded=True,
        ),
        Grid(
            "Every figure",
            ["model", "question", "measure", "level", "value (95% interval)", "images"],
            [
                [r["model"], r["question"], r["measure"], r["level"], interval(r), f"{r['images']:,}"]
                for r in tree["results"]
            ],
            folded=True,
        ),
    ]
    return section


def downstream(results: Sequence[Result], **budget: int) -> Iterator[Section]:
    """Fine-tunings and evaluations: one table of all, then each."""
    if not results:
        return
    keys = list(
        dict.fromkeys(k for r in results for k, v in last_figures(r).items() if number(v) is not None)
    )[:24]
    cells = []
    for r in results:
        figures, data = last_figures(r), mapping((r.summary or r.tree).get("data"))
        begun = r.tree.get("init") or r.tree.get("run", "")
        state = data.get("test") or data.get("description") or "has not ended"
        cells.append([r.name, begun, state, *(_percentage(figures.get(k)) for k in keys)])
    yield Section(
        "Downstream",
        [
            Grid(
                "Figures on the test images, in percent",
                ["run", "begun from, or of", "tested on", *map(figure_name, keys)],
                cells,
            )
        ],
    )
    for r in results:
        section = Section(f"{KINDS[r.kind].capitalize()}: {r.name}")
        if r.kind == "finetune":
            if not r.summary:
                step = max((int(row["step"]) for row in r.rows), default=0)
                steps = r.settings.get("steps", "?")
                section.blocks.append(
                    Text([f"Half-finished: step {step:,} of {steps}. Go on with --resume."])
                )
            section.blocks += [Text([f"{line}." for line in r.damage], "note"), *of_finetuning(r, **budget)]
        classes = mapping((r.summary or r.tree).get("per_class"))
        columns = list(dict.fromkeys(k for row in classes.values() for k in mapping(row)))
        if len(classes) > 1:
            more = f"; the first {CLASSES} of {len(classes):,}" if len(classes) > CLASSES else ""
            rows = [
                [n, *(_percentage(row.get(k)) for k in columns)] for n, row in list(classes.items())[:CLASSES]
            ]
            header = ["class", *map(figure_name, columns)]
            section.blocks.append(Grid(f"By class, in percent{more}", header, rows, folded=True))
        sheet = r.path / "predictions.png"
        section.blocks += _pictures([sheet] if sheet.is_file() else [], "Predictions beside the truth")
        yield section


def figure_name(figure: str) -> str:
    """``box_ap50`` -> ``box AP50``."""
    return figure.replace("ap", "AP", 1).replace("_", " ") if "ap" in figure else figure.replace("_", " ")


def _percentage(value: object) -> str:
    found = number(value)
    return "" if found is None else f"{found:.1f}"


def _pictures(paths: Sequence[Path], title: str) -> list[Picture | Text]:
    """Images that a verb drew; one that cannot be read is a line."""
    out: list[Picture | Text] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                out.append(picture(f"{title} ({path.name})", f"{title}: a sheet of images.", image))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
            out.append(Text([f"{path} cannot be shown: {e}"], "note"))
    return out


# ---- settings, environment, commands -----------------------------------------------------------------------------


def settings(results: Sequence[Result]) -> Section:
    """What was set, and what differs between runs of one kind."""
    section = Section("Settings")
    for kind in ("pretrain", "finetune"):
        runs = [r for r in results if r.kind == kind]
        held = {
            r.name: _shown({"data": r.tree.get("data"), "init": r.tree.get("init")} | flatten(r.settings))
            for r in runs
        }
        keys = list(dict.fromkeys(k for values in held.values() for k in values))
        if len(runs) > 1:
            rows = [[k, *(v.get(k, "-") for v in held.values())] for k in keys]
            rows = [row for row in rows if len(set(row[1:])) > 1]
            caption = f"What differs between the runs of {KINDS[kind]}"
            section.blocks.append(
                Grid(caption, ["setting", *held], rows) if rows else Text([f"{caption}: nothing."])
            )
        for run in runs:
            rows = [[k, v] for k, v in held[run.name].items()]
            section.blocks.append(
                Grid(f"Every setting of {run.name}", ["setting", "value"], rows, folded=True)
            )
    return section


def _shown(tree: Row) -> dict[str, str]:
    return {k: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in tree.items()}


def origins(results: Sequence[Result]) -> Section:
    """Where everything comes from: command, commit and machine of each."""
    machines = {r.name + f" ({KINDS[r.kind]})": _shown(r.machine) for r in results}
    keys = list(dict.fromkeys(k for m in machines.values() for k in m))
    rows = [[name, *(m.get(k, "-") for k in keys)] for name, m in machines.items()]
    commands = [[f"{r.name} ({KINDS[r.kind]})", command_of(r)] for r in results]
    return Section(
        "Commands and environment",
        [
            Grid("The command of each, as its folder tells it (options that only say how to compute may be missing)",
                 ["", "command"], commands),
            Grid("Versions, commit and machine; a + after the commit: with changes", ["", *keys], rows)
            if keys else None,
        ],
    )  # fmt: skip


def kept(blocks: Sequence[Any]) -> list[Any]:
    """The blocks that have something to show."""

    def full(block: Any) -> bool:
        return block is not None and bool(
            block.rows
            if isinstance(block, Grid | Chart)
            else block.lines
            if isinstance(block, Text)
            else True
        )

    return [block for block in blocks if full(block)]
