"""What the FCN's map laid by its stride is worth: the same weights tested so, and stretched over each image.

    python experiments/fcn_stretched.py DATA OUT [SEED ...]       DATA: as for pennfudan.sh; seeds 0 and 1 by default

Trains ``tiny-fcn`` from random weights for each seed (crops of 192, a multiple of 16, where both are one; some 13
minutes on one core) and prints both mIoU (docs/results.md). Called again, it goes on.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

import hetcl
from hetcl.downstream.models import segmenters

MACHINE = {"threads": 1, "workers": 0}


def stretched(x: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """In place of ``segmenters.upsampled``: the map over the whole image, as it was until 2026-11-26."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def main(data: str, out: str, *seeds: str) -> None:
    """Train and test."""
    root = Path(out)
    subprocess.run(
        [sys.executable, Path(__file__).with_name("pennfudan_voc.py"), data, root / "voc"], check=True
    )
    voc, by_stride = f"voc:{root / 'voc'}", segmenters.upsampled
    for seed in seeds or ("0", "1"):
        run = root / f"seed{seed}"
        hetcl.finetune(
            init="torchvision:resnet18:random", data=voc, out=run, recipe="tiny-fcn", resume=True,
            overrides={**MACHINE, "seed": int(seed)},
        )  # fmt: skip
        for how, upsampled in {"stride": by_stride, "stretched": stretched}.items():
            segmenters.upsampled = upsampled
            found = hetcl.evaluate(
                run=run, data=voc, out=root / f"seed{seed}-{how}", overrides={**MACHINE, "examples": 0}
            )
            print(f"seed {seed}, {how}: mIoU {found['figures']['miou']:.1f}", flush=True)
        segmenters.upsampled = by_stride


if __name__ == "__main__":
    main(*sys.argv[1:])
