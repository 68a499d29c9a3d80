"""Images and label maps as stored: kinds of pixels, EXIF, sizes that disagree, damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hetcl.datasets import open_detection, open_segmentation
from hetcl.datasets.annotations import DetectionSet
from hetcl.types import BadImage
from tests.downstream import layouts

H, W = 20, 30


def one_image(root: Path, name: str = "a.png", size: tuple[int, int] = (H, W)) -> DetectionSet:
    image = {"id": 1, "file_name": name, "height": size[0], "width": size[1]}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0, "area": 25}
    document = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "thing"}]}
    layouts.write_json(root / "annotations" / "instances_val.json", document)
    return open_detection(f"coco:{root}", "val")


def gradient() -> np.ndarray:
    return np.arange(H * W, dtype=np.uint16).reshape(H, W) * 109


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def test_exif_does_not_turn_a_image(tmp_path: Path, images: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(images / "a.png", exif=exif)
    assert (one_image(tmp_path).image(0) == pixels).all()


def test_exif_turns_a_image_that_was_annotated_upright(tmp_path: Path, images: Path) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(images / "a.png", exif=exif)
    assert (one_image(tmp_path).image(0) == upright).all()


def test_gray_and_sixteen_bits(tmp_path: Path, images: Path) -> None:
    gray = (gradient() // 257).astype(np.uint8)
    Image.fromarray(gray).save(images / "a.png")
    pixels = one_image(tmp_path).image(0)
    assert (pixels == gray[:, :, None]).all()
    Image.fromarray(gradient()).save(images / "a.png")
    pixels = one_image(tmp_path).image(0)
    assert pixels.dtype == np.uint8
    assert (pixels == np.rint(gradient() / 257)[:, :, None]).all()
    pixels[:] = 0  # writable


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpeg_of_another_mode(tmp_path: Path, images: Path, mode: str) -> None:
    Image.new("RGB", (W, H), (200, 40, 90)).convert(mode).save(images / "a.jpg", quality=100)
    expected = (200, 40, 90) if mode == "CMYK" else (93, 93, 93)
    pixels = one_image(tmp_path, "a.jpg").image(0)
    assert pixels.shape == (H, W, 3)
    assert np.abs(pixels.reshape(-1, 3).astype(int) - expected).max() <= 4


def test_another_size_than_annotated(tmp_path: Path, images: Path) -> None:
    Image.new("RGB", (W, H)).save(images / "a.png")
    with pytest.raises(BadImage, match=f"{W} x {H} pixels, the annotations are of {H} x {W}"):
        one_image(tmp_path, size=(W, H)).image(0)


def test_damaged_and_lost_images(tmp_path: Path, images: Path) -> None:
    path = layouts.save(
        images / "a.png", np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    )
    data = one_image(tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadImage, match="truncated"):
        data.image(0)
    path.write_bytes(b"no image")
    with pytest.raises(BadImage, match="not an image"):
        data.image(0)
    path.unlink()
    with pytest.raises(BadImage, match="cannot be read"):
        data.image(0)


def test_label_maps_that_cannot_be_used(tmp_path: Path) -> None:
    layouts.write_voc(tmp_path, years=("VOC2012",), devkit=False)
    data = open_segmentation(f"voc:{tmp_path}", "val")
    path = tmp_path / "VOC2012" / "SegmentationClass" / "val_000001.png"
    shape = (layouts.SIZE, layouts.SIZE)
    layouts.save_indices(path, np.full(shape, 11, np.uint8))
    with pytest.raises(BadImage, match=r"val_000001.png: value 11, and the classes are 0 to 10"):
        data.label_map(1)
    layouts.save_indices(path, np.zeros((layouts.SIZE, 40), np.uint8))
    with pytest.raises(BadImage, match=r"val_000001.png: 40 x 64 pixels, its image 64 x 64"):
        data.label_map(1)
    layouts.save(path, np.full((*shape, 3), (1, 2, 3), np.uint8))
    with pytest.raises(BadImage, match=r"val_000001.png: colours"):
        data.label_map(1)
    path.write_bytes(b"")
    with pytest.raises(BadImage, match=r"val_000001.png: cannot be read"):
        data.label_map(1)
    assert data.label_map(0).shape == shape
    (tmp_path / "VOC2012" / "JPEGImages" / "val_000002.jpg").write_bytes(b"")
    with pytest.raises(BadImage, match=r"val_000002.jpg"):
        data.label_map(2)


def test_a_map_of_one_bit_and_of_sixteen(tmp_path: Path) -> None:
    layouts.write_voc(tmp_path, years=("VOC2012",), devkit=False)
    folder = tmp_path / "VOC2012" / "SegmentationClass"
    inside = np.zeros((layouts.SIZE, layouts.SIZE), bool)
    inside[3:9] = True
    Image.fromarray(inside).save(folder / "val_000000.png")
    layouts.save(folder / "val_000001.png", np.where(inside, 255, 4).astype(np.uint16))
    data = open_segmentation(f"voc:{tmp_path}", "val")
    assert (data.label_map(0) == inside).all()
    assert (data.label_map(1) == np.where(inside, 255, 4)).all()
