"""The whole command's verdict on encoders that learned, did not, or collapsed; what it adds to hold them against."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetcl.analysis import feature_pass, yardstick
from hetcl.analysis.contrast.run import contrast
from hetcl.cli import main
from hetcl.errors import InputError
from hetcl.images.sources import open_source
from hetcl.model.build import build_embedding
from hetcl.model.pyramid import build_pyramid
from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder
from hetcl.views.pairs import Pairs
from hetcl.views.photometric import Photometric
from hetcl.views.policies import POLICIES
from hetcl.weights.encoder import load_encoder
from tests.analysis.make import ARCH, SIZE, write_checkpoint

SCENES, COUNT = "scenes:150", 150
QUICK = {"workers": 0, "dims": [], "examples": 0, "threads": 1, "batch": 75, "device": "cpu"}


def run(models: Any, out: Path, *, data: str = SCENES, resume: bool = False, **more: Any) -> dict[str, Any]:
    models = [str(m) for m in models] if isinstance(models, list) else str(models)
    return contrast(models, data=data, out=out, resume=resume, overrides=QUICK | more)


@pytest.fixture(scope="module")
def views() -> list[Tensor]:
    """Four views of each scene, as floats ``[150, 3, 32, 32]``; others than those of the test."""
    policy, out = POLICIES["standard"], []
    photometric = Photometric(policy)
    for seed in (101, 102):
        ((_, batches),) = Pairs(open_source(SCENES), [policy], size=SIZE, batch=COUNT, seed=seed).run([0])
        (batch,) = batches.values()
        order = batch.index.argsort()
        out += [photometric(x, c)[order] for x, c in zip(batch.images, batch.color, strict=True)]
    return out


def save(path: Path, model: nn.Module) -> Path:
    facts = {"arch": ARCH, "method": "moco-v2", "size": SIZE, "semantic_dim": 24}
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    checkpoint.save(path, {**facts, "stage": "stage1", "epoch": 1, "step": 0, "task": {"query": state}})
    return path


@torch.no_grad()
def untrained(views: list[Tensor], seed: int) -> nn.Module:
    """Random weights, with the statistics that a run of learning rate 0 ends with."""
    model = build_embedding("moco-v2", ARCH, seed=seed, words={"semantic": {"dim": 24}}).train()
    for x in views * 5:
        model(x)
    return model


@pytest.fixture(scope="module")
def trained(views: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that has learned: 40 steps of contrast between views."""
    model = build_embedding("moco-v2", ARCH, seed=7, words={"semantic": {"dim": 24}}).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    draws = torch.Generator().manual_seed(0)
    for _ in range(40):
        rows = torch.randperm(COUNT, generator=draws)[:100]
        i, j = torch.randperm(len(views), generator=draws)[:2].tolist()
        x = torch.cat([views[i][rows], views[j][rows]])
        loss = torch.zeros(())
        maps = model.pyramid(x)  # type: ignore[operator]
        for z in (maps[-1].mean((2, 3)), model.branches["semantic"](maps)):  # type: ignore[index]
            query, key = F.normalize(z, dim=1).chunk(2)
            loss = loss + F.cross_entropy(query @ key.t() / 0.1, torch.arange(100))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return save(tmp_path_factory.mktemp("trained") / "trained.ckpt", model)


