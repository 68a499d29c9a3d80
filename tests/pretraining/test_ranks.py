"""Two ranks with half the batch each equal one process with the whole batch in two batch-norm groups, in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder
from tests.pretraining import processes

SMALL = (
    "--data scenes:14 --recipe demo --backbone timm:test_resnet --size 64 --batch 8 --groups 2 --spatial.side 4 "
    "--spatial.width 8 --semantic.dim 8 --threads 1 --workers 0 --device cpu --precision fp64 --log_every 1 "
    "--knn.bank 8 --knn.queries 4 --stage1.queue 13 --stage2.queue 13 --stage1.epochs 2 --stage2.epochs 2 "
    "--stage1.method hcl --stage2.method hcl-geo --stage2.views.square true --stage2.views.flip_p 0.5"
).split()
TORCHRUN = (
    "-m torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0 "
    "--local-addr 127.0.0.1 -m hetcl.cli pretrain"
).split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    folder = tmp_path_factory.mktemp("ranks")
    one, two = folder / "one", folder / "two"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launched = subprocess.run(
        [sys.executable, *TORCHRUN, "--out", str(two), *SMALL],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert launched.returncode == 0, launched.stderr[-2000:]
    assert processes.run(["pretrain", "--out", str(one), *SMALL], folder / "said") == 0
    return {"one": RunFolder(one), "two": RunFolder(two)}


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{name}.{key}")
    elif isinstance(tree, list | tuple):
        for key, value in enumerate(tree):
            yield from leaves(value, f"{name}.{key}")
    else:
        yield name, tree


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_ranks_end_where_one_process_with_two_groups_does(stage: str, runs: dict[str, RunFolder]) -> None:
    one, two = (dict(leaves(checkpoint.load(runs[n].checkpoints / f"{stage}.ckpt")["task"])) for n in runs)
    assert one.keys() == two.keys()
    assert {name.split(".")[1] for name in one} == {"query", "key", "queue", "optimizer"}
    for name, value in one.items():
        if not isinstance(value, torch.Tensor):
            assert two[name] == value, name
            continue
        assert value.dtype in (torch.float64, torch.int64), name
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    assert int(one[".queue._extra_state.seen"]) == 32
    assert float(one[".query.pyramid.bn1.running_var"].std()) > 0


def test_two_ranks_write_the_same_figures(runs: dict[str, RunFolder]) -> None:
    """All of them: what is said of a batch is said of the global one."""
    one, two = (runs[n].read_metrics() for n in runs)
    assert len(one) == len(two) == 10
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == (a[name] if name == "stage" else pytest.approx(a[name], rel=2e-8, abs=1e-9)), (
                name
            )


def test_two_ranks_leave_the_same_backbone(runs: dict[str, RunFolder]) -> None:
    from safetensors.torch import load_file

    one, two = (load_file(runs[n].backbone) for n in runs)
    torch.testing.assert_close(dict(two), dict(one), rtol=1e-6, atol=1e-7)  # stored in fp32
    assert all(a in runs["two"].summary.read_text() for a in ('"ranks": 2', '"images": 14'))
