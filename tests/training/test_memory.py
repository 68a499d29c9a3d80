"""What work will take is counted as tensors really are held, and compared with what there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hetcl.cli import main
from hetcl.errors import InputError
from hetcl.machine import Room
from hetcl.pretraining import memory as memory_of_stages
from hetcl.pretraining.memory import memory_of
from hetcl.training import memory
from hetcl.training.dry_run import DryRun, dry_run
from hetcl.training.memory import OWN, Need, bytes_of, outlook
from tests.pretraining.small import command

CPU = torch.device("cpu")


def room(monkeypatch: pytest.MonkeyPatch, free: int, limit: int) -> None:
    monkeypatch.setattr(memory, "memory", lambda: Room(free, limit, "a test"))


# ---- counting ------------------------------------------------------------------------------------------------------


def test_what_is_held_at_a_time_is_counted() -> None:
    def compute() -> torch.Tensor:
        a = torch.zeros(1000)  # 4,000
        b = a + 1  # 8,000
        del a  # 4,000
        c = b.view(10, 100)  # nothing of its own
        d = torch.cat([c, c])  # 12,000
        del b, c
        return d.double()[:5]  # 8,000 and 16,000

    assert bytes_of(compute) == 24_000
    held = torch.zeros(5000)
    assert bytes_of(lambda: held.add_(1)) == 0  # it was there


@pytest.mark.parametrize("images", [1, 2, 5])
def test_what_a_way_back_needs_is_held(images: int) -> None:
    """Inputs of both layers and of the nonlinearity, and what comes out; without a way back two at a time."""
    model = nn.Sequential(nn.Linear(100, 300), nn.GELU(), nn.Linear(300, 50))
    x = torch.zeros(images, 100)
    assert bytes_of(lambda: model(x)) == 4 * images * (300 + 300 + 50)
    with torch.no_grad():
        assert bytes_of(lambda: model(x)) == 4 * images * (300 + 300)


def test_a_step_is_weights_queue_activations_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, 10**15, 10**15)
    seen: list[Need] = []
    monkeypatch.setattr(memory_of_stages, "outlook", lambda need, *_: (seen.append(need), ("", ""))[1])
    common: dict[str, Any] = {
        "batch": 8,
        "pieces": 2,
        "size": 10,
        "device": CPU,
        "processes": 1,
        "workers": 0,
    }
    one = DryRun(seconds=1.0, weights=1000, activations=100, length=16)
    memory_of([(one, "hcl", 50)], precision="fp32", **common)
    images = 8 * 300
    assert seen[0].device == 4 * 1000 + 4 * 50 * 16 + 4 * 100 + 5 * 3 * images
    assert seen[0].host == 2 * 2 * images
    memory_of([(one, "supervised", 50)], precision="fp64", **{**common, "processes": 2})
    assert seen[1].device == 2 * 2 * (3 * 1000 + 4 * 50 * 16 + 4 * 100 + 5 * images)
    assert memory_of([], precision="fp32", **common) == ("", "")


def test_a_dry_run_tells_what_it_has_seen() -> None:
    made = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))
    found = dry_run(lambda: made, lambda m: m(torch.zeros(2, 3, 4, 4)), images=2, failure="no", advice="none")
    assert (found.weights, found.activations, found.length) == (4 * (480 + 10), 4 * (48 + 10), 0)
    assert made[1].weight.grad is None
    dry_run(
        lambda: made, lambda m: m(torch.zeros(2, 3, 4, 4)), torch.sum, images=2, failure="no", advice="none"
    )
    assert made[1].weight.grad is not None


# ---- saying --------------------------------------------------------------------------------------------------------


def test_what_fits_is_said_and_what_does_not_is_warned_of_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    need = Need(3 * 10**9 - OWN, 10**9)
    room(monkeypatch, 5 * 10**9, 8 * 10**9)
    assert outlook(need, CPU, "less") == ("about 4.0 GB, and 5.0 of 8.0 GB of a test are free", "")
    room(monkeypatch, 10**9, 8 * 10**9)
    _, warned = outlook(need, CPU, "lower batch")
    assert warned.startswith("this will need about 4.0 GB, and 1.0 of 8.0 GB of a test are free")
    assert warned.endswith("lower batch")
    room(monkeypatch, 10**9, 15 * 10**8)
    with pytest.raises(InputError, match=r"would need about 4.0 GB.*: lower batch"):
        outlook(need, CPU, "lower batch")
    monkeypatch.setattr(memory, "memory", lambda: None)
    assert outlook(need, CPU, "less") == ("", "")


@pytest.mark.parametrize("free", [10**7, 2 * 10**8, 10**12])
def test_a_run_says_it_before_anything_is_written(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room(monkeypatch, free, free)
    out = tmp_path / "run"
    words = command(out, "--knn.every", "0", "--stage1.epochs", "1", "--stage2.epochs", "0", "--workers", "1")
    status = main(words)
    said = capsys.readouterr()
    assert status == (2 if free == 10**7 else 0)
    assert out.exists() is (status == 0)
    assert ("this would need about 0.3 GB" in said.err) is (free == 10**7)
    assert ("! this will need about 0.3 GB" in said.out) is (free == 2 * 10**8)
    assert ("memory    about 0.3 GB, and" in said.out) is (status == 0)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_AS)[1]))
from hetcl.cli import main
sys.exit(main(["pretrain", "--data", "scenes:9", "--out", sys.argv[2]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
@pytest.mark.parametrize("limit", [400, 1500])
def test_too_few_addresses_for_the_libraries_are_told_in_one_line(limit: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit * 10**6), str(tmp_path / "run")],
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("! ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert "PyTorch and its libraries do not fit" in lines[0]
    assert "ulimit -v" in lines[0]
