"""A set of five channels through every verb: pretrain, contrast, probe, embed, export, finetune, evaluate, predict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.models import adapt_input_conv

import hetcl
from hetcl.errors import InputError
from hetcl.images.sources import open_source
from hetcl.pretraining.doctor import doctor
from hetcl.weights.names import input_layers
from hetcl.weights.sources import load_backbone, read_weights
from tests.downstream.light import small_heads
from tests.downstream.small_sets import FINETUNE
from tests.pretraining.small import SMALL

tifffile = pytest.importorskip("tifffile")

LOOK: dict[str, Any] = {"device": "cpu", "threads": 1, "workers": 0}
FIVE = ["--in_chans", "5", "--pixel_max", "4095"]
BRIEF = ["--stage1.epochs", "1", "--stage2.epochs", "1", "--knn.every", "0"]


def five(rng: np.random.Generator, label: int) -> tuple[np.ndarray, list[int]]:
    """An image of 12 bits and five channels, in two of which a square of its class lies; its box."""
    image = rng.integers(100, 900, (48, 52, 5), np.uint16)
    left, top, side = (int(n) for n in (*rng.integers(4, 20, 2), rng.integers(16, 24)))
    image[top : top + side, left : left + side, 2 * label : 2 * label + 2] += 2500
    return image, [left, top, side, side]


def write_image(path: Path, image: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, image)
    else:
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")


def write_folder(root: Path, images: int = 18) -> Path:
    rng = np.random.default_rng(0)
    for i in range(images):
        (root / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        write_image(root / f"c{i % 2}" / f"{i}{'.npy' if i % 3 else '.tif'}", five(rng, i % 2)[0])
    return root


def write_coco(root: Path) -> Path:
    rng = np.random.default_rng(1)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", 6), ("val", 4)):
        (root / split).mkdir()
        images, objects = [], []
        for i in range(1, count + 1):
            image, (left, top, w, h) = five(rng, i % 2)
            name = f"{i}{'.npy' if i % 3 else '.tif'}"
            write_image(root / split / name, image)
            images.append({"id": i, "file_name": name, "width": 52, "height": 48})
            outline = [left, top, left + w, top, left + w, top + h, left, top + h]
            objects.append(
                {
                    **{"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [left, top, w, h]},
                    **{"area": w * h, "iscrowd": 0, "segmentation": [outline]},
                }
            )
        tree = {"images": images, "annotations": objects}
        tree["categories"] = [{"id": 1, "name": "low"}, {"id": 2, "name": "high"}]
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``set`` (plain), ``coco`` and ``run`` (pre-trained on the first), and small detectors."""
    root, threads = tmp_path_factory.mktemp("five"), torch.get_num_threads()
    write_folder(root / "set")
    write_coco(root / "coco")
    hetcl.pretrain(
        data=str(root / "set"), out=root / "run", recipe="demo", overrides=[*SMALL[2:], *BRIEF, *FIVE]
    )
    with pytest.MonkeyPatch.context() as patch:
        small_heads(patch)
        yield root
    torch.set_num_threads(threads)


def test_the_run_records_what_was_measured(place: Path) -> None:
    saved = yaml.safe_load((place / "run" / "settings.yaml").read_text())["settings"]
    assert (saved["in_chans"], saved["pixel_max"]) == (5, 4095)
    images = [five(np.random.default_rng(0), 0)[0]]  # of the same kind
    assert np.abs(np.array(saved["mean"][4:]) - images[0][..., 4].mean() / 4095).max() < 0.01
    for path in ("run", "run/backbone.safetensors", "run/checkpoints/stage1.ckpt"):
        weights = read_weights(str(place / path))
        assert weights.in_chans == 5
        facts = load_backbone(str(place / path)).facts  # type: ignore[attr-defined]
        assert (list(facts.mean), list(facts.std)) == (saved["mean"], saved["std"])
        assert facts.pixel_max == 4095


