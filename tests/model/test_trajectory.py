"""The pieces of ``model`` and ``contrast``, driven by hand, against the slow trainer of ``tests/reference/moco.py``."""

from __future__ import annotations

import pytest
import torch

from hetcl.model.branches import SemanticBranch, SpatialBranch
from hetcl.model.embedding import Embedding
from hetcl.model.infonce import info_nce
from hetcl.model.momentum import MomentumPair, shuffle_of
from hetcl.model.pyramid import build_pyramid
from hetcl.model.queue import KeyQueue
from tests.reference import moco

B, K, SIDE, PIXELS = 8, 20, 4, 64


def embedding(*, spatial: bool, mlp: bool = True, fused: bool = True) -> Embedding:
    pyramid = build_pyramid("resnet18", seed=int(torch.randint(1 << 30, ())))
    branches: dict[str, torch.nn.Module] = {"semantic": SemanticBranch(512, dim=16, mlp=mlp, hidden=32)}
    if spatial:
        branches["spatial"] = SpatialBranch(pyramid.spec.channels, width=12, side=SIDE, fused=fused)
    return Embedding(pyramid, branches).double()


@pytest.mark.parametrize(
    ("spatial", "mlp", "fused", "groups", "chunks", "count"),
    [
        (False, True, True, 2, 1, 4),
        (False, False, True, 1, 1, 2),
        (True, True, True, 2, 1, 4),
        (True, True, False, 4, 2, 2),
    ],
    ids=["moco-v2", "moco-v1", "hcl", "hcl-vanilla-in-micro-batches"],
)
def test_steps_equal_the_slow_trainer(
    spatial: bool, mlp: bool, fused: bool, groups: int, chunks: int, count: int
) -> None:
    settings = {"lr": 0.05, "momentum_sgd": 0.9, "weight_decay": 1e-2}
    m, temperature = 0.9, 0.2
    pair = MomentumPair(embedding(spatial=spatial, mlp=mlp, fused=fused), momentum=m, groups=groups)
    queue = KeyQueue(K, pair.query.dims, seed=1).double()
    views = [torch.randn(2, B, 3, PIXELS, PIXELS, dtype=torch.float64) for _ in range(count)]
    shuffles = [shuffle_of(B, 5, "stage", t) for t in range(count)]
    images = [torch.randint(0, 12, (B,)) for _ in range(count)]
    expected = moco.run(
        pair.query.state_dict(),
        pair.key.state_dict(),
        queue.keys,
        0,
        [(v[0], v[1], s) for v, s in zip(views, shuffles, strict=True)],
        arch="resnet18",
        m=m,
        temperature=temperature,
        groups=groups,
        side=SIDE,
        spatial=spatial,
        indices=[p.tolist() for p in images],
        queue_index=[-1] * K,
        **settings,
    )
    optimizer = torch.optim.SGD(
        pair.query.parameters(),
        lr=settings["lr"],
        momentum=settings["momentum_sgd"],
        weight_decay=settings["weight_decay"],
    )
    pair.train()
    for (x1, x2), shuffle, index, record in zip(views, shuffles, images, expected, strict=True):
        pieces = []
        for i, piece in enumerate(x1.chunk(chunks)):
            with pair.micro_batch(pair.query, i, chunks):
                pieces.append(pair.query.concat(pair.query(piece)))
        query = torch.cat(pieces)
        pair.update_key()
        key = pair.query.concat(pair.encode_keys(x2, shuffle, chunks=chunks))
        logits, loss = info_nce(
            query, key, queue.keys, temperature=temperature, index=index, queue_index=queue.index
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue.push(key, index)

        close = {"atol": 1e-9, "rtol": 1e-9}
        torch.testing.assert_close(logits, record.logits, **close)
        assert loss.item() == pytest.approx(record.loss, abs=1e-9)
        torch.testing.assert_close(queue.keys, record.queue, **close)
        assert queue.pointer == record.queue_ptr
        torch.testing.assert_close(dict(pair.query.state_dict()), record.query_state, **close)
        torch.testing.assert_close(dict(pair.key.state_dict()), record.key_state, **close)
