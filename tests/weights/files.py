"""Makers of files as other people write them: random weights, batch-norm statistics away from their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

State = dict[str, Tensor]


def shaken(module: nn.Module, seed: int) -> State:
    """A state dict of ``module`` with numbers of its own everywhere, counters and variances included."""
    rng = torch.Generator().manual_seed(seed)
    out = {}
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            out[name] = torch.tensor(1000 + seed) if name.endswith("num_batches_tracked") else value.clone()
        elif name.endswith("running_var"):
            out[name] = torch.rand(value.shape, generator=rng) + 0.5
        else:
            out[name] = torch.randn(value.shape, generator=rng) * 0.05
    return out


def resnet(seed: int, arch: str = "resnet18") -> State:
    """A whole ResNet of torchvision's, classifier included."""
    return shaken(torchvision.models.get_model(arch, weights=None), seed)


def head(
    seed: int, *, layers: int = 2, channels: int = 512, hidden: int | None = None, dim: int = 128
) -> State:
    """MoCo's projection head: ``weight`` and ``bias`` (v1), or of ``0.`` and ``2.`` (v2)."""
    if layers == 1:
        return shaken(nn.Linear(channels, dim), seed)
    hidden = hidden or channels
    return shaken(nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, dim)), seed)


def under(prefix: str, state: State) -> State:
    """``state`` with ``prefix`` before its names."""
    return {prefix + name: value for name, value in state.items()}


def bare(state: State) -> State:
    """A ResNet without its classifier."""
    return {n: v for n, v in state.items() if not n.startswith("fc.")}


def indexed(state: State) -> State:
    """A ResNet as ``nn.Sequential(*list(resnet.children())[:-1])`` names it, which lightly's examples use."""
    place = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {
        ".".join([place[first], *rest]): value
        for name, value in bare(state).items()
        for first, *rest in [name.split(".")]
    }


def in_pyramid(encoder: State, projection: State | None = None) -> State:
    """What hetcl should make of it: ``pyramid.*`` and ``branches.semantic.fc.*``."""
    out = under("pyramid.", bare(encoder))
    return out | under("branches.semantic.fc.", projection or {})


def moco(
    layout: str = "module.", *, layers: int = 2, key: bool = True, dim: int = 128
) -> tuple[Any, State, State]:
    """A checkpoint as the official code writes it, its query encoder and its key encoder in hetcl's names.

    Args:
        layout: what stands before ``encoder_q.``: ``module.`` or nothing; ``bare`` is the query encoder alone, with
            no prefix at all.
    """
    encoders, heads = (
        [resnet(1), resnet(2)],
        [head(3, layers=layers, dim=dim), head(4, layers=layers, dim=dim)],
    )
    q, k = (bare(e) | under("fc.", h) for e, h in zip(encoders, heads, strict=True))
    expected = [in_pyramid(e, h) for e, h in zip(encoders, heads, strict=True)]
    if layout == "bare":
        return {"epoch": 200, "arch": "resnet18", "state_dict": q}, expected[0], expected[1]
    state = under(f"{layout}encoder_q.", q)
    if key:
        state |= under(f"{layout}encoder_k.", k)
        state |= {
            f"{layout}queue": torch.randn(dim, 64),
            f"{layout}queue_ptr": torch.zeros(1, dtype=torch.long),
        }
    content = {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": []},
    }
    return content, expected[0], expected[1]


def save(content: Any, name: str = "weights.pth") -> str:
    """Writes ``content`` in the working folder; gives back the name."""
    torch.save(content, Path(name))
    return name


def same(a: State, b: State) -> bool:
    """Equal names and equal bytes."""
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)
