"""What was written in each published layout is what is read: boxes, classes, flags, masks, pixels."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from hetcl.datasets import open_detection, open_segmentation
from hetcl.datasets.annotations import DetectionSet, SegmentationSet
from hetcl.datasets.masks import bitmap
from hetcl.datasets.voc_maps import VOC_CLASSES
from hetcl.images.scenes import CLASSES, Scene
from tests.downstream import layouts

SPLITS = ("train", "val")


def same_boxes(data: DetectionSet, index: int, drawn: Scene) -> None:
    truth = data.annotations(index)
    assert truth.size == drawn.masks.shape[1:]
    assert truth.boxes.dtype == np.float64
    assert truth.labels.dtype == np.int64
    assert truth.boxes.tolist() == drawn.boxes.tolist()
    assert truth.labels.tolist() == drawn.labels.tolist()
    assert len(truth.ids) == len(truth.crowd) == len(truth.difficult) == len(truth.areas) == len(drawn.labels)


def same_masks(data: DetectionSet, index: int, drawn: Scene) -> None:
    truth = data.annotations(index)
    assert truth.segments is not None
    for segment, mask in zip(truth.segments, drawn.masks, strict=True):
        assert segment is not None
        assert (bitmap(segment, truth.size) == mask).all()


def near(pixels: np.ndarray, drawn: Scene) -> None:
    """Equal but for what JPEG loses."""
    assert pixels.dtype == np.uint8
    assert pixels.shape == drawn.pixels.shape
    assert np.abs(pixels.astype(int) - drawn.pixels).mean() < 12


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("form", ["polygons", "rle", "uncompressed", "mixed"])
@pytest.mark.parametrize("split", SPLITS)
def test_coco(tmp_path: Path, split: str, form: str, plain: bool) -> None:
    layouts.write_coco(tmp_path, masks=form, crowd=True, plain=plain)
    data = open_detection(f"coco:{tmp_path}", split)
    assert data.kind == "coco"
    assert data.has_masks
    assert [(c.id, c.name) for c in data.classes] == [(3 * i + 1, name) for i, name in enumerate(CLASSES)]
    assert len(data) == (6 if split == "train" else 3)
    assert not data.skipped.counts
    ids: list = []
    for i in range(len(data)):
        drawn, truth = layouts.scene_of(split, i), data.annotations(i)
        same_boxes(data, i, drawn)
        same_masks(data, i, drawn)
        near(data.image(i), drawn)
        assert truth.image_id == 100 + i
        assert truth.areas.tolist() == drawn.masks.sum((1, 2)).tolist()
        assert truth.crowd.tolist() == [
            i % 2 == 1 and n == len(drawn.labels) - 1 for n in range(len(drawn.labels))
        ]
        ids += truth.ids
    assert ids == list(range(1, len(ids) + 1))


def test_coco_without_masks(tmp_path: Path) -> None:
    layouts.write_coco(tmp_path, masks=None)
    data = open_detection(f"coco:{tmp_path}", "val")
    assert not data.has_masks
    assert data.annotations(0).segments is None
    same_boxes(data, 2, layouts.scene_of("val", 2))


@pytest.mark.parametrize("version", ["v0.5", "v1"])
@pytest.mark.parametrize("below", ["", "annotations"])
@pytest.mark.parametrize("split", SPLITS)
def test_lvis(tmp_path: Path, version: str, below: str, split: str) -> None:
    layouts.write_lvis(tmp_path, version=version)
    if below:
        (tmp_path / below).mkdir()
        for path in tmp_path.glob("*.json"):
            path.rename(tmp_path / below / path.name)
    data = open_detection(f"lvis:{tmp_path}", split)
    assert data.kind == "lvis"
    assert [c.frequency for c in data.classes] == [*"rcfrcfrcfr"]
    assert len(data) == (6 if split == "train" else 3)
    for i in range(len(data)):
        drawn, truth = layouts.scene_of(split, i), data.annotations(i)
        same_boxes(data, i, drawn)
        same_masks(data, i, drawn)
        near(data.image(i), drawn)
        assert truth.negative == tuple(sorted(set(range(10)) - set(drawn.labels.tolist())))[::2]
        assert truth.not_exhaustive == (int(drawn.labels[0]),)
        assert not truth.crowd.any()


def test_lvis_takes_the_version_that_has_both_splits(tmp_path: Path) -> None:
    layouts.write_lvis(tmp_path, version="v1")
    layouts.write_lvis(tmp_path, version="v0.5")
    assert "v0.5" in open_detection(f"lvis:{tmp_path}", "train").description
    (tmp_path / "lvis_v0.5_val.json").unlink()
    assert "v1" in open_detection(f"lvis:{tmp_path}", "train").description


@pytest.mark.parametrize("devkit", [True, False])
@pytest.mark.parametrize("years", [("VOC2007", "VOC2012"), ("VOC2007",), ("VOC2012",)])
@pytest.mark.parametrize("split", SPLITS)
def test_voc(tmp_path: Path, years: tuple[str, ...], devkit: bool, split: str) -> None:
    layouts.write_voc(tmp_path, years=years, devkit=devkit, difficult=True)
    data = open_detection(f"voc:{tmp_path}", split)
    assert data.kind == "voc"
    assert not data.has_masks
    assert [c.name for c in data.classes] == sorted(layouts.VOC_NAMES)
    count = len(years) if split == "train" else 1
    order = [i for first in range(count) for i in range(first, 6 if split == "train" else 3, count)]
    assert len(data) == len(order)
    for at, i in enumerate(order):
        drawn, truth = layouts.scene_of(split, i), data.annotations(at)
        assert truth.boxes.tolist() == drawn.boxes.tolist()
        names = [data.classes[label].name for label in truth.labels]
        assert names == [layouts.VOC_NAMES[label] for label in drawn.labels]
        last = len(drawn.labels) - 1
        assert truth.difficult.tolist() == [n == last for n in range(last + 1)]
        assert truth.areas.tolist() == np.prod(drawn.boxes[:, 2:] - drawn.boxes[:, :2], 1).tolist()
        assert str(truth.image_id) == Path(truth.name).stem
        near(data.image(at), drawn)


def test_voc_directly_below_the_root(tmp_path: Path) -> None:
    layouts.write_voc(tmp_path, years=("VOC2012",), devkit=False, names=False)
    data = open_detection(f"voc:{tmp_path / 'VOC2012'}", "val")
    assert len(data) == 3
    assert data.annotations(0).name == "JPEGImages/2012_100000.jpg"
    same = open_segmentation(f"voc:{tmp_path / 'VOC2012'}", "train")
    assert len(same) == 6
    near(same.image(1), layouts.scene_of("train", 1))


def test_voc_classes_are_those_of_both_splits_in_published_order(tmp_path: Path) -> None:
    layouts.write_voc(tmp_path, years=("VOC2007",), devkit=False, train=1, val=1)
    for name, kind in (("000000", "tvmonitor"), ("100000", "aeroplane")):
        path = tmp_path / "VOC2007" / "Annotations" / f"{name}.xml"
        text = path.read_text()
        for other in layouts.VOC_NAMES:
            text = text.replace(f"<name>{other}<", f"<name>{kind}<")
        path.write_text(text)
    for split in SPLITS:
        assert [c.name for c in open_detection(f"voc:{tmp_path}", split).classes] == [
            "aeroplane",
            "tvmonitor",
        ]


def test_voc_of_two_years_without_a_test_list(tmp_path: Path) -> None:
    layouts.write_voc(tmp_path, years=("VOC2007", "VOC2012"), devkit=False)
    lists = tmp_path / "VOC2007" / "ImageSets" / "Main"
    (lists / "test.txt").rename(lists / "val.txt")
    assert len(open_detection(f"voc:{tmp_path}", "val")) == 3
    assert len(open_detection(f"voc:{tmp_path}", "train")) == 6
    (lists / "train.txt").unlink()  # trainval then, without what is in val
    (lists / "trainval.txt").write_text("000000\n100000\n")
    names = [open_detection(f"voc:{tmp_path}", "train").annotations(i).image_id for i in range(4)]
    assert names == ["000000", "2012_000001", "2012_000003", "2012_000005"]


def test_voc_a_name_in_two_years(tmp_path: Path) -> None:
    layouts.write_voc(tmp_path, years=("VOC2007",), devkit=False)
    layouts.write_voc(tmp_path / "other", years=("VOC2007",), devkit=False)
    (tmp_path / "other" / "VOC2007").rename(tmp_path / "VOC2008")
    data = open_detection(f"voc:{tmp_path}", "train")
    ids = [data.annotations(i).image_id for i in range(len(data))]
    assert len(set(ids)) == 12
    assert ids[0] == "VOC2007/000000"


@pytest.mark.parametrize("split", SPLITS)
def test_voc_pixels(tmp_path: Path, split: str) -> None:
    layouts.write_voc(tmp_path)
    data = open_segmentation(f"voc:{tmp_path}", split)
    assert data.kind == "voc"
    assert data.classes == ("background", *layouts.VOC_NAMES)
    assert len(data) == (6 if split == "train" else 3)
    for i in range(len(data)):
        drawn = layouts.scene_of(split, i)
        label_map = data.label_map(i)
        assert label_map.dtype == np.uint8
        assert (label_map == layouts.voc_map(drawn)).all()
        assert (label_map == 255).any()
        near(data.image(i), drawn)


def test_voc_pixels_train_aug(tmp_path: Path) -> None:
    layouts.write_voc(tmp_path, devkit=False)
    year = tmp_path / "VOC2012"
    pairs = [f"/JPEGImages/train_{i:06d}.jpg /SegmentationClassAug/train_{i:06d}.png" for i in range(5)]
    (year / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("\n".join(pairs))
    gray = np.full((layouts.SIZE, layouts.SIZE), 7, np.uint8)
    layouts.save(year / "SegmentationClassAug" / "train_000002.png", gray)
    data = open_segmentation(f"voc:{tmp_path}", "train")
    assert len(data) == 5
    assert (data.label_map(2) == 7).all()
    assert (data.label_map(1) == layouts.voc_map(layouts.scene_of("train", 1))).all()
    assert len(open_segmentation(f"voc:{tmp_path}", "val")) == 3


def test_voc_pixels_number_of_classes(tmp_path: Path) -> None:
    layouts.write_voc(tmp_path, devkit=False, names=False)
    assert open_segmentation(f"voc:{tmp_path}", "train").classes == tuple(f"class {i}" for i in range(11))
    for xml in tmp_path.rglob("*.xml"):
        for number, name in enumerate(layouts.VOC_NAMES):
            xml.write_text(
                xml.read_text().replace(f"<name>{name}</name>", f"<name>{VOC_CLASSES[number + 1]}</name>")
            )
    assert open_segmentation(f"voc:{tmp_path}", "train").classes == VOC_CLASSES
    assert open_segmentation(f"voc:{tmp_path}", "val").classes[20] == "tvmonitor"
    # Values of either split count for both.
    path = tmp_path / "VOC2012" / "SegmentationClass" / "train_000003.png"
    layouts.save_indices(path, np.full((layouts.SIZE, layouts.SIZE), 30, np.uint8))
    assert open_segmentation(f"voc:{tmp_path}", "val").classes == tuple(f"class {i}" for i in range(31))


@pytest.mark.parametrize("split", SPLITS)
def test_cityscapes_instances(tmp_path: Path, split: str) -> None:
    layouts.write_cityscapes(tmp_path, train=12, groups=True)
    data = open_detection(f"cityscapes:{tmp_path}", split)
    assert data.kind == "cityscapes"
    assert data.has_masks
    names = "person rider car truck bus train motorcycle bicycle".split()
    assert [(c.id, c.name) for c in data.classes] == list(
        zip((*range(24, 29), 31, 32, 33), names, strict=True)
    )
    assert len(data) == (12 if split == "train" else 3)
    assert any(data.annotations(i).crowd.any() for i in range(len(data)))
    for i in range(len(data)):
        drawn, truth = layouts.scene_of(split, i), data.annotations(i)
        assert (data.image(i) == drawn.pixels).all()
        values, _ = layouts.city_maps(drawn, group=i % 2 == 1)
        wanted = [
            v
            for v in np.unique(values).tolist()
            if (v if v < 1000 else v // 1000) in (*range(24, 29), 31, 32, 33)
        ]
        assert len(truth.ids) == len(wanted)
        assert truth.segments is not None
        for n, value in enumerate(wanted):  # one mask at a time
            mask = values == value
            y, x = np.nonzero(mask)
            assert truth.boxes[n].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert truth.areas[n] == mask.sum()
            assert (bitmap(truth.segments[n], truth.size) == mask).all()  # type: ignore[arg-type]
            assert truth.crowd[n] == (value < 1000)
            assert data.classes[truth.labels[n]].id == (value if value < 1000 else value // 1000)


def test_cityscapes_pixels(tmp_path: Path) -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    layouts.write_cityscapes(tmp_path)
    data = open_segmentation(f"cityscapes:{tmp_path}", "val")
    official = {label.id: label.trainId for label in labels if label.id >= 0}
    assert list(data.classes) == [
        label.name for label in sorted(labels, key=lambda x: x.trainId) if 0 <= label.trainId < 255
    ]
    for i in range(len(data)):
        _, stored = layouts.city_maps(layouts.scene_of("val", i))
        assert (data.label_map(i) == np.vectorize(official.get)(stored)).all()
    # Every label there is, and values that are none.
    path = next((tmp_path / "gtFine" / "val").rglob("*labelIds.png"))
    every = np.resize(np.arange(256, dtype=np.uint8), (layouts.SIZE, layouts.SIZE))
    layouts.save(path, every)
    expected = np.array([official.get(v, 255) for v in range(256)])
    at = next(i for i in range(len(data)) if Path(data.name(i)).stem.split("_l")[0] in path.name)
    assert (data.label_map(at).reshape(-1)[:256] == expected).all()


@pytest.mark.parametrize("split", SPLITS)
def test_scenes(split: str) -> None:
    data = open_detection("scenes:300@48", split)
    maps = open_segmentation("scenes:300@48", split)
    assert len(data) == len(maps) == (300 if split == "train" else 60)
    assert data.has_masks
    assert [c.name for c in data.classes] == list(CLASSES)
    assert maps.classes == ("background", *CLASSES)
    from hetcl.images.scenes import scene

    for i in (0, len(data) - 1):
        drawn = scene(i, seed=int(split == "val"), size=48)
        same_boxes(data, i, drawn)
        same_masks(data, i, drawn)
        assert (data.image(i) == drawn.pixels).all()
        assert (maps.image(i) == drawn.pixels).all()
        expected = np.zeros((48, 48))
        for mask, label in zip(drawn.masks, drawn.labels, strict=True):
            expected[mask] = label + 1
        assert (maps.label_map(i) == expected).all()
    with pytest.raises(IndexError):
        data.annotations(len(data))


def test_few_scenes_have_fifty_for_validation() -> None:
    assert len(open_detection("scenes:10", "val")) == 50
    assert open_detection("scenes:10", "val").annotations(0).size == (96, 96)


def sets(root: Path) -> list[DetectionSet | SegmentationSet]:
    layouts.write_coco(root / "coco")
    layouts.write_lvis(root / "lvis")
    layouts.write_voc(root / "voc")
    layouts.write_cityscapes(root / "city")
    specs = [
        f"coco:{root / 'coco'}",
        f"lvis:{root / 'lvis'}",
        f"voc:{root / 'voc'}",
        f"cityscapes:{root / 'city'}",
    ]
    found: list[DetectionSet | SegmentationSet] = [open_detection(s, "val") for s in [*specs, "scenes:9"]]
    return found + [open_segmentation(s, "val") for s in [*specs[2:], "scenes:9"]]


def test_sets_go_to_workers_and_have_a_fingerprint(tmp_path: Path) -> None:
    first = sets(tmp_path / "a")
    again = sets(tmp_path / "b")
    assert [data.fingerprint for data in first] == [data.fingerprint for data in again]  # wherever they lie
    for data in first:
        copy = pickle.loads(pickle.dumps(data))
        assert len(copy) == len(data)
        assert copy.description == data.description
        assert (copy.image(1) == data.image(1)).all()
        if hasattr(data, "annotations"):
            assert copy.annotations(1).boxes.tolist() == data.annotations(1).boxes.tolist()
            data.annotations(1).boxes[:] = -1  # what is given away is a copy
            assert (data.annotations(1).boxes >= 0).all()
        else:
            assert (copy.label_map(1) == data.label_map(1)).all()


def test_fingerprint_sees_a_box_a_name_and_a_class(tmp_path: Path) -> None:
    layouts.write_coco(tmp_path, plain=True, masks=None)
    path = tmp_path / "annotations" / "instances_val.json"
    text = path.read_text()
    seen = {open_detection(f"coco:{tmp_path}", "val").fingerprint}
    (tmp_path / "images" / "val-1.jpg").rename(tmp_path / "images" / "val-9.jpg")
    for n, (old, new) in enumerate(
        [("val-1.jpg", "val-9.jpg"), (CLASSES[0], "renamed"), ('"bbox": [', '"bbox": [0.5, ')]
    ):
        text = (
            text.replace(old, new, 1)
            if n < 2
            else text.replace(old + text.split(old)[1].split(",")[0] + ",", new, 1)
        )
        path.write_text(text)
        seen.add(open_detection(f"coco:{tmp_path}", "val").fingerprint)
    assert len(seen) == 4


def test_a_large_set_is_small_in_memory(tmp_path: Path) -> None:
    """2,000 images with an object of a 20-corner polygon each: some 200 bytes an image."""
    corners = [float(v) / 4 for v in range(40)]
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 50, "width": 50} for i in range(2000)]
    annotations = [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [corners]}
        for i in range(2000)
    ]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    layouts.write_json(tmp_path / "annotations" / "instances_train.json", document)
    (tmp_path / "images").mkdir()
    for image in images:
        (tmp_path / "images" / str(image["file_name"])).touch()
    data = open_detection(f"coco:{tmp_path}", "train")
    assert len(pickle.dumps(data)) < 2000 * 350
    assert data.annotations(1999).segments[0][0].reshape(-1).tolist() == corners  # type: ignore[index]
