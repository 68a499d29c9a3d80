"""Every recipe of ``hetcl finetune``: its header, its command, the values of the sources (docs/facts.md)."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from hetcl.cli import build_parser, main
from hetcl.errors import InputError
from hetcl.settings import (
    FinetuneSettings,
    finetune_from_dict,
    recipe_names,
    recipe_text,
    resolve,
    resolve_finetune,
    to_dict,
)
from tests.test_recipes import header

NAMES = recipe_names("finetune")
PAPER = [name for name in NAMES if "-r50" in name]
FIGURES = {
    "coco-mask-rcnn-r50-fpn-1x": ("40.0", "36.4"),
    "coco-mask-rcnn-r50-fpn-2x": ("41.8", "37.8"),
    "coco-mask-rcnn-r50-c4-1x": ("39.8", "34.7"),
    "coco-mask-rcnn-r50-c4-2x": ("41.4", "35.9"),
    "lvis-mask-rcnn-r50-fpn-2x": ("25.5",),
    "voc-faster-rcnn-r50-c4-24k": ("57.9", "82.7", "64.9"),
    "voc-fcn-r50": ("74.1",),
    "cityscapes-fcn-r50": ("75.2", "75.5"),
    "cityscapes-mask-rcnn-r50-fpn": ("33.1", "60.2"),
}
"""HCL's rows of Tables 1 to 5."""
VALUES = {
    "coco-mask-rcnn-r50-fpn-1x": {
        "steps": 90_000,
        "milestones": (60_000, 80_000),
        "lr": 0.02,
        "precise_bn": 200,
    },
    "coco-mask-rcnn-r50-fpn-2x": {"steps": 180_000, "milestones": (120_000, 160_000), "warmup": 1000},
    "coco-mask-rcnn-r50-c4-1x": {"steps": 90_000, "neck": "c4", "model": "mask-rcnn", "norm": "sync"},
    "coco-mask-rcnn-r50-c4-2x": {"steps": 180_000, "neck": "c4", "batch": 16, "weight_decay": 1e-4},
    "lvis-mask-rcnn-r50-fpn-2x": {
        **{"repeat_threshold": 0.001, "score_threshold": 0.0001, "detections": 300, "steps": 180_000},
        "min_size": (640, 672, 704, 736, 768, 800),
    },
    "voc-faster-rcnn-r50-c4-24k": {
        **{
            "steps": 24_000,
            "milestones": (18_000, 22_000),
            "warmup": 100,
            "model": "faster-rcnn",
            "neck": "c4",
        },
        **{"min_size": tuple(range(480, 801, 32)), "test_size": 800},
    },
    "voc-fcn-r50": {
        "model": "fcn",
        "lr": 0.003,
        "crop": 513,
        "scale": (0.5, 2.0),
        "milestones": (35_000, 45_000),
    },
    "cityscapes-fcn-r50": {"model": "fcn", "lr": 0.01, "crop": 769, "steps": 90_000, "dilation": 6},
    "cityscapes-mask-rcnn-r50-fpn": {"batch": 8, "lr": 0.01, "steps": 24_000, "milestones": (18_000,)},
}


@pytest.mark.parametrize("recipe", NAMES)
def test_the_header_says_what_source_command_cost_and_expectation(recipe: str) -> None:
    head = header(recipe)
    assert list(head) == ["What", "Source", "Command", "Hardware and time", "Expected"]
    assert not [text for text in head.values() if re.search(r"FILL|TODO|XXX|\?\?|EXPECT|TIME", text)]
    assert re.search(r"\d|no figure", head["Expected"]), "a figure, or that there is none"
    if recipe in PAPER:
        assert re.search(r"toleranc|deviation", head["Expected"])
        assert all(figure in head["Expected"] for figure in FIGURES[recipe])


@pytest.mark.parametrize("recipe", NAMES)
def test_the_command_of_the_header_parses_and_names_the_recipe(recipe: str) -> None:
    words = shlex.split(header(recipe)["Command"])
    args, rest = build_parser("finetune").parse_known_args(words[1:])
    assert (args.verb, args.recipe, args.init) == ("finetune", recipe, "RUN")
    assert re.match(r"(coco|lvis|voc|cityscapes):", args.data)
    assert not rest
    assert args.out


@pytest.mark.parametrize("recipe", PAPER)
def test_the_values_are_those_of_the_sources(recipe: str) -> None:
    settings = resolve_finetune(recipe)
    assert {name: getattr(settings, name) for name in VALUES[recipe]} == VALUES[recipe]
    assert settings.base_batch == settings.batch, "a paper's recipe is at the paper's batch"
    assert settings.precision == "fp32", "the paper and detectron2 train in fp32"
    assert re.search("^precision: fp32$", recipe_text(recipe), re.MULTILINE), (
        "what a paper fixes is spelt out"
    )


@pytest.mark.parametrize("recipe", NAMES)
def test_what_is_saved_comes_back_and_nothing_is_said_twice(recipe: str) -> None:
    settings = resolve_finetune(recipe)
    assert finetune_from_dict(yaml.safe_load(yaml.safe_dump(to_dict(settings))), "a run") == settings
    keys = re.findall(r"^([a-z_]+):", recipe_text(recipe), re.MULTILINE)
    assert len(keys) == len(set(keys))


def test_the_defaults_are_the_main_recipe() -> None:
    assert FinetuneSettings() == resolve_finetune("coco-mask-rcnn-r50-fpn-1x") == resolve_finetune()


def test_a_recipe_of_another_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="recipe small is one of `hetcl pretrain`"):
        resolve_finetune("small")
    with pytest.raises(InputError, match="recipe tiny-fcn is one of `hetcl finetune`"):
        resolve("tiny-fcn")
    assert main(["recipes", "tiny-fcn"]) == 0
    assert capsys.readouterr().out == recipe_text("tiny-fcn")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--steps 0", "setting steps must be at least 1, not 0"),
        ("--milestones 5,3", "setting milestones must be steps that rise from 1"),
        ("--model fcn --inherit_fpn true", "setting inherit_fpn needs a detector with neck fpn"),
        ("--min_size 16", "must be at least 32 pixels"),
        ("--max_size 100", "setting max_size must be at least the short sides"),
        ("--flip_p 2", "setting flip_p must be at most 1"),
        ("--neck fnp", "setting neck must be one of fpn, c4 (did you mean 'fpn'?)"),
        ("--mask true", "unknown setting 'mask'"),
        ("--scale 2,1", "setting scale must be two rising numbers"),
        ("--lr nan", "setting lr must be a number"),
    ],
)
def test_settings_that_cannot_be(words: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        resolve_finetune(None, words.split())


def test_fewer_steps_say_which_settings_to_lower_too() -> None:
    with pytest.raises(InputError) as caught:
        resolve_finetune("tiny-mask-rcnn-fpn", {"steps": 2})
    text = str(caught.value)
    assert (
        "setting evaluations must not exceed steps (2), not 3: set evaluations too (--evaluations 1)" in text
    )
    assert re.search(
        r"setting warmup must not exceed steps \(2\), not \d+: set warmup too \(--warmup 0\)", text
    )
