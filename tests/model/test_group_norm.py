"""Batch norm over groups against one plain norm for each group, in every memory format; what it costs; compiled."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hetcl.errors import InputError
from hetcl.model.group_norm import group_batch_norm, micro_batch
from hetcl.model.pyramid import build_pyramid

EXACT = {"rtol": 1e-12, "atol": 1e-12}
B, C = 12, 5


def norm_2d(momentum: float | None = 0.1) -> nn.Module:
    return nn.BatchNorm2d(C, momentum=momentum)


def without_bias() -> nn.Module:
    norm = nn.BatchNorm2d(C)
    norm.register_parameter("bias", None)
    return norm


NORMS = {
    "no bias": (without_bias, (4, 3)),
    "plain": (norm_2d, (4, 3)),
    "cumulative": (lambda: norm_2d(None), (4, 3)),
    "no affine": (lambda: nn.BatchNorm2d(C, affine=False, momentum=1.0), (4, 3)),
    "no statistics": (lambda: nn.BatchNorm2d(C, track_running_stats=False), (4, 3)),
    "timm with activation": (lambda: timm.layers.BatchNormAct2d(C, act_layer=nn.SiLU), (4, 3)),
    "1-D": (lambda: nn.BatchNorm1d(C), ()),
    "3-D": (lambda: nn.BatchNorm3d(C), (2, 3, 2)),
}


def randomised(module: nn.Module) -> nn.Module:
    for p in module.parameters():
        nn.init.normal_(p)
    return module.double().train()


def by_ranks(norm: nn.Module, x: torch.Tensor, groups: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What ``groups`` processes with a plain norm each would compute, and the mean of their buffers."""
    ranks = [copy.deepcopy(norm) for _ in range(groups)]
    out = torch.cat([rank(part) for rank, part in zip(ranks, x.chunk(groups), strict=True)])
    buffers = {}
    for name, first in ranks[0].named_buffers():
        every = [dict(rank.named_buffers())[name] for rank in ranks]
        buffers[name] = torch.stack(every).mean(0) if first.is_floating_point() else first
    return out, buffers


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("memory", ["channels first", "channels last"])
def test_groups_equal_ranks(kind: str, groups: int, memory: str) -> None:
    make, spatial = NORMS[kind]
    plain = randomised(make())
    ours = group_batch_norm(copy.deepcopy(plain), groups)
    for _ in range(3):
        x = torch.randn(B, C, *spatial, dtype=torch.float64) * 2 + 1
        if memory == "channels last":
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected, buffers = by_ranks(plain, theirs, groups)
        out = ours(mine)
        torch.testing.assert_close(out, expected, **EXACT)
        weight = torch.randn_like(out)
        (out * weight).sum().backward()
        (expected * weight).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad, **EXACT)
        torch.testing.assert_close(dict(ours.named_buffers()), buffers, **EXACT)
        for name, buffer in plain.named_buffers():
            buffer.copy_(buffers[name])
    assert ours.momentum == plain.momentum
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x), **EXACT)


def test_grouped_norms_copy_pickle_and_keep_their_names() -> None:
    plain = nn.Sequential(nn.BatchNorm2d(C), timm.layers.BatchNormAct2d(C))
    names = list(plain.state_dict())
    ours = group_batch_norm(randomised(plain), 3)
    assert [type(m).__name__ for m in ours] == ["GroupBatchNorm2d", "GroupBatchNormAct2d"]
    assert isinstance(ours[0], nn.BatchNorm2d)
    assert list(ours.state_dict()) == names
    x = torch.randn(B, C, 2, 2, dtype=torch.float64)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    expected = ours(x)
    for other in copies:
        assert type(other[1]) is type(ours[1])
        torch.testing.assert_close(other(x), expected, **EXACT)
        torch.testing.assert_close(other.state_dict(), ours.state_dict(), **EXACT)
        other[0].weight.data.zero_()
    assert ours[0].weight.abs().sum() > 0
    assert group_batch_norm(ours, 2)[1].groups == 2  # a second call changes the number


def test_batch_statistics_that_cannot_be_split_are_refused() -> None:
    for layer in (nn.SyncBatchNorm(C), timm.layers.EvoNorm2dB0(C)):
        with pytest.raises(InputError, match=f"0 is a {type(layer).__name__}"):
            group_batch_norm(nn.Sequential(layer), 2)
    fine = nn.Sequential(nn.InstanceNorm2d(C, track_running_stats=True), timm.layers.FrozenBatchNormAct2d(C))
    group_batch_norm(fine, 2)


def test_a_batch_that_does_not_split_says_so() -> None:
    with pytest.raises(InputError, match="a batch of 12 does not split into 5 batch-norm groups"):
        group_batch_norm(nn.BatchNorm2d(C).train(), 5)(torch.randn(B, C, 2, 2))
    with pytest.raises(InputError, match="groups of one value a channel"):
        group_batch_norm(nn.BatchNorm1d(C).train(), B)(torch.randn(B, C))


