"""Features in a file: equal to a plain forward of the same views, a row for each name; stopped, resumed, refused."""

from __future__ import annotations

import csv
import itertools
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import hetcl
from hetcl.analysis import feature_pass
from hetcl.cli import main
from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.images.sources import open_source
from hetcl.weights.encoder import load_encoder
from tests.images.make import shard
from tests.pretraining import processes

QUICK: dict[str, Any] = {"workers": 0, "threads": 1, "batch": 8, "device": "cpu"}


def run(
    model: Any, data: Any, out: Path, *, resume: bool = False, overwrite: bool = False, **more: Any
) -> Any:
    return hetcl.embed(
        str(model), data=str(data), out=out, resume=resume, overwrite=overwrite, overrides=QUICK | more
    )


def names_of(out: Path) -> list[str]:
    with open(out.with_suffix(".csv"), newline="", encoding="utf-8") as f:
        return [row["name"] for row in csv.DictReader(f)]


@pytest.fixture
def nested(images: Path, tmp_path: Path) -> Path:
    """Images at several depths, with what looks like splits."""
    for i, path in enumerate(sorted(images.iterdir())[:20]):
        place = tmp_path / "data" / ("train", "val", "train/deep", ".")[i % 4]
        place.mkdir(parents=True, exist_ok=True)
        (place / path.name).write_bytes(path.read_bytes())
    return tmp_path / "data"


@pytest.mark.parametrize("features", ["pooled", "c4x2", "embedding", "semantic", "spatial"])
def test_rows_are_a_plain_forward_of_the_images_that_the_names_name(
    features: str, hcl: Path, nested: Path, tmp_path: Path
) -> None:
    """By Pillow and plain torch from the files themselves; all parts of the data, splits put aside."""
    out = tmp_path / "f.npy"
    report = run(hcl, nested, out, features=features, size=32)
    rows, names = np.load(out), names_of(out)
    assert sorted(names) == sorted(str(p.relative_to(nested)) for p in nested.rglob("*.png"))
    assert rows.dtype == np.float32
    assert rows.shape == (20, sum(report["parts"].values()))
    encoder = load_encoder(str(hcl))
    assert encoder.embedding is not None
    expected = []
    for name in names:
        pixels = torch.from_numpy(np.array(Image.open(nested / name))).permute(2, 0, 1)[None]
        side = round(48 * 0.875)  # the middle of 48 x 64, as for ImageNet
        top, left = (48 - side) // 2, (64 - side) // 2
        pixels = pixels[:, :, top : top + side, left : left + side].float()
        x = F.interpolate(pixels, size=(32, 32), mode="bilinear", antialias=True).round() / 255
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        with torch.no_grad():
            maps = encoder.pyramid((x - mean) / std)
            parts = encoder.embedding((x - mean) / std)
        whole = {
            "pooled": maps[3].mean(dim=(2, 3)),
            "c4x2": F.adaptive_avg_pool2d(maps[2], 2).flatten(1),
            "embedding": torch.cat([parts["semantic"], parts["spatial"]], 1),
            **parts,
        }
        expected.append(whole[features][0].numpy())
    np.testing.assert_allclose(rows, expected, atol=0.05 * np.abs(expected).max())
    others = np.roll(np.array(expected), 1, axis=0)  # rows of other images are further away than that
    assert (np.abs(rows - others).max(1) > np.abs(rows - expected).max(1)).all()
    if features in parts:
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_have_classes_and_batches_change_nothing(workers: int, hcl: Path, tmp_path: Path) -> None:
    shard(tmp_path / "a-0.tar", 5)
    shard(tmp_path / "a-1.tar", 4, first=5)
    data = tmp_path / "a-{0..1}.tar"
    run(hcl, data, tmp_path / "f.npy", size=32, workers=workers, batch=2)
    run(hcl, data, tmp_path / "g.npy", size=32, batch=256)
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), np.load(tmp_path / "g.npy"), rtol=1e-4, atol=1e-5)
    table = (tmp_path / "f.csv").read_text().splitlines()
    assert table[:3] == ["name,class", "a-0.tar/0000.jpg,0", "a-0.tar/0001.jpg,1"]
    assert table[6] == "a-1.tar/0005.jpg,1"
    source = open_source(str(data))
    assert [source.name(i) for i in range(9)] == [source.sample(i).name for i in range(9)]


