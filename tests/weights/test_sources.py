"""What a MODEL argument names: weights come whole and from the right place, or a line says what is wrong."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import hetcl
from hetcl.errors import InputError
from hetcl.model.build import build_embedding
from hetcl.model.pyramid import build_pyramid
from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder
from hetcl.weights.sources import install, load_backbone, read_weights

ARCH = "timm:test_resnet"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def resnet18() -> dict[str, Tensor]:
    """A state dict of torchvision's, with numbers of its own everywhere."""
    state = torchvision.models.resnet18().state_dict()
    return {
        name: torch.randn_like(value) if value.is_floating_point() else torch.tensor(7)
        for name, value in state.items()
    }


def embedding(method: str = "hcl", seed: int = 0, **more: Any) -> nn.Module:
    return build_embedding(
        method, ARCH, seed=seed, words={"semantic": {"dim": 8}, "spatial": {"side": 4, "width": 8}}, **more
    )


def a_checkpoint(path: Path, method: str = "hcl", seed: int = 1) -> dict[str, Any]:
    task = {"query": embedding(method, seed).state_dict(), "key": embedding(method, seed + 1).state_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, {"arch": ARCH, "task": task})
    return task


def refused(model: str) -> str:
    with pytest.raises(InputError) as error:
        read_weights(model)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_both_encoders() -> None:
    task = a_checkpoint(Path("run/checkpoints/stage2.ckpt"))
    weights = read_weights("run/checkpoints/stage2.ckpt")
    assert weights.arch == ARCH
    assert same(weights.query, task["query"])
    assert weights.key is not None
    assert same(weights.key, task["key"])


@pytest.mark.parametrize("there", [["stage1", "stage2", "last"], ["stage1", "last"], ["last"]])
def test_of_a_run_the_furthest_finished_stage_is_taken(there: list[str]) -> None:
    RunFolder("run").path.mkdir()
    RunFolder("run").write_settings({"settings": {}})
    made = {
        name: a_checkpoint(Path(f"run/checkpoints/{name}.ckpt"), seed=10 * i) for i, name in enumerate(there)
    }
    expected = next(name for name in ("stage2", "stage1", "last") if name in there)
    assert same(read_weights("run").query, made[expected]["query"])


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "module.encoder_q.", "encoder.", "backbone.", "model.backbone.", "module.module."],
)
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_plain_files_of_torchvision_names(prefix: str, wrap: str | None) -> None:
    state = resnet18()
    held = {prefix + name: value for name, value in state.items()}
    torch.save({wrap: held, "epoch": 3} if wrap else held, "weights.pth")
    expected = {f"pyramid.{n}": v for n, v in state.items() if not n.startswith("fc.")}
    assert same(read_weights("weights.pth").query, expected)
    named = read_weights("torchvision:resnet18:weights.pth")
    assert same(named.query, expected)
    assert (named.arch, named.key) == ("torchvision:resnet18", None)


def test_safetensors_with_and_without_hetcls_facts() -> None:
    state = {n: v for n, v in resnet18().items() if not n.startswith("fc.")}
    save_file(state, "plain.safetensors")
    save_file(state, "ours.safetensors", {"hetcl": '{"arch": "torchvision:resnet18"}'})
    for name in ("plain", "ours"):
        weights = read_weights(f"{name}.safetensors")
        assert weights.arch == "torchvision:resnet18"
        assert same(weights.query, {f"pyramid.{n}": v for n, v in state.items()})


@pytest.mark.parametrize("model", ["torchvision:resnet18", "torchvision:resnet18:random"])
def test_random_weights_are_a_function_of_nothing(model: str) -> None:
    expected = build_pyramid("torchvision:resnet18", seed=0).state_dict()
    assert same(read_weights(model).query, {f"pyramid.{n}": v for n, v in expected.items()})


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch evil",)


def test_no_code_is_run_and_the_fix_is_named() -> None:
    torch.save({"a": torch.zeros(1), "b": Evil()}, "evil.pth")
    Path("evil.pkl").write_bytes(pickle.dumps(Evil()))
    torch.save(torchvision.models.resnet18(), "module.pth")
    for name in ("evil.pth", "module.pth"):
        assert "hetcl runs no code from files; save its state_dict alone" in refused(name)
    assert "it is a bare pickle (detectron2's .pkl are), which can run code" in refused("evil.pkl")
    assert not Path("evil").exists()


