"""A backbone of the user's own, given from Python: trained, read back, resumed; what cannot be is one clear line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import hetcl
from hetcl.cli import main
from hetcl.errors import InputError
from hetcl.model import pyramid
from hetcl.model.own_backbone import undrawn
from hetcl.settings import PretrainSettings, given_in
from hetcl.weights.names import names_of
from tests.pretraining.processes import run_ranks
from tests.pretraining.small import DATA, SMALL

QUICK = given_in(PretrainSettings, SMALL)
del QUICK["backbone"], QUICK["recipe"]
LOOK = {"size": 32, "threads": 1, "workers": 0, "device": "cpu", "images": 24, "batch": 8}


class TinyNet(nn.Module):
    """Four maps of strides 4 to 32, in a dictionary, after one of stride 2."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3 if i == 0 else width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
            )
            for i in range(5)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = {}
        for i, step in enumerate(self.steps):
            x = step(x).relu()
            out[f"map{i}"] = x
        return out


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Each test begins and ends as a process that was given no backbone."""
    pyramid.GIVEN.clear()
    names_of.cache_clear()
    yield
    pyramid.GIVEN.clear()


def train(out: Path, backbone: Any, **more: Any) -> Any:
    return hetcl.pretrain(data=DATA, out=out, recipe="demo", overrides=QUICK | more, backbone=backbone)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("own") / "run"
    torch.manual_seed(3)
    train(out, TinyNet())
    return out


def test_the_modules_own_weights_are_the_first_ones_and_it_is_left_alone(tmp_path: Path) -> None:
    module = TinyNet().eval()
    before = {n: v.clone() for n, v in module.state_dict().items()}
    train(tmp_path / "run", module, **{"stage1.lr": 1e-20, "stage2.epochs": 0})
    after = load_file(tmp_path / "run" / "backbone.safetensors")
    weights = dict(module.named_parameters())
    assert weights
    for name, value in weights.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-12)
    assert after.keys() == before.keys()
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert not module.training


def test_a_class_draws_its_weights_from_the_seed(tmp_path: Path) -> None:
    name = hetcl.register_backbone(TinyNet)
    one, same, other = (hetcl.build_pyramid(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not torch.equal(one["steps.0.0.weight"], other["steps.0.0.weight"])
    assert hetcl.register_backbone(TinyNet()) == name
    assert hetcl.register_backbone(lambda: TinyNet(16)) != name


def test_the_maps_are_the_modules_own() -> None:
    module = TinyNet().eval()
    built = hetcl.build_pyramid(hetcl.register_backbone(module)).eval()
    built.load_state_dict(module.state_dict())
    images = torch.randn(2, 3, 64, 96)
    maps = list(module(images).values())[1:]
    assert all(torch.equal(a, b) for a, b in zip(built(images), maps, strict=True))
    assert built.spec.channels == (8, 8, 8, 8)


def test_a_run_is_read_in_the_process_that_trained_it(run: Path, tmp_path: Path) -> None:
    hetcl.register_backbone(TinyNet())
    found = hetcl.contrast(str(run), data="scenes:24", out=tmp_path / "contrast", overrides=LOOK)
    assert "random TinyNet" in " ".join(m["name"] for m in found["models"])
    loaded: Any = hetcl.load_backbone(str(run))
    module = TinyNet()
    module.load_state_dict(load_file(run / "backbone.safetensors"))
    images = torch.randn(1, 3, 64, 64)
    maps = list(module.eval()(images).values())[1:]
    assert all(torch.equal(a, b) for a, b in zip(loaded(images), maps, strict=True))
    assert (
        hetcl.load_backbone(str(run / "backbone.safetensors")).state_dict().keys()
        == module.state_dict().keys()
    )


def test_others_are_told_what_to_call(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "was given from Python, and only its name was recorded: call hetcl.register_backbone(TinyNet) first"
    )
    for words in (
        ["contrast", str(run), "--data", "scenes:24", "--out", str(tmp_path / "c")],
        ["probe", str(run), "--data", "scenes:24", "--out", str(tmp_path / "p")],
        ["embed", str(run), "--data", "scenes:24", "--out", str(tmp_path / "e.npy")],
        ["export", str(run), "--format", "onnx", "--out", str(tmp_path / "b.onnx")],
        ["pretrain", "--out", str(run), "--resume"],
        [
            "pretrain",
            "--data",
            "scenes:24",
            "--out",
            str(tmp_path / "r"),
            "--init",
            str(run / "backbone.safetensors"),
        ],
    ):
        assert main(words) == 2
        said = capsys.readouterr()
        assert line in said.err, words
        assert len(said.err.strip().splitlines()) == 1, words
    hetcl.register_backbone(TinyNet(16))
    with pytest.raises(InputError, match="is known, whose weights have other names or shapes"):
        hetcl.load_backbone(str(run))


def test_pages_need_no_module(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(run)]) == 0
    said = capsys.readouterr().out
    assert "hetcl.register_backbone" in said
    assert "--format module" not in said
    assert main(["report", str(run), "--examples", "0", "--out", str(tmp_path / "page.html")]) == 0
    assert "was given from Python" in (run / "log.txt").read_text(encoding="utf-8")
    assert "TinyNet" in (run / "settings.yaml").read_text(encoding="utf-8")


def test_a_run_goes_on_with_the_same_module_and_no_other(tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    module = TinyNet()
    train(whole, module)
    from hetcl.errors import Stopped
    from hetcl.training.engine import Loop

    with pytest.MonkeyPatch.context() as patch:
        save = Loop.save

        def stop(self: Loop, *args: Any, **more: Any) -> None:
            save(self, *args, **more)
            raise Stopped("here", 2)

        patch.setattr(Loop, "save", stop)
        with pytest.raises(Stopped):
            train(halved, module)
    with pytest.raises(InputError, match="backbone was module:TinyNet-"):
        hetcl.pretrain(out=halved, resume=True, backbone=TinyNet(16))
    hetcl.pretrain(out=halved, resume=True, backbone=TinyNet())  # the checkpoint has the weights
    a, b = (load_file(out / "backbone.safetensors") for out in (whole, halved))
    assert all(torch.equal(a[n], b[n]) for n in a)


def _one_rank(out: str) -> int:
    torch.manual_seed(7 + int(os.environ.get("RANK", "0")))
    train(Path(out), TinyNet(), precision="fp64", **{"stage2.epochs": 0, "knn.every": 0})
    return 0


def test_ranks_begin_with_the_first_ones_module(tmp_path: Path) -> None:
    """Each process makes a module of its own, with other random weights."""
    assert _one_rank(str(tmp_path / "one")) == 0
    assert run_ranks(partial(_one_rank, str(tmp_path / "two")), tmp_path / "log") == [0, 0], (
        tmp_path / "log"
    ).read_text()
    one, two = (load_file(tmp_path / name / "backbone.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-6, atol=1e-7)


def test_formats_of_libraries_are_refused_and_onnx_is_written(run: Path, tmp_path: Path) -> None:
    hetcl.register_backbone(TinyNet)
    for format, ending in (
        ("torchvision", "pth"),
        ("timm", "pth"),
        ("safetensors", "safetensors"),
        ("mmdet", "pth"),
    ):
        with pytest.raises(
            InputError, match=r"given from Python, which no library has: export it as onnx or"
        ):
            hetcl.export(str(run), format=format, out=tmp_path / f"b.{ending}")
    hetcl.export(str(run), format="onnx", out=tmp_path / "b.onnx")
    hetcl.export(str(run), format="full", out=tmp_path / "b.safetensors")


class Stuck(nn.Module):
    """A weight that nothing draws."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.gamma = TinyNet(), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.gamma * value for value in self.net(x).values()]


