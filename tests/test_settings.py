"""Settings: what is read, what is refused and in which words, and that what was saved comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcl.errors import InputError
from hetcl.settings import (
    PretrainSettings,
    StageSettings,
    documented,
    flatten,
    from_dict,
    given_in,
    keys_of,
    lacked_by_older,
    recipe_names,
    resolve,
    resolve_finetune,
    stages_of,
    to_dict,
)
from hetcl.settings.compute import PIXELS, SQUARE

KEYS = keys_of(PretrainSettings)


def fault(overrides: Any, recipe: str | None = None) -> str:
    """What a person is told about unusable settings."""
    with pytest.raises(InputError) as refused:
        resolve(recipe, overrides)
    return str(refused.value)


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_the_default_is_the_papers_main_run() -> None:
    assert resolve() == resolve("hcl-r50") == PretrainSettings()


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--batch", "64"], "batch", 64),
        (["--batch=64"], "batch", 64),
        (["--stage1.lr", "1e-3"], "stage1.lr", 0.001),
        (["--stage1.lr", "1E-3"], "stage1.lr", 0.001),
        (["--stage1.lr=.5"], "stage1.lr", 0.5),
        (["--stage1.lr", "1"], "stage1.lr", 1.0),
        (["--fit_queue", "no"], "fit_queue", False),
        (["--fit-queue", "off"], "fit_queue", False),
        (["--compile", "true"], "compile", True),
        (["--compile", "yes"], "compile", True),
        (["--workers", "-1"], "workers", -1),
        (["--seed", "-7"], "seed", -7),
        (["--stage1.views.area", "[0.5, 1]"], "stage1.views.area", [0.5, 1.0]),
        (["--stage1.views.area", "0.5,1"], "stage1.views.area", [0.5, 1.0]),
        (["--stage1.milestones", "5"], "stage1.milestones", [5]),
        (["--stage1.milestones", "[]"], "stage1.milestones", []),
        (["--stage1.milestones", "5,7"], "stage1.milestones", [5, 7]),
        (["--batch", "64", "--batch", "32"], "batch", 32),
    ],
)
def test_words_of_a_command_line(words: list[str], key: str, value: Any) -> None:
    settings = flatten(to_dict(resolve(None, words)))
    assert settings.pop(key) == value
    default = flatten(to_dict(PretrainSettings()))
    del default[key]
    assert settings == default, "nothing else may change"
    assert set(given_in(PretrainSettings, words)) == {key}


def test_a_mapping_says_the_same_as_words() -> None:
    words = resolve(None, ["--stage1.lr", "0.1", "--spatial.side", "7", "--stage1.views.area", "0.1,0.9"])
    for overrides in (
        {"stage1.lr": 0.1, "spatial.side": 7, "stage1.views.area": (0.1, 0.9)},
        {"stage1": {"lr": 0.1, "views": {"area": [0.1, 0.9]}}, "spatial": {"side": 7}},
    ):
        assert resolve(None, overrides) == words


def test_overrides_win_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("batch: 64\nstage1: {lr: 1e-2}\nstage2.epochs: 3\nstage1.milestones: 9\n")
    settings = resolve(str(recipe), ["--batch", "32"])
    assert (settings.batch, settings.stage1.lr, settings.stage2.epochs) == (32, 0.01, 3)
    assert settings.stage1.milestones == (9,)
    assert settings.stage2.method == "hcl"


def test_an_empty_recipe_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert resolve(str(tmp_path / "a.yaml")) == PretrainSettings()


def test_the_settings_of_a_run_are_a_recipe(tmp_path: Path) -> None:
    import yaml

    settings = resolve("small", ["--seed", "5"])
    saved = {"data": "photos", "recipe": "small", "init": None, "settings": to_dict(settings)}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(saved))
    assert resolve(str(tmp_path / "settings.yaml")) == settings


@pytest.mark.parametrize("recipe", recipe_names())
def test_what_is_saved_comes_back(recipe: str) -> None:
    import yaml

    settings = resolve(recipe)
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(settings))), "a run") == settings


@given(
    lr=st.floats(1e-12, 1e6),
    area=st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=2).map(sorted),
    seed=st.integers(-(2**63) + 1, 2**63 - 1),
    milestones=st.sets(st.integers(1, 10_000), max_size=5).map(sorted),
    fused=st.booleans(),
)
def test_any_value_comes_back_bit_by_bit(
    lr: float, area: list[float], seed: int, milestones: list[int], fused: bool
) -> None:
    import yaml

    settings = resolve(
        None,
        {
            "stage1.lr": lr,
            "stage2.views.area": area,
            "seed": seed,
            "stage1.milestones": milestones,
            "spatial.fused": fused,
        },
    )
    assert settings.stage1.lr == lr
    assert settings.stage2.views.area == tuple(area)
    assert (settings.seed, settings.spatial.fused) == (seed, fused)
    assert settings.stage1.milestones == tuple(milestones)
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(settings))), "a run") == settings


def test_stages_of_no_epochs_are_skipped() -> None:
    assert list(stages_of(resolve())) == ["stage1", "stage2"]
    assert list(stages_of(resolve(None, {"stage1.epochs": 0}))) == ["stage2"]


# ---- what is refused -------------------------------------------------------------------------------------------------

WRONG = {
    "batch three": "setting batch must be a whole number, not 'three'",
    "batch 8.5": "setting batch must be a whole number, not '8.5'",
    "stage1.lr fast": "setting stage1.lr must be a number, not 'fast'",
    "stage1.lr nan": "setting stage1.lr must be a number, not 'nan'",
    "stage1.lr .nan": "setting stage1.lr must be a finite number",
    "stage1.lr .inf": "setting stage1.lr must be a finite number",
    "stage1.lr -.inf": "setting stage1.lr must be a finite number",
    "stage1.lr 1e300": "setting stage1.lr must be a finite number",
    "stage2.weight_decay .inf": "setting stage2.weight_decay must be a finite number",
    "stage2.warmup .nan": "setting stage2.warmup must be a finite number",
    "stage1.temperature .nan": "setting stage1.temperature must be a finite number",
    "stage1.views.ratio 1,.inf": "setting stage1.views.ratio must be a finite number",
    "stage1.views.blur_sigma .nan,.nan": "setting stage1.views.blur_sigma must be a finite number",
    "max_bad .nan": "setting max_bad must be a finite number",
    "stage1.lr 0": "setting stage1.lr must be above 0, not 0.0",
    "stage1.lr -1": "setting stage1.lr must be above 0, not -1.0",
    "stage1.temperature 0": "setting stage1.temperature must be above 0",
    "fit_queue maybe": "setting fit_queue must be true or false, not 'maybe'",
    "device gpu": "setting device must be one of auto, cpu, cuda, mps (did you mean 'cpu'?), not 'gpu'",
    "stage1.method moco_v2": "one of supervised, moco-v1, moco-v2, hcl, hcl-geo (did you mean 'moco-v2'?)",
    "stage1.views.area x": "setting stage1.views.area must be 2 numbers such as [0.2, 1], not 'x'",
    "stage1.views.area 0.5": "setting stage1.views.area must be 2 numbers",
    "stage1.views.area 1,0.5": "setting stage1.views.area must be least and most, above 0 and up to 1",
    "stage1.views.area 0,0.5": "setting stage1.views.area must be least and most",
    "stage1.views.ratio 2,1": "setting stage1.views.ratio must be least and most",
    "stage1.views.jitter 1": "setting stage1.views.jitter must be 4 numbers",
    "stage1.views.jitter 2,0,0,0": "setting stage1.views.jitter must be at most 1",
    "stage1.views.jitter 0,0,0,0.6": "hue at most 0.5",
    "stage1.views.jitter -1,0,0,0": "negative strength",
    "stage1.views.flip_p 1.5": "setting stage1.views.flip_p is a probability",
    "stage1.milestones a,b": "setting stage1.milestones must be a list of whole numbers such as [120, 160]",
    "stage1.milestones 1.5": "setting stage1.milestones must be a list of whole numbers",
    "stage1.milestones 200,-3": "setting stage1.milestones must be epochs that rise from 1",
    "stage1.epochs -1": "setting stage1.epochs must be 0 (skip) or more",
    "stage1.warmup 500": "setting stage1.warmup must not exceed stage1.epochs (200)",
    "stage1.key_momentum 1.1": "setting stage1.key_momentum must lie between 0 and 1",
    "stage1.queue 0": "setting stage1.queue must be at least 1",
    "batch 0": "setting batch must be at least 1",
    "batch -4": "setting batch must be at least 1, not -4",
    "groups 3": "a batch of 256 does not split into 3 batch-norm groups",
    "groups 256": "batch-norm groups of one image each cannot normalise",
    "accumulate 3": "do not split into accumulate = 3",
    "size 16": "setting size must be at least 32",
    "max_bad 2": "setting max_bad is a share",
    "workers -2": "setting workers must be -1 (choose) or 0 to 1024",
    "workers 5000": "setting workers must be -1 (choose) or 0 to 1024",
    "threads 100000": "setting threads must be at most 1024",
    "seed 99999999999999999999": "setting seed must fit in 64 bits",
    "knn.k 0": "knn.k must be at least 1",
    "spatial.side 0": "spatial.side",
    "semantic.dim 0": "semantic.dim",
    "epochs 3": "unknown setting 'epochs'",
    "stage1.epoch 3": "unknown setting 'stage1.epoch' (did you mean 'stage1.epochs'?)",
    "bacth 3": "unknown setting 'bacth' (did you mean 'batch'?)",
    "stage1 3": "'stage1' is a group of settings; set one of them, such as stage1.method",
    "stage1.views 3": "'stage1.views' is a group of settings; set one of them, such as stage1.views.area",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_said_in_one_line(words: str) -> None:
    name, value = words.split()
    said = fault([f"--{name}", value])
    assert WRONG[words] in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "key", [k for k, v in flatten(to_dict(PretrainSettings())).items() if isinstance(v, float)]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_number_may_be_infinite_or_none(key: str, value: float) -> None:
    assert f"setting {key} must be" in fault({key: value})


def test_all_faults_come_at_once() -> None:
    said = fault(["--batch", "x", "--stage1.epoch", "3", "--seed", "1", "--device", "gpu"]).splitlines()
    assert len(said) == 3
    assert [word in line for word, line in zip(("batch", "epoch", "device"), said, strict=True)] == [True] * 3
    said = fault(["--batch", "0", "--stage1.lr", "-1", "--max_bad", "7"]).splitlines()
    assert len(said) == 3


def test_nothing_to_do_is_refused() -> None:
    assert "nothing to do" in fault({"stage1.epochs": 0, "stage2.epochs": 0})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stray"], "unexpected argument 'stray'; settings are given as --NAME VALUE"),
        (["-x", "3"], "unexpected argument '-x'"),
        (["--batch"], "--batch needs a value"),
        (["--batch", "--seed", "3"], "--batch needs a value"),
        (["--nope"], "unknown setting 'nope'"),
        (["--stage2"], "'stage2' is a group of settings"),
    ],
)
def test_words_that_are_no_settings(words: list[str], said: str) -> None:
    assert said in fault(words)


RECIPES = {
    "- a\n- b\n": "must hold settings as 'name: value' lines",
    "just text\n": "must hold settings as 'name: value' lines",
    "a: [1\nb: }": "is not valid YAML in line 2",
    "\tbatch: 3": "is not valid YAML in line 1",
    "!!python/object/apply:os.system ['touch evil']": "is not valid YAML",
    "batch: {a: 1}": "unknown setting 'batch.a' in recipe",
    "batch: null": "setting batch in recipe",
    "stage1: 5": "'stage1' in recipe",
    "stage1:": "'stage1' in recipe",
    "1: 2": "unknown setting '1' in recipe",
    "stage1: {lr: fast}": "setting stage1.lr in recipe",
    "stage1: {lr: .inf}": "setting stage1.lr must be a finite number",
    "batch: [8, 16]": "setting batch in recipe",
    "data: x\nbatch: 8": "unknown setting 'data' in recipe",
    "settings: {foo: 8}": "unknown setting 'foo' in recipe",
}


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_of_the_wrong_shape_names_its_file(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    said = fault([], "mine.yaml")
    assert RECIPES[text] in said
    assert "mine.yaml" in said or "finite" in said
    assert len(said.splitlines()) == 1
    assert not Path("evil").exists()


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    assert "(did you mean 'small'?)" in fault([], "smal")
    assert "`hetcl recipes` lists them" in fault([], "")
    assert "no such file" in fault([], str(tmp_path / "x.yaml"))
    assert "is a folder" in fault([], str(tmp_path))
    (tmp_path / "bytes.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    assert "is not text" in fault([], str(tmp_path / "bytes.yaml"))


# ---- help ------------------------------------------------------------------------------------------------------------


def test_every_setting_has_its_help_and_a_type() -> None:
    def walk(cls: type) -> int:
        count = 0
        for name, kind, text in documented(cls):
            assert text, f"{cls.__name__}.{name} has no line of help"
            assert text[-1] == "."
            assert "\n" not in text
            count += walk(kind) if hasattr(kind, "__dataclass_fields__") else 1
        return count

    assert walk(PretrainSettings) == len(KEYS)
    assert "hcl (MLP head" in {n: t for n, _, t in documented(StageSettings)}["method"]


def test_runs_of_older_versions_read_rgb_and_drew_crops_in_whole_images() -> None:
    tree = flatten(to_dict(PretrainSettings()))
    older = {name: value for name, value in tree.items() if name not in PIXELS}
    assert lacked_by_older(older) == PIXELS
    assert not lacked_by_older(tree)
    assert not lacked_by_older({**older, "mean": []})
    assert not lacked_by_older("damaged")
    old = {name: value for name, value in tree.items() if name not in SQUARE}
    assert lacked_by_older(old) == SQUARE
    assert not lacked_by_older({**old, "stage1.views.square": False})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--in_chans", "0"], "in_chans must be 1 to 512"),
        (["--pixel_max", "-1"], "pixel_max must be 0"),
        (["--mean", "0.5,0.5,0.5"], "mean and std go together"),
        (["--mean", "0.5,0.5", "--std", "0.2,0.2"], "mean has 2 values, and in_chans is 3"),
        (["--in_chans", "1", "--mean", "0.5", "--std", "0"], "std must be above 0"),
    ],
)
def test_pixel_settings_that_cannot_be(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        resolve(None, words)
    assert resolve_finetune(None, ["--in_chans", "0"]).in_chans == 0
