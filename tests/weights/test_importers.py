"""Files as other people write them arrive exactly, with every key accounted for, or are refused with the keys named."""

from __future__ import annotations

import argparse
import collections
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from hetcl.errors import InputError
from hetcl.model.pyramid import build_pyramid
from hetcl.pretraining.run import Plan, PretrainRun
from hetcl.pretraining.stages import Contrast
from hetcl.runs.folder import RunFolder
from hetcl.settings import resolve
from hetcl.weights.architectures import arch_of
from hetcl.weights.encoder import load_encoder
from hetcl.weights.names import library_names, names_of
from hetcl.weights.sources import load_backbone, read_weights
from tests.pretraining.small import SMALL
from tests.weights import files
from tests.weights.files import bare, head, in_pyramid, indexed, moco, resnet, same, save, under


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def refused(model: str, **more: Any) -> str:
    with pytest.raises(InputError) as error:
        read_weights(model, **more)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# ---- the official MoCo -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("layout", ["module.", "", "bare"])
def test_official_checkpoints_arrive_exactly(layout: str, layers: int) -> None:
    content, query, key = moco(layout, layers=layers)
    weights = read_weights(f"moco:{save(content)}")
    assert weights.arch == "torchvision:resnet18"
    assert same(weights.query, query)
    assert weights.key is None if layout == "bare" else same(weights.key or {}, key)
    assert weights.facts == {"method": f"moco-v{layers}", "semantic_dim": 128}
    report = weights.matched
    assert report is not None
    taken = len(query) if layout == "bare" else 2 * len(query)
    assert len(report.matched) == taken
    ignored = [k for keys in report.ignored.values() for k in keys]
    assert set(report.matched) | set(ignored) == set(content["state_dict"])
    assert len(report.matched) + len(ignored) == len(content["state_dict"])
    assert f"{taken} weights of torchvision:resnet18 matched" in report.lines()[0]
    assert layout == "bare" or "queue of keys (2)" in report.lines()[0]


def test_without_the_key_encoder_and_as_a_plain_file() -> None:
    content, query, _ = moco(key=False)
    name = save(content)
    for model in (f"moco:{name}", name, f"torchvision:resnet18:{name}"):
        weights = read_weights(model)
        assert same(weights.query, query)
        assert weights.key is None
    save(content["state_dict"], "alone.pth")
    assert same(read_weights("moco:alone.pth").query, query)
    save_file(content["state_dict"], "alone.safetensors")
    assert same(read_weights("moco:alone.safetensors").query, query)


def test_a_classifier_is_no_head() -> None:
    """MoCo's linear classification saves ``fc`` of 1000 rows; a plain torchvision file has one, too."""
    name = save(resnet(1))
    for model in (f"moco:{name}", name):
        weights = read_weights(model)
        assert same(weights.query, in_pyramid(resnet(1)))
        assert weights.matched is not None
        assert weights.matched.ignored == {
            "classifier and what else lies beyond C5": ("fc.weight", "fc.bias")
        }
        assert weights.facts == {}


@pytest.mark.parametrize("layout", ["module.", "", "bare"])
def test_an_official_checkpoint_starts_stage_2(layout: str, tmp_path: Path) -> None:
    content, query, key = moco(layout, dim=8)
    name = save(content)
    (tmp_path / "run").mkdir()
    settings = resolve("demo", [*SMALL[2:], "--backbone", "resnet18"])
    run = PretrainRun(
        RunFolder(tmp_path / "run"), Plan("scenes:27", "demo", f"moco:{name}", settings, None), resume=False
    )
    todo = run._todo()
    assert list(todo) == ["stage2"]
    task = run._task("stage2", todo["stage2"], run.init)
    assert isinstance(task, Contrast)
    now_query, now_key = task.pair.query.state_dict(), task.pair.key.state_dict()
    fresh = {n for n in now_query if n.startswith("branches.spatial.")}
    assert fresh
    assert now_query.keys() == query.keys() | fresh
    for name in now_query:
        if name in fresh or layout == "bare":
            assert torch.equal(now_key[name], now_query[name])
        else:
            assert torch.equal(now_key[name], key[name]), name
        assert name in fresh or torch.equal(now_query[name], query[name]), name
    assert task.queue.seen == 0


