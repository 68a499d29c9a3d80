"""The report as Markdown, for docs/results.md as it is. What failed or was left out stays in it, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
KERNELS = "kernels of "
"""How rows of the profiler's figures are called, before the row they belong to."""
IMAGENET = 1_281_167
"""Images of an epoch."""
EPOCHS = (200, 200)
"""Of the stages of the recipe hcl-r50."""
SHARE = 0.9
"""Of the bandwidth at which the roof is drawn (``roof.py``)."""


def markdown(report: Mapping[str, Any]) -> str:
    """All sections that there are."""
    parts = [_head(report)]
    for name, write in WRITERS.items():
        section = report["sections"].get(name)
        if section is not None:
            parts.append(write(section["rows"], report))
            if section["status"] != "done":
                parts.append(f"The section {name} is not whole: {section['status']}, {section['error']}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; empty where there are no rows."""
    lines = [" | ".join(row) for row in rows]
    if not lines:
        return ""
    return "\n".join(
        [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {line} |" for line in lines)]
    )


def number(value: Any, form: str = ",.0f") -> str:
    """A number in words; empty where there is none."""
    return "" if value is None else format(value, form)


def percent(value: Any) -> str:
    """A share in percent."""
    return "" if value is None else f"{value:.0%}" if value >= 0.095 else f"{value:.1%}"


def why(row: Row) -> str:
    """Why a row has no figures."""
    return f"not run: {row['skipped']}" if "skipped" in row else str(row.get("error", ""))


def cells(row: Row, *values: Callable[[], str]) -> list[str]:
    """The row's name and its values, or why there are none."""
    if "skipped" in row or "error" in row:
        return [row["name"], why(row), *[""] * (len(values) - 1)]
    return [row["name"], *(value() for value in values)]


def _head(report: Row) -> str:
    m = report["machine"]
    title = f"## On a GPU: {m.get('device', 'unknown')}"
    if report["toy"]:
        title = "## Rehearsal of bench/gpu.py on a CPU: no figure here measures anything"
    versions = ", ".join(
        f"{word} {m[key]}"
        for word, key in (
            *(("Python", "python"), ("torch", "torch"), ("torchvision", "torchvision")),
            *(("CUDA", "torch_cuda"), ("cuDNN", "cudnn")),
        )
        if m.get(key)
    )
    lines = [
        f"`python bench/gpu.py --out DIR{' --toy' if report['toy'] else ''}`, commit {report['commit']}, "
        f"{report['began']}, {report.get('seconds', 0):.0f} s: {m.get('device')}, "
        + (f"{m['gpu_memory_gib']:.0f} GiB, " if m.get("gpu_memory_gib") else "")
        + f"{m.get('cores')} CPU cores; {versions}. One run, one seed."
    ]
    if m.get("bandwidth") and m.get("copy"):
        lines.append(
            f"Bandwidth {m['bandwidth'] / 1e12:.2f} TB/s ({m['source']}), {m['copy'] / 1e12:.2f} as a copy reaches "
            f"it; bf16 products {m['peak'] / 1e12:.0f} TFLOP/s ({m['source']}), "
            f"{number((m.get('product') or 0) / 1e12)} as measured."
        )
    return "\n\n".join([title, "\n".join(lines)])


# ---- steps -----------------------------------------------------------------------------------------------------------


def _steps(rows: Sequence[Row], report: Row) -> str:
    measured = [r for r in rows if "batch" in r]
    done = {r["name"]: r for r in measured if "images_per_second" in r}
    head = [
        "ResNet-50, 224 pixels",
        "images/s",
        "memory",
        "of the eager roof",
        "of the fused one",
        "MFU",
    ]
    body = [
        cells(
            {**r, "name": f"{r['name']}, batch {r['batch']}"},
            lambda r=r: f"{r['images_per_second']:,.0f} (spread {r['spread']:.1%})",
            lambda r=r: number(r["gpu_memory_gib"], ".1f") + " GiB" * bool(r["gpu_memory_gib"]),
            lambda r=r: percent(r["roof_eager"]),
            lambda r=r: percent(r["roof_fused"]),
            lambda r=r: percent(r["mfu"]),
        )
        for r in measured
    ]
    parts = [
        "### A training step",
        "Images on the device, colour changes in the step, batch norm in 8 groups unless said otherwise; an image "
        f"is an image with both views. The roof is {SHARE:.0%} of the bandwidth over the bytes that a step must move, "
        "as counted in the step itself (`bench/gpu_sections/roof.py`).",
        grid(head, body),
        _roofs(done, report),
        grid(["time over time", "here"], [[k, f"{v:.3f}"] for k, v in ratios(done).items()]),
        _kernels(rows),
        _parts(rows),
        "" if report["toy"] else _cost(done),
    ]
    return "\n\n".join(part for part in parts if part)


def _roofs(done: Mapping[str, Row], report: Row) -> str:
    room = SHARE * (report["machine"].get("bandwidth") or 0)
    kinds = ("stage 1", "stage 2", "stage 2, vanilla", "supervised")
    return grid(
        ["one image in a step of that batch", "GFLOP", "eager, MB", "roof", "fused, MB", "roof"],
        [
            [
                name,
                f"{r['gflop']:.1f}",
                *(
                    text
                    for way in ("mb_eager", "mb_fused")
                    for text in (number(r[way]), f"{room / r[way] / 1e6:,.0f} images/s")
                ),
            ]
            for name, r in done.items()
            if name in kinds
        ],
    )


def ratios(done: Mapping[str, Row]) -> dict[str, float]:
    """Time over time, for the goals."""
    pairs = {
        "stage 2 over stage 1": ("stage 1", "stage 2"),
        "stage 2 over stage 1, compiled": ("stage 1, compiled", "stage 2, compiled"),
        "vanilla branch over the fused one": ("stage 2", "stage 2, vanilla"),
        "groups 8 over groups 1": ("stage 1, groups 1", "stage 1"),
        "groups 8 over groups 1, compiled": ("stage 1, compiled, groups 1", "stage 1, compiled"),
        "eager over compiled": ("stage 1, compiled", "stage 1"),
        "deterministic over usual": ("stage 1", "stage 1, deterministic"),
    }
    rate = {name: row["images_per_second"] for name, row in done.items()}
    return {k: rate[a] / rate[b] for k, (a, b) in pairs.items() if a in rate and b in rate}


def _kernels(rows: Sequence[Row]) -> str:
    looked = [r for r in rows if r["name"].startswith(KERNELS)]
    kinds = next((list(r["time"]) for r in looked if "time" in r), [])
    body = [
        cells(
            {**r, "name": r["name"].removeprefix(KERNELS)},
            *(lambda r=r, k=k: percent(r["time"][k]) for k in kinds),
            lambda r=r: percent(r["idle"]),
        )
        for r in looked
    ]
    return grid(["device time by kernel", *kinds, "idle"], body) if looked else ""


def _parts(rows: Sequence[Row]) -> str:
    out = []
    for r in rows:
        if "ms" in r:
            out.append(grid(["part of a step, alone", "ms"], [[k, f"{v:.2f}"] for k, v in r["ms"].items()]))
        if "kinds_mb" in r:
            most = ", ".join(f"{k} {v:.0f}" for k, v in r["kinds_mb"].items())
            out.append(
                f"Stage 1 as it runs (groups, colour changes) moves {r['mb_eager']:,.0f} MB an image eagerly; by "
                f"operation: {most}."
            )
    return "\n\n".join(out)


def _cost(done: Mapping[str, Row]) -> str:
    """The recipe hcl-r50 on ImageNet, from the rates of its stages."""
    stated = []
    for how, (one, two) in {
        "eager": ("stage 1", "stage 2"),
        "compiled": ("stage 1, compiled", "stage 2, compiled"),
    }.items():
        if one in done and two in done:
            each = [
                e * IMAGENET / done[k]["images_per_second"] / 3600
                for e, k in zip(EPOCHS, (one, two), strict=True)
            ]
            stated.append(
                f"**The recipe hcl-r50 (200 + 200 epochs of ImageNet) takes {sum(each):,.0f} h on one such card, "
                f"{how}** ({each[0]:,.1f} + {each[1]:,.1f} h; computed from these rates, if images arrive in time)."
            )
    return "\n".join(stated)


# ---- the other sections ----------------------------------------------------------------------------------------------


def _correct(rows: Sequence[Row], report: Row) -> str:
    def word(r: Row) -> str:
        if "equal" in r:
            return "equal bits" if r["equal"] else f"bits differ, weights by {r['worst']:.1e}"
        if "objections" in r:
            return ", ".join(r["objections"]) or "all have deterministic kernels"
        first = f"; first step {r['first']:.1e}" if "first" in r else ""
        single = f"; fp32 {r['fp32']:.1e}" if "fp32" in r else ""
        ap = "".join(f"; {k.replace('_', ' ')} {v}" for k, v in r.items() if "_ap_" in k)
        return f"{r['worst']:.1e} (limit {r['limit']:g}){first}{single}{ap}"

    verdicts = {True: "yes", False: "**no**", None: ""}
    body = [cells(r, lambda r=r: verdicts[r["ok"]], lambda r=r: word(r)) for r in rows]
    return "### Right\n\nAgainst the CPU in float64.\n\n" + grid(
        ["what", "right", "largest difference"], body
    )


def _loader(rows: Sequence[Row], report: Row) -> str:
    def word(r: Row) -> str:
        if "ms_per_image" in r:
            return f"{r['ms_per_image']:.2f} ms of one core an image ({r['images']})"
        needed = f"; {r['cores_needed']:.1f} cores keep it busy" if "cores_needed" in r else ""
        waiting = f"; waiting {r['waiting']:.1%}" if "waiting" in r else ""
        workers = f" with {r['workers']} workers" if "workers" in r else ""
        return f"{r['images_per_second']:,.0f} images/s{workers}{waiting}{needed}"

    return "### Fed from JPEG files\n\n" + grid(
        ["stage 1, batch 256", ""], [cells(r, lambda r=r: word(r)) for r in rows]
    )


def _detect(rows: Sequence[Row], report: Row) -> str:
    body = [
        cells(
            r,
            lambda r=r: f"{r.get('step_seconds') or r['image_seconds']:.3f} s",
            lambda r=r: number(r["gpu_memory_gib"], ".1f") + " GiB" * bool(r["gpu_memory_gib"]),
        )
        for r in rows
    ]
    return "### Detectors and segmenter\n\n" + grid(
        ["a step, or one image in evaluation", "time", "memory"], body
    )


def _train(rows: Sequence[Row], report: Row) -> str:
    parts = ["### What a short run learns"]
    failed = [[r["name"], why(r)] for r in rows if "error" in r or "skipped" in r]
    parts.append(grid(["not done", "why"], failed))
    for r in rows:
        if "curve" in r:
            keys = [
                k
                for k in ("loss", "accuracy_queue", "accuracy_batch", "knn")
                if any(k in c for c in r["curve"])
            ]
            epochs = " + ".join(map(str, r["epochs"]))
            parts.append(f"{r['name']}, {epochs} epochs, {r['images_per_second']:,.0f} images/s in all:")
            parts.append(
                grid(
                    ["stage", "epoch", "step", *(k.replace("_", " ") for k in keys)],
                    [
                        [str(c["stage"]), number(c["epoch"]), number(c["step"])]
                        + [number(c.get(k), ".2f" if k == "loss" else ".1%") for k in keys]
                        for c in r["curve"]
                    ],
                )
            )
    probes = [r for r in rows if "linear" in r]
    parts.append(
        grid(
            ["frozen", "kNN", "linear"],
            [
                [
                    r["name"].removeprefix("probe of "),
                    *(share(x) for x in r["knn"].values()),
                    share(r["linear"]),
                ]
                for r in probes
            ],
        )
    )
    levels = [r for r in rows if "levels" in r]
    if levels:
        names = list(levels[0]["levels"])
        parts.append(
            grid(
                ["masks from frozen cells: R2, IoU", *(n.upper() for n in names)],
                [
                    [
                        r["name"],
                        *(
                            f"{number(r['levels'][n]['r2'], '.3f')}, {number(r['levels'][n]['iou'], '.3f')}"
                            for n in names
                        ),
                    ]
                    for r in levels
                ],
            )
        )
    tested = [row for r in rows for row in r.get("results", [])]
    parts.append(
        grid(
            ["contrastive test, all dimensions", "views", "top-1"],
            [[t["model"], t["views"], interval(t["top1"])] for t in tested if t["vector"] == "full"],
        )
    )
    return "\n\n".join(part for part in parts if part)


def share(figures: Any) -> str:
    """Top-1 of a probe with its interval."""
    return "" if figures is None else interval(figures["top1"])


def interval(top1: Row) -> str:
    """A share with its interval."""
    return f"{top1['value']:.1%} ({top1['low']:.1%} to {top1['high']:.1%})"


WRITERS: dict[str, Callable[[Sequence[Row], Row], str]] = {
    "steps": _steps,
    "loader": _loader,
    "detect": _detect,
    "train": _train,
    "correct": _correct,
}
"""Sections in the order of the table."""
