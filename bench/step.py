"""What a training step costs: stage 2 against stage 1, and our step against a plain loop. Ratios from one run.

    python bench/step.py                              ResNet-50 at 224 pixels (slow on a CPU: some minutes)
    python bench/step.py --backbone resnet18 --batch 16

The paper: stage 2 takes 5.7% longer than stage 1, and the plain FPN ("vanilla") about 10% more again. hcl-geo may take
1% longer than HCL. The plain loop is MoCo-v2 written as most people would: fp32, contiguous memory, one loop over
parameters for the momentum update. Rounds alternate, so that a busy machine slows all of them; the median of the rounds
counts. Prints ratios and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from lightning_fabric import Fabric

from hetcl.methods import METHODS
from hetcl.model.build import build_embedding
from hetcl.model.momentum import MomentumPair
from hetcl.model.queue import KeyQueue
from hetcl.pretraining.stages import Contrast, StageConfig
from hetcl.types import ViewBatch, ViewPolicy
from hetcl.views.photometric import NOTHING, Photometric

NO_CHANGE = ViewPolicy(jitter_p=0.0, grayscale_p=0.0, blur_p=0.0, flip_p=0.0)


class OneBatch:
    """A loader that gives the same batch for ever: only the step is measured."""

    steps_per_epoch = 1

    def __init__(self, batch: int, size: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.batch = ViewBatch(
            images=torch.randint(0, 256, (2, batch, 3, size, size), generator=draw, dtype=torch.uint8),
            boxes=torch.tensor([0.1, 0.2, 0.8, 0.9]).expand(2, batch, 4),
            frames=torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(batch, 4),
            color=torch.tensor(NOTHING).expand(2, batch, -1).contiguous(),
            index=torch.arange(batch),
            label=None,
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ViewBatch]:
        while True:
            yield self.batch

    def close(self) -> None:
        pass


def ours(method: str, fused: bool, args: argparse.Namespace, fabric: Fabric) -> Callable[[], None]:
    """A step of a stage."""
    model = build_embedding(
        method, args.backbone, seed=0, words={"spatial": {"side": args.size // 16, "fused": fused}}
    )
    pair = MomentumPair(model, groups=args.groups).to(fabric.device, memory_format=torch.channels_last)
    config = StageConfig(
        epochs=1, batch=args.batch, lr=0.03, sgd_momentum=0.9, weight_decay=1e-4, channels_last=True
    )
    stage = Contrast(
        method, config, pair=pair, queue=KeyQueue(args.queue, model.dims).to(fabric.device),
        temperature=0.2, mask_own=True, laid_back=METHODS[method].laid_back, fabric=fabric,
        loader=OneBatch(args.batch, args.size), photometric=Photometric(NO_CHANGE),
        evaluate=lambda _: {}, on_bad=lambda _: None,
    )  # fmt: skip
    batches, step = stage.batches(0, 0), iter(range(10**9))
    return lambda: void(stage.step(next(batches), next(step)))


def plain(args: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """MoCo-v2's step as most people write it."""
    make = getattr(torchvision.models, args.backbone.split(":")[-1])

    def encoder() -> torch.nn.Module:
        net = make(num_classes=128)
        net.fc = torch.nn.Sequential(
            torch.nn.Linear(net.fc.in_features, net.fc.in_features), torch.nn.ReLU(), net.fc
        )
        return net.to(device)

    query, key = encoder(), encoder()
    key.load_state_dict(query.state_dict())
    queue = F.normalize(torch.randn(128, args.queue, device=device), dim=0)
    optimizer = torch.optim.SGD(query.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    x1, x2 = (torch.rand(args.batch, 3, args.size, args.size, device=device) for _ in range(2))
    target = torch.zeros(args.batch, dtype=torch.long, device=device)

    def step() -> None:
        nonlocal queue
        q = F.normalize(query(x1), dim=1)
        with torch.no_grad():
            for p, k in zip(query.parameters(), key.parameters(), strict=True):
                k.data = k.data * 0.999 + p.data * 0.001
            keys = F.normalize(key(x2), dim=1)
        logits = torch.cat([(q * keys).sum(1, keepdim=True), q @ queue], dim=1) / 0.2
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue[:, : args.batch] = keys.t()

    return step


def void(_: Any) -> None:
    """Forget a result."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="torchvision:resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=None, help="default 256 on a GPU, 8 on a CPU")
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--queue", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    gpu = torch.cuda.is_available()
    args.batch = args.batch or (256 if gpu else 8)
    fabric = Fabric(
        accelerator="cuda" if gpu else "cpu", devices=1, precision="bf16-mixed" if gpu else "32-true"
    )
    steps = {
        "stage 1": ours("moco-v2", True, args, fabric),
        "stage 2 fused": ours("hcl", True, args, fabric),
        "hcl-geo": ours("hcl-geo", True, args, fabric),
        "stage 2 vanilla": ours("hcl", False, args, fabric),
        "plain fp32 loop": plain(args, fabric.device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if gpu:
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    base = median["stage 1"]
    where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{args.backbone} at {args.size}, batch {args.batch}, queue {args.queue}, {where}, {args.rounds} rounds"
    )
    for name, s in median.items():
        spread = (max(seconds[name]) - min(seconds[name])) / s
        pace = f"{1000 * s:9.1f} ms a step  {args.batch / s:8.1f} images/s"
        print(f"  {name:16} {pace}  {s / base:6.3f} x stage 1  (spread {spread:.0%})")
    ratios = {
        "stage2_fused_over_stage1": median["stage 2 fused"] / base,
        "hcl_geo_over_stage2_fused": median["hcl-geo"] / median["stage 2 fused"],
        "stage2_vanilla_over_stage2_fused": median["stage 2 vanilla"] / median["stage 2 fused"],
        "plain_loop_over_stage1": median["plain fp32 loop"] / base,
    }
    print(
        json.dumps(
            {
                "bench": "step",
                "device": where,
                "batch": args.batch,
                **{k: round(v, 4) for k, v in ratios.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