def test_an_encoder_that_learned_is_said_to_have_learned(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [w for k, v in (QUICK | {"dims": 8}).items() for w in (f"--{k}", str(v))]
    out = tmp_path / "out"
    assert main(["contrast", str(trained), "--data", SCENES, "--out", str(out), *words]) == 0
    report = json.loads((out / "contrast.json").read_text())
    (row,) = report["verdict"]
    assert row["status"] == "learned"
    assert (row["model"], row["judged"], row["views"]) == ("trained", "trained pooled", "standard")
    assert row["difference"]["low"] > 0
    assert report["sentences"][0] == row["line"]
    said = capsys.readouterr().out.splitlines()
    lines = [i for i, line in enumerate(said) if line == row["line"]]
    (table,) = (i for i, line in enumerate(said) if "top-1" in line)
    assert lines == [table - 1]


@pytest.mark.parametrize("seed", [0, 2])
def test_an_encoder_that_learned_nothing_is_never_said_to_have_learned(
    views: list[Tensor], seed: int, tmp_path: Path
) -> None:
    """Its batch norms have seen images, as a run's have that did not learn."""
    model = save(tmp_path / "nothing.ckpt", untrained(views, seed))
    (row,) = run(model, tmp_path / "out", features=["pooled"])["verdict"]
    assert row["status"] in ("not learned", "too few")
    assert ("every weight" in row["line"]) == (seed == 0)  # the yardstick's own seed


def test_random_weights_are_no_result(tmp_path: Path) -> None:
    report = run(f"{ARCH}:random", tmp_path / "out", images=60, views=["standard"])
    assert report["verdict"][0]["status"] == "random"
    assert len(report["models"]) == 1


def test_the_yardstick_is_the_same_architecture_with_measured_statistics(
    trained: Path, views: list[Tensor], tmp_path: Path
) -> None:
    report = run(trained, tmp_path / "out", views=["standard"], images=20)
    rows = {m["name"]: m for m in report["models"]}
    assert {n: (m["role"], m["features"], m["size"]) for n, m in rows.items()} == {
        "trained": ("model", "embedding", SIZE),
        "trained pooled": ("backbone", "pooled", SIZE),
        "random test_resnet pooled": ("random", "pooled", SIZE),
        "random test_resnet embedding": ("random", "embedding", SIZE),
    }
    assert {m["arch"] for m in rows.values()} == {ARCH}
    # A slow way to the same features: batch norm over its own batches, then their mean.
    fresh = build_pyramid(ARCH, seed=0)
    entry = next(e for e in _entries(trained) if e.name == "random test_resnet pooled")
    yardstick.measure(
        entry.encoder, open_source(SCENES), size=SIZE, fabric=_fabric(), seed=0, window=0, images=COUNT,
        workers=0, stop=lambda: None,
    )  # fmt: skip
    slow = _mean_statistics(fresh, seed=0)
    found = dict(entry.encoder.pyramid.named_buffers())
    for name, value in slow.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    for (name, ours), (_, theirs) in zip(
        entry.encoder.pyramid.named_parameters(), fresh.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def _entries(model: Path) -> list[yardstick.Entry]:
    return yardstick.entries_of([load_encoder(str(model))], ["auto"], size=0, yardstick=True)[0]


def _fabric() -> Any:
    from hetcl.training.devices import make_fabric

    return make_fabric(device="cpu", devices=1, precision="fp32", threads=1)


@torch.no_grad()
def _mean_statistics(pyramid: nn.Module, seed: int) -> dict[str, Tensor]:
    """Mean over three batches of 64 images, both views, of each batch norm's own mean and unbiased variance."""
    policy, sums = POLICIES["standard"], dict[str, Tensor]()
    photometric, steps = Photometric(policy), COUNT // 64
    inputs: dict[str, Tensor] = {}
    norms = {n: m for n, m in pyramid.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0]}))
    pyramid.train()
    for _, batches in Pairs(open_source(SCENES), [policy], size=SIZE, batch=64, seed=seed).run(range(steps)):
        (b,) = batches.values()
        pyramid(torch.cat([photometric(x, c) for x, c in zip(b.images, b.color, strict=True)]))
        for name, x in inputs.items():
            for kind, value in (
                ("running_mean", x.mean((0, 2, 3))),
                ("running_var", x.var((0, 2, 3), unbiased=True)),
            ):
                key = f"{name}.{kind}"
                sums[key] = sums.get(key, torch.zeros_like(value)) + value / steps
    return sums


