"""Queue and loss against naive versions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.model.infonce import info_nce, top1, top1_in_batch
from hetcl.model.queue import KeyQueue


def unit(n: int, d: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, dtype=torch.float64), dim=1)


@given(length=st.integers(1, 17), batches=st.lists(st.integers(0, 40), max_size=8))
@settings(deadline=None, max_examples=60)
def test_queue_holds_the_last_keys_first_in_first_out(length: int, batches: list[int]) -> None:
    queue = KeyQueue(length, {"semantic": 3})
    everything: list[int] = []
    for size in batches:
        index = torch.arange(len(everything), len(everything) + size)
        queue.push(index[:, None].expand(size, 3).float(), index)
        everything += index.tolist()
    held = sorted(i for i in queue.index.tolist() if i >= 0)
    assert held == everything[-length:]
    for row, i in zip(queue.keys, queue.index.tolist(), strict=True):
        assert i < 0 or row.tolist() == [float(i)] * 3
    assert queue.filled == min(1.0, len(everything) / length)


def test_queue_state_goes_through_its_state_dict() -> None:
    queue, other = KeyQueue(5, {"semantic": 2}, seed=1), KeyQueue(5, {"semantic": 2}, seed=2)
    queue.push(unit(3, 2), torch.arange(3))
    other.load_state_dict(queue.state_dict())
    queue.push(unit(4, 2)[:, :].clone().fill_(7), torch.arange(4))
    other.push(unit(4, 2).fill_(7), torch.arange(4))
    assert torch.equal(queue.keys, other.keys)
    assert (queue.pointer, queue.seen) == (other.pointer, other.seen) == (2, 7)


def test_random_start_has_unit_parts() -> None:
    keys = KeyQueue(9, {"semantic": 4, "spatial": 6}, seed=3).keys
    for part in keys.split([4, 6], dim=1):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(9))


def test_loss_equals_a_loop() -> None:
    b, k, d, t = 5, 11, 7, 0.2
    query, key, queue = unit(b, d), unit(b, d), unit(k, d)
    index, queue_index = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([9, 1, 1, 4, -1, 8, 7, 6, 5, 3, -1])
    logits, loss = info_nce(query, key, queue, temperature=t, index=index, queue_index=queue_index)
    total = 0.0
    for i in range(b):
        positive = float(query[i] @ key[i]) / t
        terms = [positive] + [float(query[i] @ queue[j]) / t for j in range(k) if queue_index[j] != index[i]]
        total += -positive + math.log(sum(math.exp(x) for x in terms))
    assert loss.item() == pytest.approx(total / b, abs=1e-12)
    assert logits.shape == (b, 1 + k)
    assert torch.isinf(logits[1, 2])


def test_concatenated_parts_sum_their_cosines() -> None:
    a, b, c, d = unit(4, 3), unit(4, 5), unit(4, 3), unit(4, 5)
    logits, _ = info_nce(torch.cat([a, b], 1), torch.cat([c, d], 1), unit(6, 8), temperature=1.0)
    torch.testing.assert_close(logits[:, 0], F.cosine_similarity(a, c) + F.cosine_similarity(b, d))


def test_chance_level_is_log_k_plus_one() -> None:
    zero = torch.zeros(3, 4)
    _, loss = info_nce(zero, zero, torch.zeros(63, 4), temperature=0.2)
    assert loss.item() == pytest.approx(math.log(64), rel=1e-6)


def test_ties_are_failures() -> None:
    assert top1(torch.tensor([[1.0, 1.0], [2.0, 1.0]])).item() == 0.5
    same = torch.ones(4, 2)
    assert top1_in_batch(same, same).item() == 0.0
    assert top1_in_batch(torch.eye(4), torch.eye(4)).item() == 1.0
