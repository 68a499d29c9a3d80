"""The tables of hcl-geo in docs/results.md: the search for a form, and the comparison with its claims.

    python experiments/geo_table.py forms DIR        what experiments/geo_forms.py and hetcl probe wrote
    python experiments/geo_table.py final DIR        what experiments/geo_final.sh and geo_scenes.sh wrote, DIR/SEED/...

Prints Markdown. Differences are paired over seeds, with 95% intervals of Student's t.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from hetcl.reproduce.results import estimate

METHODS = ("hcl-geo", "hcl", "moco-v2")
TUNED = {
    "finetune": ("box_ap", "fine-tuned box AP"),
    "scenes-boxes": ("box_ap", "scenes: fine-tuned box AP"),
    "scenes-pixels": ("miou", "scenes: fine-tuned mIoU"),
}
"""Folder -> the column of its metrics.csv, and what it is."""


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def named(model: str) -> str:
    """HCL's runs are those of small_seeds.sh, each in a folder ``run``."""
    return "hcl" + model.removeprefix("run") if model == "run" or model.startswith("run ") else model


BETWEEN = {"": (0, 1), ", IoU 0.1 to 0.3": (0.1, 0.3), ", IoU below 0.1": (0, 0.1)}
"""What the pairs of a figure are called -> least and greatest IoU of their crops."""