def test_files_that_are_something_else() -> None:
    Path("notes.pth").write_text("these are no weights " * 60)
    assert "it is a text file, not weights" in refused("notes.pth")
    Path("empty.pth").write_bytes(b"")
    assert "the file is empty" in refused("empty.pth")
    with zipfile.ZipFile("bomb.pth", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("bomb/data.pkl", b"0" * (1 << 28))
    assert "weights do not pack like that" in refused("bomb.pth")
    torch.save({"a": torch.zeros(1).expand(1 << 34)}, "strides.pth")
    assert "claims more bytes than the file has" in refused("strides.pth")


@pytest.mark.parametrize("kind", ["pth", "ckpt", "safetensors"])
def test_damaged_files(kind: str) -> None:
    path = Path(f"weights.{kind}")
    if kind == "safetensors":
        save_file({"a": torch.randn(1000)}, path)
    else:
        torch.save({"hetcl": 1, "task": {"query": {}}, "a": torch.randn(1000)}, path)
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.6, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert f"{path}" in refused(str(path))
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        path.write_bytes(bytes(torch.randint(256, (3000,), generator=rng).tolist()))
        assert "cannot read" in refused(str(path))


def test_a_checkpoint_with_a_byte_changed_never_breaks_the_reader() -> None:
    """Whatever damage does, the reader gives weights or says what is wrong."""
    a_checkpoint(Path("a.ckpt"), "moco-v2")
    whole = bytearray(Path("a.ckpt").read_bytes())
    rng = torch.Generator().manual_seed(1)
    for place in torch.randint(len(whole), (40,), generator=rng).tolist():
        damaged = whole.copy()
        damaged[place] ^= 0x55
        Path("a.ckpt").write_bytes(damaged)
        with contextlib.suppress(InputError):
            read_weights("a.ckpt")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.save({}, "x.pth"), "x.pth holds no state dict"),
        (lambda: torch.save([1, 2], "x.pth"), "x.pth holds no state dict"),
        (lambda: torch.save({"a": 1}, "x.pth"), "x.pth holds no state dict"),
        (lambda: Path("x.pth").touch(), "the file is empty"),
        (lambda: Path("x.pth").mkdir(), "x.pth is no run folder: it has no settings.yaml"),
        (lambda: None, "no weights 'x.pth': give a run folder"),
    ],
)
def test_files_that_hold_no_weights(make: Any, said: str) -> None:
    make()
    assert said in refused("x.pth")


def test_names_that_name_nothing() -> None:
    assert "an empty name of weights" in refused("")
    assert "did you mean resnet18" in refused("torchvision:resnet81")
    assert "neither a file nor a weights name of torchvision's resnet18" in refused("torchvision:resnet18:V9")
    assert "there is no file 'x.pth'" in refused("moco:x.pth")
    assert "there is no file x.pth" in refused("torchvision:resnet18:x.pth")
    assert "there are tv_in1k" in refused("timm:resnet18:tv_in2k")
    assert "there are IMAGENET1K_V1" in refused("torchvision:resnet18:IMAGENET1K_V2")
    assert "write timm:resnet18:a1_in1k for those weights" in refused("timm:resnet18.a1_in1k")
    save_file({}, "none.safetensors")
    assert "none.safetensors holds no weights" in refused("none.safetensors")
    torch.save({"hetcl": 1, "task": {}}, "a.ckpt")
    assert "a.ckpt holds no encoder" in refused("a.ckpt")
    run = RunFolder("run")
    run.path.mkdir()
    run.write_settings({"settings": {}})
    assert "run is a run without a checkpoint yet" in refused("run")


# ---- installing ------------------------------------------------------------------------------------------------------


def test_everything_that_fits_is_installed() -> None:
    source, target = embedding(seed=1), embedding(seed=2)
    assert install(target, source.state_dict(), "a file") == []
    assert same(dict(target.state_dict()), dict(source.state_dict()))


