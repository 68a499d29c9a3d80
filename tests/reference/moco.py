"""MoCo-v2 and HCL as slowly and plainly as possible, in float64: what the fast training step must equal.

Written from the papers alone. It knows nothing of ``hetcl``: the backbone is torchvision's own ResNet with
plain batch norm, everything else is tensors and loops. State dicts carry the names of ``hetcl``'s ``Embedding``::

    pyramid.*                                     torchvision's names, without fc
    branches.semantic.fc.{0,2}.{weight,bias}      MLP head; fc.{weight,bias} is the linear one
    branches.spatial.lateral.{0..3}, .smooth, .project

How to drive it::

    records = run(query.state_dict(), key.state_dict(), queue, 0, [(x1, x2, shuffle), ...], arch="resnet18", lr=0.03,
                  momentum_sgd=0.9, weight_decay=1e-4, m=0.999, temperature=0.2, groups=2, side=4, spatial=True)
    records[t].logits, .loss, .queue, .queue_ptr, .query_state, .key_state    # after step t

Nothing given is modified. Shapes: B images, K keys in the queue, D dimensions, S side of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass
class StepRecord:
    """What there is after one step. All float64 but the counters."""

    logits: Tensor
    """``[B, 1 + K]``: divided by the temperature, positive first, against the queue as it was before the step."""
    loss: float
    """Mean cross-entropy with target 0."""
    queue: Tensor
    """``[K, D]`` after the step's keys were written."""
    queue_ptr: int
    """Where the next key goes."""
    query_state: State
    """Parameters after SGD, batch-norm buffers after the query pass."""
    key_state: State
    """Parameters after the momentum update, batch-norm buffers after the key pass."""


def run(
    query_state: State,
    key_state: State,
    queue: Tensor,
    queue_ptr: int,
    steps: Sequence[tuple[Tensor, Tensor, Tensor]],
    *,
    arch: str,
    lr: float | Sequence[float],
    momentum_sgd: float,
    weight_decay: float,
    m: float,
    temperature: float,
    groups: int,
    side: int,
    spatial: bool,
    indices: Sequence[Sequence[int]] | None = None,
    queue_index: Sequence[int] | None = None,
    batch_negatives: bool = False,
) -> list[StepRecord]:
    """Train for ``len(steps)`` steps.

    Args:
        query_state, key_state: of both encoders at the start.
        queue: ``[K, D]``, one key a row, semantic then spatial.
        queue_ptr: row that the next key overwrites.
        steps: per step ``(x1 [B, 3, H, W], x2 [B, 3, H, W], shuffle int64 [B])``: queries see ``x1``; place j of the
            shuffled batch of the key encoder is ``x2[shuffle[j]]``.
        arch: name of a torchvision ResNet.
        lr: one learning rate, or one a step.
        momentum_sgd, weight_decay: of SGD, on every parameter.
        m: momentum of the key encoder.
        groups: batch-norm groups, contiguous slices of the batch (in order for queries, shuffled for keys).
        side: S of the spatial branch.
        spatial: HCL; otherwise the semantic branch alone.
        indices: per step, which image each row is of; with ``queue_index`` (``[K]``, -1 for none) keys of a query's
            own image become minus infinity among the logits.
        batch_negatives: the keys of the step's other images stand beside the queue, for those that it is about to lose.
    """
    backbone = getattr(torchvision.models, arch)(weights=None).double()
    backbone.fc = nn.Identity()
    query = {name: value.detach().clone() for name, value in query_state.items()}
    key = {name: value.detach().clone() for name, value in key_state.items()}
    queue = queue.detach().clone().double()
    owner = list(queue_index) if queue_index is not None else [-1] * len(queue)
    velocity: State = {}
    records = []
    for t, (x1, x2, shuffle) in enumerate(steps):
        own = list(indices[t]) if indices is not None else [-2] * len(x1)
        rate = lr if isinstance(lr, float) else list(lr)[t]

        for name in parameters_of(query):
            query[name].requires_grad_(True)
        q, query_buffers = encode(backbone, query, x1, groups, side, spatial)

        with torch.no_grad():
            for name in parameters_of(query):
                key[name] = m * key[name] + (1 - m) * query[name]
            k, key_buffers = encode_shuffled(backbone, key, x2, shuffle, groups, side, spatial)

        store, names_of_store = queue, owner
        if batch_negatives:
            lost = [(queue_ptr + i) % len(queue) for i in range(len(k))]
            kept = [i for i in range(len(queue)) if i not in lost]
            rest = {place: i for i, place in enumerate(lost)}
            store = torch.stack([queue[i] if i in kept else k[rest[i]] for i in range(len(queue))])
            names_of_store = [owner[i] if i in kept else own[rest[i]] for i in range(len(queue))]
        logits = contrast(q, k, store, temperature, own, names_of_store)
        loss = cross_entropy_of_column_0(logits)
        names = parameters_of(query)
        gradients = torch.autograd.grad(loss, [query[name] for name in names])
        query = {name: value.detach() for name, value in query.items()}
        for name, gradient in zip(names, gradients, strict=True):
            step = gradient + weight_decay * query[name]
            velocity[name] = momentum_sgd * velocity[name] + step if name in velocity else step
            query[name] = query[name] - rate * velocity[name]
        query.update(query_buffers)
        key.update(key_buffers)

        queue = queue.clone()
        for row, image in zip(k, own, strict=True):
            queue[queue_ptr] = row
            owner[queue_ptr] = image
            queue_ptr = (queue_ptr + 1) % len(queue)
        records.append(
            StepRecord(logits.detach(), loss.item(), queue.clone(), queue_ptr, dict(query), dict(key))
        )
    return records


def is_buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def parameters_of(state: State) -> list[str]:
    return [name for name in state if not is_buffer(name)]