def test_bad_images_have_no_row(hcl: Path, nested: Path, tmp_path: Path) -> None:
    (nested / "val" / "bad.png").write_bytes(b"not an image")
    out = tmp_path / "f.npy"
    report = run(hcl, nested, out)
    assert (report["images"], report["left_out"]) == (20, 1)
    assert len(np.load(out)) == len(names_of(out)) == 20
    assert "val/bad.png" not in names_of(out)
    assert "val/bad.png" in (tmp_path / "f.bad_images.csv").read_text()
    (nested / "val" / "bad.png").unlink()
    run(hcl, nested, tmp_path / "g.npy")
    assert (tmp_path / "g.npy").read_bytes() == out.read_bytes()
    assert (tmp_path / "g.csv").read_bytes() == (tmp_path / "f.csv").read_bytes()


def test_none_of_the_images_can_be_used(hcl: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"no")
    with pytest.raises(WorkFailed, match=r"no image of .* can be used; .*f.bad_images.csv says why"):
        run(hcl, tmp_path / "data", tmp_path / "f.npy", max_bad=1)


def test_stopped_twice_and_resumed_it_is_the_same(
    hcl: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(hcl, images, tmp_path / "whole.npy")
    look, calls = feature_pass.look, itertools.count()

    def stop(*args: Any, **kwargs: Any) -> Any:
        if next(calls) in (1, 3):
            signal.raise_signal(signal.SIGINT)
        return look(*args, **kwargs)

    out = tmp_path / "f.npy"
    monkeypatch.setattr(feature_pass, "look", stop)
    for at in (16, 32):
        with pytest.raises(Stopped, match=f"stopped after {at} of 40 images; go on with --resume"):
            run(hcl, images, out, resume=True)
        with pytest.raises(InputError, match="were begun; add --resume"):
            run(hcl, images, out)
    with pytest.raises(InputError, match="other features were begun"):
        run(hcl, images, out, resume=True, features="spatial")
    assert run(hcl, images, out, resume=True)["crc32_of_features"] == first["crc32_of_features"]
    assert next(calls) == 5  # each batch was looked at once
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("f.csv", "f.json", "f.npy", "whole.csv", "whole.json", "whole.npy")
    ]


def test_what_is_whole_is_left_as_it_is_and_what_is_damaged_is_made_again(
    hcl: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.npy"
    first = run(hcl, images, out)
    before = out.read_bytes()
    with monkeypatch.context() as m:
        m.setattr(feature_pass, "look", lambda *a, **k: pytest.fail("it looked again"))
        assert run(hcl, images, out, resume=True)["crc32_of_features"] == first["crc32_of_features"]
    out.write_bytes(before[:-8] + bytes(8))
    run(hcl, images, out, resume=True)
    assert out.read_bytes() == before


def test_random_weights_have_their_statistics_measured(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("timm:test_resnet:random", images, tmp_path / "f.npy", size=32)
    assert "no batch-norm statistics: measured" in capsys.readouterr().out
    assert np.load(tmp_path / "f.npy").std(axis=0).max() > 0


def test_two_ranks_do_what_one_does(hcl: Path, tmp_path: Path) -> None:
    words = ["embed", str(hcl), "--data", "scenes:50", "--out"]
    more = ["--batch", "8", "--workers", "0", "--threads", "1", "--device", "cpu"]
    said = tmp_path / "said"
    assert processes.run_ranks([*words, str(tmp_path / "two.npy"), *more], said) == [0, 0], said.read_text()
    assert main([*words, str(tmp_path / "one.npy"), *more]) == 0
    assert (tmp_path / "two.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_what_is_refused_leaves_all_as_it_was(hcl: Path, moco: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npy"
    for name in ("f", "f.parquet"):
        with pytest.raises(InputError, match=r"written as \.npy"):
            run(hcl, images, tmp_path / name)
    with pytest.raises(InputError, match="has no embedding"):
        run("timm:test_resnet:random", images, out, features="embedding")
    out.with_suffix(".csv").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"f\.csv is there, and is no file of hetcl embed's"):
            run(hcl, images, out, overwrite=overwrite)
    out.with_suffix(".csv").unlink()
    assert not list(tmp_path.iterdir())
    run(hcl, images, out)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match="is there; add --overwrite"):
        run(hcl, images, out)
    with pytest.raises(InputError, match="is there with another features"):
        run(hcl, images, out, resume=True, features="semantic")
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    report = run(moco, images, out, overwrite=True, features="semantic")
    assert np.load(out).shape == (40, report["parts"]["semantic"])
