"""Sizes of images, and boxes and masks back in the image's own pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hetcl.downstream.models.scaling import Scaling, normalized, paste, scaled_size
from hetcl.weights.facts import InputFacts
from tests.downstream.models.making import small


@pytest.mark.parametrize(
    ("size", "short", "longest", "wanted"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 1280), 800, 1333, (445, 1333)),
        ((375, 500), 480, 800, (480, 640)),
        ((1, 900), 100, 300, (1, 300)),
    ],
)
def test_sizes_are_detectron2s(size, short, longest, wanted) -> None:
    assert scaled_size(size, short, longest) == wanted


def test_images_shrink_as_pillow_shrinks_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(pixels).resize((60, 40), Image.Resampling.BILINEAR), np.float32)
    scaling = Scaling((90,), 200, 40, divisible=32).eval()
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    got, target = scaling.resize(image, {"boxes": torch.tensor([[15.0, 10, 150, 100]])})
    assert np.abs(got.permute(1, 2, 0).numpy() * 255 - wanted).max() < 1
    torch.testing.assert_close(target["boxes"], torch.tensor([[6.0, 4, 60, 40]]))


def test_training_draws_from_the_short_sides_and_pads() -> None:
    torch.manual_seed(0)
    scaling = Scaling((40, 48, 56), 100, 64, divisible=32).train()
    image = torch.rand(3, 80, 90)
    seen = {scaling([image])[0].image_sizes[0][0] for _ in range(40)}
    assert seen == {40, 48, 56}
    batch, _ = scaling.eval()([image])
    assert batch.tensors.shape == (1, 3, 64, 96)
    assert batch.image_sizes == [(64, 72)]
    assert not batch.tensors[..., 72:].any()


def test_colors_are_normalized_with_imagenets_mean_and_deviation() -> None:
    got = normalized(torch.tensor([123.675 + 58.395, 116.28, 103.53 - 2 * 57.375]).view(3, 1, 1) / 255)
    torch.testing.assert_close(got.flatten(), torch.tensor([1.0, 0, -2]), atol=1e-5, rtol=0)


def naive_paste(mask: np.ndarray, box: list[float], size: tuple[int, int]) -> np.ndarray:
    """Each pixel's middle asks the mask, bilinearly, nothing outside of it."""
    out = np.zeros(size, bool)
    side = len(mask)
    padded = np.pad(mask, 1)
    for row in range(size[0]):
        for column in range(size[1]):
            x = (column + 0.5 - box[0]) / (box[2] - box[0]) * side + 0.5
            y = (row + 0.5 - box[1]) / (box[3] - box[1]) * side + 0.5
            if not (0 <= x < side + 1 and 0 <= y < side + 1):
                continue
            i, j, u, v = int(y), int(x), y - int(y), x - int(x)
            part = padded[i : i + 2, j : j + 2]
            value = (1 - u) * ((1 - v) * part[0, 0] + v * part[0, 1])
            value += u * ((1 - v) * part[1, 0] + v * part[1, 1])
            out[row, column] = value >= 0.5
    return out


def test_masks_are_pasted_continuously() -> None:
    masks = np.random.default_rng(0).random((4, 14, 14)).astype(np.float32)
    boxes = [[3.3, 2.1, 30.8, 25.5], [-6.0, 10, 12, 60], [20, 20, 20.9, 21.2], [35, 5, 49.4, 38]]
    got = paste(torch.from_numpy(masks), torch.tensor(boxes), (40, 50)).numpy()
    assert got.shape == (4, 40, 50)
    for one, mask, box in zip(got, masks, boxes, strict=True):
        wanted = naive_paste(mask, box, (40, 50))
        assert np.sum(one != wanted) <= 1  # the last bits of a value at one half
    assert got[0].any()
    assert paste(torch.zeros(0, 14, 14), torch.zeros(0, 4), (5, 6)).shape == (0, 5, 6)


def test_a_whole_mask_fills_its_box() -> None:
    got = paste(torch.ones(1, 28, 28), torch.tensor([[4.0, 6, 20, 30]]), (40, 50))[0]
    wanted = torch.zeros(40, 50, dtype=torch.bool)
    wanted[6:30, 4:20] = True
    assert torch.equal(got, wanted)


def test_detections_are_in_the_images_own_pixels() -> None:
    torch.manual_seed(0)
    model = small(score_threshold=0.0, detections=7).eval()
    with torch.no_grad():
        found = model([torch.rand(3, 60, 200), torch.rand(3, 300, 250)])
    for one, (height, width) in zip(found, [(60, 200), (300, 250)], strict=True):
        assert one["masks"].shape == (7, 1, height, width)
        assert one["masks"].dtype == torch.bool
        assert one["labels"].min() >= 1
        assert one["boxes"].min() >= 0
        assert one["boxes"][:, 0::2].max() <= width + 1e-3
        assert one["boxes"][:, 1::2].max() <= height + 1e-3
        assert torch.equal(one["scores"], one["scores"].sort(descending=True).values)


def test_images_are_given_as_the_backbone_was_trained() -> None:
    facts = InputFacts((0.1, 0.2, 0.3), (0.5, 0.25, 0.2), None, "BGR", "the file")
    pixels = torch.tensor([0.9, 0.5, 0.6]).view(3, 1, 1)  # red, green, blue
    wanted = torch.tensor([(0.6 - 0.1) / 0.5, (0.5 - 0.2) / 0.25, (0.9 - 0.3) / 0.2])
    torch.testing.assert_close(normalized(pixels, facts).flatten(), wanted)
    torch.testing.assert_close(
        Scaling((8,), 8, 8, divisible=1, facts=facts).normalize(pixels).flatten(), wanted
    )


def test_a_target_may_name_the_side() -> None:
    scaling = Scaling((8,), 100, 8, divisible=1).train()
    target = {"boxes": torch.tensor([[0.0, 0.0, 10.0, 20.0]]), "short": torch.tensor(40)}
    image, scaled = scaling.resize(torch.zeros(3, 20, 30), target)
    assert image.shape == (3, 40, 60)
    assert scaled is not None
    assert scaled["boxes"].tolist() == [[0.0, 0.0, 20.0, 40.0]]
    assert "short" not in scaled
