"""Exports: equal to their source in every format and back again, or refused with nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hetcl.errors import InputError, WorkFailed
from hetcl.model.build import build_embedding
from hetcl.model.pyramid import build_pyramid
from hetcl.runs import checkpoint
from hetcl.weights import export_proof, exporters
from hetcl.weights.cards import PURPOSES
from hetcl.weights.encoder import load_encoder
from hetcl.weights.exporters import FORMATS, card_of, export
from hetcl.weights.sources import load_backbone, read_weights
from tests.reference.backbones import detectron2_keys, detectron2_resnet

FACTS: dict[str, Any] = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "size": 96, "channels": "RGB"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def shaken(module: nn.Module) -> nn.Module:
    """All that batch norms, layer norms and biases hold moved away from where it starts."""
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif value.ndim == 1 and value.is_floating_point():
            value.add_(torch.randn_like(value) * 0.2)
    return module


def a_backbone(arch: str, path: str = "source.safetensors", **facts: Any) -> str:
    """A file as a run leaves it."""
    state = shaken(build_pyramid(arch, seed=3)).state_dict()
    said = FACTS | {"arch": arch, "method": ["moco-v2", "hcl"]} | facts
    save_file({n: v.contiguous() for n, v in state.items()}, path, {"hetcl": json.dumps(said)})
    return path


def an_encoder(method: str = "hcl", key: bool = True, **more: Any) -> str:
    arch = "timm:test_resnet"
    both = [
        shaken(
            build_embedding(
                method,
                arch,
                seed=s,
                words={"semantic": {"dim": 8}, "spatial": {"side": 4, "width": 8}},
                **more,
            )
        ).state_dict()
        for s in (1, 2)
    ]
    spatial = {"side": 4, "width": 8, "fused": False}
    task = {"query": both[0]} | ({"key": both[1]} if key else {})
    facts = {"method": method, "size": 64, "semantic_dim": 8, "spatial": spatial}
    checkpoint.save(Path("stage2.ckpt"), {"arch": arch, "task": task, **facts})
    return "stage2.ckpt"


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def same_maps(a: Any, b: Any) -> bool:
    x = torch.randn(2, 3, 75, 98)
    with torch.no_grad():
        return all(
            torch.allclose(m, n, rtol=0, atol=1e-5 * float(m.abs().max()))
            for m, n in zip(a(x), b(x), strict=True)
        )


def left() -> set[str]:
    return {p.name for p in Path().iterdir()}


def arrays(file: str) -> dict[str, np.ndarray]:
    with open(file, "rb") as f:
        return export_proof.ArraysOnly(f).load()["model"]


# ---- out and in again ------------------------------------------------------------------------------------------------

WAYS = [
    ("torchvision:resnet18", "torchvision"),
    ("torchvision:resnet18", "timm"),
    ("torchvision:resnet18", "mmdet"),
    ("torchvision:resnet18", "safetensors"),
    ("torchvision:resnet18", "full"),
    ("torchvision:resnet50", "torchvision"),
    ("torchvision:resnet50", "timm"),
    ("torchvision:resnet50", "mmdet"),
    ("timm:resnet10t", "timm"),
    ("timm:resnet10t", "safetensors"),
    ("timm:resnet10t", "full"),
    ("timm:convnext_atto", "timm"),
    ("timm:convnext_atto", "safetensors"),
    ("timm:convnext_atto", "full"),
]


@pytest.mark.parametrize(("arch", "format"), WAYS, ids=lambda v: v.replace(":", "-"))
def test_what_goes_out_comes_in_again(arch: str, format: str) -> None:
    source = load_backbone(a_backbone(arch))
    out = "out" + FORMATS[format].suffixes[0]
    assert export("source.safetensors", format=format, out=out) == [Path(out), Path(out + ".md")]
    library = "torchvision" if format == "mmdet" else format
    model = f"{library}:{arch.split(':')[1]}:{out}" if library in ("torchvision", "timm") else out
    again = load_backbone(model)
    if arch.split(":")[0] == again.arch.split(":")[0]:
        assert same(again.state_dict(), source.state_dict())
    assert same_maps(again, source)
    assert left() == {"source.safetensors", out, out + ".md"}
    second = "second" + FORMATS[format].suffixes[0]
    if format != "mmdet" and library == arch.split(":")[0]:
        export(model, format=format, out=second)
        assert same(read_weights(model).query, read_weights(model.replace(out, second)).query)


@pytest.mark.parametrize(
    ("arch", "depth"), [("torchvision:resnet18", 18), ("torchvision:resnet50", 50), ("timm:resnet18", 18)]
)
def test_detectron2_gets_a_resnet_it_would_build(arch: str, depth: int) -> None:
    source = load_backbone(a_backbone(arch))
    export("source.safetensors", format="detectron2", out="out.pkl")
    held = arrays("out.pkl")
    assert same_maps(detectron2_resnet(held, depth), source)
    state = source.state_dict()
    assert np.array_equal(held["stem.conv1.norm.running_var"], state["bn1.running_var"].numpy())
    assert np.array_equal(held["res4.0.shortcut.weight"], state["layer3.0.downsample.0.weight"].numpy())
    assert len(held) == sum(not n.endswith("num_batches_tracked") for n in state)


def test_detectron2_keys_of_r50() -> None:
    a_backbone("torchvision:resnet50")
    export("source.safetensors", format="detectron2", out="out.pkl")
    held = arrays("out.pkl")
    assert held.keys() == detectron2_keys(50)
    assert len(held) == 265
    assert all(type(v) is np.ndarray and v.dtype == np.float32 and v.flags.writeable for v in held.values())


def test_the_pickle_is_plain_and_any_numpy_can_read_it() -> None:
    a_backbone("torchvision:resnet18")
    export("source.safetensors", format="detectron2", out="out.pkl")
    data = Path("out.pkl").read_bytes()
    assert b"numpy._core" not in data
    assert b"numpy.core" not in data
    with open("out.pkl", "rb") as f:
        content = export_proof.ArraysOnly(f, encoding="latin1").load()
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    assert type(content) is type(content["model"]) is dict
    assert content["matching_heuristics"] is True


@pytest.mark.parametrize(
    ("arch", "depth", "groups", "width"),
    [("torchvision:resnext50_32x4d", 50, 32, 4)],
)
def test_detectron2_is_told_of_groups_and_widths(arch: str, depth: int, groups: int, width: int) -> None:
    source = load_backbone(a_backbone(arch))
    export("source.safetensors", format="detectron2", out="out.pkl")
    assert same_maps(detectron2_resnet(arrays("out.pkl"), depth, groups=groups, width=width), source)
    assert f"WIDTH_PER_GROUP: {width}" in Path("out.pkl.md").read_text()


def test_torchvision_and_timm_take_the_files_themselves() -> None:
    source = load_backbone(a_backbone("torchvision:resnet18")).state_dict()
    export("source.safetensors", format="torchvision", out="tv.pth")
    export("source.safetensors", format="timm", out="timm.safetensors")
    theirs = torchvision.models.resnet18()
    found = theirs.load_state_dict(torch.load("tv.pth", weights_only=True), strict=False)
    assert set(found.missing_keys) == {"fc.weight", "fc.bias"}
    assert not found.unexpected_keys
    model = timm.create_model("resnet18", checkpoint_path="timm.safetensors", num_classes=0)
    assert same(model.state_dict(), source)
    assert same({n: v for n, v in theirs.state_dict().items() if n[:2] != "fc"}, source)


def test_other_maps_of_torchvision_are_found_too() -> None:
    a_backbone("torchvision:swin_t")
    export("source.safetensors", format="torchvision", out="out.pth")
    assert "channels" not in Path("out.pth.md").read_text().split("## Check")[1]
    assert "[B, H, W, C]" in Path("out.pth.md").read_text()


def test_timm_is_given_what_its_model_has_beyond_the_maps() -> None:
    a_backbone("timm:convnext_atto")
    export("source.safetensors", format="timm", out="out.pth")
    state = torch.load("out.pth", weights_only=True)
    assert state.keys() == timm.create_model("convnext_atto", num_classes=0).state_dict().keys()
    assert torch.equal(state["head.norm.weight"], torch.ones(320))
    assert "`head.norm.weight`" in Path("out.pth.md").read_text()


def test_mm_finds_its_prefix_and_facts() -> None:
    a_backbone("torchvision:resnet18")
    export("source.safetensors", format="mmdet", out="out.pth")
    content = torch.load("out.pth", weights_only=True)
    assert content.keys() == {"meta", "state_dict"}
    names = torchvision.models.resnet18().state_dict().keys() - {"fc.weight", "fc.bias"}
    assert content["state_dict"].keys() == {f"backbone.{n}" for n in names}
    assert content["meta"]["mean"] == FACTS["mean"]


def test_safetensors_carry_the_facts() -> None:
    a_backbone("timm:test_resnet")
    export("source.safetensors", format="safetensors", out="out.safetensors")
    with safe_open("out.safetensors", "pt") as f:
        facts = json.loads(f.metadata()["hetcl"])
    assert {n: facts[n] for n in FACTS} == FACTS
    assert facts["arch"] == "timm:test_resnet"
    assert facts["method"] == ["moco-v2", "hcl"]
    assert {"licence", "commit"} <= facts.keys()
    assert (
        load_file("out.safetensors").keys()
        == timm.create_model("test_resnet", num_classes=0).state_dict().keys()
    )


@pytest.mark.parametrize("key", [True, False])
def test_the_full_encoder_keeps_its_branches_and_its_key(key: bool) -> None:
    model = an_encoder(key=key)
    export(model, format="full", out="out.safetensors")
    was, now = read_weights(model), read_weights("out.safetensors")
    assert same(now.query, was.query)
    assert (now.key is None) is (was.key is None) is (not key)
    assert not key or same(now.key, was.key)
    encoder = load_encoder("out.safetensors")
    assert encoder.dims == {"semantic": 8, "spatial": 16}
    assert encoder.size == 64
    x = torch.randn(2, 3, 64, 64)
    assert encoder.embedding is not None
    branch = encoder.embedding.branches["spatial"]
    assert branch.fused is False
    with torch.no_grad():
        before, after = load_encoder(model).embedding(x), encoder.embedding(x)  # type: ignore[misc]
    assert same(before, after)


def test_a_supervised_encoder_goes_out_whole() -> None:
    model = an_encoder("supervised", key=False, classes=5)
    export(model, format="full", out="out.safetensors")
    assert same(read_weights("out.safetensors").query, read_weights(model).query)


def test_two_exports_are_the_same_bytes() -> None:
    a_backbone("torchvision:resnet18")
    for format in ("torchvision", "detectron2", "safetensors"):
        for name in ("a", "b"):
            export("source.safetensors", format=format, out=name + FORMATS[format].suffixes[0])
        a, b = (Path(n + FORMATS[format].suffixes[0]).read_bytes() for n in "ab")
        assert a == b
        [p.unlink() for p in Path().glob("[ab].*")]


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def test_onnx_is_equal_at_any_size_and_tells_nothing_of_this_machine() -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    source = load_backbone(a_backbone("timm:test_resnet"))
    export("source.safetensors", format="onnx", out="out.onnx")
    session = runtime.InferenceSession("out.onnx", providers=["CPUExecutionProvider"])
    assert same_maps(lambda x: map(torch.from_numpy, session.run(None, {"images": x.numpy()})), source)
    assert json.loads(session.get_modelmeta().custom_metadata_map["hetcl"])["size"] == 96
    data = Path("out.onnx").read_bytes()
    for path in (str(Path(torch.__file__).parent), str(Path(exporters.__file__).parent), "site-packages"):
        assert path.encode() not in data


def test_onnx_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    a_backbone("timm:test_resnet")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(InputError, match="pip install onnx onnxscript onnxruntime"):
        export("source.safetensors", format="onnx", out="out.onnx")
    assert left() == {"source.safetensors"}


# ---- what is refused -------------------------------------------------------------------------------------------------


def refused(match: str, model: str = "source.safetensors", **more: Any) -> None:
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=match) as error:
        export(model, **{"format": "torchvision", "out": "out.pth"} | more)
    assert len(str(error.value).splitlines()) == 1
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


def test_places_that_cannot_take_a_file() -> None:
    a_backbone("torchvision:resnet18")
    Path("there.pth").write_bytes(b"mine")
    Path("card.pth.md").write_text("mine")
    Path("folder.pth").mkdir()
    Path("odd.pth.md").mkdir()
    refused("there.pth exists; add --overwrite", out="there.pth")
    refused("card.pth.md exists; add --overwrite", out="card.pth")
    refused("is a folder; name a file in it", out="folder.pth")
    refused("is a folder", out="odd.pth")
    refused("there is no folder nowhere", out="nowhere/out.pth")
    refused("writes .pkl", format="detectron2", out="out.pth")
    refused("did you mean torchvision", format="torchvison")
    refused("choose one of", format="caffe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write() -> None:
    a_backbone("torchvision:resnet18")
    Path("locked").mkdir(mode=0o500)
    refused("cannot write in locked", out="locked/out.pth")


def test_overwrite_replaces_file_and_card() -> None:
    a_backbone("torchvision:resnet18")
    Path("out.pth").write_bytes(b"mine")
    Path("out.pth.md").write_text("old")
    export("source.safetensors", format="torchvision", out="out.pth", overwrite=True)
    assert torch.load("out.pth", weights_only=True)
    assert "old" not in Path("out.pth.md").read_text()


@pytest.mark.parametrize(
    ("arch", "format", "match"),
    [
        ("timm:convnext_atto", "detectron2", "no plain ResNet"),
        ("timm:resnet10t", "detectron2", "no plain ResNet"),
        ("timm:resnet10t", "mmdet", "no plain ResNet"),
        ("timm:test_resnet", "torchvision", "torchvision has no model of that name"),
        ("torchvision:mobilenet_v3_small", "timm", "timm has no model of that name"),
        ("torchvision:wide_resnet50_2", "mmdet", "wide ResNet"),
    ],
)
def test_weights_that_a_format_cannot_hold(arch: str, format: str, match: str) -> None:
    a_backbone(arch)
    refused(match, format=format, out="out" + FORMATS[format].suffixes[0])


def test_weights_that_are_not_finite() -> None:
    a_backbone("timm:test_resnet")
    state = load_file("source.safetensors")
    next(v for n, v in state.items() if n.endswith("running_mean"))[0] = torch.nan
    save_file(state, "source.safetensors", {"hetcl": json.dumps({"arch": "timm:test_resnet"})})
    refused("not finite", format="timm")
    an_encoder()
    content = checkpoint.load(Path("stage2.ckpt"))
    content["task"]["key"]["branches.semantic.fc.0.bias"][0] = torch.inf
    checkpoint.save(Path("stage2.ckpt"), content)
    refused("not finite", "stage2.ckpt", format="full", out="out.safetensors")


def test_weights_that_do_not_say_what_they_are() -> None:
    torch.save({"a": torch.zeros(1)}, "plain.pth")
    refused("plain.pth", "plain.pth")
    refused("no weights|no such", "missing.pth")


# ---- what fails ------------------------------------------------------------------------------------------------------


def failed(match: str, **more: Any) -> None:
    before = left()
    with pytest.raises(WorkFailed, match=match) as error:
        export("source.safetensors", **{"format": "torchvision", "out": "out.pth"} | more)
    assert len(str(error.value).splitlines()) == 1
    assert left() == before


def test_a_full_disk_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a_backbone("torchvision:resnet18")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    failed("disk is full; make room and export again")


DAMAGE: list[tuple[str, Any]] = [
    ("torchvision", lambda n: n + "x" if n == "bn1.bias" else n),
    ("timm", lambda n: n + "x" if n == "bn1.bias" else n),
    ("safetensors", lambda n: n.replace("layer1", "layer9")),
]


@pytest.mark.parametrize(("format", "rename"), DAMAGE, ids=lambda v: v if isinstance(v, str) else "")
def test_one_unmatched_key_fails_the_export(
    format: str, rename: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_backbone("torchvision:resnet18")
    monkeypatch.setattr(
        "hetcl.weights.writers.library_names", lambda arch, state: {rename(n): v for n, v in state.items()}
    )
    with pytest.raises((WorkFailed, InputError)):
        export("source.safetensors", format=format, out="out" + FORMATS[format].suffixes[0])
    assert left() == {"source.safetensors"}


@pytest.mark.parametrize("format", ["torchvision", "timm", "mmdet", "safetensors", "detectron2", "full"])
def test_a_changed_weight_in_the_file_fails_the_export(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte of one weight, changed after it was written."""
    a_backbone("torchvision:resnet18")
    real = exporters.write
    value = load_file("source.safetensors")["layer2.0.bn1.running_var"].numpy().tobytes()

    def write(path: Path, data: bytes, out: Path) -> None:
        if not path.name.endswith(".md"):
            assert data.count(value) == 1
            data = data.replace(value, value[:-4] + np.float32(1.75).tobytes())
        real(path, data, out)

    monkeypatch.setattr(exporters, "write", write)
    failed("not equal|came back", format=format, out="out" + FORMATS[format].suffixes[0])