def test_resumed_with_the_recipe_it_keeps_what_was_measured(place: Path) -> None:
    hetcl.pretrain(out=place / "run", recipe="demo", resume=True, overrides=[*SMALL[2:], *BRIEF, *FIVE])
    with pytest.raises(InputError, match="in_chans"):
        hetcl.pretrain(out=place / "run", resume=True, overrides=["--in_chans", "4"])


def test_features_are_looked_at(place: Path) -> None:
    run, data = str(place / "run"), str(place / "set")
    report = hetcl.contrast(
        run, data=data, out=place / "contrast", overrides={"images": 12, "dims": [], "examples": 1, **LOOK}
    )
    assert report["test"]["queries"] == 12
    assert [*(place / "contrast" / "figures").glob("examples-*.png")]
    found = hetcl.embed(run, data=data, out=place / "features.npy", overrides=LOOK)
    assert found["images"] == 18
    assert np.isfinite(np.load(place / "features.npy")).all()
    known = hetcl.probe(run, data=data, out=place / "probe", overrides={"knn": [3], **LOOK})
    assert known["knn"]["3"]["top1"]["value"] >= 0.5


def test_features_do_not_depend_on_how_values_are_stored(place: Path, tmp_path: Path) -> None:
    """Images of 12 bits as floats in [0, 1], and a backbone that says so, give the same features."""
    from safetensors.torch import load_file

    from hetcl.weights.sealed import seal_backbone

    run = place / "run" / "backbone.safetensors"
    facts = {"arch": "timm:test_resnet", "in_chans": 5, "channels": "stored", "pixel_max": 0.0}
    stated = load_backbone(str(run)).facts  # type: ignore[attr-defined]
    facts |= {"mean": list(stated.mean), "std": list(stated.std)}
    (tmp_path / "float.safetensors").write_bytes(seal_backbone(load_file(run), facts))
    source = open_source(str(place / "set"))
    for i in range(len(source)):
        name = Path(source.name(i))
        path = place / "set" / name.parent.name / name.name
        stored = np.load(path) if path.suffix == ".npy" else tifffile.imread(path)
        (tmp_path / "set").mkdir(exist_ok=True)
        np.save(tmp_path / "set" / f"{i:02d}.npy", (stored / 4095).astype(np.float32))
    how = {"features": "pooled", "size": 32, **LOOK}
    hetcl.embed(str(run), data=str(place / "set"), out=tmp_path / "a.npy", overrides=how)
    hetcl.embed(
        str(tmp_path / "float.safetensors"), data=str(tmp_path / "set"), out=tmp_path / "b.npy", overrides=how
    )
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"), atol=1e-5, rtol=1e-4)


def test_detectors_read_them(place: Path) -> None:
    run, data = str(place / "run"), f"coco:{place / 'coco'}"
    hetcl.finetune(init=run, data=data, out=place / "detector", overrides=[*FINETUNE, "--evaluations", "1"])
    facts = yaml.safe_load((place / "detector" / "settings.yaml").read_text())["facts"]
    assert (facts["in_chans"], facts["pixel_max"], len(facts["mean"])) == (5, 4095, 5)
    summary = hetcl.evaluate(place / "detector", data=data, out=place / "evaluation", overrides=LOOK)
    assert summary["data"]["images"] == 4
    assert not summary["data"]["bad"]
    low = {"score_threshold": 0.001, **LOOK}
    found = hetcl.predict(place / "detector", place / "coco" / "val", out=place / "found", overrides=low)
    assert len(found["images"]) == 4
    with Image.open(place / "found" / found["images"][0]["drawn"]) as drawn:
        assert drawn.mode == "RGB"
    assert load_backbone(str(place / "detector" / "backbone.safetensors")).facts.pixel_max == 4095  # type: ignore[attr-defined]