def test_the_encoder_gives_the_vectors_of_the_official_model() -> None:
    content, _, _ = moco()
    model = torchvision.models.resnet18()
    model.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))  # type: ignore[assignment]
    state = {
        n.removeprefix("module.encoder_q."): v for n, v in content["state_dict"].items() if "encoder_q" in n
    }
    model.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    encoder = load_encoder(f"moco:{save(content)}")
    assert encoder.embedding is not None
    with torch.no_grad():
        expected = nn.functional.normalize(model.eval()(images), dim=1)
        torch.testing.assert_close(encoder.embedding(images)["semantic"], expected)


# ---- others ----------------------------------------------------------------------------------------------------------


def lightly_example() -> dict[str, Any]:
    state = under("backbone.", indexed(resnet(1))) | under("backbone_momentum.", indexed(resnet(2)))
    state |= under("projection_head.layers.", head(3)) | under("projection_head_momentum.layers.", head(4))
    return state | {
        "criterion.memory_bank.bank": torch.randn(128, 8),
        "criterion.memory_bank.bank_ptr": torch.zeros(1),
    }


def lightly_benchmark() -> dict[str, Any]:
    """``backbone`` is the momentum copy there."""
    state = under("query_backbone.", bare(resnet(1))) | under("backbone.", bare(resnet(2)))
    state |= under("query_projection_head.layers.", head(3)) | under("projection_head.layers.", head(4))
    return state | {"online_classifier.classification_head.weight": torch.zeros(10, 512)}


def solo_learn() -> dict[str, Any]:
    state = under("backbone.", bare(resnet(1))) | under("momentum_backbone.", bare(resnet(2)))
    state |= under("projector.", head(3)) | under("momentum_projector.", head(4))
    state |= under("classifier.", head(5, layers=1, dim=100))
    return state | {"queue": torch.randn(2, 128, 8), "queue_ptr": torch.zeros(1, dtype=torch.long)}


def mmpretrain() -> dict[str, Any]:
    state = under("backbone.", bare(resnet(1))) | under("encoder_k.module.0.", bare(resnet(2)))
    state |= under("neck.mlp.", head(3)) | under("encoder_k.module.1.mlp.", head(4))
    return state | {
        "queue": torch.randn(128, 8),
        "queue_ptr": torch.zeros(1),
        "encoder_k.steps": torch.tensor(7),
    }


def mmselfsup() -> dict[str, Any]:
    """The old one: ``backbone`` is ``encoder_q.0`` under another name."""
    state = under("encoder_q.0.", bare(resnet(1))) | under("backbone.", bare(resnet(1)))
    state |= under("encoder_k.0.", bare(resnet(2)))
    state |= under("encoder_q.1.mlp.", head(3)) | under("encoder_k.1.mlp.", head(4))
    return state | {"queue": torch.randn(128, 8), "queue_ptr": torch.zeros(1)}


def compiled() -> dict[str, Any]:
    state = under("model._orig_mod.encoder_q.", bare(resnet(1)) | under("fc.", head(3)))
    return state | under("model._orig_mod.encoder_k.", bare(resnet(2)) | under("fc.", head(4)))


@pytest.mark.parametrize(
    "make",
    [lightly_example, lightly_benchmark, solo_learn, mmpretrain, mmselfsup, compiled],
    ids=lambda f: f.__name__,
)
def test_other_peoples_moco(make: Any) -> None:
    content = {"state_dict": make(), "meta": {"epoch": 200}}
    weights = read_weights(save(content))
    assert weights.arch == "torchvision:resnet18"
    assert same(weights.query, in_pyramid(resnet(1), head(3)))
    assert weights.key is not None
    assert same(weights.key, in_pyramid(resnet(2), head(4)))
    assert weights.facts == {"method": "moco-v2", "semantic_dim": 128}
    assert weights.matched is not None
    ignored = [k for keys in weights.matched.ignored.values() for k in keys]
    assert len(weights.matched.matched) + len(ignored) == len(content["state_dict"])
    assert len(set(weights.matched.matched) | set(ignored)) == len(content["state_dict"])


