"""Micro-batches, the momentum update, the shuffle, and two ranks against two groups."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn

from hetcl.errors import InputError
from hetcl.model.branches import SemanticBranch, SpatialBranch
from hetcl.model.embedding import Embedding
from hetcl.model.group_norm import group_batch_norm
from hetcl.model.momentum import MomentumPair, average_buffers, gather, shuffle_of
from hetcl.model.pyramid import build_pyramid
from tests.pretraining import processes

EXACT = {"rtol": 1e-12, "atol": 1e-12}
B, C = 12, 5


def test_a_batch_that_does_not_split_says_so() -> None:
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
    ranks = [processes.SERVER.Process(target=one_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    pair = MomentumPair(encoder(), momentum=0.9, groups=2).train()
    keys = two_steps(pair, views, slice(0, 8), ranks=1)
    for rank in range(2):
        theirs = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(theirs["keys"], keys, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(theirs["state"], dict(pair.state_dict()), rtol=1e-9, atol=1e-9)
