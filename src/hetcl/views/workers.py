"""Worker processes that prepare batches: started once, told what to compute, watched while they are waited for.

They leave signals to the main process, hand expected errors over as themselves, and end with it. A batch is a function
of its (epoch, step), so what a stopped worker owes is computed by another; a worker that died ends the work with one
line. While a batch is waited for, signals are answered.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from hetcl import signals
from hetcl.errors import Stopped, WorkFailed, mark_alone
from hetcl.ranks import world
from hetcl.views.handover import Failure, Inbox, send, work

OWN = 100_000_000
"""Bytes of a worker process, without its batches."""
PREFETCH = 2
"""Batches that each worker prepares ahead."""
START = "fork" if sys.platform == "linux" else "spawn"
"""How worker processes begin."""
LOOK = 0.5
"""Seconds between looks at workers and signals while a batch is waited for."""
STOPPED = 10
"""Looks after which a worker that somebody has stopped (SIGSTOP) is replaced."""
SLOW = 60
"""Looks after which a person is told what is waited for."""
PATIENT = 30
"""Looks after which a rank among others, who will wait for it, gives up on a batch when a signal has come."""

log = logging.getLogger(__name__)


class _Worker:
    """One process, with what it was asked for and has not given yet."""

    def __init__(self, compute: Callable[[int, int], Any]) -> None:
        context: Any = multiprocessing.get_context(START)
        ours, theirs = socket.socketpair()
        tied = threading.current_thread() is threading.main_thread()
        self.process: BaseProcess = context.Process(
            target=work, args=(theirs, compute, os.getpid(), tied), daemon=True
        )
        self.process.start()
        theirs.close()
        self.inbox = Inbox(ours)
        self.owed: dict[int, tuple[int, int]] = {}
        self.stopped = 0

    def state(self) -> str:
        """The letter by which Linux calls what a process does (T: stopped, D: waits for a disk); else nothing."""
        try:
            return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return ""

    def end(self) -> int:
        """Kill it, if it lives; its exit status."""
        self.inbox.close()
        self.process.kill()
        self.process.join()
        return self.process.exitcode or 0


def room(workers: int, batch: int) -> int:
    """Bytes of host memory that workers take with the batches, of that many bytes each, ahead and in use, about."""
    return workers * (OWN + PREFETCH * batch) + 2 * batch


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()
"""Pools that have worker processes."""


class Pool(Iterator[Any]):
    """Batches in the order of their items, computed here or by worker processes that outlive a restart.

    Args:
        compute: a batch from (epoch, step), sent to the workers once; one that is to be pinned has ``pin_memory``.
        workers: processes; 0 computes here.
        pin: batches in page-locked memory, where there is a GPU.
    """

    def __init__(self, compute: Callable[[int, int], Any], workers: int, pin: bool) -> None:
        self.compute, self.workers = compute, workers
        self._pinner = ThreadPoolExecutor(1, "pinned") if pin and torch.cuda.is_available() else None
        self._ahead: deque[Any] = deque()
        self.running = False
        self._home = os.getpid()
        self._items: Iterator[tuple[int, int]] = iter(())
        self._team: list[_Worker] = []
        self._round = self._asked = self._given = 0
        self._there: dict[int, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to a worker with what it belongs to, it has no workers itself."""
        return Pool, (self.compute, 0, False)

    def restart(self, items: Iterator[tuple[int, int]]) -> None:
        """Begin anew with ``items``."""
        self.running, self._items = True, items
        self._round, self._asked, self._given, self._there = self._round + 1, 0, 0, {}
        self._ahead.clear()
        for worker in self._team:
            worker.owed = {}
        if self.workers and not self._team:
            self._team = [_Worker(self.compute) for _ in range(self.workers)]
            _POOLS.add(self)
        self._ask()

    def __next__(self) -> Any:
        """The next batch. The one behind it is pinned meanwhile in a thread, if it is there already.

        Raises:
            WorkFailed: a worker died.
            Stopped: a signal came inside a ``StopSignal``, and no batch was there.
        """
        while not self._ahead or (self._pinner and len(self._ahead) < 2 and self._is_there()):
            self._ahead.append(self._pinned(self._next()))
        batch = self._ahead.popleft()
        batch = batch.result() if isinstance(batch, Future) else batch
        if isinstance(batch, Failure):
            self.running = False
            mark_alone(batch.error)
            raise batch.error
        return batch

    def _next(self) -> Any:
        if self.workers:
            return self._awaited()
        self._stop_if_asked(0)
        return self.compute(*next(self._items))

    def _pinned(self, batch: Any) -> Any:
        """The batch, or a promise of it in page-locked memory: copying it there takes tens of milliseconds."""
        if not self._pinner or not hasattr(batch, "pin_memory"):
            return batch
        return self._pinner.submit(batch.pin_memory)

    def _is_there(self) -> bool:
        """Whether the next batch can be had without waiting."""
        if not self.workers or self._given == self._asked:
            return False
        if self._given not in self._there:
            self._receive(0)
        return self._given in self._there

    def close(self) -> None:
        """Stop the workers, and do not wait for one that hangs."""
        if os.getpid() != self._home:  # a worker of another pool, which inherited this one
            return
        team, self._team, self._there = self._team, [], {}
        self._ahead.clear()
        self.running = False
        for worker in team:
            worker.process.kill()
        for worker in team:
            worker.end()

    def __del__(self) -> None:
        self.close()

    def _processes(self) -> list[BaseProcess]:
        return [worker.process for worker in self._team]

    # ---- asking and waiting ------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask for as many batches ahead as there may be, whoever has least to do."""
        while self._asked - self._given < self.workers * PREFETCH:
            item = next(self._items, None)
            if item is None:
                return
            worker = min(self._team, key=lambda worker: len(worker.owed))
            worker.owed[self._asked] = item
            self._asked += 1
            self._send(worker, self._asked - 1, item)

    def _send(self, worker: _Worker, number: int, item: tuple[int, int]) -> None:
        try:
            send(worker.inbox.sock, (self._round, number, item))
        except OSError:
            self._died(worker)

    def _awaited(self) -> Any:
        if self._given == self._asked:
            raise StopIteration
        looks = 0
        while self._given not in self._there:
            if not self._receive(LOOK) and self._given not in self._there:
                looks += 1
                self._stop_if_asked(looks)
                self._watch(looks)
        batch = self._there.pop(self._given)
        self._given += 1
        self._ask()
        return batch

    def _receive(self, seconds: float) -> bool:
        """Take what workers have sent; False when none has within that time."""
        by_socket = {worker.inbox.sock: worker for worker in self._team}
        ready: list[Any] = wait(list(by_socket), seconds)
        for sock in ready:
            worker = by_socket[sock]
            alive = worker.inbox.read()
            for round, number, batch in worker.inbox.messages():
                if round == self._round:
                    self._there[number] = batch
                    del worker.owed[number]
            if not alive:
                self._died(worker)
        return bool(ready)

    def _stop_if_asked(self, looks: int) -> None:
        """Raise ``Stopped`` when a signal has come: at once, or late where other ranks will wait."""
        alone = world()[1] == 1
        if (number := signals.asked()) and (alone or looks > PATIENT):
            raise Stopped(
                number, "stopped while waiting for images; what was saved is kept: go on with --resume"
            )

    # ---- workers in trouble ------------------------------------------------------------------------------------------

    def _watch(self, looks: int) -> None:
        """Replace a worker that was stopped, and tell a person who waits long why. (Looks, since sleep is no time.)"""
        worker = next(w for w in self._team if self._given in w.owed)
        state = worker.state()
        worker.stopped = worker.stopped + 1 if state == "T" else 0
        if worker.stopped >= STOPPED:
            log.warning("a process that prepares images was stopped (SIGSTOP); another takes its place")
            owed = worker.owed
            worker.end()
            new = self._team[self._team.index(worker)] = _Worker(self.compute)
            new.owed = owed
            for number, item in owed.items():
                self._send(new, number, item)
        elif looks == SLOW:
            why = "it waits for a disk" if state == "D" else "it is still at work"
            log.warning(
                "no images for %d seconds from process %d, which prepares them: %s. Ctrl-C stops after saving",
                SLOW * LOOK,
                worker.process.pid,
                why,
            )

    def _died(self, worker: _Worker) -> None:
        """Raise ``WorkFailed`` with what became of a worker."""
        worker.process.join(5)
        code = worker.end()
        self.close()
        if code == -getattr(signal, "SIGKILL", 9):
            why = "it was killed, most often because memory ran out: use fewer workers or a smaller batch"
        elif code == -getattr(signal, "SIGBUS", 0) and code:
            why = "a file or memory that it read from went away (SIGBUS): look at disk and memory"
        elif code < 0:
            why = f"{signal.Signals(-code).name}: try with 0 workers to see the reason"
        else:
            why = f"exit status {code}: try with 0 workers to see the reason"
        error = WorkFailed(
            f"a process that prepares images died; {why}. What was saved is kept; --resume goes on from it"
        )
        mark_alone(error)
        raise error


@atexit.register
def _close_all() -> None:
    """The end of the program is the end of its workers."""
    for pool in list(_POOLS):
        pool.close()
