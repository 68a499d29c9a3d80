"""Every recipe: its header, its command, the paper's values, and one optimiser step."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hetcl.cli import build_parser
from hetcl.methods import METHODS
from hetcl.pretraining.plan import Plan
from hetcl.pretraining.run import PretrainRun
from hetcl.runs.folder import RunFolder
from hetcl.settings import PretrainSettings, flatten, recipe_names, recipe_text, resolve, stages_of, to_dict
from hetcl.types import ViewPolicy

OURS = {"smoke", "small", "demo", "hcl-geo-r50"}
PAPER = [name for name in recipe_names() if name not in OURS]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_recipe_of_the_contract_is_there() -> None:
    contract = (
        "smoke small demo moco-v1-r50 moco-v2-r50 moco-v2-r50-800 hcl-r50 hcl-r50-800 hcl-r50-0-200 hcl-r50-200-400 "
        "hcl-r50-800-400 hcl-r50-vanilla hcl-r50-flip supervised-r50 hcl-geo-r50"
    )
    assert set(recipe_names()) == set(contract.split())
    assert set(PAPER) | OURS == set(recipe_names())


# ---- headers ---------------------------------------------------------------------------------------------------------


def header(recipe: str) -> dict[str, str]:
    """The comment lines before the first setting, by their names; the first one is ``What``."""
    out: dict[str, str] = {}
    name = "What"
    for line in recipe_text(recipe).splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#")
        begins = re.match(r" (Source|Command|Hardware and time|Expected(?: \([^)]*\))?): ", text)
        if begins:
            name, text = begins[1].split(" (")[0], text[begins.end() :]
        out[name] = f"{out[name]} {text.strip()}" if name in out else text.strip()
    return out


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_header_says_what_source_command_cost_and_expectation(recipe: str) -> None:
    head = header(recipe)
    assert list(head) == ["What", "Source", "Command", "Hardware and time", "Expected"]
    assert all(len(text) > 8 for text in head.values()), head
    assert not [text for text in head.values() if re.search(r"FILL|TODO|XXX|\?\?", text)]
    assert re.search(r"\d|no figure", head["Expected"]), "a figure, or that there is none"
    if recipe in PAPER:
        assert "tolerance" in head["Expected"]
        assert re.search(r"V100|GPU", head["Hardware and time"])


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_command_of_the_header_parses_and_names_the_recipe(recipe: str) -> None:
    words = shlex.split(header(recipe)["Command"])
    assert words[0] == "hetcl"
    args, rest = build_parser(words[1]).parse_known_args(words[1:])
    assert (args.verb, args.recipe, args.out) == ("pretrain", recipe, "RUN")
    assert args.data
    settings = resolve(args.recipe, [*(getattr(args, "settings", None) or []), *rest])
    if recipe == "supervised-r50":
        assert settings.folder_classes, "labels are needed"
    else:
        assert settings == resolve(recipe)


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_recipe_states_nothing_twice(recipe: str) -> None:
    """PyYAML lets the last of two equal keys win in silence."""
    keys = re.findall(r"^( *[a-z_0-9.]+):", recipe_text(recipe), re.MULTILINE)
    top = [key for key in keys if not key.startswith(" ")]
    assert len(top) == len(set(top))


# ---- the values of the sources (docs/facts.md) --- ---------------------------------------------------------------

IN_ALL = {
    "backbone": "torchvision:resnet50",
    "size": 224,
    "batch": 256,
    "groups": 8,
    "accumulate": 1,
    "semantic.dim": 128,
    "spatial.side": 14,
    "spatial.width": 256,
    "spatial.fused": True,
    "fit_queue": True,
}
IN_ALL_STAGES = {
    "sgd_momentum": 0.9,
    "weight_decay": 1e-4,
    "warmup": 0.0,
    "key_momentum": 0.999,
    "queue": 65536,
    "views.area": [0.2, 1.0],
    "views.ratio": [3 / 4, 4 / 3],
    "views.square": False,
    "views.jitter": [0.4, 0.4, 0.4, 0.1],
    "views.jitter_p": 0.8,
    "views.grayscale_p": 0.2,
    "views.grayscale_first": False,
    "views.blur_p": 0.5,
    "views.blur_sigma": [0.1, 2.0],
}
V1 = {
    "method": "moco-v1",
    "lr": 0.03,
    "schedule": "step",
    "milestones": [120, 160],
    "temperature": 0.07,
    "views.flip_p": 0.5,
    "views.grayscale_first": True,
    "views.jitter": [0.4, 0.4, 0.4, 0.4],
    "views.jitter_p": 1.0,
    "views.blur_p": 0.0,
}
V2 = {"method": "moco-v2", "lr": 0.03, "schedule": "cosine", "temperature": 0.2, "views.flip_p": 0.5}
HCL = {"method": "hcl", "lr": 0.05, "schedule": "cosine", "temperature": 0.2, "views.flip_p": 0.0}
SUPERVISED = {
    "method": "supervised",
    "lr": 0.1,
    "schedule": "step",
    "milestones": [30, 60],
    "views.area": [0.08, 1.0],
    "views.jitter_p": 0.0,
    "views.grayscale_p": 0.0,
    "views.blur_p": 0.0,
    "views.flip_p": 0.5,
}
ROWS: dict[str, tuple[dict[str, Any] | None, int, dict[str, Any] | None, int, dict[str, Any]]] = {
    # recipe: stage 1, epochs, stage 2, epochs, and what differs in all of it
    "supervised-r50": (SUPERVISED, 90, None, 0, {}),
    "moco-v1-r50": (V1, 200, None, 0, {}),
    "moco-v2-r50": (V2, 200, None, 0, {}),
    "moco-v2-r50-800": (V2, 800, None, 0, {}),
    "hcl-r50": (V2, 200, HCL, 200, {}),
    "hcl-r50-800": (V2, 800, HCL, 200, {}),
    "hcl-r50-0-200": (None, 0, HCL, 200, {}),
    "hcl-r50-200-400": (V2, 200, HCL, 400, {}),
    "hcl-r50-800-400": (V2, 800, HCL, 400, {}),
    "hcl-r50-vanilla": (V2, 200, HCL, 200, {"spatial.fused": False}),
    "hcl-r50-flip": (V2, 200, {**HCL, "views.flip_p": 0.5}, 200, {}),
}


@pytest.mark.parametrize("recipe", PAPER)
def test_the_values_are_those_of_the_sources(recipe: str) -> None:
    first, epochs1, second, epochs2, other = ROWS[recipe]
    have = flatten(to_dict(resolve(recipe)))
    want: dict[str, Any] = {**IN_ALL, **other, "stage1.epochs": epochs1, "stage2.epochs": epochs2}
    for name, stage in (("stage1", first), ("stage2", second)):
        if stage is not None:
            want |= {f"{name}.{key}": value for key, value in {**IN_ALL_STAGES, **stage}.items()}
    assert {key: have[key] for key in want} == want
    for name, stage in (("stage1", first), ("stage2", second)):
        unsaid = {k for k in have if k.startswith(f"{name}.")} - {k for k in want if k.startswith(f"{name}.")}
        idle = {f"{name}.temperature" if stage is SUPERVISED else f"{name}.milestones"}  # means nothing there
        assert stage is None or unsaid <= idle, "a value that no source vouches for"


EXPECTED = {
    # COCO box and mask AP of Mask R-CNN R50-FPN 1x: paper Tables 1 and 6, sections 4.3.2 and 4.3.3
    "supervised-r50": (38.9, 35.4),
    "moco-v1-r50": (38.5, 35.1),
    "moco-v2-r50": (38.9, 35.4),
    "moco-v2-r50-800": (39.2, 35.7),
    "hcl-r50": (40.0, 36.4),
    "hcl-r50-800": (40.1, 36.2),
    "hcl-r50-0-200": (39.5, 35.9),
    "hcl-r50-200-400": (39.7, 36.1),
    "hcl-r50-800-400": (39.6, 36.0),
    "hcl-r50-vanilla": (39.9, 36.1),
    "hcl-r50-flip": (39.6, 36.0),
}


def test_hcl_geo_differs_from_hcl_in_its_method_and_views_alone() -> None:
    have, like = (flatten(to_dict(resolve(name))) for name in ("hcl-geo-r50", "hcl-r50"))
    assert {key: have[key] for key in have if have[key] != like[key]} == {
        "stage2.method": "hcl-geo", "stage2.views.square": True, "stage2.views.flip_p": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("recipe", PAPER)
def test_the_expected_figures_are_the_papers(recipe: str) -> None:
    box, mask = EXPECTED[recipe]
    assert f"COCO box AP {box}, mask AP {mask} (" in header(recipe)["Expected"]


def test_views_start_from_moco_v2() -> None:
    assert resolve("hcl-r50").stage1.views == ViewPolicy()


# ---- one step --------------------------------------------------------------------------------------------------------


def shrunk(recipe: str) -> PretrainSettings:
    """The recipe for sixteen images: only what size forces is smaller. (Queues are fitted to the data as always.)"""
    s = resolve(recipe)
    side = max(1, 64 * s.spatial.side // s.size)
    return replace(
        s,
        size=min(s.size, 64),
        batch=4,
        groups=2,
        spatial=replace(s.spatial, side=side if s.size > 64 else s.spatial.side),
        device="cpu",
        threads=1,
        workers=0,
        folder_classes=False,
    )


def steps() -> dict[str, str]:
    """One recipe for each step that is different: they differ in more than the number of epochs."""
    seen: dict[str, str] = {}
    for recipe in recipe_names():
        s = shrunk(recipe)
        one = {name: replace(stage, epochs=1) for name, stage in stages_of(s).items()}
        none = {
            name: replace(PretrainSettings().stage1, epochs=0)
            for name in ("stage1", "stage2")
            if name not in one
        }
        key = str(to_dict(replace(s, log_every=1, **one, **none)))
        seen[key] = f"{seen[key]} {recipe}" if key in seen else recipe
    return {recipes.split()[0]: recipes for recipes in seen.values()}


def test_recipes_that_share_a_step_differ_in_epochs_alone() -> None:
    assert sorted(name for names in steps().values() for name in names.split()) == recipe_names()
    assert "hcl-r50-800-400" in steps()["hcl-r50"]
    assert "hcl-r50-flip" in steps()


@pytest.mark.parametrize("recipe", steps())
def test_one_optimiser_step(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage with its own backbone, method, views, loss and optimiser: finite figures, and weights that move."""
    settings = shrunk(recipe)
    monkeypatch.setattr(PretrainRun, "_dry_runs", lambda self: {})  # the step is the proof here
    run = PretrainRun(RunFolder(tmp_path), Plan("scenes:16", recipe, None, settings, None), resume=False)
    for name, stage in stages_of(run.settings).items():
        task: Any = run._task(name, stage, None)
        (group,) = task.optimizer.param_groups
        assert (group["lr"], group["momentum"]) == (stage.lr, stage.sgd_momentum)
        assert group["weight_decay"] == stage.weight_decay
        before = [p.detach().clone() for p in group["params"]]
        batch = next(task.batches(0, 0))
        assert batch.images.shape == (
            (1 if stage.method == "supervised" else 2),
            4,
            3,
            settings.size,
            settings.size,
        )
        figures = task.step(batch, 0)
        assert all(bool(torch.as_tensor(v).isfinite().all()) for v in figures.values()), figures
        for old, new in zip(before, group["params"], strict=True):
            # (A block whose last scale starts at zero leaves zeros of its own where they are at first.)
            assert not old.any() or not torch.equal(old, new.detach()), "every parameter takes part"
        assert ("spatial_accuracy_batch" in figures) == ("spatial" in METHODS[stage.method].branches)
        task.close()
