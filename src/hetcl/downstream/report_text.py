"""What came out, for people and for others' tools: figures by name, tables, sentences, files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import nn

from hetcl.datasets.annotations import Metrics
from hetcl.downstream.predict import EvaluationContext, EvaluationResult
from hetcl.downstream.scores import results
from hetcl.downstream.sheets import detection_sheet, segmentation_sheet
from hetcl.printable import printable
from hetcl.quantities import count
from hetcl.runs.folder import write_atomic
from hetcl.training.progress import Reporter

_COCO = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")
_OF_KIND = {
    "coco": ("box", "mask", _COCO),
    "scenes": ("box", "mask", _COCO),
    "lvis": ("box", "mask", (*_COCO, "ap_r", "ap_c", "ap_f")),
    "voc": ("box", "", ("ap", "ap50", "ap75")),
}
_GRADES = ((30, "good"), (10, "fair"), (0, "poor"))
"""From which AP on a detector is called what."""
_NAMES = {
    "accuracy": "accuracy",
    "miou": "mIoU",
    "iou": "IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
}


def figure_names(data: Any, model: str) -> tuple[str, ...]:
    """The figures that evaluating ``model`` on ``data`` may give, for the columns of a table."""
    if model == "fcn":
        return ("miou", "pixel_accuracy", "mean_accuracy")
    if data.kind == "cityscapes":
        return ("mask_ap", "mask_ap50") if model == "mask-rcnn" else tuple(f"box_{n}" for n in _COCO)
    box, mask, names = _OF_KIND[data.kind]
    kinds = (box, mask) if mask and model == "mask-rcnn" else (box,)
    return tuple(f"{kind}_{name}" for kind in kinds for name in names)


def in_words(figure: str) -> str:
    """``box_ap50`` -> ``box AP50``; ``mask_ap_s`` -> ``mask APs``; ``ap50`` -> ``AP50``."""
    if figure in _NAMES:
        return _NAMES[figure]
    kind, _, rest = figure.rpartition("_ap") if "_ap" in figure else ("", "", figure.removeprefix("ap"))
    return f"{kind} AP{rest.replace('_', '')}".strip()


def shown(value: float) -> str:
    """A percentage with one digit; a dash where nothing could be measured."""
    return "-" if math.isnan(value) else f"{value:.1f}"


def table(metrics: Metrics, most: int = 100) -> Table:
    """Figures of each class and of all, in percent; of very many classes the best and the worst."""
    columns = list(dict.fromkeys(name for row in metrics.per_class.values() for name in row))
    out = Table(box=None, pad_edge=False)
    out.add_column("class")
    for column in columns:
        out.add_column(in_words(column), justify="right")
    rows = list(metrics.per_class.items())
    if len(rows) > most and columns:
        rows = sorted(
            rows, key=lambda r: (math.isnan(r[1].get(columns[0], math.nan)), -r[1].get(columns[0], 0))
        )
        known = [r for r in rows if not math.isnan(r[1].get(columns[0], math.nan))]
        rows = [*known[:10], ("...", {}), *known[10:][-10:]]
    for name, row in rows:
        out.add_row(Text(printable(name)), *(shown(row[c]) if c in row else "" for c in columns))
    return out


def sentences(metrics: Metrics, images: int) -> list[str]:
    """The figures in a line or two."""
    f = metrics.figures
    out = []
    for kind in ("box", "mask"):
        names = [n for n in f if n.startswith(f"{kind}_")]
        if names:
            out.append(
                f"{kind:<5}"
                + "  ".join(f"{in_words(n).removeprefix(kind).strip()} {shown(f[n])}" for n in names)
            )
    rest = [n for n in f if not n.startswith(("box_", "mask_"))]
    if rest:
        out.append("  ".join(f"{in_words(n)} {shown(f[n])}" for n in rest))
    return [*out, f"in percent, on {count(images, 'image')}"]


def meaning(figures: Mapping[str, float]) -> str:
    """What the first figure says of the model, in a sentence; 40 is the paper's (recipe coco-mask-rcnn-r50-fpn-1x)."""
    name = next((n for n in ("box_ap", "mask_ap", "miou") if not math.isnan(figures.get(n, math.nan))), None)
    if name is None:
        return "nothing could be measured: the validation images hold nothing of these classes"
    value = f"{in_words(name)} {shown(figures[name])} of 100"
    if name == "miou":
        return (
            f"{value}: of the pixels that are of a class or were called it, the share that are both, averaged over the "
            "classes"
        )
    grade = next(word for least, word in _GRADES if figures[name] >= least)
    return (
        f"{value} is {grade}: AP says how many of the objects were found, how tightly, and with how few false alarms; "
        "below 10 is poor, and good detectors on COCO have about 40"
    )


def say_metrics(reporter: Reporter, metrics: Metrics, images: int) -> None:
    """The table of classes where there are several, and the figures."""
    reporter.say("")
    if len(metrics.per_class) > 1:
        reporter.show(table(metrics))
        reporter.say("")
    for line in sentences(metrics, images):
        reporter.say(line)


def plain(figures: dict[str, float]) -> dict[str, float | None]:
    """For JSON: NaN as null."""
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def write_results(
    folder: Path,
    data: Any,
    seen: EvaluationResult,
    *,
    model: nn.Module,
    look: EvaluationContext,
    images: Sequence[int] | range,
    examples: int = 8,
) -> list[Path]:
    """``results.json`` of a detector in COCO's results format, and the sheet ``predictions.png``.

    Raises:
        WorkFailed: the disk refused.
    """
    written = []
    if seen.confusion is None:
        written.append(folder / "results.json")
        write_atomic(written[-1], json.dumps(results(data, seen.predictions)).encode())
    if examples:
        chosen = _some(data, images, examples)
        sheet = (
            detection_sheet(data, {p.image_id: p for p in seen.predictions}, chosen)
            if seen.confusion is None
            else segmentation_sheet(data, model, look, chosen)
        )
        if sheet is not None:
            written.append(folder / "predictions.png")
            write_atomic(written[-1], sheet)
    return written


def _some(data: Any, images: Sequence[int] | range, examples: int) -> list[int]:
    """Images for the sheet, evenly over the set; of a detection set, some with objects if there are any."""
    every = list(images)
    if not hasattr(data, "label_map"):
        every = [i for i in every if len(data.annotations(i).labels)] or every
    step = max(1, len(every) // examples)
    return every[::step][:examples]
