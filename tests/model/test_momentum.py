"""Batch norm over groups, micro-batches, the momentum update, the shuffle, and two ranks against two groups."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from hetcl.errors import InputError
from hetcl.model.branches import SemanticBranch, SpatialBranch
from hetcl.model.embedding import Embedding
from hetcl.model.momentum import MomentumPair, average_buffers, gather, group_batch_norm, shuffle_of
from hetcl.model.pyramid import build_pyramid

EXACT = {"rtol": 1e-12, "atol": 1e-12}
B, C = 12, 5


def norm_2d(momentum: float | None = 0.1) -> nn.Module:
    return nn.BatchNorm2d(C, momentum=momentum)


NORMS = {
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
def test_groups_equal_ranks(kind: str, groups: int) -> None:
    make, spatial = NORMS[kind]
    plain = randomised(make())
    ours = group_batch_norm(copy.deepcopy(plain), groups)
    for _ in range(3):
        x = torch.randn(B, C, *spatial, dtype=torch.float64) * 2 + 1
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
    pair = tiny_pair(groups=2)
    with pytest.raises(InputError, match="2 batch-norm groups cannot be shared out over 3 micro-batches"):
        pair.encode_keys(images(), torch.arange(B), chunks=3)
    with pytest.raises(InputError, match="does not split into 5 micro-batches"):
        pair.encode_keys(images(), torch.arange(B), chunks=5)


class Tiny(nn.Module):
    """A small encoder with three kinds of batch norm on the way: ``[B, 3, H, W]`` -> parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, C, 3),
            nn.BatchNorm2d(C),
            nn.ReLU(),
            nn.Conv2d(C, C, 3),
            timm.layers.BatchNormAct2d(C),
            nn.Conv2d(C, C, 1),
            nn.BatchNorm2d(C, momentum=None),
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.body(x)
        return {"semantic": y.mean((2, 3)), "spatial": y[:, 0].flatten(1)}


def tiny_pair(groups: int, momentum: float = 0.9) -> MomentumPair:
    pair = MomentumPair(Tiny().double(), momentum=momentum, groups=groups).train()
    with torch.no_grad():
        for p in pair.key.parameters():
            p += 0.1 * torch.randn_like(p)
    return pair


def images(batch: int = B) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64)


def test_key_encoder_starts_as_a_frozen_copy() -> None:
    pair = MomentumPair(Tiny(), groups=2)
    torch.testing.assert_close(pair.key.state_dict(), pair.query.state_dict(), rtol=0, atol=0)
    assert not any(p.requires_grad for p in pair.key.parameters())
    assert all(p.requires_grad for p in pair.query.parameters())
    assert {id(p) for p in pair.key.parameters()}.isdisjoint(id(p) for p in pair.query.parameters())


def test_momentum_update_is_the_naive_loop_on_parameters_only() -> None:
    pair = tiny_pair(groups=1, momentum=0.99)
    pair.query(images())  # makes the buffers differ
    expected = {
        name: 0.99 * value + 0.01 * dict(pair.query.named_parameters())[name]
        for name, value in pair.key.named_parameters()
    }
    buffers = copy.deepcopy(dict(pair.key.named_buffers()))
    before = copy.deepcopy(pair.query.state_dict())
    pair.update_key()
    torch.testing.assert_close(dict(pair.key.named_parameters()), expected, check_stride=False, **EXACT)
    torch.testing.assert_close(dict(pair.key.named_buffers()), buffers, rtol=0, atol=0)
    torch.testing.assert_close(pair.query.state_dict(), before, rtol=0, atol=0)


def test_keys_come_back_in_the_order_of_the_images() -> None:
    pair = tiny_pair(groups=1)
    x = images()
    expected = copy.deepcopy(pair.key)(x)
    parts = pair.encode_keys(x, shuffle_of(B, 3, "s", 0))
    torch.testing.assert_close(parts, dict(expected), **EXACT)
    assert not any(p.requires_grad for p in parts.values())


def test_the_shuffled_batch_keeps_channels_last() -> None:
    pair = tiny_pair(groups=1)
    formats = []
    pair.key.register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    for x in (images(), images().to(memory_format=torch.channels_last)):
        pair.encode_keys(x, shuffle_of(B, 3, "s", 0), chunks=1)
    assert formats == [False, True]


