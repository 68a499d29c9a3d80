"""Which of a run's processes this one is: by what its launcher says, and once ranks have met. Free of torch."""

from __future__ import annotations

import os


def rank_name() -> str:
    """Which process of a run this is, as far as its launcher says, before ranks meet; ``0``: the first or only one.

    A rank without others (variables that a process got from whoever started it) is none.
    """
    env, names = os.environ, tuple[str, ...]()
    if _number("WORLD_SIZE") > 1:
        names = ("RANK", "LOCAL_RANK")
    elif _number("SLURM_NTASKS") > 1 and env.get("SLURM_JOB_NAME") not in (None, "bash", "interactive"):
        names = ("SLURM_PROCID",)
    return next((env[n] for n in names if n in env), "0")


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0


def first_process() -> bool:
    """Whether this is the process that writes and speaks (rank 0)."""
    return rank_name() == "0"


def world() -> tuple[int, int]:
    """(rank, number of ranks) of the processes that have met; (0, 1) where none have."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
