"""Checkpoints and images for tests of the analysis room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hetcl.draws import generator
from hetcl.model.build import build_embedding
from hetcl.runs import checkpoint

ARCH = "timm:test_resnet"
SIZE = 32


def write_checkpoint(
    path: Path, *, method: str = "hcl", seed: int = 0, side: int = 4, change: Any = None
) -> Path:
    """A checkpoint as a run leaves it, with random weights; ``change`` may alter the state dict in place."""
    spatial = {"side": side, "width": 8, "fused": True}
    model = build_embedding(
        method, ARCH, seed=seed, words={"semantic": {"dim": 24}, "spatial": {"side": side, "width": 8}}
    )
    # Statistics away from their defaults, as a trained encoder has them.
    model.train()
    with torch.no_grad():
        for step in range(3):
            model(torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(step)))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    if change is not None:
        change(state)
    facts = {"arch": ARCH, "method": method, "size": SIZE, "semantic_dim": 24, "spatial": spatial}
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, {**facts, "stage": "stage2", "epoch": 1, "step": 0, "task": {"query": state}})
    return path


def write_images(folder: Path, count: int, *, same: bool = False, sides: tuple[int, int] = (48, 64)) -> Path:
    """``count`` PNGs of smooth noise; all the same if asked."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = generator("image", 0 if same else i)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
        coarse.resize((sides[1], sides[0]), Image.Resampling.BICUBIC).save(folder / f"{i:04}.png")
    return folder