@pytest.mark.parametrize("format", ["torchvision", "timm", "mmdet", "safetensors", "detectron2"])
def test_weights_that_compute_something_else_fail_the_export(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file equals what was to be written, but what was to be written is not the source."""
    a_backbone("torchvision:resnet18")
    real: Any = exporters.Material.state

    def wrong(self: Any) -> dict[str, Tensor]:
        state = real.fget(self)
        a, b = "layer3.0.bn1.running_mean", "layer3.0.bn2.running_mean"
        return state | {a: state[b], b: state[a]}

    monkeypatch.setattr(exporters.Material, "state", property(wrong))
    failed("C4 differs", format=format, out="out" + FORMATS[format].suffixes[0])


def test_facts_of_branches_that_got_lost_fail_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused and the plain spatial branch have the same weights, and at odd sizes other vectors."""
    model = an_encoder()
    real = exporters.writers._header
    wrong = {"spatial": {"side": 4, "width": 8, "fused": True}}
    monkeypatch.setattr(exporters.writers, "_header", lambda m, c, **more: real(m, c, **(more | wrong)))
    with pytest.raises(WorkFailed, match="the spatial part"):
        export(model, format="full", out="out.safetensors")
    assert left() == {model}


def test_an_older_file_outlives_a_failed_export(monkeypatch: pytest.MonkeyPatch) -> None:
    a_backbone("torchvision:resnet18")
    Path("out.pth").write_bytes(b"mine")
    monkeypatch.setattr(export_proof, "TOLERANCE", -1.0)
    failed("C2 differs", overwrite=True)
    assert Path("out.pth").read_bytes() == b"mine"


# ---- the table and the card's code -----------------------------------------------------------------------------------


def test_every_format_says_what_it_is_for() -> None:
    assert FORMATS.keys() == PURPOSES.keys() - {"onnx-predictor"}  # that of fine-tuned runs
    assert all(len(k.purpose) < 120 and "\n" not in k.purpose for k in FORMATS.values())


def test_the_code_on_the_card_runs_where_the_file_is() -> None:
    a_backbone("timm:test_resnet")
    file = Path("out.pth")
    export("source.safetensors", format="timm", out=file)
    code = re.findall(r"^```python\n(.*?)^```", card_of(file).read_text(), re.M | re.S)[0]
    check = "import torch; print([list(m.shape) for m in backbone(torch.zeros(1, 3, 64, 64))])"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[[1, 32, 16, 16], [1, 48, 8, 8], [1, 192, 4, 4], [1, 96, 2, 2]]" in done.stdout