def test_a_collapsed_encoder_is_said_to_have_collapsed(tmp_path: Path) -> None:
    def flatten(state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            if name.startswith("branches.semantic.fc.2"):
                value.fill_(1.0 if name.endswith("bias") else 0.0)

    model = write_checkpoint(tmp_path / "flat.ckpt", method="moco-v2", seed=3, change=flatten)
    (row,) = run(model, tmp_path / "out", views=["standard"], images=60)["verdict"]
    assert row["status"] == "collapsed"
    assert row["line"].startswith("Collapsed: flat gives nearly the same vector for every image (uniformity ")


def test_few_images_are_too_few(trained: Path, tmp_path: Path) -> None:
    (row,) = run(trained, tmp_path / "out", images=8, batch=4)["verdict"]
    assert row["status"] == "too few"
    assert row["needed"] >= 100


# ---- several models, other sizes, other architectures ----------------------------------------------------------------


def test_each_model_has_a_yardstick_of_its_own_architecture_and_size(
    trained: Path, hcl: Path, tmp_path: Path
) -> None:
    """One yardstick serves models that are alike; a size that weights do not say is that of the others."""
    moco = write_checkpoint(tmp_path / "moco.ckpt", method="moco-v2", seed=2)
    other = f"torchvision:resnet18:{_backbone(tmp_path)}"
    report = run([hcl, moco, other], tmp_path / "out", images=30, views=["standard"], batch=30)
    names = {m["name"]: m["size"] for m in report["models"]}
    assert set(names.values()) == {SIZE}
    randoms = [n for n in names if n.startswith("random")]
    assert sorted(randoms) == [
        "random resnet18 pooled",
        "random test_resnet embedding",
        "random test_resnet embedding for moco",
        "random test_resnet pooled",
    ]
    held = {h["model"]: (h["judged"], h["random"], h["random_embedding"]) for h in report["yardsticks"]}
    assert held["hcl"] == ("hcl pooled", "random test_resnet pooled", "random test_resnet embedding")
    assert held["moco"] == (
        "moco pooled",
        "random test_resnet pooled",
        "random test_resnet embedding for moco",
    )
    assert held["torchvision:resnet18:other"] == (
        "torchvision:resnet18:other",
        "random resnet18 pooled",
        None,
    )
    dims = {m["name"]: m["dims"] for m in report["models"]}
    assert dims["random test_resnet embedding"] == {"semantic": 24, "spatial": 16}
    assert dims["random test_resnet embedding for moco"] == {"semantic": 24}
    assert any(line.startswith("Not compared with each other") for line in report["sentences"])
    compared = {frozenset(d["models"]) for d in report["differences"]}
    assert frozenset(("random resnet18 pooled", "random test_resnet pooled")) not in compared


def _backbone(folder: Path) -> Path:
    torch.save(build_pyramid("torchvision:resnet18", seed=9).state_dict(), folder / "other.pth")
    return folder / "other.pth"


def test_sizes_that_differ_are_told(trained: Path, tmp_path: Path) -> None:
    facts = torch.load(trained, weights_only=True)
    checkpoint.save(tmp_path / "large.ckpt", facts | {"size": 48})
    encoders = [load_encoder(str(p)) for p in (trained, tmp_path / "large.ckpt")]
    entries, held, _ = yardstick.entries_of(encoders, ["pooled"], size=0, yardstick=True)
    assert [(e.name, e.size) for e in entries] == [
        ("trained", 32),
        ("large", 48),
        ("random test_resnet pooled", 32),
        ("random test_resnet pooled for large", 48),
    ]
    entries, held, _ = yardstick.entries_of(encoders, ["pooled"], size=64, yardstick=True)
    assert [e.size for e in entries] == [64, 64, 64]
    assert [h.random for h in held] == ["random test_resnet pooled"] * 2


# ---- runs ------------------------------------------------------------------------------------------------------------


def a_run(path: Path, *, seed: int = 5, init: str | None = None) -> Path:
    """A finished run folder of two stages, with the random weights that it would begin with."""
    folder = RunFolder(path)
    folder.checkpoints.mkdir(parents=True)
    folder.write_settings({"settings": {"seed": seed}, "init": init})
    for name, of in (("stage1", seed), ("stage2", seed + 1)):
        write_checkpoint(folder.checkpoints / f"{name}.ckpt", seed=of)
    return path


def test_a_run_is_held_against_its_own_first_weights_and_its_stage_1(tmp_path: Path) -> None:
    path = a_run(tmp_path / "run")
    entries, (held,), missing = yardstick.entries_of(
        [load_encoder(str(path))], ["auto"], size=0, yardstick=True
    )
    assert (held.model, held.judged, held.before) == ("run", "run pooled", "run stage 1 pooled")
    assert not missing
    assert not held.untrained
    random = next(e for e in entries if e.name == held.random)
    assert random.encoder.model == f"random weights of {ARCH}, seed 5"
    first = load_encoder(str(path / "checkpoints" / "stage1.ckpt"))
    _, (held,), _ = yardstick.entries_of([first], ["auto"], size=0, yardstick=True)
    assert held.untrained  # its weights are those that the run's seed gives
    assert held.before is None


def test_stage_1_that_was_named_is_not_added_again(tmp_path: Path) -> None:
    path = a_run(tmp_path / "run")
    models = [load_encoder(str(m)) for m in (path, path / "checkpoints" / "stage1.ckpt")]
    entries, held, _ = yardstick.entries_of(models, ["auto"], size=0, yardstick=True)
    assert held[0].before == "run/stage1 pooled"
    names = [e.name for e in entries]
    assert len(set(names)) == len(names) == 6
    assert {e.role for e in entries} == {"model", "backbone", "random"}


def test_a_run_of_one_stage_is_held_against_what_it_was_given(hcl: Path, tmp_path: Path) -> None:
    path = a_run(tmp_path / "run", init=str(hcl))
    (path / "checkpoints" / "stage1.ckpt").unlink()
    encoder = load_encoder(str(path))
    _, (held,), _ = yardstick.entries_of([encoder], ["auto"], size=0, yardstick=True)
    assert held.before == "run before pooled"
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"nothing")
    RunFolder(path).write_settings({"settings": {"seed": 5}, "init": str(broken)})
    _, (held,), missing = yardstick.entries_of([encoder], ["auto"], size=0, yardstick=True)
    assert held.before is None
    assert missing[0].startswith("run is not held against what it began with")


