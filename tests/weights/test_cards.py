"""The card: everything a user of the file must know, and configurations that their libraries would parse."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from hetcl.model.build import build_embedding
from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder
from hetcl.views.photometric import IMAGENET_MEAN, IMAGENET_STD
from hetcl.weights import export_proof, exporters
from hetcl.weights.cards import Facts, configurations
from hetcl.weights.exporters import export
from hetcl.weights.load_code import Target, code
from hetcl.weights.plain_resnet import PlainResNet
from hetcl.weights.sources import Weights

FACTS = Facts(
    "torchvision:resnet50", ("moco-v2", "hcl"), 224, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "RGB", False
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def a_run(arch: str = "timm:test_resnet") -> RunFolder:
    run = RunFolder("run")
    run.checkpoints.mkdir(parents=True)
    tree = {"data": "/somewhere/private", "recipe": "smoke", "hetcl": "0.0.7"}
    run.write_settings(tree | {"settings": {"backbone": arch, "size": 64, "stage1": {"epochs": 3}}})
    run.write_summary({"machine": {"commit": "abc123def456"}, "data": {"images": 77}})
    query = build_embedding("moco-v2", arch, seed=0, words={"semantic": {"dim": 8}}).state_dict()
    facts = {"arch": arch, "method": "moco-v2", "size": 64, "semantic_dim": 8}
    checkpoint.save(run.checkpoints / "stage1.ckpt", {"task": {"query": query}, **facts})
    return run


def config(depth: int, bottleneck: bool, groups: int = 1, width: int = 64, form: int = 0) -> dict[str, Any]:
    target = Target("detectron2", "torchvision", "x", resnet=PlainResNet(depth, bottleneck, groups, width))
    return yaml.safe_load(configurations(target, FACTS, "my.pkl")[form][2])


def test_it_says_what_made_the_file_and_what_the_check_saw() -> None:
    run = a_run()
    out = Path("out.pth")
    export("run", format="timm", out=out)
    text = Path("out.pth.md").read_text("utf-8")
    assert hashlib.sha256(out.read_bytes()).hexdigest() in text
    for words in (
        "run, timm:test_resnet",
        "moco-v2",
        "64 x 64 pixels",
        "RGB",
        "0.485, 0.456, 0.406",
        "Apache-2.0",
    ):
        assert words in text
    assert "hetcl 0.0.7, commit abc123def456, recipe smoke, on 77 images" in text
    assert "the source does not say" not in text
    settings = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)[-1])
    assert settings == run.read_settings()["settings"]
    assert "/somewhere/private" not in text
    assert len(re.findall(r"^\| C\d \| \d\.\de[-+]\d\d \|$", text, re.M)) == 4
    assert str(Path.cwd()) not in text


@pytest.mark.parametrize("model", ["run", "run/checkpoints/stage1.ckpt"])
def test_settings_are_found_from_any_file_of_a_run(model: str) -> None:
    a_run()
    export(model, format="timm", out="out.pth")
    assert "recipe smoke" in Path("out.pth.md").read_text("utf-8")


def test_a_file_that_merely_lies_in_a_run_is_not_of_it() -> None:
    a_run()
    export("run", format="timm", out="run/out.pth")
    assert exporters.writers.run_of("run/out.pth") is None
    assert exporters.writers.run_of("torchvision:resnet18:random") is None


def test_a_broken_summary_does_not_stop_the_export() -> None:
    run = a_run()
    for broken in ("{", "[]", "null"):
        run.summary.write_text(broken)
        export("run", format="timm", out="out.pth", overwrite=True)
        assert "recipe smoke" in Path("out.pth.md").read_text("utf-8")


def test_means_that_nobody_gave_are_called_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    def facts(said: dict[str, Any]) -> Facts:
        return exporters._facts("torchvision:x", Weights("x", None, {}, None, said))

    assert facts({}).assumed
    said = facts({"mean": [0.5] * 3, "std": [0.2] * 3})
    assert (said.assumed, said.mean) == (False, (0.5,) * 3)
    assert not facts({"method": "hcl"}).assumed


def test_detectron2_is_told_all_it_must_set() -> None:
    fpn, c4 = config(50, True), config(50, True, form=1)
    for tree in (fpn, c4):
        assert tree["MODEL"]["WEIGHTS"] == "my.pkl"
        assert tree["MODEL"]["BACKBONE"]["FREEZE_AT"] == 0
        assert tree["MODEL"]["RESNETS"] == {"DEPTH": 50, "STRIDE_IN_1X1": False, "NORM": "SyncBN"}
        assert tree["MODEL"]["PIXEL_MEAN"] == pytest.approx([127.5, 102.0, 76.5])
        assert tree["MODEL"]["PIXEL_STD"] == pytest.approx([51.0, 63.75, 76.5])
        assert tree["INPUT"]["FORMAT"] == "RGB"
    assert fpn["MODEL"]["FPN"] == {"NORM": "SyncBN"}
    assert [fpn["_BASE_"], c4["_BASE_"]] == ["Base-RCNN-FPN.yaml", "Base-RCNN-C4.yaml"]
    assert c4["MODEL"]["ROI_HEADS"] == {"NAME": "Res5ROIHeadsExtraNorm"}
    assert config(18, False)["MODEL"]["RESNETS"]["RES2_OUT_CHANNELS"] == 64
    with pytest.raises(IndexError):
        config(18, False, form=1)
    wide = config(101, True, 32, 8)["MODEL"]["RESNETS"]
    assert (wide["NUM_GROUPS"], wide["WIDTH_PER_GROUP"]) == (32, 8)


def test_the_norm_after_res5_is_code_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against what detectron2's interface gives it: a registry, a head that is made of parts, norms by name."""

    class Registry(dict[str, Any]):
        def register(self) -> Any:
            return lambda head: self.setdefault(head.__name__, head)

    class Res5ROIHeads:
        @classmethod
        def from_config(cls, cfg: Any, input_shape: Any) -> dict[str, Any]:
            return {"res5": torch.nn.Sequential(torch.nn.Conv2d(4, 2048, 1)), "pooler": None}

    layers, heads = ModuleType("detectron2.layers"), ModuleType("detectron2.modeling.roi_heads")
    layers.get_norm = lambda name, channels: {"BN": torch.nn.BatchNorm2d}[name](channels)  # type: ignore[attr-defined]
    heads.ROI_HEADS_REGISTRY, heads.Res5ROIHeads = Registry(), Res5ROIHeads  # type: ignore[attr-defined]
    for module in (*map(ModuleType, ("detectron2", "detectron2.modeling")), layers, heads):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    target = Target("detectron2", "torchvision", "x", resnet=PlainResNet(50, True, 1, 64))
    (_, _, config_text), (_, language, text) = configurations(target, FACTS, "my.pkl")[1:]
    assert language == "python"
    exec(compile(text, "card", "exec"), {})
    head = heads.ROI_HEADS_REGISTRY[yaml.safe_load(config_text)["MODEL"]["ROI_HEADS"]["NAME"]]
    resnets = SimpleNamespace(RES2_OUT_CHANNELS=256, NORM="BN")
    res5 = head.from_config(SimpleNamespace(MODEL=SimpleNamespace(RESNETS=resnets)), None)["res5"]
    assert [name for name, _ in res5.named_children()] == ["0", "norm"]
    assert res5(torch.rand(2, 4, 7, 7)).mean(dim=(0, 2, 3)).abs().max() < 1e-5


