"""Which form of hcl-geo wins on frozen tests? One stage 2 of each form, from one common stage 1.

    python experiments/geo_forms.py train FORM --data 'train-000{0,1}.tar' --init STAGE1.ckpt --out DIR
    python experiments/geo_forms.py ask|fill FORM --data val-0000.tar --out DIR [--images N]

A form is hcl-geo with something else in its place: another way to lay maps back, another branch, another loss. All
train by the recipe `small`: the same images, steps and draws. `ask` is `hetcl contrast`, with boxes known and unknown;
the frozen backbones are asked by `hetcl probe`. `fill` is `ask` of the form `completion`, with what its query did not
see filled in. docs/results.md has the record.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hetcl import methods
from hetcl.methods import METHODS, Kind
from hetcl.model import branches, frames, infonce
from hetcl.model.embedding import normalize
from hetcl.model.frames import shares
from hetcl.types import Crops

STRONG = {"jitter": (0.8, 0.8, 0.8, 0.2), "blur_p": 0.5}
LAY_BACK = frames.lay_back
CHANNELS = 4


@dataclass(frozen=True)
class Form:
    """One form: what it changes."""

    text: str
    lay_back: Any = LAY_BACK
    branch: type[nn.Module] | None = None
    side: int = 12
    views: dict[str, Any] = field(default_factory=dict)
    loss: str = "joint"
    weight: float = 1.0
    method: str = "hcl-geo"


# ---- ways to lay back ----------------------------------------------------------------------------------------------


def turned(part: Tensor, crops: Crops, side: int) -> Tensor:
    """Maps ``[B, C, S, S]`` with flips undone."""
    maps = part.float().unflatten(1, (-1, side, side))
    return torch.where(crops.flipped[:, None, None, None], maps.flip(3), maps)


def area(part: Tensor, crops: Crops, side: int) -> Tensor:
    """The mean over each cell of the frame, the map's own mean kept."""
    return _averaged(turned(part, crops, side), crops, side)


def unit_cells(part: Tensor, crops: Crops, side: int) -> Tensor:
    """As the product does, each cell's channels of unit length first."""
    maps = nn.functional.normalize(turned(part, crops, side), dim=1)
    return _averaged(maps - maps.mean(dim=(2, 3), keepdim=True), crops, side)


def _averaged(maps: Tensor, crops: Crops, side: int) -> Tensor:
    left, top, right, bottom = crops.boxes.to(maps.dtype).unbind(1)
    rows, columns = shares(top, bottom, side), shares(left, right, side)
    return (rows[:, None] @ maps @ columns[:, None].mT).flatten(1)


def sampled(part: Tensor, crops: Crops, side: int) -> Tensor:
    """Bilinear samples at the centres of the frame's cells, zero where a centre is not covered; the mean kept."""
    maps = turned(part, crops, side)
    left, top, right, bottom = crops.boxes.to(maps.dtype).unbind(1)
    centres = (torch.arange(side, dtype=maps.dtype) + 0.5) / side
    y = (centres - top[:, None]) / (bottom - top)[:, None]
    x = (centres - left[:, None]) / (right - left)[:, None]
    grid = torch.stack(
        [(2 * x - 1)[:, None, :].expand(-1, side, -1), (2 * y - 1)[:, :, None].expand(-1, -1, side)], dim=-1
    )
    seen = (grid.abs() <= 1).all(dim=-1)[:, None]
    found = nn.functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    return (found * seen).flatten(1)


def coverage(crops: Crops, side: int) -> Tensor:
    """The share of each cell of the frame that the crop covers, ``[B, S * S]``."""
    left, top, right, bottom = crops.boxes.unbind(1)
    rows, columns = shares(top, bottom, side).sum(2), shares(left, right, side).sum(2)
    return (rows[:, :, None] * columns[:, None, :]).flatten(1)


def with_coverage(part: Tensor, crops: Crops, side: int) -> Tensor:
    """What is compared over the overlap alone: the map and, beside it, what it covers (``overlap_logits``)."""
    share = coverage(crops, side)
    seen = share > 0.5
    return torch.cat([LAY_BACK(part, crops, side) / share.clamp(min=0.5) * seen, seen], dim=1)


# ---- branches ------------------------------------------------------------------------------------------------------


class Channels(branches.SpatialBranch):
    """Several channels on a coarser grid."""

    def __init__(self, channels: Any, **given: Any) -> None:
        super().__init__(channels, **given)
        width = self.project.in_channels
        with branches.seeded(given.get("seed"), "channels"):
            self.project = nn.Conv2d(width, CHANNELS, kernel_size=1)
            nn.init.kaiming_uniform_(self.project.weight, a=1)
            nn.init.zeros_(self.project.bias)
        self.dim = CHANNELS * self.side**2


