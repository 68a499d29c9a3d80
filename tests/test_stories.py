"""docs/stories.md, run as it stands: three paths from nothing to a result, each in few commands, on small sets.

Names of data and weights are those of the page (published weights are not downloaded, but made here); sizes are added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from hetcl.cli import main
from hetcl.images.scenes import scene
from hetcl.weights import published
from tests.downstream.layouts import save, write_coco
from tests.downstream.light import small_heads
from tests.downstream.small_sets import FINETUNE
from tests.test_readme import ROOT, words_of
from tests.weights.files import moco

PAGE = (ROOT / "docs" / "stories.md").read_text("utf-8")
LIMITS = {"800 photos and a laptop": 6, "Compare methods": 8, "A detector from a public checkpoint": 8}
"""Section -> commands that it may take, Python counted as one."""
PUBLISHED = "timm:resnet10t:c3_in1k"
HERE = ["--threads", "1", "--workers", "0", "--device", "cpu"]
SHORT = ["--size", "32", "--batch", "16", "--spatial.side", "4", "--spatial.width", "16", "--log_every", "1"]
SIZES = {
    "pretrain": [*SHORT, "--stage1.epochs", "1", "--stage2.epochs", "1", *HERE],
    "contrast": ["--size", "32", "--examples", "2", "--dims", "8,16", *HERE],
    "probe": HERE,
    "embed": HERE,
    "report": ["--examples", "2"],
    "reproduce": ["--quick", "--threads", "1", "--workers", "0", "--device", "cpu"],
    "finetune": [*FINETUNE, "--steps", "2", "--milestones", "1", "--evaluations", "1"],
    "evaluate": HERE,
    "predict": ["--score_threshold", "0.02", *HERE],
    "export": ["--image-size", "48x64"],
}
"""What is added to a verb's words; the last of two values counts."""


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def sized(words: list[str]) -> list[str]:
    """The command with small sizes; ``doctor`` gets those of the verb that it is asked about."""
    verb = words[0]
    if verb == "doctor":
        if "--data" not in words:
            return words
        verb = "finetune" if any(w.startswith("coco:") for w in words) else "pretrain"
    if verb == "pretrain" and words[-2:] == ["--stage2.epochs", "0"]:
        return [*words, *SHORT, "--stage1.epochs", "2", *HERE]
    return [w for w in words if w != "--mini"] + SIZES[verb]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs the commands and the Python of a section of the page in an empty folder."""
    monkeypatch.chdir(tmp_path)
    small_heads(monkeypatch)

    def walk(title: str) -> None:
        threads, count = torch.get_num_threads(), 0
        for kind, block in re.findall(
            r"^```(bash|python)\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL
        ):
            if kind == "python":
                count += 1
                exec(compile(block, "stories.md", "exec"), {})
                continue
            for words in words_of("hetcl", f"```bash\n{block}```\n"):
                count += 1
                assert main(sized(words)) == 0, words
        torch.set_num_threads(threads)
        assert 3 < count <= LIMITS[title]

    return walk


def photos(folder: str, count: int, seed: int = 0) -> None:
    for i in range(count):
        save(Path(folder) / f"{i}.jpg", scene(i, seed=seed, size=64).pixels)


def tree_of(path: str) -> Any:
    return json.loads(Path(path).read_text("utf-8"))


def page(path: str) -> str:
    text = Path(path).read_text("utf-8")
    assert "Traceback" not in text
    assert "Not shown" not in text
    return text


def test_every_section_has_a_limit() -> None:
    assert re.findall(r"^## (.*)$", PAGE, re.MULTILINE) == [*LIMITS]


def test_photos_without_labels(
    run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos("my-photos", 46)
    photos("my-photos/again", 2)  # copies of the first two
    torch.manual_seed(0)
    made = timm.create_model("resnet10t").state_dict()
    made |= {
        name: 2 * value for name, value in made.items() if name.endswith("running_var")
    }  # not untrained ones
    monkeypatch.setattr(published, "fetch", lambda *_: (made, published.timm_facts("resnet10t.c3_in1k")))
    run("800 photos and a laptop")
    likest = [line.split() for line in capsys.readouterr().out.splitlines()[-20:]]
    assert {frozenset(line[1:]) for line in likest[:4]} == {
        frozenset({f"{i}.jpg", f"again/{i}.jpg"}) for i in range(2)
    }
    assert np.load("photos.npy").shape == (48, 512)
    found = tree_of("contrast/contrast.json")
    assert found["yardsticks"][0]["before"] == PUBLISHED  # what the run began with
    assert {"run pooled", PUBLISHED} in [set(d["models"]) for d in found["differences"]]
    assert found["verdict"][0]["line"] in page("report.html")
    assert "Nearest neighbours" in page("report.html")


def test_two_methods(run: Callable[[str], None]) -> None:
    for part, seed in (("train", 0), ("val", 1)):
        for name in ("a", "b"):
            photos(f"images/{part}/{name}", 16, seed=10 * seed + ord(name))
    run("Compare methods")
    pairs = [set(d["models"]) for d in tree_of("contrast/contrast.json")["differences"]]
    assert {"hcl", "moco"} in pairs
    assert {"hcl", "moco"} in [{d["first"], d["second"]} for d in tree_of("where/where.json")["differences"]]
    assert tree_of("labels/probe.json")["data"]["test_images"] == 32
    assert page("report.html").count("badge") >= 2
    cells = tree_of("fig4/reproduction.json")["cells"]
    assert len(cells) == 5
    assert "fig4" in page("fig4/report.html")


def test_detector_from_a_checkpoint(run: Callable[[str], None]) -> None:
    torch.save(moco()[0], "moco_v2_800ep_pretrain.pth.tar")
    write_coco(Path("my-set"), masks="polygons", plain=True)
    photos("photos", 3, seed=5)
    run("A detector from a public checkpoint")
    assert tree_of("evaluation/evaluation.json")["figures"] == tree_of("detector/summary.json")["figures"]
    predicted = tree_of("predictions/predictions.json")
    assert len(predicted["images"]) == 3
    for image in predicted["images"]:
        assert Image.open(Path("predictions") / image["drawn"]).size
    assert page("report.html").count("Predictions beside the truth") >= 2
    (code,) = re.findall(r"^```python\n(.*?)^```", Path("detector.onnx.md").read_text("utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(code, "detector.onnx.md", "exec"), names)
    boxes, scores, classes = names["detect"]("photos/0.jpg", score=0.0)
    assert boxes.shape == (len(scores), 4)
    assert len(classes) == len(scores) > 0