def test_lightlys_own_head_has_these_names() -> None:
    heads = pytest.importorskip("lightly.models.modules.heads")
    own = heads.MoCoProjectionHead(512, 512, 128)
    assert own.state_dict().keys() == under("layers.", head(0)).keys()
    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
    assert backbone.state_dict().keys() == indexed(resnet(0)).keys()


def test_a_head_of_another_form_is_left_out_and_said() -> None:
    """solo-learn's hidden layer has 2048 units on any backbone; ones with batch norm are others still."""
    for projection in (head(3, hidden=300), head(3) | {"3.weight": torch.zeros(4, 4)}):
        weights = read_weights(save(under("backbone.", bare(resnet(1))) | under("projector.", projection)))
        assert same(weights.query, in_pyramid(resnet(1)))
        assert weights.facts == {}
        assert "projection head of another form" in weights.matched.lines()[0]  # type: ignore[union-attr]


def test_dinos_two_encoders() -> None:
    content = {
        "student": under("module.backbone.", bare(resnet(1)))
        | {"module.head.last_layer.weight": torch.zeros(3)},
        "teacher": under("backbone.", bare(resnet(2))) | {"head.last_layer.weight": torch.zeros(3)},
        "args": argparse.Namespace(arch="resnet18"),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }
    weights = read_weights(save(content))
    assert same(weights.query, in_pyramid(resnet(1)))
    assert same(weights.key or {}, in_pyramid(resnet(2)))
    assert "its momentum copy from 'teacher.backbone.'" in "".join(weights.matched.lines())  # type: ignore[union-attr]
    only = read_weights(save({"teacher": content["teacher"]}))
    assert same(only.query, in_pyramid(resnet(2)))


@pytest.mark.parametrize(
    "prefix", ["module.model.net.", "backbone._orig_mod.", "student.", "encoder.backbone.body."]
)
def test_one_encoder_among_other_parts(prefix: str) -> None:
    state = under(prefix, bare(resnet(1))) | {"rpn.conv.weight": torch.zeros(2)}
    if prefix == "module.model.net.":
        assert "1 unknown" in refused(save(state))
        assert "(e.g. rpn.conv.weight)" in refused(save(state))
        weights = read_weights(save(state), allow_partial=["rpn.*"])
        assert weights.matched is not None
        assert weights.matched.unexpected == ("rpn.conv.weight",)
    else:
        weights = read_weights(save(state))
    assert same(weights.query, in_pyramid(resnet(1)))


def test_two_encoders_that_nothing_tells_apart() -> None:
    said = refused(save(under("a.", bare(resnet(1))) | under("b.", bare(resnet(2)))))
    assert "several encoders ('a.', 'b.')" in said


def test_old_files_without_counters() -> None:
    state = {n: v for n, v in resnet(1).items() if not n.endswith("num_batches_tracked")}
    weights = read_weights(save(state))
    expected = {n: torch.tensor(0) if n.endswith("tracked") else v for n, v in in_pyramid(resnet(1)).items()}
    assert same(weights.query, expected)
    assert "no num_batches_tracked" in "".join(weights.matched.lines())  # type: ignore[union-attr]
    load_backbone("weights.pth")


def test_what_lightning_saves_beside_the_weights() -> None:
    content = {
        "state_dict": under("model.", resnet(1)),
        "hyper_parameters": argparse.Namespace(lr=np.float64(0.1), data=Path("x"), other=np.zeros(3)),
        "callbacks": collections.defaultdict(dict, {"best": {"score": torch.tensor(1.0)}}),
    }
    assert same(read_weights(save(content, "last.ckpt")).query, in_pyramid(resnet(1)))


# ---- architectures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_resnets_are_known_by_their_shapes(arch: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(arch).state_dict()
    assert arch_of(under("module.encoder_q.", state)) == f"torchvision:{arch}"
    assert arch_of(state | under("teacher.", state)) == f"torchvision:{arch}"


