"""``--format hub``: a folder that timm loads, with a README whose header hubs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

import hetcl
from hetcl.errors import InputError, WorkFailed
from hetcl.weights import hub
from hetcl.weights.encoder import load_encoder
from tests.weights.test_exporters import FACTS, a_backbone, elsewhere

__all__ = ["elsewhere"]  # (a fixture)


def header_of(folder: Path) -> dict[str, Any]:
    before, text, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert before == ""
    return yaml.safe_load(text)


def test_timm_loads_the_folder_and_its_maps_are_the_sources() -> None:
    source = a_backbone("timm:test_resnet")
    files = hetcl.export(source, format="hub", out="mine")
    assert [str(f) for f in files] == ["mine/model.safetensors", "mine/config.json", "mine/README.md"]
    assert {p.name for p in Path("mine").iterdir()} == {*hub.PARTS}
    backbone = timm.create_model(
        "local-dir:mine", pretrained=True, features_only=True, out_indices=(1, 2, 3, 4)
    )
    images = torch.randn(2, 3, 96, 64)
    ours = hetcl.load_backbone(source)
    with torch.no_grad():
        for a, b in zip(ours(images), backbone.eval()(images), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    classifier = timm.create_model("local-dir:mine", pretrained=True, num_classes=7)
    assert classifier.eval()(images).shape == (2, 7)
    given = timm.data.resolve_data_config(model=classifier)
    assert [*given["mean"]] == FACTS["mean"]
    assert [*given["std"]] == FACTS["std"]
    assert [*given["input_size"]] == [3, 96, 96]
    assert load_encoder("mine/model.safetensors").facts.mean == tuple(FACTS["mean"])


def test_the_header_says_what_is_known_and_nothing_else(tmp_path: Path) -> None:
    hetcl.export(a_backbone("torchvision:resnet18"), format="hub", out="mine")
    head = header_of(tmp_path / "mine")
    assert head["library_name"] == "timm"
    assert head["license"] == "other"
    assert {"timm", "moco-v2", "hcl"} <= set(head["tags"])
    assert not {"datasets", "metrics", "model-index"} & head.keys()
    facts: Any = type("F", (), {"method": ("hcl",)})
    text = hub.header("mine", facts, {"data": "/of/somebody/flowers", "knn": 0.1234})
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["datasets"] == ["flowers"]
    assert head["metrics"] == ["accuracy"]
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == 12.34
    assert "somebody" not in text
    assert "datasets" not in yaml.safe_load(
        hub.header("mine", facts, {"data": "scenes:27"}).split("---\n")[1]
    )


def test_what_is_no_model_of_timms_is_refused() -> None:
    with pytest.raises(
        InputError, match="timm has no model of that name with the same weights; export it as torchv"
    ):
        hetcl.export("torchvision:convnext_tiny:random", format="hub", out="mine")
    assert not Path("mine").exists()


def test_a_folder_that_is_there(tmp_path: Path) -> None:
    source = a_backbone("timm:test_resnet")
    for name in hetcl.export(source, format="hub", out="mine"):
        assert name.is_file()
    with pytest.raises(InputError, match="add --overwrite"):
        hetcl.export(source, format="hub", out="mine")
    Path("mine/config.json").write_text("{}")
    Path("mine/.gitattributes").write_text("")
    hetcl.export(source, format="hub", out="mine", overwrite=True)
    assert json.loads(Path("mine/config.json").read_text())["architecture"] == "test_resnet"
    Path("mine/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else \(notes.txt\)"):
        hetcl.export(source, format="hub", out="mine", overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        hetcl.export(source, format="hub", out=source)
    with pytest.raises(InputError, match="make it first"):
        hetcl.export(source, format="hub", out="nowhere/mine")


def test_a_folder_that_does_not_come_back_equal_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hub.config
    monkeypatch.setattr(
        hub, "config", lambda *a: real(*a).replace(b'"mean": [\n      0.5', b'"mean": [\n      0.6')
    )
    with pytest.raises(WorkFailed, match="another mean"):
        hetcl.export(a_backbone("timm:test_resnet"), format="hub", out="mine")
    assert [p.name for p in Path().iterdir()] == ["source.safetensors"]