class Late(branches.SpatialBranch):
    """Sees C4 and C5 alone."""

    def __init__(self, channels: Any, **given: Any) -> None:
        super().__init__(channels[2:], **given)

    def forward(self, maps: Any) -> Tensor:
        return super().forward(maps[2:])


class Stopped(branches.SpatialBranch):
    """Its gradient does not reach C2 and C3 themselves."""

    def forward(self, maps: Any) -> Tensor:
        return super().forward([maps[0].detach(), maps[1].detach(), *maps[2:]])


class Completing(branches.SpatialBranch):
    """With a predictor that fills in, on the query side, the cells that the crop does not cover."""

    def __init__(self, channels: Any, **given: Any) -> None:
        super().__init__(channels, **given)
        with branches.seeded(given.get("seed"), "completion"):
            self.fill = nn.Sequential(
                nn.Conv2d(4, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(),
                nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 1, 1),
            )  # fmt: skip

    def completed(self, laid: Tensor, covered: Tensor) -> Tensor:
        """Laid-back maps ``[B, S * S]`` with the other cells filled in."""
        s = self.side
        axis = torch.linspace(-1, 1, s)
        place = torch.stack([axis[:, None].expand(s, s), axis[None].expand(s, s)]).expand(len(laid), 2, s, s)
        scale = laid.norm(dim=1, keepdim=True).clamp(min=1e-6) / s
        seen = torch.stack([laid / scale, covered], dim=1).unflatten(2, (s, s))
        filled = self.fill(torch.cat([seen, place], dim=1)).flatten(1)
        return laid + scale * (1 - covered) * filled


# ---- losses --------------------------------------------------------------------------------------------------------


def overlap_logits(query: Tensor, key: Tensor, queue: Tensor, *, semantic: int, **owned: Any) -> Tensor:
    """Cosines of the semantic part, and of maps over what both crops cover, times |M| / (|M| + 16)."""
    keys = torch.cat([key, queue])
    (qs, qv, qm), (ks, kv, km) = (split(x, semantic) for x in (query, keys))
    common = qm @ km.T
    products = (qv @ kv.T) / (((qv**2) @ km.T) * (qm @ (kv**2).T)).clamp(min=1e-3).sqrt()
    scores = qs @ ks.T + products * common / (common + 16)
    b = len(query)
    negative = scores[:, b:]
    index, queue_index = owned.get("index"), owned.get("queue_index")
    if index is not None:
        negative = negative.masked_fill(index[:, None] == queue_index[None], float("-inf"))
    return torch.cat([scores[:, :b].diagonal()[:, None], negative], dim=1)


def split(x: Tensor, semantic: int) -> tuple[Tensor, Tensor, Tensor]:
    side = (x.shape[1] - semantic) // 2
    return x[:, :semantic], x[:, semantic : semantic + side], x[:, semantic + side :]


FORMS: dict[str, Form] = {
    "moco-v2": Form("stage 1 goes on", method="moco-v2", views={"flip_p": 0.5}),
    "hcl": Form("as the paper", method="hcl", views={"flip_p": 0.0}),
    "hcl-separate": Form(
        "as the paper, a loss for each part", method="hcl", views={"flip_p": 0.0}, loss="separate"
    ),
    "sampled": Form("bilinear samples, mean kept", lay_back=sampled),
    "area": Form("averaged over cells, mean kept", lay_back=area),
    "geo": Form("averaged over cells, mean removed"),
    "no-flip": Form("that without flips", views={"flip_p": 0.0}),
    "separate": Form("a loss for each part", loss="separate"),
    "half": Form("half the weight of the spatial part", weight=0.5),
    "coarse": Form("a grid of 6 x 6", side=6),
    "channels": Form("4 channels on a grid of 6 x 6", side=6, branch=Channels),
    "cells": Form(
        "4 channels on 6 x 6, each cell of unit length", side=6, branch=Channels, lay_back=unit_cells
    ),
    "late": Form("the branch sees C4 and C5 alone", branch=Late),
    "stopped": Form("no gradient into C2 and C3", branch=Stopped),
    "late-separate": Form("C4 and C5 alone, a loss for each part", branch=Late, loss="separate"),
    "color": Form("stronger colour changes and blur", views=STRONG),
    "overlap": Form("compared over the overlap alone", lay_back=with_coverage, loss="overlap"),
    "completion": Form("the query's unseen cells filled in", branch=Completing, loss="completion"),
}
"""Forms by name."""