def test_shapes_of_every_resnet_differ() -> None:
    for arch in ("resnet101", "resnet152", "wide_resnet101_2", "resnext101_32x8d", "resnext101_64x4d"):
        with torch.device("meta"):
            state = torchvision.models.get_model(arch).state_dict()
        assert arch_of(state) == f"torchvision:{arch}"
    for other in ("resnet26", "resnet50d", "seresnet50"):
        with torch.device("meta"):
            state = timm.create_model(other).state_dict()
        assert arch_of(state) in (
            None,
            "torchvision:resnet50",
        )  # a seresnet50's own weights are refused as unknown


def test_an_architecture_that_the_file_names() -> None:
    state = files.shaken(timm.create_model("test_resnet"), 5)
    weights = read_weights(save({"arch": "test_resnet", "state_dict": state}))
    assert weights.arch == "timm:test_resnet"


@pytest.mark.parametrize(
    ("arch", "full"),
    [
        ("torchvision:resnet18", lambda: torchvision.models.resnet18()),
        ("torchvision:resnet50", lambda: torchvision.models.resnet50()),
        ("timm:resnet10t", lambda: timm.create_model("resnet10t")),
        ("timm:convnext_atto", lambda: timm.create_model("convnext_atto")),
        ("timm:regnetx_002", lambda: timm.create_model("regnetx_002")),
        ("timm:swin_tiny_patch4_window7_224", lambda: timm.create_model("swin_tiny_patch4_window7_224")),
    ],
)
def test_in_and_out_again(arch: str, full: Any) -> None:
    """A library's whole model: what the pyramid has arrives, the rest is explained, and the names go back."""
    state = files.shaken(full(), 9)
    model = f"{arch}:{save(state)}"
    weights = read_weights(model)
    mine = {n.removeprefix("pyramid."): v for n, v in weights.query.items()}
    names = names_of(arch)
    kept = {n: v for n, v in state.items() if n not in names.beyond}
    assert same(library_names(arch, mine), kept)
    table = names_of(arch).to_pyramid
    assert same({table.get(name, name): value for name, value in kept.items()}, mine)
    assert mine.keys() == build_pyramid(arch, seed=0).state_dict().keys()
    assert weights.matched is not None
    assert weights.matched.ignored == {"classifier and what else lies beyond C5": tuple(names.beyond)}
    save_file(mine, "again.safetensors", {"hetcl": f'{{"arch": "{arch}"}}'})
    save_file(kept, "library.safetensors", {"hetcl": f'{{"arch": "{arch}"}}'})
    for again in ("again.safetensors", "library.safetensors"):
        assert same(read_weights(again).query, weights.query)


