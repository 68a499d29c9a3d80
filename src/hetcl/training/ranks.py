"""The processes of one run on one machine, where Fabric starts them: what becomes of the others when one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.strategies.launchers import subprocess_script

from hetcl.machine import die_with_parent

LOOK = 1.0
"""Seconds between looks at the others."""
GRACE = 15.0
"""Seconds in which the first process may end by itself, with words of its own, once another one has."""


def launch(fabric: Fabric) -> None:
    """Start the other processes, if Fabric is to; a launcher's (torchrun, SLURM) are there already.

    Fabric's own observer kills the first process without a word when another one fails.
    """
    module: Any = subprocess_script
    theirs = module._launch_process_observer
    module._launch_process_observer = observe
    try:
        fabric.launch()
    finally:
        module._launch_process_observer = theirs
    if fabric.local_rank and not _launched_by_others():
        die_with_parent()


def _launched_by_others() -> bool:
    return bool({"LOCAL_WORLD_SIZE", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"} & os.environ.keys())


def observe(others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Look after the other processes, in a thread: when one fails, none is left waiting for it."""
    threading.Thread(target=_observe, args=(list(others),), daemon=True, name="hetcl-observer").start()


def _observe(others: list[subprocess.Popen[bytes]]) -> None:
    while not any(codes := [other.poll() or 0 for other in others]):
        if all(other.returncode == 0 for other in others):
            return
        time.sleep(LOOK)
    time.sleep(GRACE)
    rank, code = next((rank, code) for rank, code in enumerate(codes, 1) if code)
    print(f"hetcl: {_obituary(rank, code)}", file=sys.stderr, flush=True)
    for other in others:
        other.kill()
    os._exit(1)


def _obituary(rank: int, code: int) -> str:
    if code == -getattr(signal, "SIGKILL", 9):
        why = "was killed, most often because memory ran out"
    elif code < 0:
        why = f"was ended by {signal.Signals(-code).name}"
    else:
        why = f"failed with exit status {code}"
    return (
        f"the process of rank {rank} {why}, and the others wait for it in vain. What was saved is kept; --resume goes "
        "on from it"
    )
