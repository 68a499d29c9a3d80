"""A short curve per method, stored: any change to the numerics is seen, on purpose or not.

To store new ones after a change that is meant: ``python -m tests.pretraining.test_golden`` (it prints what moved).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hetcl.draws import seed_of
from hetcl.images.sources import open_source
from hetcl.methods import METHODS
from hetcl.model.build import build_embedding
from hetcl.model.momentum import MomentumPair
from hetcl.model.queue import KeyQueue
from hetcl.pretraining.stages import Contrast, StageConfig, Supervised
from hetcl.settings import resolve
from hetcl.training.schedule import schedule
from hetcl.views.loader import ViewLoader
from hetcl.views.photometric import Photometric
from tests.pretraining.build import fabric

FOLDER = Path(__file__).parents[1] / "golden"
RECIPE = {
    "moco-v1": "moco-v1-r50",
    "moco-v2": "moco-v2-r50",
    "hcl": "hcl-r50",
    "hcl-geo": "hcl-geo-r50",
    "supervised": "supervised-r50",
}
STEPS, B, SEED = 6, 8, 11


def curve(method: str) -> dict[str, list[float]]:
    """Figures of a few steps on the built-in scenes, in float64, with the views and rates of the paper's recipe."""
    settings = resolve(RECIPE[method])
    stage = settings.stage2 if method.startswith("hcl") else settings.stage1
    source = open_source("scenes:24")
    assert source.classes is not None
    loader = ViewLoader(
        source,
        policy=stage.views,
        size=32,
        batch=B,
        seed=SEED,
        stage="stage1",
        views=1 if method == "supervised" else 2,
    )
    common: dict[str, Any] = {
        "fabric": fabric(),
        "loader": loader,
        "photometric": Photometric(stage.views, dtype=torch.float64),
        "evaluate": lambda pyramid: {},
        "on_bad": lambda batch: None,
        "config": StageConfig(
            epochs=2,
            batch=B,
            seed=SEED,
            lr=stage.lr,
            sgd_momentum=stage.sgd_momentum,
            weight_decay=stage.weight_decay,
        ),
    }
    model = build_embedding(
        method,
        "timm:test_resnet",
        seed=SEED,
        words={"semantic": {"dim": 16}, "spatial": {"side": 4, "width": 8}},
        classes=len(source.classes),
    ).double()
    task: Contrast | Supervised
    if method == "supervised":
        task = Supervised("stage1", model=model, groups=2, **common)
    else:
        pair = MomentumPair(model, momentum=0.9, groups=2)
        queue = KeyQueue(21, model.dims, seed=SEED).double()  # type: ignore[arg-type]
        task = Contrast(
            "stage1", pair=pair, queue=queue, temperature=stage.temperature, mask_own=True,
            laid_back=METHODS[method].laid_back, **common,
        )  # fmt: skip
    rate = schedule("cosine-step", lr=10 * stage.lr, epochs=2, steps_per_epoch=3)
    out: dict[str, list[float]] = {}
    for step in range(STEPS):
        if step % 3 == 0:
            batches = task.batches(step // 3, 0)
        task.optimizer.param_groups[0]["lr"] = rate(step)
        torch.manual_seed(seed_of(SEED, step))
        figures = task.step(next(batches), step)
        for name in ("loss", "alignment", "uniformity"):
            if name in figures:
                out.setdefault(name, []).append(figures[name].item())
    weights = [p.detach().norm() for p in model.parameters()]
    out["norm of the weights"] = [torch.stack(weights).norm().item()]
    return out


@pytest.mark.parametrize("method", RECIPE)
def test_the_curve_is_the_stored_one(method: str) -> None:
    stored = json.loads((FOLDER / f"{method}.json").read_text())
    found = curve(method)
    assert found.keys() == stored.keys()
    for name, values in stored.items():
        assert found[name] == pytest.approx(values, rel=1e-4), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in RECIPE:
        path, now = FOLDER / f"{name}.json", curve(name)
        before = json.loads(path.read_text()) if path.exists() else None
        path.write_text(json.dumps(now, indent=1) + "\n")
        print(name, "as before" if now == before else f"was {before}\nnow {now}")
