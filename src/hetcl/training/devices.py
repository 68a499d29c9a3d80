"""Where to compute: devices, ranks, precision, worker processes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import DDPStrategy

from hetcl.errors import InputError
from hetcl.machine import cores
from hetcl.quantities import count
from hetcl.training.ranks import launch

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp64": "32-true"}
"""Fabric's names. Its "64-true" rounds what a model gives to fp32, so for fp64 it converts nothing and we do it."""


class Autocast(MixedPrecision):
    """bf16 where PyTorch's autocast has it, and nowhere else. Fabric's own rounds all that goes into a model to bf16
    first, the boxes that a detector is to learn too: from 256 pixels on by up to 1, from 512 on by up to 2."""

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", "cpu" if device == "cpu" else "cuda")

    def convert_input(self, data: Any) -> Any:
        return data


def make_fabric(
    *, device: str, devices: int, precision: str, threads: int, batch: int = 0, groups: int = 0
) -> Fabric:
    """Devices and ranks, from the arguments or from torchrun or SLURM.

    Args: as the settings of these names; a ``batch`` or ``groups`` of 0 need not split over the devices.

    Raises:
        InputError: a device that is not there, or a batch or groups that do not split over the devices.
    """
    env = os.environ
    # Fabric's own child processes (``devices``) have a WORLD_SIZE too, but no LOCAL_WORLD_SIZE.
    local = int(env.get("LOCAL_WORLD_SIZE", 0))
    ranks = int(env.get("WORLD_SIZE", local)) if local else 0
    if not ranks and "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in (None, "bash", "interactive"):
        ranks = int(env["SLURM_NTASKS"])
        local = ranks // int(env.get("SLURM_NNODES", 1))
    devices, nodes = (local, max(1, ranks // max(1, local))) if ranks else (devices, 1)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: PyTorch sees no GPU here; set device to auto or cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError("device mps: PyTorch sees no Apple GPU here; set device to auto or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and devices > torch.cuda.device_count():
        raise InputError(f"devices {devices}: this machine has {torch.cuda.device_count()} GPUs")
    use_threads(threads, devices)
    total = devices * nodes
    if batch % total or groups % total:
        raise InputError(f"batch ({batch}) and groups ({groups}) must be multiples of the {total} devices")
    # Every rank takes whole batch-norm groups; their statistics are averaged by hand, not broadcast.
    strategy = DDPStrategy(broadcast_buffers=False) if total > 1 else "auto"
    # (torch 2.14 warns that this way of saying so will change; the new one would still copy them at the start.)
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated")
    name = precision_on(precision, device)
    how: dict[str, Any] = {"plugins": Autocast(device)} if name == "bf16" else {"precision": PRECISIONS[name]}
    fabric = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        **how,
    )
    launch(fabric)
    return fabric


@contextmanager
def chosen_kernels(*, deterministic: bool) -> Iterator[None]:
    """Inside, for steps whose shapes stay the same: cuDNN times its kernels once, or keeps to those that repeat their
    bits. Outside, PyTorch's switches are as they were (cuBLAS' variable stays set).

    Args:
        deterministic: two equal runs on one GPU end in equal bits, at some cost in speed. An operation that cannot
            do so raises RuntimeError.
    """
    filling = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        filling.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
    )
    if deterministic:
        # cuBLAS reads it when it starts; PyTorch asks for it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Else every new tensor is written once more.
        filling.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        filling.fill_uninitialized_memory, torch.backends.cudnn.benchmark = before[2:]  # type: ignore[attr-defined]


def use_threads(threads: int, processes: int = 1) -> None:
    """Compute with as many threads as are asked for; 0: PyTorch's choice, but no more than the cores allow.

    Args:
        processes: how many share this machine's cores.
    """
    if not threads and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, min(torch.get_num_threads(), cores() // processes))
    if threads:
        torch.set_num_threads(threads)
        if processes > 1:  # or Fabric would set another number
            os.environ["OMP_NUM_THREADS"] = str(threads)


def precision_on(precision: str, device: str) -> str:
    """``auto`` settled for a kind of device: bf16 on a GPU that has it, else fp32."""
    if precision != "auto":
        return precision
    cuda = device in ("cuda", "auto") and torch.cuda.is_available()
    return "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"


def not_finite_because(fabric: Fabric) -> str:
    """Why an encoder may give values that are not finite: ``the weights are broken``, and bf16 where it is used."""
    with fabric.autocast():
        coarse = torch.is_autocast_enabled(fabric.device.type)
    return "the weights are broken" + (
        ", or precision bf16 is too coarse for them (set precision to fp32)" if coarse else ""
    )


def device_name(device: torch.device) -> str:
    """What to call a device in a line for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {count(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else device.type


def workers_of(workers: int) -> int:
    """Worker processes; -1 is one for each core that this process may use, up to eight."""
    return workers if workers >= 0 else min(8, cores())


def peak_memory(device: torch.device) -> int | None:
    """Most megabytes used so far: of the GPU, or of this process; None where the system does not say (Windows)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device) / 1e6)
    try:
        import resource
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used / (1e6 if sys.platform == "darwin" else 1e3))
