"""Small detectors for the tests of whole commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hetcl
from hetcl.cli import main
from hetcl.runs import checkpoint
from tests.downstream.layouts import write_coco, write_voc
from tests.downstream.light import small_heads
from tests.downstream.predicting import LIGHT
from tests.downstream.small_sets import command


@pytest.fixture(scope="module")
def light() -> Iterator[None]:
    """Detectors of this module have small heads, as those of the fork server's processes (``processes.py``) have."""
    with pytest.MonkeyPatch.context() as patch:
        small_heads(patch)
        yield


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("sets") / "coco", train=4, val=5, plain=True)


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("sets") / "voc", train=4, val=3)


@pytest.fixture(scope="module")
def detector(light: None, coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "detector"
    assert main(command(out, f"coco:{coco}", init=LIGHT)) == 0
    return out


@pytest.fixture(scope="module")
def segmenter(light: None, voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "segmenter"
    assert main(command(out, f"voc:{voc}", "--model", "fcn", init=LIGHT)) == 0
    # In four steps it learned to name one class; with the others as likely on the whole, it sees several.
    model, _ = hetcl.load_finetuned(out)
    pixels = np.asarray(Image.open(next(voc.rglob("JPEGImages/val*.jpg"))).convert("RGB"))
    with torch.no_grad():
        likely = model(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255).mean(dim=(0, 2, 3))
    last = out / "checkpoints" / "last.ckpt"
    content = checkpoint.load(last)
    name = [n for n, v in content["task"]["model"].items() if v.shape == likely.shape][-1]
    content["task"]["model"][name] -= likely
    checkpoint.save(last, content)
    return out


@pytest.fixture
def photos(coco: Path, tmp_path: Path) -> Path:
    """Four images of two sizes, two of them a folder deeper."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for i, path in enumerate(sorted((coco / "images").iterdir())[:4]):
        image = Image.open(path)
        image = image if i < 2 else image.resize((80, 60))
        image.save(folder / ("deep" if i % 2 else ".") / f"{i}.png")
    return folder
