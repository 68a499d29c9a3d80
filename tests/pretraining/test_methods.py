"""The table of methods: what follows from an entry, shown on the shipped ones and on a made-up one with three parts."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from hetcl.errors import InputError
from hetcl.methods import (
    KINDS,
    METHODS,
    BranchEntry,
    Kind,
    Method,
    branch_words,
    fact_names,
    facts_of,
    method_of,
    parts_of,
    words_in,
)
from hetcl.model import branches
from hetcl.model.build import build_embedding
from hetcl.pretraining.monitors import columns, line
from hetcl.settings import StageSettings, documented
from hetcl.views.policies import POLICIES

TWIN = """
import sys
from hetcl.methods import METHODS, BranchEntry, Method
from hetcl.types import ViewPolicy

METHODS["twin"] = Method(
    "hcl with a coarse map beside the fine one",
    {name: BranchEntry(name) for name in ("semantic", "spatial")} | {"coarse": BranchEntry("spatial", {"side": 2})},
    ViewPolicy(flip_p=0.0, blur_p=0.0),
)
from hetcl.cli import main

sys.exit(main(sys.argv[1:]))
"""
"""What adding a method takes: an entry, before anything reads the table."""


def twin(*words: object) -> str:
    """What a command of an hetcl with one more method says."""
    command = [sys.executable, "-c", TWIN, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_third_branch_reaches_help_metrics_console_checkpoint_contrast_and_pca(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "contrast"
    here = "--size 32 --batch 8 --device cpu --precision fp32 --workers 0 --threads 1".split()
    small = "--recipe demo --backbone timm:test_resnet --groups 2 --spatial.side 4 --spatial.width 8 --semantic.dim 8"
    stages = "--stage1.epochs 0 --stage2.epochs 1 --stage2.queue 13 --stage2.method twin --knn.every 0 --log_every 1"
    said = twin("pretrain", "--data", "scenes:24", "--out", run, *small.split(), *stages.split(), *here)
    assert re.search(r"\(semantic [\d.]+%, spatial [\d.]+%, coarse [\d.]+% in batch\)", said)
    with open(run / "metrics.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    for figure in ("accuracy_queue", "accuracy_batch", "alignment", "uniformity"):
        assert 0 < len([row for row in rows if row[f"coarse_{figure}"]]) == len(rows)

    said = twin(
        "contrast", run, "--data", "scenes:40", "--out", out, "--dims", "7", "--splits", "0.5,0.25", "--views",
        "crop,twin", "--yardstick", "none", "--examples", "0", *here,
    )  # fmt: skip
    assert "semantic 8 + spatial 16 + coarse 4" in said
    found = {row["vector"]: row["dims"] for row in json.loads((out / "contrast.json").read_text())["results"]}
    assert found["full"] == {"semantic": 8, "spatial": 16, "coarse": 4}
    assert found["coarse"] == {"coarse": 4}
    assert found["pca-7"] == {"semantic": 1, "spatial": 2, "coarse": 4}
    assert found["pca-7@0.25"] == {"semantic": 2, "spatial": 3, "coarse": 2}
    assert f"--stage1.method {'|'.join(METHODS)}|twin" in twin("pretrain", "--help")
    twin(
        "export", run, "--format", "full", "--out", tmp_path / "twin.safetensors"
    )  # proves that it reads back


def test_the_page_adds_a_method_with_a_branch_and_a_geometric_term(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    own = tmp_path / "my_method.py"
    own.write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])

    def hetcl(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, own, *map(str, words)], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run, out = tmp_path / "run", tmp_path / "contrast"
    here = "--size 32 --batch 8 --device cpu --precision fp32 --workers 0 --threads 1".split()
    small = "--recipe demo --backbone timm:test_resnet --groups 2 --spatial.side 4 --spatial.width 8 --semantic.dim 8"
    stages = "--stage1.epochs 0 --stage2.epochs 1 --stage2.queue 13 --stage2.method hcl-edges --knn.every 0"
    stages += " --log_every 1 --stage2.views.square true"
    said = hetcl("pretrain", "--data", "scenes:24", "--out", run, *small.split(), *stages.split(), *here)
    assert re.search(r"\(semantic [\d.]+%, spatial [\d.]+%, edges [\d.]+% in batch\)", said)
    asked = "--views hcl-edges --yardstick none --examples 1 --dims 6".split()
    hetcl("contrast", run, "--data", "scenes:40", "--out", out, *asked, *here)
    report = json.loads((out / "contrast.json").read_text())
    rows = report["results"]
    assert any(line.startswith("hcl-edges: run finds the partner ") for line in report["sentences"])
    assert {row["model"] for row in rows} == {"run aligned", "run embedding"}
    assert {tuple(row["dims"]) for row in rows if row["vector"] == "full"} == {
        ("semantic", "spatial", "edges")
    }
    apart = {
        part: {r["alignment"] for r in report["parts"] if r["part"] == part} for part in ("spatial", "edges")
    }
    assert len(apart["spatial"]) == 1, "compared as the view shows it, whatever is known"
    assert len(apart["edges"]) == 2
    assert "hcl-edges (hcl and a map of C2, laid back into the image)" in " ".join(
        hetcl("pretrain", "--help").split()
    )
    hetcl("export", run, "--format", "full", "--out", tmp_path / "edges.safetensors")


def test_the_page_lists_the_methods() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    listed = re.findall(r"^\| `([a-z0-9-]+)` \| ([^|]+) \|", page, re.MULTILINE)
    assert {name: re.findall(r"`(\w+)`", parts) for name, parts in listed} == {
        name: list(method.branches) for name, method in METHODS.items()
    }


def test_the_settings_know_the_methods_of_the_table_and_contrast_their_views() -> None:
    kinds = {name: (kind, text) for name, kind, text in documented(StageSettings)}
    assert get_args(kinds["method"][0]) == tuple(METHODS)
    assert all(f"{name} ({method.text})" in kinds["method"][1] for name, method in METHODS.items())
    assert all(POLICIES[name] == method.views for name, method in METHODS.items())


@pytest.mark.parametrize("name", list(METHODS))
def test_an_encoder_has_the_parts_of_its_entry_and_is_known_by_them(name: str) -> None:
    model = build_embedding(
        name,
        "timm:test_resnet",
        seed=0,
        words={"semantic": {"dim": 8}, "spatial": {"side": 2, "width": 4}},
        classes=3,
    )
    parts = {key.split(".")[1] for key in model.state_dict() if key.startswith("branches.")}
    assert parts == set(METHODS[name].branches)
    if (
        not METHODS[name].laid_back or name == "hcl-geo"
    ):  # such a method is never guessed; its parts are hcl's
        assert METHODS[method_of(parts)].branches.keys() == parts
    assert method_of(parts, name) == method_of(parts, ["moco-v2", name]) == name
    assert method_of(parts, "of a later hetcl") == method_of(parts)


@pytest.mark.parametrize(
    ("name", "entry", "said"),
    [
        ("mine", {"full": BranchEntry("semantic")}, "'full' is no name"),
        ("mine", {"my.part": BranchEntry("semantic")}, "'my.part' is no name"),
        ("crop", {"semantic": BranchEntry("semantic")}, "'crop' is no name"),
        ("mine", {"semantic": BranchEntry("edges")}, "no kind 'edges'"),
        ("mine", {"semantic": BranchEntry("semantic", frame="image")}, "only a map can be laid back"),
    ],
)
def test_an_entry_that_cannot_be_built_is_refused_before_anything_is_trained(
    name: str, entry: dict[str, BranchEntry], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, name, Method("", entry, METHODS["hcl"].views))
    with pytest.raises(InputError, match=said):
        build_embedding(name, "timm:test_resnet", seed=0)


def test_a_default_that_no_header_may_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "semantic", Kind("SemanticBranch", True, {"dim": 0}))
    with pytest.raises(InputError, match="default dim must be 1 to"):
        build_embedding("moco-v2", "timm:test_resnet", seed=0)


def test_a_new_kind_of_branch_is_built_and_described_by_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Edges(branches.SpatialBranch):
        pass

    monkeypatch.setattr(branches, "Edges", Edges, raising=False)
    monkeypatch.setitem(KINDS, "edges", Kind("Edges", False, {"side": 3, "width": 8}))
    method = Method(
        "", {"semantic": BranchEntry("semantic"), "edges": BranchEntry("edges")}, METHODS["hcl"].views
    )
    monkeypatch.setitem(METHODS, "edged", method)
    words = branch_words(SimpleNamespace(semantic=SimpleNamespace(dim=8), edges=SimpleNamespace(side=5)))
    assert words["edges"] == {"side": 5, "width": 8}
    model = build_embedding("edged", "timm:test_resnet", seed=0, words=words)
    assert model.dims == {"semantic": 8, "edges": 25}
    facts = facts_of(words)
    assert (facts["semantic_dim"], facts["edges"]) == (8, {"side": 5, "width": 8})
    assert words_in(facts) == words
    assert set(fact_names()) == {"semantic_dim", "spatial", "edges"}
    for wrong in ({"edges": 5}, {"edges": {"side": 0}}, {"edges": {"side": 1 << 20}}, {"semantic_dim": "8"}):
        assert words_in(facts | wrong) is None


def test_two_branches_of_a_kind_start_from_different_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    hcl = METHODS["hcl"]
    twins = {**hcl.branches, "other": hcl.branches["spatial"]}
    monkeypatch.setitem(METHODS, "twins", type(hcl)("", twins, hcl.views))
    one, two = (
        build_embedding(m, "timm:test_resnet", seed=3, words={"spatial": {"side": 2, "width": 4}})
        for m in ("hcl", "twins")
    )
    ours, theirs = one.state_dict(), two.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    key = "smooth.weight"
    assert not torch.equal(theirs[f"branches.spatial.{key}"], theirs[f"branches.other.{key}"])


def test_columns_of_the_shipped_methods_are_the_ones_of_hcl() -> None:
    assert parts_of([]) == parts_of(["supervised", "moco-v1", "hcl"]) == ["semantic", "spatial"]
    assert columns(["supervised"]) == columns(["moco-v2", "hcl"])
    assert columns(["hcl"])[8:14:2] == ("semantic_accuracy_queue", "spatial_accuracy_queue", "alignment")
    row = {"spatial_accuracy_batch": 0.5, "semantic_accuracy_batch": 0.25}
    assert line(row) == "(semantic 25.0%, spatial 50.0% in batch)"