def test_a_weight_that_nothing_draws_is_no_random_weight(tmp_path: Path) -> None:
    train(tmp_path / "run", Stuck(), **{"stage2.epochs": 0})
    with pytest.raises(InputError, match="no reset_parameters draws gamma"):
        hetcl.contrast(str(tmp_path / "run"), data="scenes:24", out=tmp_path / "c", overrides=LOOK)
    assert undrawn(hetcl.build_pyramid(hetcl.register_backbone(Stuck))) is None


class OneSize(TinyNet):
    """Takes images of 32 pixels and no others."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        assert x.shape[2:] == (32, 32), "32 pixels only"
        return super().forward(x)


def test_a_module_of_one_size_is_tried_with_the_runs_own(tmp_path: Path) -> None:
    train(tmp_path / "run", OneSize(), **{"stage2.epochs": 0})
    pyramid.GIVEN.clear()
    hetcl.pretrain(out=tmp_path / "run", resume=True, backbone=OneSize())
    hetcl.register_backbone(OneSize, size=32)
    hetcl.contrast(str(tmp_path / "run"), data="scenes:24", out=tmp_path / "contrast", overrides=LOOK)
    with pytest.raises(
        InputError, match="fails on images of 3 channels and 224 x 224 pixels, the size that is asked"
    ):
        hetcl.register_backbone(OneSize)


class FiveChannels(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.steps[0] = nn.Conv2d(5, 8, 3, stride=2, padding=1)


def test_a_module_of_other_channels_is_tried_with_the_runs_own(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(16):
        np.save(tmp_path / "images" / f"{i}.npy", np.random.default_rng(i).random((40, 40, 5), np.float32))
    more = QUICK | {"in_chans": 5, "pixel_max": 1.0, "stage2.epochs": 0, "knn.every": 0}
    out = tmp_path / "run"
    hetcl.pretrain(
        data=str(tmp_path / "images"), out=out, recipe="demo", overrides=more, backbone=FiveChannels()
    )
    loaded = hetcl.load_backbone(str(out))
    assert [m.shape[-1] for m in loaded(torch.rand(1, 5, 64, 64))] == [16, 8, 4, 2]


class Tied(TinyNet):
    """Two steps that are one module: their weights share memory under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.steps[3] = self.steps[2]


