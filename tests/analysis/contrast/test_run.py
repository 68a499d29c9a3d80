"""The whole test, from images and checkpoints to figures and words; stopped, resumed, and given bad input."""

from __future__ import annotations

import itertools
import json
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hetcl.analysis import feature_pass
from hetcl.analysis.contrast.run import contrast
from hetcl.analysis.contrast.search_results import FIFO_BATCH
from hetcl.cli import main
from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.signals import StopSignal
from tests.analysis.make import write_checkpoint, write_images

QUICK = {
    "workers": 0,
    "dims": [8, 16],
    "examples": 1,
    "threads": 1,
    "batch": 16,
    "device": "cpu",
    "yardstick": "none",  # tests/analysis/test_yardstick.py has it on
}


def run(models: Any, data: Path | str, out: Path, *, resume: bool = False, **more: Any) -> dict[str, Any]:
    models = [str(m) for m in models] if isinstance(models, list) else str(models)
    return contrast(models, data=str(data), out=out, resume=resume, overrides=QUICK | more)


@pytest.fixture(scope="module")
def both(hcl: Path, moco: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished test of two checkpoints."""
    out = tmp_path_factory.mktemp("contrast") / "out"
    run([hcl, moco], images, out, splits=[0.5, 0.25])
    return out


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "contrast.json").read_text())


def result(report: dict[str, Any], model: str, views: str, vector: str) -> dict[str, Any]:
    return next(
        r for r in report["results"] if (r["model"], r["views"], r["vector"]) == (model, views, vector)
    )


# ---- what it says is so ----------------------------------------------------------------------------------------


def test_accuracies_equal_a_double_loop_over_the_features(both: Path) -> None:
    report = report_of(both)
    for folder in (both / "features").iterdir():
        query, key = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("query", "key"))
        similar = query @ key.T
        ranks = []
        for i in range(len(query)):
            ranks.append(1 + sum(similar[i, j] >= similar[i, i] for j in range(len(query)) if j != i))
        facts = json.loads((folder / "facts.json").read_text())
        model = folder.name.partition("-")[0]
        views = "crop" if facts["key"]["policy"]["jitter_p"] == 0 else "standard"
        row = result(report, model, views, "full")
        assert row["top1"]["value"] == np.mean(np.array(ranks) == 1)
        assert row["top5"]["value"] == np.mean(np.array(ranks) <= 5)
        assert row["mrr"]["value"] == pytest.approx(np.mean(1 / np.array(ranks)), abs=1e-12)


def test_pca_accuracies_equal_those_of_numpys_svd(both: Path) -> None:
    report = report_of(both)
    folder = next(f for f in (both / "features").iterdir() if f.name.startswith("hcl-crop"))
    query, key = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("query", "key"))
    for vector, split in (("pca-8", (4, 4)), ("pca-16", (8, 8)), ("pca-8@0.25", (6, 2))):
        parts = []
        for part, kept in zip((slice(0, 24), slice(24, 40)), split, strict=True):
            mean = key[:, part].mean(axis=0)
            axes = np.linalg.svd(key[:, part] - mean, full_matrices=False)[2][:kept]
            made = [(x[:, part] - mean) @ axes.T for x in (query, key)]
            parts.append([x / np.linalg.norm(x, axis=1, keepdims=True) for x in made])
        q, k = (np.concatenate([p[i] for p in parts], axis=1) for i in (0, 1))
        similar = q @ k.T
        right = np.diag(similar).copy()
        np.fill_diagonal(similar, -np.inf)
        assert result(report, "hcl", "crop", vector)["top1"]["value"] == np.mean(right > similar.max(axis=1))


def test_the_gallery_is_everyone_else_and_chance_follows(both: Path) -> None:
    report = report_of(both)
    assert report["test"]["gallery"] == 39
    assert report["test"]["chance"] == 1 / 40
    assert {r["model"] for r in report["results"]} == {"hcl", "moco"}
    vectors = {r["vector"] for r in report["results"] if r["model"] == "hcl"}
    assert vectors == {"full", "semantic", "spatial", "pca-8", "pca-16", "pca-8@0.25", "pca-16@0.25"}
    assert {r["vector"] for r in report["results"] if r["model"] == "moco"} == {"full", "pca-8", "pca-16"}


def test_bins_hold_every_pair_once(both: Path) -> None:
    for row in report_of(both)["results"]:
        assert sum(b["count"] for b in row["bins"]) == 40
        hits = sum(b["count"] * b["top1"]["value"] for b in row["bins"] if b["count"])
        assert hits == pytest.approx(40 * row["top1"]["value"])


def test_parts_share_the_similarity(both: Path) -> None:
    report = report_of(both)
    for model, views in itertools.product(("hcl", "moco"), ("crop", "standard")):
        rows = [p for p in report["parts"] if (p["model"], p["views"]) == (model, views)]
        assert [p["part"] for p in rows] == (["semantic", "spatial"] if model == "hcl" else ["semantic"])
        for share in ("share_right", "share_wrong"):
            assert sum(p[share] for p in rows) == pytest.approx(1)
        for p in rows:
            assert 0 <= p["alignment"] <= 4
            assert 1 <= p["effective_rank"] <= 24


def test_differences_are_those_of_the_table(both: Path) -> None:
    report = report_of(both)
    assert report["differences"]
    for row in report["differences"]:
        a, b = (result(report, m, row["views"], row["vector"])["top1"]["value"] for m in row["models"])
        assert row["top1"]["value"] == pytest.approx(a - b)
        assert row["top1"]["low"] <= a - b <= row["top1"]["high"]


def test_files_for_people_are_there(both: Path) -> None:
    figures = {p.name for p in (both / "figures").iterdir()}
    for name in ("overlap-crop", "overlap-standard", "dimensions-crop", "dimensions-standard", "splits-crop"):
        assert {f"{name}.svg", f"{name}.png"} <= figures
    assert {f"examples-{m}-{v}.png" for m in ("hcl", "moco") for v in ("crop", "standard")} <= figures
    assert {f"parts-hcl-{v}.png" for v in ("crop", "standard")} <= figures
    assert not any(name.startswith("parts-moco") for name in figures)  # it has one part


# ---- same views for all, whatever the machine --------------------------------------------------------------------


def test_workers_batches_and_company_change_nothing(
    both: Path, hcl: Path, images: Path, tmp_path: Path
) -> None:
    run(hcl, images, tmp_path / "out", workers=2, batch=7, views=["standard", "crop"])
    for folder in (both / "features").iterdir():
        if folder.name.startswith("moco"):
            continue
        other = tmp_path / "out" / "features" / folder.name
        for name in ("index", "boxes"):
            np.testing.assert_array_equal(np.load(folder / f"{name}.npy"), np.load(other / f"{name}.npy"))
        np.testing.assert_allclose(np.load(folder / "query.npy"), np.load(other / "query.npy"), atol=1e-5)


def test_models_see_the_same_crops_and_another_seed_gives_others(
    both: Path, hcl: Path, images: Path, tmp_path: Path
) -> None:
    boxes = [np.load(f / "boxes.npy") for f in (both / "features").iterdir()]
    for other in boxes[1:]:
        np.testing.assert_array_equal(boxes[0], other)
    run(hcl, images, tmp_path / "out", seed=1, views=["crop"])
    (folder,) = (tmp_path / "out" / "features").iterdir()
    order, index = (
        np.argsort(np.load(f / "index.npy")) for f in (folder, next((both / "features").iterdir()))
    )
    assert not np.array_equal(np.load(folder / "boxes.npy")[order], boxes[0][index])


# ---- stopped and gone on with ------------------------------------------------------------------------------------


def test_other_dims_bins_and_models_cost_no_second_pass(
    both: Path, hcl: Path, moco: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(hcl, images, out)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a second pass")

    with monkeypatch.context() as m:
        m.setattr(feature_pass, "extract", refuse)
        report = run(hcl, images, out, resume=True, dims=[4], bins=5, gallery=10)
        assert "pca-4" in {r["vector"] for r in report["results"]}
        assert len(report["results"][0]["bins"]) == 6
    seen: list[int] = []
    extract = feature_pass.extract
    monkeypatch.setattr(
        feature_pass, "extract", lambda passes, **k: (seen.append(len(passes[0][0])), extract(passes, **k))
    )
    assert len(run([hcl, moco], images, out, resume=True)["differences"]) > 0
    assert seen == [2]  # the new model alone, under two kinds of views


def test_stopped_and_resumed_gives_the_same_features(
    both: Path, hcl: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write, calls = tmp_path / "out", feature_pass.Store.write, itertools.count()

    def stop_after_some(self: Any, *args: Any, **kwargs: Any) -> None:
        write(self, *args, **kwargs)
        if next(calls) == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as m:
        m.setattr(feature_pass.Store, "write", stop_after_some)
        with pytest.raises(Stopped, match="--resume"):
            run(hcl, images, out)
    assert not (out / "contrast.json").exists()
    run(hcl, images, out, resume=True)
    for folder in (out / "features").iterdir():
        for name in ("query", "key", "index", "boxes"):
            whole = both / "features" / folder.name / f"{name}.npy"
            assert (folder / f"{name}.npy").read_bytes() == whole.read_bytes()
    assert report_of(out)["results"] == [
        r for r in report_of(both)["results"] if r["model"] == "hcl" and "@" not in r["vector"]
    ]


# ---- images and models that are not as they should be ------------------------------------------------------------


def test_one_image_is_refused_and_two_are_called_few(hcl: Path, tmp_path: Path) -> None:
    one = write_images(tmp_path / "one", 1)
    with pytest.raises(InputError, match="one image cannot be told from others"):
        run(hcl, one, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = run(hcl, write_images(tmp_path / "two", 2), tmp_path / "out2")
    assert report["test"]["gallery"] == 1
    assert any("pca-8" in line and "images" in line for line in report["skipped"])
    assert any("1 other image" in line or "gallery" in line for line in report["sentences"])


def test_images_that_are_all_the_same_are_told(hcl: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "same", 12, same=True)
    report = run(hcl, data, tmp_path / "out", views=["none", "crop"])
    row = result(report, "hcl", "none", "full")
    assert row["top1"]["value"] == 0
    assert row["ties"] == 1
    assert any("exactly as similar" in line or "the same" in line for line in report["sentences"])


def test_constant_features_are_all_ties(images: Path, tmp_path: Path) -> None:
    def flatten(state: dict[str, torch.Tensor]) -> None:
        for name, value in state.items():
            if name.startswith("branches.semantic.fc.2"):
                value.fill_(1.0 if name.endswith("bias") else 0.0)

    model = write_checkpoint(tmp_path / "constant.ckpt", method="moco-v2", change=flatten)
    report = run(model, images, tmp_path / "out")
    row = result(report, "constant", "crop", "full")
    assert (row["top1"]["value"], row["ties"]) == (0, 1)
    assert any("no variance" in line or "constant" in line for line in report["skipped"])
    assert any("same vector" in line or "collapse" in line for line in report["sentences"])


def test_features_that_are_not_finite_stop_the_work_with_the_models_name(
    images: Path, tmp_path: Path
) -> None:
    def explode(state: dict[str, torch.Tensor]) -> None:
        for name, value in state.items():
            if name.startswith("branches.semantic.fc.0.weight"):
                value.fill_(1e38)

    model = write_checkpoint(tmp_path / "broken.ckpt", method="moco-v2", change=explode)
    with pytest.raises(
        WorkFailed, match=r"broken\.ckpt gives embedding features that are not finite"
    ) as caught:
        run(model, images, tmp_path / "out")
    assert re.search(r"e\.g\. \S+\.(png|jpg): the weights are broken;", str(caught.value))  # by name, in fp32
    assert "bf16" not in str(caught.value)


def test_unusable_images_are_left_out_and_listed(hcl: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", 30)
    (data / "0003.png").write_bytes(b"no image")
    (data / "0017.png").write_bytes((data / "0016.png").read_bytes()[:200])
    report = run(hcl, data, tmp_path / "out")
    assert report["data"]["left_out"] == 2
    assert report["test"]["queries"] == 28
    assert (tmp_path / "out" / "bad_images.csv").read_text().count("\n") == 3
    run(hcl, data, tmp_path / "out", resume=True, views=["crop:flip_p=1"])
    assert (tmp_path / "out" / "bad_images.csv").read_text().count("\n") == 3
    assert (tmp_path / "out" / "figures" / "overlap-crop-flip_p-1.svg").is_file()
    with pytest.raises(WorkFailed, match="max_bad"):
        run(hcl, data, tmp_path / "out2", max_bad=0.01)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"features": ["c9"]}, "no features named 'c9'"),
        ({"views": ["crops"]}, "crop"),
        ({"dims": [0]}, "dims"),
        ({"splits": [2]}, "splits"),
        ({"gallery": 0}, "gallery"),
        ({"bins": 0}, "bins"),
        ({"views": ["crop", "crop"]}, "twice"),
        ({"galery": 3}, "did you mean 'gallery'"),
    ],
)
def test_settings_that_cannot_be(
    hcl: Path, images: Path, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run(hcl, images, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be(hcl: Path, images: Path, tmp_path: Path) -> None:
    for models, more, said in (
        ([hcl, hcl], {}, "named twice"),
        (["torchvision:resnet18:random", "torchvision:resnet18"], {}, "hold the same weights"),
        (["torchvision:resnet18:random"], {"features": ["embedding"]}, "has no embedding"),
        ([tmp_path / "nothing.ckpt"], {}, "no weights"),
    ):
        with pytest.raises(InputError, match=said):
            run(models, images, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_an_out_that_holds_something_is_not_touched(
    both: Path, hcl: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="add --resume"):
        run(hcl, images, both)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for resume in (False, True):
        with pytest.raises(InputError, match="no contrastive test"):
            run(hcl, images, tmp_path / "mine", resume=resume)


def test_any_backbone_and_any_level_by_the_command(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = "--size 32 --features pooled,c3,c4x2 --views crop --dims 8 --workers 0 --threads 1 --examples 0".split()
    words += ["--images", "20"]
    assert (
        main(["contrast", "torchvision:resnet18:random", "--data", str(images), "--out", str(out), *words])
        == 0
    )
    report = report_of(out)
    assert report["test"]["queries"] == 20
    assert [m["features"] for m in report["models"]] == ["pooled", "c3", "c4x2"]
    assert [sum(m["dims"].values()) for m in report["models"]] == [512, 128, 1024]
    assert "top-1" in capsys.readouterr().out


def test_a_model_without_a_spatial_part_is_told(
    moco: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(moco, images, tmp_path / "out", views=["crop"], splits=[0.0, 0.5, 1.0])
    assert [r["vector"] for r in report["results"]] == ["full", "pca-8", "pca-16"]
    assert "one part: PCA takes all dimensions from this one" in capsys.readouterr().out


def test_a_long_gallery_moves_on_and_has_one_length_for_all(hcl: Path, tmp_path: Path) -> None:
    n = FIFO_BATCH + 60
    report = run(hcl, f"scenes:{n}", tmp_path / "out", gallery=50, views=["crop"], examples=0, batch=64)
    assert report["test"]["gallery"] == 50
    (folder,) = (tmp_path / "out" / "features").iterdir()
    query, key = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("query", "key"))
    right = 0
    for i in range(n):
        start = i // FIFO_BATCH * FIFO_BATCH
        gallery = [(start - 1 - j) % n for j in range(50)]
        right += all(query[i] @ key[j] < query[i] @ key[i] for j in gallery if j != i)
    assert result(report, "hcl", "crop", "full")["top1"]["value"] == right / n


def test_signals_in_another_thread_do_not_matter(hcl: Path, images: Path, tmp_path: Path) -> None:
    """A caller may run it in a thread, where signal handlers cannot be set."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(run(hcl, images, tmp_path / "out", views=["crop"])))
    thread.start()
    thread.join()
    assert done
    assert StopSignal().number == 0