def test_each_group_of_keys_is_a_slice_of_the_shuffled_batch() -> None:
    pair = tiny_pair(groups=3)
    plain = copy.deepcopy(pair.key)
    group_batch_norm(plain, 1)
    x, shuffle = images(), shuffle_of(B, 3, "s", 1)
    expected, buffers = torch.zeros(B, C, dtype=torch.float64), []
    for places in shuffle.chunk(3):
        rank = copy.deepcopy(plain)
        expected[places] = rank(x[places])["semantic"].detach()
        buffers.append(dict(rank.named_buffers()))
    parts = pair.encode_keys(x, shuffle)
    torch.testing.assert_close(parts["semantic"], expected, **EXACT)
    for name, buffer in pair.key.named_buffers():
        mean = torch.stack([b[name].double() for b in buffers]).mean(0)
        torch.testing.assert_close(buffer.double(), mean, **EXACT)


@pytest.mark.parametrize("chunks", [2, 3, 6])
def test_micro_batches_change_nothing(chunks: int) -> None:
    whole = tiny_pair(groups=6)
    pieces = copy.deepcopy(whole)
    weight = torch.randn(B, C, dtype=torch.float64)
    for step in range(3):
        x, shuffle = images(), shuffle_of(B, 3, "s", step)
        torch.testing.assert_close(
            pieces.encode_keys(x, shuffle, chunks=chunks), whole.encode_keys(x, shuffle), **EXACT
        )
        (whole.query(x)["semantic"] * weight).sum().backward()
        for i, (piece, w) in enumerate(zip(x.chunk(chunks), weight.chunk(chunks), strict=True)):
            with pieces.micro_batch(pieces.query, i, chunks):
                (pieces.query(piece)["semantic"] * w).sum().backward()
    torch.testing.assert_close(pieces.state_dict(), whole.state_dict(), **EXACT)
    for a, b in zip(pieces.query.parameters(), whole.query.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)
    assert whole.state_dict()["key.body.1.num_batches_tracked"] == 3


def test_a_model_without_batch_norm_takes_any_micro_batches() -> None:
    pair = MomentumPair(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double(), groups=1)
    pair.key = Named(pair.key)
    x = images()
    torch.testing.assert_close(
        pair.encode_keys(x, torch.arange(B), chunks=4), pair.encode_keys(x, torch.arange(B)), **EXACT
    )


class Named(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"semantic": self.inner(x)}


def test_shuffles_are_permutations_and_functions_of_their_key() -> None:
    a, b, c = shuffle_of(50, 1, "s", 2), shuffle_of(50, 1, "s", 2), shuffle_of(50, 1, "s", 3)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert sorted(a.tolist()) == list(range(50))
    with pytest.raises(ValueError, match="a shuffle of 50 for a global batch of 1 x 12"):
        tiny_pair(groups=1).encode_keys(images(), a)


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


def two_steps(pair: MomentumPair, views: torch.Tensor, mine: slice, ranks: int) -> list[torch.Tensor]:
    """Two steps of a pair by hand, gradients averaged over the ranks: ``views [T, 2, B, 3, H, W]``."""
    optimizer = torch.optim.SGD(pair.query.parameters(), lr=0.1, momentum=0.9)
    out = []
    for t, (x1, x2) in enumerate(views):
        query = pair.query.concat(pair.query(x1[mine]))
        pair.update_key()
        key = pair.query.concat(pair.encode_keys(x2[mine], shuffle_of(len(x2), 9, "s", t)))
        loss = -(query * key).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        for p in pair.query.parameters():
            if ranks > 1:
                dist.all_reduce(p.grad)
                p.grad /= ranks
        optimizer.step()
        out.append(gather(key))
    average_buffers(pair)
    return out


def encoder() -> Embedding:
    pyramid = build_pyramid("resnet18", seed=0)
    branches = {
        "semantic": SemanticBranch(512, dim=8, hidden=8, seed=0),
        "spatial": SpatialBranch(pyramid.spec.channels, width=8, side=2, seed=0),
    }
    return Embedding(pyramid, branches).double()


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    views = torch.load(f"{folder}/views.pt", weights_only=True)
    pair = MomentumPair(encoder(), momentum=0.9, groups=1).train()
    keys = two_steps(pair, views, slice(4 * rank, 4 * rank + 4), ranks=2)
    torch.save({"keys": keys, "state": pair.state_dict()}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_two_groups(tmp_path: Path) -> None:
    views = torch.randn(2, 2, 8, 3, 64, 64, dtype=torch.float64)
    torch.save(views, tmp_path / "views.pt")
    mp.spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    pair = MomentumPair(encoder(), momentum=0.9, groups=2).train()
    keys = two_steps(pair, views, slice(0, 8), ranks=1)
    for rank in range(2):
        theirs = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(theirs["keys"], keys, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(theirs["state"], dict(pair.state_dict()), rtol=1e-9, atol=1e-9)