def encode_shuffled(
    backbone: nn.Module, state: State, x: Tensor, shuffle: Tensor, groups: int, side: int, spatial: bool
) -> tuple[Tensor, State]:
    """Keys ``[B, D]`` in the order of ``x``, encoded in the order of ``shuffle``; and the new buffers."""
    order = shuffle.tolist()
    encoded, buffers = encode(backbone, state, torch.stack([x[i] for i in order]), groups, side, spatial)
    keys = torch.zeros_like(encoded)
    for place, i in enumerate(order):
        keys[i] = encoded[place]
    return keys, buffers


def encode(
    backbone: nn.Module, state: State, x: Tensor, groups: int, side: int, spatial: bool
) -> tuple[Tensor, State]:
    """Vectors ``[B, D]`` of ``x``, each part of unit length; and the batch-norm buffers after this pass.

    Every group goes alone through the whole network, from the same buffers; their new buffers are averaged.
    """
    size = len(x) // groups
    vectors, seen = [], []
    for g in range(groups):
        buffers = {name: value.clone() for name, value in state.items() if is_buffer(name)}
        maps = maps_of(backbone, {**state, **buffers}, x[g * size : (g + 1) * size])
        parts = [semantic(state, maps[3])]
        if spatial:
            parts.append(spatial_map(state, maps, side).flatten(1))
        vectors.append(torch.cat([p / (p * p).sum(1, keepdim=True).sqrt() for p in parts], dim=1))
        seen.append(buffers)
    averaged = {}
    for name in seen[0]:
        if name.endswith("num_batches_tracked"):
            averaged[name] = seen[0][name]
        else:
            averaged[name] = sum(buffers[name] for buffers in seen) / groups
    return torch.cat(vectors), averaged


class _Maps(nn.Module):
    """torchvision's ResNet up to its four maps."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.pyramid = backbone

    def forward(self, x: Tensor) -> list[Tensor]:
        net = self.pyramid
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        maps = []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            maps.append(x)
        return maps


def maps_of(backbone: nn.Module, state: State, x: Tensor) -> list[Tensor]:
    """C2..C5 in training mode; the batch-norm buffers in ``state`` are updated in place."""
    inner = {name: value for name, value in state.items() if name.startswith("pyramid.")}
    return torch.func.functional_call(_Maps(backbone).train(), inner, (x,), strict=True)


def semantic(state: State, c5: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, 128]``."""
    pooled = c5.flatten(2).sum(2) / (c5.shape[2] * c5.shape[3])
    prefix = "branches.semantic.fc."
    if prefix + "weight" in state:
        return pooled @ state[prefix + "weight"].T + state[prefix + "bias"]
    hidden = pooled @ state[prefix + "0.weight"].T + state[prefix + "0.bias"]
    hidden = hidden * (hidden > 0)
    return hidden @ state[prefix + "2.weight"].T + state[prefix + "2.bias"]


def spatial_map(state: State, maps: Sequence[Tensor], side: int) -> Tensor:
    """C2..C5 -> ``[B, 1, S, S]``: the lateral convolution first, then pooling or repeating to the grid."""
    prefix = "branches.spatial."
    total: Tensor | float = 0.0
    for i, level in enumerate(maps):
        lateral = one_by_one(level, state[f"{prefix}lateral.{i}.weight"], state[f"{prefix}lateral.{i}.bias"])
        total = total + to_grid(lateral, side)
    smooth = three_by_three(total, state[prefix + "smooth.weight"], state[prefix + "smooth.bias"])
    return one_by_one(smooth, state[prefix + "project.weight"], state[prefix + "project.bias"])


def one_by_one(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("bihw,oi->bohw", x, weight[:, :, 0, 0]) + bias[None, :, None, None]


def three_by_three(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Nine shifted products of the zero-padded map."""
    height, width = x.shape[2:]
    padded = torch.zeros(*x.shape[:2], height + 2, width + 2, dtype=x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    out: Tensor | float = 0.0
    for i in range(3):
        for j in range(3):
            moved = padded[:, :, i : i + height, j : j + width]
            out = out + torch.einsum("bihw,oi->bohw", moved, weight[:, :, i, j])
    return out + bias[None, :, None, None]


def to_grid(x: Tensor, side: int) -> Tensor:
    """Square maps whose side is a multiple or a divisor of the grid's: mean of each window, or repetition."""
    here = x.shape[-1]
    assert x.shape[-2] == here
    assert here % side == 0 or side % here == 0
    if here < side:
        times = side // here
        return x.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    window = here // side
    rows = []
    for i in range(side):
        cells = []
        for j in range(side):
            block = x[:, :, i * window : (i + 1) * window, j * window : (j + 1) * window]
            cells.append(block.sum((2, 3)) / (window * window))
        rows.append(torch.stack(cells, dim=2))
    return torch.stack(rows, dim=2)


def contrast(
    q: Tensor, k: Tensor, queue: Tensor, temperature: float, own: Sequence[int], owner: Sequence[int]
) -> Tensor:
    """``[B, 1 + K]``, one inner product after the other."""
    rows = []
    for i in range(len(q)):
        row = [(q[i] * k[i]).sum() / temperature]
        for j in range(len(queue)):
            if owner[j] == own[i]:
                row.append(torch.tensor(float("-inf"), dtype=torch.float64))
            else:
                row.append((q[i] * queue[j]).sum() / temperature)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def cross_entropy_of_column_0(logits: Tensor) -> Tensor:
    """Mean over rows of ``-log(exp(first) / sum exp)``."""
    losses = []
    for row in logits:
        largest = row.max().detach()
        losses.append((row - largest).exp().sum().log() + largest - row[0])
    return torch.stack(losses).sum() / len(losses)