def test_rgb_weights_are_adapted_and_their_images_measured(place: Path, tmp_path: Path) -> None:
    data = f"coco:{place / 'coco'}"
    hetcl.finetune(
        init="timm:test_resnet:random", data=data, out=tmp_path / "detector",
        overrides=[*FINETUNE, "--evaluations", "1", "--steps", "2", "--milestones", "1", *FIVE],
    )  # fmt: skip
    facts = yaml.safe_load((tmp_path / "detector" / "settings.yaml").read_text())["facts"]
    assert facts["source"] == "measured"
    stored = [five(rng, i % 2)[0] for rng in [np.random.default_rng(1)] for i in range(1, 7)]
    np.testing.assert_allclose(facts["mean"], np.mean(stored, (0, 1, 2)) / 4095, rtol=1e-4)


def test_rgb_weights_begin_a_run_of_five_channels(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    hetcl.pretrain(
        data=str(place / "set"), out=out, recipe="demo", init="timm:test_resnet:random",
        overrides=[*SMALL[2:], *BRIEF, "--stage1.epochs", "0", "--stage2.lr", "1e-9", *FIVE],
    )  # fmt: skip
    (first,) = input_layers("timm:test_resnet", 5)
    rgb = read_weights("timm:test_resnet:random").query[f"pyramid.{first}"]
    ours = read_weights(str(out)).query[f"pyramid.{first}"]
    torch.testing.assert_close(ours, adapt_input_conv(5, rgb), atol=1e-6, rtol=1e-5)
    report = hetcl.contrast(
        str(out), data=str(place / "set"), out=tmp_path / "contrast",
        overrides={"images": 12, "dims": [], "examples": 0, "views": ["crop"], **LOOK},
    )  # fmt: skip
    assert report["results"]


def test_models_and_images_that_do_not_go_together(place: Path, tmp_path: Path) -> None:
    rgb, out, data = "timm:test_resnet:random", tmp_path / "out", str(place / "set")
    with pytest.raises(
        InputError, match=r"5 channels.*where .*read; timm:test_resnet:random takes images of RGB"
    ):
        hetcl.contrast(rgb, data=data, out=out, overrides=LOOK)
    with pytest.raises(InputError, match=r"5 channels.* read; set in_chans to"):
        hetcl.pretrain(data=data, out=out, recipe="demo", overrides=SMALL[2:])
    with pytest.raises(InputError, match=r"5 channels.* read; set in_chans to"):
        hetcl.finetune(init=rgb, data=f"coco:{place / 'coco'}", out=out, overrides=FINETUNE)
    wrong = [*FINETUNE, "--mean", "0.5,0.5", "--std", "0.2,0.2"]
    with pytest.raises(InputError, match=r"have 2 values, and images 3 channels"):
        hetcl.finetune(init=rgb, data=f"coco:{place / 'coco'}", out=out, overrides=wrong)
    with pytest.raises(InputError, match=r"test them apart"):
        hetcl.contrast([rgb, str(place / "run")], data=data, out=out, overrides=LOOK)
    with pytest.raises(InputError, match=r"where is asked of RGB images"):
        hetcl.probe(str(place / "run"), data=data, out=out, overrides={"ask": ["where"], **LOOK})
    assert not out.exists()


def test_doctor_measures_and_says_what_is_lost(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(16):
        levels = np.random.default_rng(i).permutation(4096).astype(np.uint16).reshape(64, 64)
        Image.fromarray(levels).save(tmp_path / f"{i}.png")
    how = [*SMALL[2:], *BRIEF]
    (lost,) = [w for w in doctor(data=str(tmp_path), recipe="demo", overrides=how) if "8 bits" in w]
    assert "become 16 levels of 256; set pixel_max to" in lost
    gray = [*how, "--in_chans", "1"]
    assert [w for w in doctor(data=str(tmp_path), recipe="demo", overrides=gray) if "4095" in w]
    capsys.readouterr()
    warnings = doctor(data=str(tmp_path), recipe="demo", overrides=[*gray, "--pixel_max", "4095"])
    assert not [w for w in warnings if "pixel_max" in w]
    assert "1 channel, values up to 4095; mean 0.5; std 0.2887" in capsys.readouterr().out