def install(form: Form) -> None:
    """Make hcl-geo (or hcl) this form."""
    from hetcl.pretraining import stages

    entry = METHODS[form.method]
    if form.branch is not None:
        name = form.branch.__name__
        setattr(branches, name, form.branch)
        methods.KINDS["spatial"] = Kind(name, False, methods.KINDS["spatial"].defaults)
    frames.lay_back = form.lay_back
    METHODS[form.method] = replace(entry)
    if form.loss == "separate":
        plain = infonce.info_nce

        def separate(query: Tensor, key: Tensor, queue: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
            logits, _ = plain(query, key, queue, **given)
            found = [
                plain(*(x[:, s] for x in (query, key, queue)), **given)[1]
                for s in (slice(0, 128), slice(128, None))
            ]
            return logits, sum(found) / 2

        stages.info_nce = separate
    if form.loss == "overlap":

        def over_overlap(
            query: Tensor, key: Tensor, queue: Tensor, *, temperature: float, **owned: Any
        ) -> Any:
            logits = overlap_logits(query, key, queue, semantic=128, **owned) / temperature
            return logits, nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))

        stages.info_nce = over_overlap
        stages.in_image = lambda parts, crops, sides: {
            **parts,
            "spatial": with_coverage(parts["spatial"], crops, sides["spatial"]),
        }
        queue = stages.KeyQueue
        from hetcl.pretraining import build

        build.KeyQueue = lambda length, dims, seed: queue(
            length, {**dims, "spatial": 2 * dims["spatial"]}, seed=seed
        )
    if form.loss == "completion":
        compared = stages.Contrast.compared

        def completed(self: Any, parts: Any, batch: Any, view: int, rows: slice = slice(None)) -> Any:
            out = compared(self, parts, batch, view, rows)
            if view == 0:
                crops = stages.crops_of(batch, view)[rows]
                branch = self.pair.query.branches["spatial"]
                out["spatial"] = normalize(branch.completed(out["spatial"], coverage(crops, branch.side)))
            return out

        stages.Contrast.compared = completed
    if form.weight != 1:
        in_image = stages.in_image
        scale = form.weight**0.5
        stages.in_image = lambda *given: {
            n: p * (scale if n == "spatial" else 1) for n, p in in_image(*given).items()
        }


def fill_queries() -> None:
    """Make `hetcl contrast` complete the laid-back maps of first views, which are the queries."""
    from hetcl.analysis import feature_pass
    from hetcl.analysis.extractor import Extractor

    crops_of, align, views = feature_pass.crops_of, Extractor.align, [0]

    def noted(batch: Any, view: int) -> Crops:
        views[0] = view
        return crops_of(batch, view)

    @torch.no_grad()
    def completed(self: Extractor, features: dict[str, Tensor], crops: Crops) -> dict[str, Tensor]:
        out = align(self, features, crops)
        if views[0] == 0 and "aligned" in out:
            branch = self.branches["spatial"]
            semantic, laid = out["aligned"].split([128, branch.dim], dim=1)
            filled = normalize(branch.completed(laid, coverage(crops, branch.side)))
            out["aligned"] = torch.cat([semantic, filled], dim=1)
        return out

    feature_pass.crops_of, Extractor.align = noted, completed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("train", "ask", "fill"))
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("--data", required=True)
    parser.add_argument("--init", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--images", default="1500", help="to ask of")
    parser.add_argument("--threads", default="1")
    args = parser.parse_args()
    if args.verb == "fill" and args.form != "completion":
        parser.error("fill is of the form completion alone")
    form = FORMS[args.form]
    asked = args.verb != "train"
    install(replace(form, lay_back=LAY_BACK, loss="joint") if asked and form.loss == "overlap" else form)
    from hetcl.cli import main as hetcl

    out = args.out / args.form
    if args.verb == "fill":
        fill_queries()
    if asked:
        kinds = "embedding" if form.method == "moco-v2" else "aligned,embedding"
        words = [
            "contrast",
            str(out),
            "--data",
            args.data,
            "--data_split",
            "all",
            "--out",
            str(out / ("contrast" if args.verb == "ask" else "contrast-filled")),
        ]
        words += [
            "--features",
            kinds,
            "--images",
            args.images,
            "--yardstick",
            "none",
            "--examples",
            "0",
            "--resume",
        ]
        return int(hetcl([*words, "--threads", args.threads, "--workers", "1"]))
    if (out / "backbone.safetensors").is_file():
        return 0
    words = ["pretrain", "--data", args.data, "--out", str(out), "--recipe", "small", "--init", args.init]
    words += ["--stage1.epochs", "0", "--stage2.method", form.method, "--stage2.epochs", "1"]
    words += ["--spatial.side", str(form.side), "--seed", args.seed, "--knn.every", "0", "--log_every", "100"]
    if form.method == "moco-v2":
        words += ["--stage2.temperature", "0.1"]
    for name, value in {"flip_p": 0.5, **form.views}.items():
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [f"--stage2.views.{name}", shown]
    words += ["--threads", args.threads, "--workers", "1", "--resume"]
    return int(hetcl(words))


if __name__ == "__main__":
    sys.exit(main())