def test_tied_weights_are_written_under_both_names_and_read_back(tmp_path: Path) -> None:
    train(tmp_path / "run", Tied())
    state = load_file(tmp_path / "run" / "backbone.safetensors")
    assert torch.equal(state["steps.2.0.weight"], state["steps.3.0.weight"])
    hetcl.register_backbone(Tied)
    module, loaded = Tied().eval(), hetcl.load_backbone(str(tmp_path / "run")).eval()
    module.load_state_dict(state)
    images = torch.randn(1, 3, 64, 64)
    maps = list(module(images).values())[1:]
    assert all(torch.equal(a, b) for a, b in zip(loaded(images), maps, strict=True))
    hetcl.pretrain(out=tmp_path / "run", resume=True, backbone=Tied())  # finished: it only says so
    hetcl.export(str(tmp_path / "run"), format="full", out=tmp_path / "full.safetensors")
    hetcl.export(str(tmp_path / "run"), format="onnx", out=tmp_path / "b.onnx")
    hetcl.contrast(str(tmp_path / "run"), data="scenes:24", out=tmp_path / "contrast", overrides=LOOK)


class OneMap(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 4, 3, stride=4, padding=1)


class TwoMaps(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x[:, :, ::s, ::s] for s in (4, 8))


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (OneMap(), r"OneMap must give four maps .*: it gives one tensor of shape \[1, 4, 16, 24\]"),
        (TwoMaps(), "TwoMaps must give four maps .*: it gives maps of strides 4, 8"),
        (
            nn.Linear(3, 3),
            "Linear must give four maps .*: it fails on images of 3 channels and 32 x 32 pixels",
        ),
        (lambda: 3, "made int; it must be, or make, a torch.nn.Module"),
        (nn.Linear, "cannot be called without arguments"),
    ],
)
def test_what_gives_no_four_maps_is_refused(tmp_path: Path, backbone: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        train(tmp_path / "run", backbone)
    assert not (tmp_path / "run").exists()


def test_two_backbones_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="backbone is given twice"):
        hetcl.pretrain(
            data=DATA, out=tmp_path / "run", overrides={"backbone": "timm:test_resnet"}, backbone=TinyNet()
        )