class Passes(TorchDispatchMode):
    """Counts how often operations read or write ``numel`` numbers: views are free, slices count by their share."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.by_name = numel, dict[str, float]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        reads = {"native_batch_norm": 3, "native_batch_norm_backward": 5, "copy_": 2, "cat": 2}
        if func.is_view or name in ("empty_like", "new_zeros", "detach"):
            return out
        flat, _ = torch.utils._pytree.tree_flatten((args, out))
        largest = max((t.numel() for t in flat if isinstance(t, torch.Tensor)), default=0)
        if largest * 12 >= self.numel:  # statistics are smaller than any slice
            self.by_name[name] = self.by_name.get(name, 0) + reads[name] * largest / self.numel
        return out


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_passes_over_memory(memory: torch.memory_format) -> None:
    """Forward as one plain norm; backward one more reading and writing. (Slices put together: 5 and 7.)"""
    norm = group_batch_norm(nn.BatchNorm2d(C), 4).train()
    x = torch.randn(B, C, 8, 8).contiguous(memory_format=memory).requires_grad_()
    with Passes(x.numel()) as forward:
        out = norm(x)
    grad = torch.randn_like(out)
    with Passes(x.numel()) as backward:
        out.backward(grad)
    assert forward.by_name == {"native_batch_norm": 3}
    assert backward.by_name == {"native_batch_norm_backward": 5, "copy_": 2}
    assert out.is_contiguous(memory_format=memory)
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=memory)


@pytest.mark.parametrize("layout", ["permuted", "transposed", "channels cut", "rows cut", "expanded"])
def test_inputs_that_are_no_plain_memory(layout: str) -> None:
    """What a backbone may hand over after a transpose, a slice or an expand."""
    whole = torch.randn(B, 2 * C, 6, 8, dtype=torch.float64)
    x = {
        "permuted": whole[:, :C].contiguous().permute(0, 1, 3, 2),
        "transposed": torch.randn(C, B, 3, 4, dtype=torch.float64).transpose(0, 1),
        "channels cut": whole[:, :C],
        "rows cut": whole[:, :C].contiguous()[:, :, 1:4],
        "expanded": torch.randn(B, C, 1, 4, dtype=torch.float64).expand(B, C, 3, 4),
    }[layout]
    plain = randomised(nn.BatchNorm2d(C))
    ours = group_batch_norm(copy.deepcopy(plain), 3)
    mine, theirs = x.detach().requires_grad_(), x.detach().requires_grad_()
    expected, buffers = by_ranks(plain, theirs, 3)
    out = ours(mine)
    torch.testing.assert_close(out, expected, **EXACT)
    weight = torch.randn_like(expected)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, **EXACT)
    torch.testing.assert_close(dict(ours.named_buffers()), buffers, **EXACT)


@pytest.mark.parametrize("kind", NORMS)
def test_compiled_equals_eager(kind: str) -> None:
    make, spatial = NORMS[kind]
    eager = group_batch_norm(randomised(make()), 3)
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="aot_eager", fullgraph=True)
    for _ in range(2):
        x = torch.randn(B, C, *spatial, dtype=torch.float64)
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        a, b = eager(one), compiled(other)
        torch.testing.assert_close(b, a, **EXACT)
        weight = torch.randn_like(a)
        (a * weight).sum().backward()
        (b * weight).sum().backward()
        torch.testing.assert_close(other.grad, one.grad, **EXACT)
    torch.testing.assert_close(dict(compiled.named_buffers()), dict(eager.named_buffers()), **EXACT)
    for p, q in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, **EXACT)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_micro_batches_share_one_compilation(momentum: float | None) -> None:
    """Which of them is at hand is no number that is compiled in."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    eager = group_batch_norm(randomised(norm_2d(momentum)), 6)
    compiled = copy.deepcopy(eager)
    compiled.compile(backend=backend, fullgraph=True)
    for _ in range(2):
        x = torch.randn(B, C, 4, 3, dtype=torch.float64)
        for norm in (eager, compiled):
            for i, piece in enumerate(x.chunk(6)):
                with micro_batch(norm, 6, i, 6):
                    norm(piece)
    assert len(graphs) == 1
    torch.testing.assert_close(dict(compiled.named_buffers()), dict(eager.named_buffers()), **EXACT)


@pytest.mark.parametrize("compiled", [False, True])
def test_half_precision_as_plain_batch_norm(compiled: bool) -> None:
    """bf16 in, statistics and weights in fp32: each group as PyTorch's own norm treats it alone."""
    plain = nn.BatchNorm2d(C).train()
    ours = group_batch_norm(copy.deepcopy(plain), 3)
    if compiled:
        ours.compile(backend="aot_eager")
    x = (torch.randn(B, C, 8, 8) * 3 + 5).bfloat16()
    out = ours(x)
    expected = torch.cat([plain(part) for part in x.chunk(3)])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0.01, atol=1e-3)
    assert ours.running_mean is not None
    assert ours.running_mean.dtype == torch.float32


def test_a_norm_of_ones_own_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    with pytest.raises(InputError, match="Own has a forward of its own"):
        group_batch_norm(nn.Sequential(Own(C)), 2)


@pytest.mark.parametrize(
    "name", ["timm:regnety_002", "timm:efficientnet_b0", "torchvision:mobilenet_v3_small"]
)
def test_real_backbones_are_grouped_everywhere(name: str) -> None:
    """Two groups, one of them replaced: the other's outputs do not move."""
    pyramid = group_batch_norm(build_pyramid(name, seed=0), 2).train()
    x = torch.randn(4, 3, 64, 64)
    y = torch.cat([x[:2], torch.randn(2, 3, 64, 64)])
    with torch.no_grad():
        for a, b in zip(pyramid(x), pyramid(y), strict=True):
            torch.testing.assert_close(a[:2], b[:2])
            assert not torch.allclose(a[2:], b[2:])
