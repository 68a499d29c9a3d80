"""The data of tables and figures: the paper's numbers, recipes that exist, claims that can be judged."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from hetcl.reproduce.cells import Plan
from hetcl.reproduce.experiments import EXPERIMENTS, TABLES, experiment, methods
from hetcl.reproduce.scales import load_scale
from hetcl.settings import resolve, resolve_finetune, stages_of

PRINTED = Path(__file__).parent / "paper_tables.txt"
SCALES = ("full", "mini", "quick")


def printed() -> dict[str, list[list[float]]]:
    """Table -> its rows of numbers, as the paper prints them."""
    found: dict[str, list[list[float]]] = {}
    for block in PRINTED.read_text().split("\n\n")[1:]:
        head, *rows = block.strip().splitlines()
        first = 2 if head == "Table 6" else 0  # (two numbers of epochs)
        cells = [[float(c) for c in row.split() if c[0].isdigit()][first:] for row in rows]
        found[head.lower().replace(" ", "")] = cells
    return found


def order(name: str, row: list[float]) -> list[float]:
    """A printed row in the order of our columns: Tables 1 and 2 print all boxes before all masks."""
    if name not in ("table1", "table2"):
        return row
    boxes1, boxes2, masks1, masks2 = (row[i : i + 3] for i in (0, 3, 6, 9))
    return [*boxes1, *masks1, *boxes2, *masks2]


@pytest.mark.parametrize("name", TABLES[:6])
def test_numbers_are_the_papers(name: str) -> None:
    ours = [list(row) for row in experiment(name).rows.values() if any(v is not None for v in row)]
    assert sorted(ours) == sorted(order(name, row) for row in printed()[name])


def test_rows_are_the_papers() -> None:
    counts = {name: len(rows) for name, rows in printed().items()}
    assert counts == {"table1": 5, "table2": 5, "table3": 6, "table4": 5, "table5": 6, "table6": 7}
    hcl = experiment("table5")
    assert hcl.rows["hcl-800"] == [33.6, 60.8, 75.5]  # HCL*: 800 epochs of stage 1
    assert experiment("table6").rows["hcl-200-400"] == [39.7, 36.1]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_claims_name_rows_and_columns(name: str) -> None:
    table = experiment(name)
    assert set(table.rows) <= set(methods())
    for claim in table.claims:
        for method, column in chain(claim.plus, claim.minus):
            assert method in table.rows, claim.text
            assert column in table.columns, claim.text


def test_gains_that_the_paper_states() -> None:
    stated = {
        ("table1", 0): 0.8, ("table1", 1): 0.7, ("table4", 0): 0.9, ("table4", 1): 6.1, ("table4", 2): 0.7,
        ("table6", 1): 0.5, ("flip", 0): 0.4,
    }  # fmt: skip
    for (name, number), gain in stated.items():
        table = experiment(name)
        assert table.claims[number].value(table.paper) == pytest.approx(gain), (name, number)


@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_has_settings_that_resolve(scale: str, tmp_path: Path) -> None:
    size = load_scale(scale)
    data = dict.fromkeys(("images", "coco", "lvis", "voc", "cityscapes", "places"), "scenes:100")
    tables = [experiment(name) for name in EXPERIMENTS]
    plan = Plan(size, tables, out=tmp_path, data=data, weights={}, seeds=size.seeds, compute={"threads": 1})
    assert not plan.wanted
    for cell in plan.cells.values():
        if cell.verb == "pretrain":
            stages = list(stages_of(resolve(cell.recipe, cell.words)).values())
            assert not cell.models or stages[-1].method == "hcl"
        elif cell.verb == "finetune":
            s = resolve_finetune(cell.recipe, cell.words)
            assert all(abs(s.evaluations * at - round(s.evaluations * at)) < 0.01 for at in cell.at)
        assert cell.key in {need for c in plan.cells.values() for need in c.needs} or cell.verb != "pretrain"
    done = {(e, m, c) for e, m, c, _ in plan.places} | set(plan.missing)
    assert done == {(t.name, m, c) for t in tables for m in t.rows for c in t.columns}


def test_full_size_rows_are_the_papers_recipes(tmp_path: Path) -> None:
    """Only rows that nobody can train, and ours, which the paper lacks, have no cell at full size."""
    size = load_scale("full")
    data = dict.fromkeys(("images", "coco", "lvis", "voc", "cityscapes"), "scenes:100")
    tables = [experiment(name) for name in TABLES]
    plan = Plan(size, tables, out=tmp_path, data=data, weights={}, seeds=3, compute={})
    assert {m for _, m, _ in plan.missing} == {"moco-v1-ig", "moco-v2-400"}
    assert not size.changes
    assert all(not cell.recipe.startswith(("tiny", "small")) for cell in plan.cells.values())
    once = {key for key in plan.cells if key.startswith("pretrain/")}
    assert all(
        key.endswith("-seed0") for key in once
    )  # three fine-tunings of one pre-training, as in the paper


def test_the_results_page_holds_what_its_files_hold() -> None:
    script = Path(__file__).parents[2] / "experiments/fill_results.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("table", ["final", "forms"])
def test_the_tables_of_hcl_geo_are_those_of_their_data(table: str) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "experiments/geo_table.py", table, "experiments/logs/geo"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    held = {line.split("|", 2)[2].strip() for line in done.stdout.splitlines() if line.startswith("| ")}
    page = (root / "docs/results.md").read_text()
    section = page[page.index("## hcl-geo") : page.index("## HCL against MoCo-v2 of equal length")]
    head = "| | hcl-geo | HCL" if table == "final" else "| form |"
    rows = section[section.index(head) :].split("\n\n")[0].splitlines()[2:]
    assert len(rows) > 15
    assert [row for row in rows if row.split("|", 2)[2].strip() not in held] == []


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_tests_of_hcl_geo_were_of_the_same_weights(seed: str) -> None:
    root = Path(__file__).parents[2] / "experiments/logs/geo" / seed
    asked = [
        json.loads((root / test / "where.json").read_text()) for test in ("people", "scenes", "scenes-cells")
    ]
    weights = [{m["model"]: m["weights"] for m in one["models"] if m["role"] != "random"} for one in asked]
    assert len(weights[0]) == 4
    assert weights[0] == weights[1] == weights[2]