def test_a_branch_comes_wholly_or_not_at_all() -> None:
    source = embedding("moco-v2", seed=1)
    target = embedding("hcl", seed=2)
    fresh = {n: v.clone() for n, v in target.state_dict().items() if n.startswith("branches.spatial.")}
    assert install(target, source.state_dict(), "a file") == ["spatial branch: starts afresh"]
    now = target.state_dict()
    assert same({n: now[n] for n in source.state_dict()}, dict(source.state_dict()))
    assert same({n: now[n] for n in fresh}, fresh)
    assert install(embedding("moco-v2"), embedding("hcl").state_dict(), "f") == [
        "spatial branch of f: not used"
    ]
    said = install(embedding("moco-v1"), embedding("moco-v2").state_dict(), "f")
    assert said == ["semantic branch: starts afresh (another shape in the file)"]


def test_weights_that_do_not_fit_change_nothing() -> None:
    target = embedding(seed=2)
    before = {n: v.clone() for n, v in target.state_dict().items()}
    for spoil, said in (
        (
            lambda s: s.pop(next(n for n in s if n.startswith("pyramid."))),
            "1 weights missing, 0 unknown, 0 of",
        ),
        (lambda s: s.update({"pyramid.other": torch.zeros(1)}), "0 weights missing, 1 unknown, 0 of"),
        (lambda s: s.update({"pyramid.conv1.0.weight": torch.zeros(1)}), "0 unknown, 1 of another shape"),
        (
            lambda s: s["pyramid.conv1.0.weight"].view(-1)[3:4].fill_(float("nan")),
            "not finite, e.g. in conv1.0",
        ),
        (
            lambda s: s["pyramid.conv1.0.weight"].view(-1)[3:4].fill_(float("inf")),
            "not finite, e.g. in conv1.0",
        ),
    ):
        state = {n: v.clone() for n, v in embedding(seed=1).state_dict().items()}
        spoil(state)
        with pytest.raises(InputError) as error:
            install(target, state, "a file", arch="torchvision:resnet18")
        assert said in str(error.value)
        assert "a file" in str(error.value)
        assert "not finite" in said or "does not fit timm:test_resnet" in str(error.value)
        assert "not finite" in said or "set backbone to torchvision:resnet18" in str(error.value)
        assert same(dict(target.state_dict()), before)


# ---- load_backbone ---------------------------------------------------------------------------------------------------


def test_a_backbone_gives_the_maps_of_its_weights() -> None:
    a_checkpoint(Path("run/checkpoints/stage2.ckpt"), seed=5)
    backbone = hetcl.load_backbone("run/checkpoints/stage2.ckpt")
    assert not backbone.training
    expected = embedding(seed=5).pyramid.eval()  # type: ignore[operator]
    images = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(backbone(images), expected(images), strict=True):  # type: ignore[operator]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_backbone_of_torchvision_is_torchvisions() -> None:
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), "weights.pth")
    backbone = load_backbone("torchvision:resnet18:weights.pth")
    images = torch.randn(1, 3, 64, 64)
    features = torchvision.models.feature_extraction.create_feature_extractor(theirs.eval(), ["layer4"])
    torch.testing.assert_close(backbone(images)[-1], features(images)["layer4"], rtol=0, atol=0)


def test_a_file_that_does_not_say_its_architecture() -> None:
    """A ResNet of torchvision's is known by its shapes; anything else has to be named."""
    torch.save(resnet18(), "weights.pth")
    assert load_backbone("weights.pth").arch == "torchvision:resnet18"
    state = build_pyramid(ARCH, seed=3).state_dict()
    torch.save({f"module.{n}": v for n, v in state.items()}, "weights.pth")
    with pytest.raises(InputError, match=r"write torchvision:ARCH:weights\.pth or timm:ARCH:weights\.pth"):
        load_backbone("weights.pth")
    assert same(dict(load_backbone(f"{ARCH}:weights.pth").state_dict()), dict(state))
    assert read_weights("weights.pth", arch=ARCH).arch == ARCH
    target = embedding()
    install(target, read_weights("weights.pth").query, "a file")
    assert same(dict(target.pyramid.state_dict()), dict(state))
