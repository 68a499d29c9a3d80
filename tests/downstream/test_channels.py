"""Images of other channels in detectors and segmenters: read, scaled, padded, normalised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hetcl.datasets import open_detection
from hetcl.datasets.files import read_image, stored_size
from hetcl.datasets.scenes import scenes_segmentation
from hetcl.downstream.loader import SegmentationExamples, resized
from hetcl.downstream.models import segmenter
from hetcl.downstream.parts import look_at_part, settle_pixels
from hetcl.errors import InputError
from hetcl.types import RGB, BadImage, PixelFormat
from hetcl.weights.channels import with_channels
from hetcl.weights.facts import InputFacts
from hetcl.weights.sources import read_weights
from tests.downstream.layouts import write_coco

RANDOM = "timm:test_resnet:random"


def test_floats_are_resized_as_pillow_resizes_bytes() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 31, 3), np.uint8)
    for size in ((17, 40), (31, 20), (8, 9)):
        ours = resized(pixels / np.float32(255), size) * 255
        assert np.abs(ours - resized(pixels, size)).max() < 1.1  # it rounds between its two passes
    wide = rng.random((20, 31, 5)).astype(np.float32)
    assert resized(wide, (8, 9)).shape == (9, 8, 5)


def test_segmenters_of_one_channel() -> None:
    data = scenes_segmentation("scenes:4@64", "train")
    look_at_part(data, PixelFormat(1, 255))
    examples = SegmentationExamples(data, crop=96, scale=(0.9, 1.1), flip_p=0.5)
    image, target = examples(1, np.random.default_rng(0))
    assert image.shape == (1, 96, 96)
    assert image.dtype == torch.float32
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert target["labels"].shape == (96, 96)
    facts = InputFacts((0.4,), (0.2,), None, "stored", "measured", 255.0)
    model = segmenter(
        "timm:test_resnet", classes=len(data.classes), norm="tuned", facts=facts, seed=0
    ).train()
    loss = model(image[None].repeat(2, 1, 1, 1), target["labels"][None].repeat(2, 1, 1))["loss"]
    assert bool(loss.isfinite())


def test_scenes_have_three_channels() -> None:
    data = scenes_segmentation("scenes:4@64", "train")
    with pytest.raises(InputError, match=r"scene 0: 3 channels, where 5 are read; set in_chans to 3"):
        look_at_part(data, PixelFormat(5))


def test_sizes_and_slack(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (20, 30, 5), np.uint16)
    np.save(tmp_path / "a.npy", values)
    assert stored_size(str(tmp_path), "a.npy") == (20, 30)
    form = PixelFormat(5, 4095)
    whole = read_image(str(tmp_path), "a.npy", (20, 30), pixels=form)
    np.testing.assert_array_equal(whole, values / np.float32(4095))
    padded = read_image(str(tmp_path), "a.npy", (21, 29), 2, form)
    np.testing.assert_array_equal(padded[:20], whole[:, :29])
    np.testing.assert_array_equal(padded[20], whole[19, :29])
    with pytest.raises(BadImage, match="annotations are of"):
        read_image(str(tmp_path), "a.npy", (30, 20), pixels=form)


def test_whose_mean_and_std_count() -> None:
    data = scenes_segmentation("scenes:8@64", "train")
    rgb, gray = read_weights(RANDOM), with_channels(read_weights(RANDOM), 1)
    how = {"in_chans": 1, "pixel_max": 255.0}
    measured = settle_pixels([data], gray, given=((), ()), **how)  # type: ignore[arg-type]
    assert (measured.source, len(measured.mean)) == ("measured", 1)
    set_ = settle_pixels([data], gray, given=((0.3,), (0.2,)), **how)  # type: ignore[arg-type]
    assert (set_.mean, set_.std, set_.pixel_max) == ((0.3,), (0.2,), 255)
    plain = settle_pixels([data], rgb, in_chans=0, pixel_max=0, given=((), ()))
    assert plain.pixels.rgb
    assert data.pixels.rgb
    deep = settle_pixels([data], rgb, in_chans=3, pixel_max=255, given=((), ()))
    assert deep.mean == plain.mean
    assert deep.pixels == PixelFormat(3, 255)


def test_sixteen_bits_that_a_detector_would_read_as_eight_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_coco(tmp_path, masks=None, plain=True)
    data = open_detection(f"coco:{tmp_path}", "train")
    look_at_part(data, RGB)
    assert not caplog.records
    for path in (tmp_path / "images").iterdir():
        gray = np.asarray(Image.open(path).convert("L"), np.uint16) * 16  # 12 bits of 16
        gray[0, 0] = 4095
        Image.fromarray(gray).save(path, "PNG")
    look_at_part(open_detection(f"coco:{tmp_path}", "train"), RGB)
    (line,) = caplog.messages
    assert "values up to 4,095 of 65,535 become 16 levels of 256" in line
    assert "set pixel_max to the largest value of the data, such as 4095" in line
    look_at_part(data, RGB, fix="give it such")  # of a run, whose pixels are as they are
    assert len(caplog.records) == 1
