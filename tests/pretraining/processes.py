"""Commands in processes of their own, started quickly, killed at will.

A fork server imports torch once; each command is then a fork of it that calls ``hetcl.cli.main``, as the console
script does. ``die_at`` kills it (SIGKILL, by itself) just before it touches the run folder for the n-th time: makes a
folder, opens a file to write, renames, links or removes one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

TOUCHES = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.pretraining.preload"])


Command = Sequence[str] | Callable[[], int]
"""Words after ``hetcl``, or what gives an exit status itself (to be pickled, so no lambda)."""


def start(
    argv: Command,
    log: Path,
    *,
    die_at: int | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] = {},
) -> BaseProcess:
    """Run ``hetcl ARGV`` in a process of its own; what it says goes to ``log``."""
    command = argv if callable(argv) else [*argv]
    process = SERVER.Process(target=_child, args=(command, str(log), die_at, str(folder), {**environment}))
    process.start()
    return process


def run(argv: Sequence[str], log: Path, *, die_at: int | None = None, folder: Path | None = None) -> int:
    """As :func:`start`, to the end: the exit status, negative for a signal."""
    process = start(argv, log, die_at=die_at, folder=folder)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def run_ranks(argv: Command, log: Path, ranks: int = 2) -> list[int]:
    """``hetcl ARGV`` in two ranks that meet as under torchrun, to the end: their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"},
        **{"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)},
        **{"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "test"},
    }
    started = [
        start(argv, log, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]
    for process in started:
        process.join(250)
    statuses = [process.exitcode for process in started]
    for process in started:
        process.kill()  # what has ended does not mind
    return [-1 if status is None else status for status in statuses]


def wait_for(process: BaseProcess, condition: Callable[[], bool], timeout: float = 60) -> bool:
    """Look every few milliseconds; True when the condition held while the process lived."""
    end = time.monotonic() + timeout
    while process.is_alive():
        if condition():
            return True
        assert time.monotonic() < end, "it never came"
        time.sleep(0.003)
    return False


def kill(process: BaseProcess, number: int = signal.SIGKILL) -> int:
    """Send a signal and wait for the end: the exit status, negative for a signal."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _child(argv: Command, log: str, die_at: int | None, folder: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from hetcl.cli import main

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if die_at is not None:
        sys.addaudithook(_death(die_at, folder))
    status = argv() if callable(argv) else main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status) if status else sys.exit(0)


def _death(die_at: int, folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    left, home = die_at, os.getpid()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in TOUCHES or os.getpid() != home:
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if not any(isinstance(a, str | os.PathLike) and os.fspath(a).startswith(folder) for a in args[:2]):
            return
        left -= 1
        if not left:
            os.kill(home, signal.SIGKILL)

    return hook