def test_published_weights_that_were_named_are_what_a_run_began_with(hcl: Path, tmp_path: Path) -> None:
    published = f"{ARCH}:a_tag"  # no file
    path = a_run(tmp_path / "run", init=published)
    (path / "checkpoints" / "stage1.ckpt").unlink()
    run = load_encoder(str(path))
    _, (held,), _ = yardstick.entries_of([run], ["auto"], size=0, yardstick=True)
    assert held.before is None  # nothing is fetched that was not named
    other = replace(load_encoder(str(hcl)), model=published, name=published, size=2 * (run.size or 0))
    entries, (held, _), _ = yardstick.entries_of([run, other], ["auto"], size=0, yardstick=True)
    start = next(e for e in entries if e.name == held.before)
    assert (start.encoder.pyramid, start.features, start.size) == (other.pyramid, "pooled", run.size)


@pytest.mark.parametrize(
    ("model", "random"),
    [
        ("torchvision:resnet18:random", True),
        ("torchvision:resnet18", True),
        ("timm:resnet10t:random", True),
        ("torchvision:resnet18:IMAGENET1K_V1", False),
        ("torchvision:resnet18:some/file.pth", False),
        ("run", False),
        ("moco:random", False),
    ],
)
def test_which_models_are_random(model: str, random: bool) -> None:
    assert yardstick.is_random(model) == random


# ---- off, and again ----------------------------------------------------------------------------------------------


def test_it_can_be_turned_off(trained: Path, tmp_path: Path) -> None:
    report = run(trained, tmp_path / "out", yardstick="none", images=20, views=["crop"])
    assert report["verdict"] == report["yardsticks"] == []
    assert [m["name"] for m in report["models"]] == ["trained"]
    with pytest.raises(InputError, match="yardstick"):
        run(trained, tmp_path / "other", yardstick="maybe")


def test_what_was_added_is_used_again_and_added_later_where_it_was_off(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    few: dict[str, Any] = {"images": 40, "views": ["standard"]}
    run(trained, out, yardstick="none", **few)
    jobs: list[int] = []
    extract = feature_pass.extract
    monkeypatch.setattr(
        feature_pass, "extract", lambda passes, **k: (jobs.append(len(passes[0][0])), extract(passes, **k))
    )
    first = run(trained, out, resume=True, **few)
    again = run(trained, out, resume=True, **few)
    assert jobs == [3]  # the backbone, and random weights by both kinds of features; then nothing
    assert first["verdict"] == again["verdict"]
    other = run(trained, tmp_path / "other", **few)
    assert other["results"] == first["results"]
