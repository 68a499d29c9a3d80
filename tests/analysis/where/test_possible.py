"""Questions that some images or models cannot answer: the others are answered all the same, and a line says why."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hetcl.draws import generator
from hetcl.errors import InputError, WorkFailed
from tests.analysis.make import write_checkpoint
from tests.analysis.where.test_run import SCENES, ask


def write_coco(root: Path, *, box: tuple[int, int, int, int] | None, side: int = 64, train: int = 24) -> Path:
    """``train`` images to fit and 6 to test on, each with the same box and its mask, or without an object."""
    for part, n in (("train", train), ("val", 6)):
        (root / "images" / part).mkdir(parents=True)
        images, objects = [], []
        for i in range(n):
            pixels = generator("coco", part, i).integers(0, 256, (side, side, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / part / f"{i}.png")
            images.append({"id": i, "file_name": f"{part}/{i}.png", "width": side, "height": side})
            if box is not None:
                x, y, w, h = box
                outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                more = {"bbox": list(box), "area": w * h, "segmentation": outline, "iscrowd": 0}
                objects.append({"id": i + 1, "image_id": i, "category_id": 1, **more})
        tree = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(tree))
    return root


def asked(report: dict[str, Any]) -> set[str]:
    return {r["question"] for r in report["results"]}


def test_maps_of_different_sides_are_not_compared(tmp_path: Path) -> None:
    runs = [write_checkpoint(tmp_path / f"{side}.ckpt", side=side, seed=side) for side in (4, 7)]
    found = ask(runs, tmp_path / "out", data="scenes:60@64", ask="correspondence", test_images=40)
    sides = {r["model"]: r["side"] for r in found["results"] if r["level"] == "spatial"}
    assert sorted(sides.values()) == [4, 4, 7, 7]  # either has random weights with a map like its own
    for d in found["differences"]:
        assert d["level"] != "spatial" or sides[d["first"]] == sides[d["second"]]
    assert {(d["first"], d["second"]) for d in found["differences"] if d["level"] == "spatial"} == {
        ("4", "random test_resnet"), ("7", "random test_resnet for 7"),
    }  # fmt: skip


@pytest.mark.parametrize("first", ["hcl", "moco"])
def test_random_weights_are_looked_at_once_for_one_backbone(
    hcl: Path, moco: Path, first: str, tmp_path: Path
) -> None:
    runs = [hcl, moco] if first == "hcl" else [moco, hcl]
    found = ask(runs, tmp_path / "out", ask="correspondence")
    assert [m["role"] for m in found["models"]] == ["model", "model", "random"]
    spatial = [d for d in found["differences"] if d["level"] == "spatial"]
    assert {d["first"] for d in spatial} == {"hcl"}


def test_images_without_objects_answer_what_they_can(hcl: Path, tmp_path: Path) -> None:
    data = f"coco:{write_coco(tmp_path / 'data', box=None)}"
    found = ask(hcl, tmp_path / "out", data=data)
    assert asked(found) == {"correspondence"}
    said = [line for line in found["sentences"] if "left out" in line]
    assert any("localization" in line and "0 images with a box" in line for line in said)
    with pytest.raises(WorkFailed, match="0 images with a box"):
        ask(hcl, tmp_path / "named", data=data, ask="localization,correspondence")


def test_objects_smaller_than_a_cell_leave_one_class(hcl: Path, tmp_path: Path) -> None:
    data = f"coco:{write_coco(tmp_path / 'data', box=(9, 9, 2, 2))}"
    found = ask(hcl, tmp_path / "out", data=data)
    assert asked(found) == {"correspondence", "localization"}
    (line,) = [line for line in found["sentences"] if "left out" in line]
    assert "are of 1 class (grid 8); give images with more, or a finer grid" in line


def test_images_smaller_than_a_cell_are_refused(hcl: Path, tmp_path: Path) -> None:
    data = f"coco:{write_coco(tmp_path / 'data', box=(0, 0, 2, 2), side=5)}"
    with pytest.raises(InputError, match="have about 5 pixels along their short side, and a grid of 8 x 8"):
        ask(hcl, tmp_path / "out", data=data)


def test_every_image_that_is_left_out_is_named(hcl: Path, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", box=(9, 9, 40, 40))
    broken = ["train/0.png", "train/3.png", "val/0.png"]
    for name in broken:
        (root / "images" / name).write_bytes(b"no image")
    found = ask(hcl, tmp_path / "out", data=f"coco:{root}", max_bad=0.5)
    with (tmp_path / "out/bad_images.csv").open() as f:
        names = [row["name"] for row in csv.DictReader(f)]
    assert sorted(names) == [f"images/{name}" for name in broken]
    assert {r["images"] for r in found["results"]} == {5}


def test_models_at_the_floor_are_said_to_show_nothing(hcl: Path, tmp_path: Path) -> None:
    found = ask(hcl, tmp_path / "out", data=f"coco:{write_coco(tmp_path / 'data', box=(9, 9, 40, 40))}")
    assert any("every model is no better than the mean box" in line for line in found["sentences"])
    for row in found["results"]:
        if row["question"] == "localization" and row["measure"] == "iou":
            floor = row["minus_floor"]
            assert floor["value"] == pytest.approx(row["value"] - found["chance"]["localization"]["mean_box"])


def test_the_gain_over_position_is_paired(hcl: Path, tmp_path: Path) -> None:
    for row in ask(hcl, tmp_path / "out", data=SCENES, ask="correspondence")["results"]:
        gain = row["minus_position"]
        assert gain["value"] == pytest.approx(row["value"] - row["position"], abs=1e-12)
        assert gain["low"] <= gain["value"] <= gain["high"]