def test_the_tutorial_shows_the_card_of_a_resnet50() -> None:
    usual = Facts("torchvision:resnet50", (), 224, IMAGENET_MEAN, IMAGENET_STD, "RGB", False)
    target = Target("detectron2", "torchvision", "resnet50", resnet=PlainResNet(50, True, 1, 64))
    document = Path(__file__).resolve().parents[2] / "docs" / "tutorial-detector.md"
    assert configurations(target, usual, "backbone.pkl")[0][2] in document.read_text("utf-8")


def test_mm_is_told_where_the_weights_are() -> None:
    target = Target("mmdet", "torchvision", "resnet50", resnet=PlainResNet(50, True, 1, 64))
    names: dict[str, Any] = {}
    exec(configurations(target, FACTS, "my.pth")[0][2], names)
    backbone = names["model"]["backbone"]
    assert backbone["init_cfg"] == {"type": "Pretrained", "checkpoint": "my.pth", "prefix": "backbone."}
    assert (backbone["style"], backbone["frozen_stages"]) == ("pytorch", -1)
    assert names["model"]["data_preprocessor"]["mean"] == pytest.approx([127.5, 102.0, 76.5])
    assert names["model"]["data_preprocessor"]["bgr_to_rgb"] is True


def test_code_for_detectron2_is_not_said_to_have_run() -> None:
    export("torchvision:resnet18:random", format="detectron2", out="out.pkl")
    text = Path("out.pkl.md").read_text("utf-8")
    try:
        import detectron2  # noqa: F401
    except ImportError:
        assert "this code was not run" in text
    target = Target("detectron2", "torchvision", "resnet18", resnet=PlainResNet(18, False, 1, 64))
    assert code(target) in text
    compile(code(target), "card", "exec")


def test_ran_code_stands_on_the_card_as_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    real = export_proof.run_code
    monkeypatch.setattr(export_proof, "run_code", lambda c, f: ran.append(c) or real(c, f))
    export("torchvision:resnet18:random", format="mmdet", out="out.pth")
    block = re.findall(r"^```python\n(.*?)^```", Path("out.pth.md").read_text("utf-8"), re.M | re.S)[0]
    assert block == 'FILE = "out.pth"\n\n' + ran[0].rstrip() + "\n"
    assert torch.load("out.pth", weights_only=True)["meta"]["arch"] == "torchvision:resnet18"


def test_the_list_of_formats_loads_without_torch() -> None:
    code = (
        "import sys; from hetcl.weights.cards import PURPOSES; print('torch' in sys.modules, len(PURPOSES))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "8"]


def test_metadata_is_json_and_plain() -> None:
    assert json.loads(json.dumps(FACTS.metadata())) == FACTS.metadata()


def test_text_of_a_strangers_run_stays_text() -> None:
    run = a_run()
    tree = run.read_settings()
    forged = "x | y |\n\n# Forged\n<img src=a>\u202e"
    tree |= {"recipe": forged, "hetcl": "1 `code`"}
    tree["settings"]["```\n# Forged"] = forged
    run.write_settings(tree)
    export("run", format="timm", out=Path("a|b\u202e.pth"))
    text = Path("a|b\u202e.pth.md").read_text("utf-8")
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "\n# Forged" not in outside
    assert not re.search(r"(?<!\\)<img", outside)
    assert "\u202e" not in text
    assert all(line.count("|") - line.count("\\|") in (0, 3) for line in outside.splitlines())
    assert 'FILE = "a|b\\u202e.pth"' in text