def test_a_pyramid_gives_the_features_of_timms_model() -> None:
    model = timm.create_model("convnext_atto").eval()
    model.load_state_dict(files.shaken(model, 4))
    backbone = load_backbone(f"timm:convnext_atto:{save(model.state_dict())}")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(images, intermediates_only=True)
        for ours, theirs in zip(backbone(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_half_the_keys() -> None:
    state = bare(resnet(1))
    half = dict(list(state.items())[1::2])
    said = refused(f"torchvision:resnet18:{save(half)}")
    assert "60 weights missing, 0 unknown, 0 of another shape (e.g. conv1.weight" in said
    said = refused(f"torchvision:resnet18:{save(dict(list(state.items())[:60]))}")
    assert "60 weights missing" in said
    content, _, _ = moco()
    del content["state_dict"]["module.encoder_k.layer3.0.conv1.weight"]
    said = refused(f"moco:{save(content)}")
    assert "1 weights missing, 0 unknown" in said
    assert "(e.g. module.encoder_k.layer3.0.conv1.weight)" in said


def test_another_architecture() -> None:
    name = save(resnet(1, "resnet34"))
    said = refused(f"torchvision:resnet18:{name}")
    assert "its shapes are those of torchvision:resnet34" in said
    assert "unknown" in said
    assert "all of its" in refused(f"timm:convnext_atto:{name}")


def test_shapes_and_values() -> None:
    state = resnet(1) | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    said = refused(save(state))
    assert "1 of another shape (e.g. conv1.weight)" in said
    state = resnet(1) | {"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int64)}
    assert "1 of another shape (e.g. conv1.weight)" in refused(save(state))
    for place in ("encoder_q.layer2.0.bn1.running_var", "encoder_k.fc.2.bias"):
        content, _, _ = moco("")
        content["state_dict"][place][1] = float("nan")
        assert f"not finite, e.g. in {place}" in refused(f"moco:{save(content)}")


def test_what_is_allowed_to_differ() -> None:
    """A stem of CIFAR's and a layer too many, named: the stem stays random, the same in both encoders."""
    content, _, _ = moco()
    for tower in ("q", "k"):
        content["state_dict"][f"module.encoder_{tower}.conv1.weight"] = torch.zeros(64, 3, 3, 3)
        content["state_dict"][f"module.encoder_{tower}.layer5.weight"] = torch.zeros(1)
    name = f"moco:{save(content)}"
    assert "0 weights missing, 2 unknown, 2 of another shape" in refused(name)
    assert "0 weights missing, 2 unknown, 0 of another shape" in refused(name, allow_partial=["conv1.*"])
    weights = read_weights(name, allow_partial=["conv1.*", "*.layer5.*"])
    fresh = build_pyramid("torchvision:resnet18", seed=0).state_dict()["conv1.weight"]
    for state in (weights.query, weights.key or {}):
        assert torch.equal(state["pyramid.conv1.weight"], fresh)
        assert torch.equal(state["pyramid.bn1.weight"], state["pyramid.bn1.weight"])
    lines = "\n".join(weights.matched.lines())  # type: ignore[union-attr]
    assert "missing and left random, as allowed: conv1.weight" in lines
    assert "not used, as allowed: module.encoder_q.layer5.weight, module.encoder_k.layer5.weight" in lines
    load_backbone(name, allow_partial=["conv1.*", "*.layer5.*"])


# ---- the report and the facts ----------------------------------------------------------------------------------------


def test_the_report_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    content, _, _ = moco()
    with caplog.at_level(logging.INFO, "hetcl.weights"):
        read_weights(f"moco:{save(content)}")
    assert [r.message for r in caplog.records] == [
        "moco:weights.pth: 248 weights of torchvision:resnet18 matched; not needed: queue of keys (2)",
        "moco:weights.pth: taken for torchvision:resnet18",
        "moco:weights.pth: encoder from 'module.encoder_q.', its momentum copy from 'module.encoder_k.'",
    ]


def test_the_facts_of_normalization(caplog: pytest.LogCaptureFixture) -> None:
    def facts(model: str) -> Any:
        return load_backbone(model).facts

    content, _, _ = moco(key=False)
    official = facts(f"moco:{save(content)}")
    assert (official.mean, official.channel_order, official.source) == (
        (0.485, 0.456, 0.406),
        "RGB",
        "its training",
    )
    inception = facts("timm:test_resnet")
    config = timm.get_pretrained_cfg("test_resnet")
    assert config is not None
    assert (inception.mean, inception.std) == (config.mean, config.std)
    assert inception.size == config.input_size[-1]
    assert inception.source == "timm's configuration"
    with caplog.at_level(logging.INFO, "hetcl.weights"):
        assert facts(save(resnet(1))).source == "assumed"
    assert "ImageNet's mean and std, RGB, are assumed" in caplog.text
    said = '{"arch": "torchvision:resnet18", "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "size": 96, "channels": "BGR"}'
    save_file(bare(resnet(1)), "ours.safetensors", {"hetcl": said})
    ours = facts("ours.safetensors")
    assert (ours.mean, ours.std, ours.size, ours.channel_order) == ((0.1, 0.2, 0.3), (1, 2, 3), 96, "BGR")
    save_file(bare(resnet(1)), "ours.safetensors", {"hetcl": said.replace("[1, 2, 3]", "[0, 1, 2]")})
    with pytest.raises(InputError, match="cannot be"):
        facts("ours.safetensors")


@pytest.mark.parametrize("model", ["torchvision:resnet18:IMAGENET1K_V1", "timm:resnet10t:c3_in1k"])
def test_names_download_and_nothing_else_does(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no network: a line for a name, and no attempt for anything else."""
    tried = []

    def no_network(*_: Any, **__: Any) -> Any:
        tried.append(1)
        raise OSError("Network is unreachable")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    for other in (model.rpartition(":")[0], model.rpartition(":")[0] + ":random"):
        read_weights(other)
    assert not tried
    assert "cannot download" in refused(model)
    assert tried
