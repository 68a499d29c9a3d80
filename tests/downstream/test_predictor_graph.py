"""A fine-tuned run as an ONNX graph: equal to the run, used by the code on its card, refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import hetcl
from hetcl.cli import main
from hetcl.downstream import predictor_graph
from hetcl.downstream.models.scaling import paste
from hetcl.downstream.predictor_graph import pasted
from hetcl.errors import InputError, WorkFailed
from hetcl.images.channels import scaled as scaled_as_hetcl
from hetcl.types import PixelFormat
from tests.downstream.layouts import write_coco, write_voc
from tests.downstream.small_sets import command

pytestmark = pytest.mark.usefixtures("light")
LIGHT = "timm:test_resnet"


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("sets") / "coco", train=4, val=3, plain=True)


@pytest.fixture(scope="module")
def detector(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "detector"
    assert main(command(out, f"coco:{coco}", init=LIGHT)) == 0
    return out


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_voc(tmp_path_factory.mktemp("sets") / "voc", train=4, val=3)
    out = tmp_path_factory.mktemp("runs") / "segmenter"
    assert main(command(out, f"voc:{root}", "--model", "fcn", init=LIGHT)) == 0
    return out


def card_code(card: Path, file: Path) -> dict[str, Any]:
    """The names that the code on a card leaves."""
    code = card.read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace(f'FILE = "{file.name}"', f"FILE = {str(file)!r}"), names)
    return names


def test_a_detector_with_masks(detector: Path, coco: Path, tmp_path: Path) -> None:
    photo = next((coco / "images").glob("val*"))
    width, height = Image.open(photo).size
    file = tmp_path / "detector.onnx"
    words = ["--format", "onnx-predictor", "--out", str(file), "--image-size", f"{height}x{width}"]
    assert main(["export", str(detector), *words]) == 0
    model, classes = hetcl.load_finetuned(detector)
    model.roi_heads.score_thresh = 0.01  # type: ignore[union-attr]
    pixels = torch.from_numpy(np.array(Image.open(photo).convert("RGB"))).permute(2, 0, 1) / 255
    with torch.no_grad():
        (ours,) = model([pixels])
    assert len(ours["boxes"]) > 1
    names = card_code(tmp_path / "detector.onnx.md", file)
    assert "- Pixels: RGB, pixels / 255." in (tmp_path / "detector.onnx.md").read_text()
    boxes, scores, labels = names["detect"](photo, score=0.01)
    np.testing.assert_allclose(boxes, ours["boxes"], atol=0.1)
    np.testing.assert_allclose(scores, ours["scores"], atol=1e-3)
    assert labels == [classes[i - 1] for i in ours["labels"].tolist()]
    graph = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    *_, masks = graph.run(None, {"image": pixels.numpy(), "score_threshold": np.array(0.01, np.float32)})
    assert masks.dtype == bool
    assert (masks != ours["masks"][:, 0].numpy()).mean() < 1e-3
    for found in graph.run(None, {"image": pixels.numpy(), "score_threshold": np.array(2, np.float32)}):
        assert len(found) == 0


def test_a_segmenter(segmenter: Path, tmp_path: Path) -> None:
    file, card = hetcl.export_predictor(segmenter, out=tmp_path / "segmenter.onnx", size=(50, 70))
    model, _ = hetcl.load_finetuned(segmenter)
    image = torch.rand(3, 50, 70)
    graph = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (classes,) = graph.run(None, {"image": image.numpy()})
    with torch.no_grad():
        assert (classes == model(image[None]).argmax(1)[0].numpy()).mean() > 0.999
    photo = tmp_path / "photo.png"
    Image.fromarray((255 * image.permute(1, 2, 0)).byte().numpy()).resize((35, 25)).save(photo)
    assert card_code(card, file)["segment"](photo).shape == (50, 70)


def code_for(pixels: PixelFormat, *, detects: bool, answer: tuple[np.ndarray, ...]) -> tuple[Any, list[Any]]:
    """The names of a card's code for graphs of 40 x 60 pixels, and what the graph, which says ``answer``, was given."""
    asked: list[Any] = []

    class Session:
        def __init__(self, *args: Any, **more: Any) -> None: ...

        def run(self, outputs: None, given: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
            asked.append(given)
            return answer

    names: dict[str, Any] = {"FILE": "x"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", Session)
        exec(predictor_graph._code(["a", "b"], pixels, (40, 60), detects), names)
    return names, asked


def test_the_cards_code_keeps_boxes_inside_the_image(tmp_path: Path) -> None:
    """A photo of 20 x 20 fills 40 x 40 of the graph's 40 x 60."""
    boxes = np.array([[2, 4, 20, 30], [30, 0, 55, 38], [41, 2, 59, 20], [-3, -1, 10, 45]], np.float32)
    scores, labels = np.arange(4, dtype=np.float32), np.array([1, 2, 1, 2])
    names, asked = code_for(PixelFormat(), detects=True, answer=(boxes, scores, labels))
    values = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    found, kept, classes = names["detect"](tmp_path / "a.png")
    np.testing.assert_array_equal(found, [[1, 2, 10, 15], [15, 0, 20, 19], [0, 0, 5, 20]])
    assert kept.tolist() == [0, 1, 3]
    assert classes == ["a", "b", "b"]
    (given,) = asked
    assert given["image"].shape == (3, 40, 60)
    assert not given["image"][:, :, 40:].any()
    expected = Image.fromarray(values).resize((40, 40), Image.Resampling.BILINEAR)
    scaled = np.asarray(expected, np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(
        given["image"][:, :, :40], scaled, atol=1.1 / 255
    )  # (it rounds twice, the code does not)


@pytest.mark.parametrize(
    ("pixels", "dtype", "top"),
    [
        (PixelFormat(5, 4095), np.uint16, 4095),
        (PixelFormat(1), np.uint16, 65535),
        (PixelFormat(2), np.float32, 1),
    ],
)
def test_the_cards_code_takes_stored_values_of_other_images(
    pixels: PixelFormat, dtype: Any, top: float
) -> None:
    draw = np.random.default_rng(1)
    values = (draw.random((40, 50, pixels.channels)) * top).astype(dtype)
    answer = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    names, asked = code_for(pixels, detects=True, answer=answer)
    assert [len(part) for part in names["detect"](values)] == [0, 0, 0]
    theirs = scaled_as_hetcl(values, top)
    np.testing.assert_allclose(asked[0]["image"][:, :, :50], theirs.transpose(2, 0, 1), atol=1e-6)
    if pixels.channels == 1:
        names["detect"](values[..., 0])
        np.testing.assert_array_equal(asked[1]["image"], asked[0]["image"])
    names, asked = code_for(pixels, detects=False, answer=(np.ones((40, 60), np.int64),))
    assert names["segment"](values).shape == (40, 50)
    words = predictor_graph._pixel_words(pixels)
    assert f"the stored value / {top}" in words or "(1 for floats)" in words
    assert "the code takes an array of stored values" in words


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 5), height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 999))
def test_masks_are_pasted_as_one_by_one(n: int, height: int, width: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    masks = torch.rand((n, 7, 7), generator=draw)
    edges = torch.rand((n, 4), generator=draw) * 60 - 10
    boxes = torch.cat([edges[:, :2], edges[:, :2] + edges[:, 2:].abs()], dim=1)
    expected = paste(masks, boxes, (height, width))
    assert (
        pasted(masks, boxes, (height, width)) != expected
    ).float().mean().nan_to_num() < 2e-3  # ties by rounding


def test_a_graph_that_differs_leaves_nothing(
    segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(model: Any, image: Tensor, *, detects: bool) -> list[np.ndarray]:
        return [model(image[None]).argmin(dim=1)[0].numpy()]

    monkeypatch.setattr(predictor_graph, "_asked", other)
    with pytest.raises(WorkFailed, match=r"the graph is not equal to .*, and was removed: .*labels in"):
        hetcl.export_predictor(segmenter, out=tmp_path / "a.onnx", size=(32, 32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "480"], "is no height and width, such as 480x640"),
        (["--image-size", "8x640"], "a side has 32 to 4096 pixels"),
        (["--allow-partial", "x"], "--allow-partial is of backbones"),
        (["--out", "a.pth"], "writes .onnx"),
    ],
)
def test_bad_words_are_one_line(
    words: list[str], message: str, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(segmenter), "--format", "onnx-predictor", "--out", "a.onnx", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert not list(tmp_path.iterdir())


def test_other_things_than_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no run folder: it has no settings\.yaml"):
        hetcl.export_predictor(tmp_path, out=tmp_path / "a.onnx")
    with pytest.raises(InputError, match="onnx-predictor is of fine-tuned runs"):
        hetcl.export("torchvision:resnet18:random", format="onnx-predictor", out=tmp_path / "a.onnx")
    assert (
        main(
            [
                "export",
                "timm:resnet10t:random",
                "--format",
                "onnx",
                "--out",
                str(tmp_path / "a.onnx"),
                "--image-size",
                "64x64",
            ]
        )
        == 2
    )
