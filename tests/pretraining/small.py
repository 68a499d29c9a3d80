"""The command of a run of both stages that takes a second or two."""

from __future__ import annotations

from pathlib import Path

SMALL = (
    "--recipe demo --backbone timm:test_resnet --size 32 --batch 8 --groups 2 --spatial.side 4 --spatial.width 8 "
    "--semantic.dim 8 --threads 1 --workers 0 --device cpu --log_every 3 --checkpoint_every 2 --stage1.queue 13 "
    "--stage2.queue 13 --knn.every 2 --knn.bank 8 --knn.queries 4 --stage1.epochs 2 --stage2.epochs 2 "
    "--stage2.lr 0.05 --stage2.method hcl-geo --stage2.views.square true --stage2.views.flip_p 0.5"
).split()
DATA = "scenes:27"  # four steps an epoch, the last one completed with images from the start


def command(out: Path, *more: str, data: str = DATA) -> list[str]:
    return ["pretrain", "--data", data, "--out", str(out), *SMALL, *more]