def retrieval(path: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    """(model, views, vector) -> top-1 over all pairs and over those of a range of IoUs, in percent."""
    out = {}
    for row in (read(path) or {"results": []})["results"]:
        found = {}
        for name, (least, most) in BETWEEN.items():
            bins = [
                b for b in row["bins"] if b["low"] > least - 1e-4 and b["high"] < most + 1e-4 and b["count"]
            ]
            if pairs := sum(b["count"] for b in bins):
                found[name] = 100 * sum(b["top1"]["value"] * b["count"] for b in bins) / pairs
        found[""] = 100 * row["top1"]["value"]
        out[named(row["model"]), row["views"], row["vector"]] = found
    return out


def places(path: Path) -> dict[tuple[str, str, str, str], float]:
    """(model, question, measure, level) -> percent."""
    rows = (read(path) or {"results": []})["results"]
    return {(r["model"], r["question"], r["measure"], r["level"]): 100 * r["value"] for r in rows}


def figures(root: Path) -> dict[str, dict[str, float]]:
    """Figure -> method -> percent, of one seed."""
    out: dict[str, dict[str, float]] = {}

    def put(figure: str, method: str, value: float | None) -> None:
        if value is not None:
            out.setdefault(figure, {})[method] = value

    found = retrieval(root / "contrast" / "contrast.json")
    moco = retrieval(root / "contrast-moco" / "contrast.json")
    for views in ("crop", "standard"):
        for method in ("hcl-geo", "hcl"):
            for kind in ("aligned", "embedding"):
                for vector in ("full", "pca-64"):
                    both = found.get((f"{method} {kind}", views, vector))
                    for pairs, value in (both or {}).items():
                        put(f"{kind}, {vector}, {views}{pairs}", method, value)
            alone = found.get((f"{method} embedding", views, "semantic"))
            put(f"semantic alone, {views}", method, alone and alone[""])
        for vector in ("full", "pca-64"):
            both = moco.get(("moco-v2", views, vector))
            for pairs, value in (both or {}).items():
                put(f"embedding, {vector}, {views}{pairs}", "moco-v2", value)
            if both and vector == "full":
                put(f"semantic alone, {views}", "moco-v2", both[""])
    for test in ("people", "scenes", "scenes-cells"):
        for (model, question, measure, level), value in places(root / test / "where.json").items():
            method = "random" if model.startswith("random") else named(model)
            method = "stage 1" if model.endswith("stage1") else method
            if measure in ("pck1", "miou", "iou"):
                put(f"{test}: {question} {measure} {level}", method, value)
    for method in METHODS:
        probe = read(root / f"what-{method}" / "probe.json")
        if probe:
            for k, v in probe["knn"].items():
                put(f"class kNN, k = {k}", method, 100 * v["top1"]["value"])
            put("class linear", method, 100 * probe["linear"]["top1"]["value"])
        for folder, (column, what) in TUNED.items():
            metrics = root / f"{folder}-{method}" / "metrics.csv"
            if metrics.is_file():
                with open(metrics, newline="") as f:
                    for row in csv.DictReader(f):
                        if row.get(column):
                            put(f"{what} after {row['step']} steps", method, float(row[column]))
    return out


def final(root: Path) -> None:
    seeds = {p.name: figures(p) for p in sorted(root.iterdir()) if p.is_dir() and p.name.isdigit()}
    names = list(dict.fromkeys(name for one in seeds.values() for name in one))
    head = " | ".join((*METHODS, "stage 1", "random"))
    print(f"| figure | {head} | hcl-geo - hcl | hcl-geo - moco-v2 | hcl - moco-v2 |")
    print("|---" * 9 + "|")
    for name in names:
        cells = []
        for method in (*METHODS, "stage 1", "random"):
            values = [one[name][method] for one in seeds.values() if method in one.get(name, {})]
            cells.append(", ".join(f"{v:.1f}" for v in values))
        for one_of, other in (("hcl-geo", "hcl"), ("hcl-geo", "moco-v2"), ("hcl", "moco-v2")):
            pairs = [one[name] for one in seeds.values() if {one_of, other} <= one.get(name, {}).keys()]
            e = estimate([p[one_of] - p[other] for p in pairs])
            between = f" ({e['low']:+.1f} to {e['high']:+.1f})" if e and e["low"] is not None else ""
            cells.append(f"{e['mean']:+.1f}{between}" if e else "")
        print(f"| {name} | {' | '.join(cells)} |")
    low = "full, crop, IoU 0.1 to 0.3"
    for others, kinds in (("hcl", ("aligned", "embedding")), ("moco-v2", ("embedding",))):
        ratios = [
            one[f"aligned, {low}"]["hcl-geo"] / max(one[f"{kind}, {low}"][others] for kind in kinds)
            for one in seeds.values()
            if f"aligned, {low}" in one
        ]
        print(
            f"\nIoU 0.1 to 0.3, hcl-geo, boxes known, over the best of {others}: {[f'{r:.2f}' for r in ratios]}, "
            f"{estimate(ratios)}"
        )


def forms(root: Path) -> None:
    print(
        "| form | top-1, boxes known: crop, standard | IoU 0.1 to 0.3 | boxes unknown | semantic alone |",
        end="",
    )
    print(" scenes: box IoU, C3, C4, C5 | people: PCK at 1 cell, C3, C4, C5 |")
    print("|---" * 7 + "|")
    scenes = places(root / "forms-scenes" / "where.json")
    people = places(root / "forms-people" / "where.json") | places(root / "forms-people2" / "where.json")
    for path in sorted((root / "forms").iterdir()):
        if not path.is_dir():
            continue
        name, found = path.name, retrieval(path / "contrast" / "contrast.json")
        cells = []
        for kind, vector, at in (
            ("aligned", "full", ""),
            ("aligned", "full", ", IoU 0.1 to 0.3"),
            ("embedding", "full", ""),
            ("embedding", "semantic", ""),
        ):
            values = []
            for views in ("crop", "standard"):
                for model in (f"{name} {kind}", name if kind == "embedding" else ""):
                    value = found.get((model, views, vector))
                    values += [f"{value[at]:.1f}"] if value else []
            cells.append(", ".join(values))
        for held, question, measure in ((scenes, "localization", "iou"), (people, "correspondence", "pck1")):
            values = [
                held.get((f"{name}/backbone", question, measure, level)) for level in ("c3", "c4", "c5")
            ]
            cells.append(", ".join(f"{v:.1f}" for v in values if v is not None))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    {"forms": forms, "final": final}[sys.argv[1]](Path(sys.argv[2]))
