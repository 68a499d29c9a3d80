"""Every key and byte is accounted for: files that are cut, damaged or ambiguous, and cards that tell the truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hetcl.cli import main
from hetcl.errors import InputError
from hetcl.weights.exporters import export
from hetcl.weights.sealed import seal, unseal
from hetcl.weights.sources import load_backbone, read_weights
from tests.weights.files import bare, head, moco, resnet, save, shaken, under


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(model: str, **more: Any) -> str:
    with pytest.raises(InputError) as said:
        read_weights(model, **more)
    assert "\n" not in str(said.value)
    return str(said.value)


def cut(state: dict[str, torch.Tensor], prefix: str, share: float) -> dict[str, torch.Tensor]:
    """Without the last keys under a prefix."""
    names = [n for n in state if n.startswith(prefix)]
    gone = set(names[int(share * len(names)) :])
    return {n: v for n, v in state.items() if n not in gone}


# ---- cut files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.9, 0.6, 0.45, 0.1])
@pytest.mark.parametrize("which", ["encoder_q", "encoder_k"])
def test_half_an_encoder_is_not_passed_over(which: str, share: float) -> None:
    content, _, _ = moco()
    state = cut(content["state_dict"], f"module.{which}.", share)
    said = refused(f"moco:{save(content | {'state_dict': state})}")
    assert "does not fit torchvision:resnet18" in said
    assert f"module.{which}." in said


def test_the_momentum_copy_has_the_encoders_head() -> None:
    content, _, _ = moco()
    state = dict(content["state_dict"])
    for name in [n for n in state if n.startswith("module.encoder_k.fc.")]:
        del state[name]
    weights = read_weights(f"moco:{save(content | {'state_dict': state})}")
    assert weights.matched is not None
    assert "has no head: it starts from the encoder's" in " ".join(weights.matched.notes)
    assert weights.key is not None
    assert not any(n.startswith("branches.") for n in weights.key)
    other = state | under("module.encoder_k.fc.", head(5, dim=64))
    assert "has other weights or shapes than the encoder's" in refused(
        f"moco:{save(content | {'state_dict': other})}"
    )


def test_a_whole_encoder_of_ours_is_counted_too() -> None:
    content, _, _ = moco()
    save(content, "moco.pth")
    export("moco:moco.pth", format="full", out="full.safetensors")
    with safe_open("full.safetensors", "pt") as f:
        facts = f.metadata()
    state = load_file("full.safetensors")
    facts = unseal(state, facts)
    Path("junk.safetensors").write_bytes(seal(state | {"junk": torch.zeros(1)}, facts))
    assert "holds 1 keys of no encoder (e.g. junk)" in refused("junk.safetensors")
    Path("half.safetensors").write_bytes(seal(cut(state, "key.", 0.4), facts))
    assert "its momentum copy does not fit its encoder" in refused("half.safetensors")
    state["key.pyramid.conv1.weight"][0] = float("nan")
    Path("nan.safetensors").write_bytes(seal(state, facts))
    assert "not finite, e.g. in key.pyramid.conv1.weight" in refused("nan.safetensors")


# ---- ambiguous, damaged and strange files ----------------------------------------------------------------------------


def test_one_pattern_is_one_pattern() -> None:
    state = cut(resnet(1), "layer4", 0.5)
    name = save(state)
    assert "weights missing" in refused(f"torchvision:resnet18:{name}", allow_partial="conv1.*")
    load_backbone(f"torchvision:resnet18:{name}", allow_partial="layer4.*")


def test_two_state_dicts_are_told_apart() -> None:
    one, two = bare(resnet(1)), bare(resnet(2))
    assert "several state dicts ('state_dict', 'model')" in refused(save({"model": one, "state_dict": two}))
    weights = read_weights(save({"state_dict": one, "state_dict_ema": two}))
    assert torch.equal(weights.query["pyramid.conv1.weight"], one["conv1.weight"])
    assert weights.matched is not None
    assert "other state dicts in the file, not taken: state_dict_ema" in weights.matched.notes


def test_a_flipped_byte_is_seen() -> None:
    data = bytearray(Path(save(resnet(1))).read_bytes())
    data[len(data) // 2] ^= 255
    Path("weights.pth").write_bytes(data)
    assert "do not match their checksum" in refused("weights.pth")


def test_types_that_cannot_be_looked_at() -> None:
    state = {n: v.to(torch.float8_e4m3fn) if v.ndim == 4 else v for n, v in bare(resnet(1)).items()}
    assert "conv1.weight is of type float8_e4m3fn; save it as float32" in refused(save(state))


@pytest.mark.parametrize(
    "content",
    [
        {"arch": "torchvision:resnet18", "task": {"query": bare(resnet(1)), "key": 5}},
        {"arch": "torchvision:resnet18", "task": {"query": bare(resnet(1)), "key": None}},
        {"arch": 7, "task": {"query": bare(resnet(1))}},
        {"arch": "torchvision:resnet18", "task": {"query": {1: torch.zeros(1)}}},
        {"arch": "torchvision:resnet18", "task": {"query": {"a": "b"}}},
        {"arch": "torchvision:resnet18", "spatial": "x", "task": {"query": bare(resnet(1))}},
    ],
    ids=[
        "key of numbers",
        "no key",
        "arch of numbers",
        "names of numbers",
        "words for weights",
        "spatial of words",
    ],
)
def test_what_only_looks_like_our_checkpoint(content: dict[str, Any]) -> None:
    torch.save({"hetcl": 1, **content}, "a.ckpt")
    assert "is no checkpoint as hetcl writes them" in refused("a.ckpt")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"mean": [0.5] * 3}, "states one of mean and std without the other"),
        ({"mean": "123", "std": [0.5] * 3}, "cannot be"),
    ],
)
def test_facts_that_cannot_be(facts: dict[str, Any], said: str) -> None:
    header = {"hetcl": json.dumps({"arch": "torchvision:resnet18", **facts})}
    save_file(bare(resnet(1)), "a.safetensors", header)
    with pytest.raises(InputError, match=said):
        load_backbone("a.safetensors")


# ---- exports ---------------------------------------------------------------------------------------------------------


def test_cards_of_bgr_weights_say_bgr() -> None:
    facts = {"arch": "torchvision:resnet18", "mean": [0.4, 0.5, 0.6], "std": [0.2] * 3, "channels": "BGR"}
    save_file(bare(resnet(1)), "bgr.safetensors", {"hetcl": json.dumps(facts)})
    _, card = export("bgr.safetensors", format="detectron2", out="b.pkl")
    text = card.read_text("utf-8")
    assert 'FORMAT: "BGR"' in text
    assert "PIXEL_MEAN: [102.000, 127.500, 153.000]  # BGR" in text
    _, card = export("bgr.safetensors", format="mmdet", out="b.pth")
    assert "bgr_to_rgb=False" in card.read_text("utf-8")
    assert "RGB, pixels" not in card.read_text("utf-8")


def test_what_is_assumed_stays_assumed() -> None:
    save(resnet(1), "a.pth")
    for number, model in enumerate(("a.pth", "out0.safetensors")):
        _, card = export(model, format="safetensors", out=f"out{number}.safetensors")
        assert "(ImageNet's: the source does not say)" in card.read_text("utf-8")
        assert load_backbone(f"out{number}.safetensors").facts.source == "assumed"  # type: ignore[union-attr]


@pytest.mark.parametrize("arch", ["timm:efficientnet_b0", "timm:mobilenetv2_050"])
def test_batch_norms_beyond_c5_are_no_hindrance(arch: str) -> None:
    state = shaken(load_backbone(arch), 3)
    save(state, "a.pth")
    export(f"{arch}:a.pth", format="safetensors", out="a.safetensors")
    again = load_backbone("a.safetensors").state_dict()
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_models_of_whole_multiples_alone() -> None:
    export("timm:dla34", format="timm", out="a.pth")


def test_rounding_is_said() -> None:
    save({n: v.double() if v.is_floating_point() else v for n, v in resnet(1).items()}, "a.pth")
    _, card = export("a.pth", format="torchvision", out="b.pth")
    assert "float32, rounded from the source's float64" in card.read_text("utf-8")


def test_any_file_name_stands_on_a_card_as_code() -> None:
    name = 'a "b" \\n é.pkl'
    _, card = export("torchvision:resnet18:random", format="detectron2", out=name)
    line = next(line for line in card.read_text("utf-8").splitlines() if line.startswith("FILE = "))
    names: dict[str, Any] = {}
    exec(line, names)
    assert names["FILE"] == name
    with pytest.raises(InputError, match="the name is too long"):
        export("torchvision:resnet18:random", format="detectron2", out="x" * 250 + ".pkl")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs a system with signals")
def test_a_signal_leaves_nothing() -> None:
    code = (
        "import sys, time; from hetcl.weights import export_proof; from hetcl.cli import main\n"
        "def slow(*a, **k):\n    print('checking', flush=True); time.sleep(60)\n"
        "export_proof.run_code = slow; sys.exit(main(sys.argv[1:]))"
    )
    words = ["export", "torchvision:resnet18:random", "--format", "torchvision", "--out", "a.pth"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "checking\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert not list(Path().iterdir())


def test_statistics_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    state = resnet(1)
    state["bn1.running_var"] = -state["bn1.running_var"]
    save(state, "a.pth")
    assert main(["export", "a.pth", "--format", "torchvision", "--out", "b.pth"]) == 2
    assert "holds a negative variance in its batch norms" in capsys.readouterr().err
