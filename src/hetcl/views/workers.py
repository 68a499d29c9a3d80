"""Worker processes that prepare batches: started once, told what to compute, and how their death is put.

They are those of torch's ``DataLoader`` (which gives each one thread), with four habits of our own: they leave
signals to the main process; expected errors arrive as themselves; a dead worker is noticed when its batch is asked
for, not wherever the main process happens to be; and the global random state is left alone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hetcl.errors import InputError, WorkFailed

PREFETCH = 2
"""Batches that each worker prepares ahead."""


@dataclass(frozen=True)
class _Failure:
    """An error that a worker hands over as it is, without a traceback in its message."""

    error: Exception


class _Guarded(Dataset[Any]):
    """Batches by (epoch, step), whose expected errors come as :class:`_Failure`."""

    def __init__(self, compute: Callable[[int, int], Any]) -> None:
        self.compute = compute

    def __getitem__(self, item: tuple[int, int]) -> Any:
        try:
            return self.compute(*item)
        except (InputError, WorkFailed) as error:
            return _Failure(error)


class _Items(Sampler[tuple[int, int]]):
    """What the workers compute next; set before each start."""

    def __init__(self) -> None:
        self.items: Iterator[tuple[int, int]] = iter(())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self.items


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """Leave signals to the main process, which stops the workers when it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
        self.steps, self.workers = _Guarded(compute), workers
        self.pin = pin and torch.cuda.is_available()
        self.running = False
        self._home = os.getpid()
        self._items = _Items()
        self._loader: DataLoader[Any] | None = None
        self._iterator: Iterator[Any] | None = None

    def restart(self, items: Iterator[tuple[int, int]]) -> None:
        """Begin anew with ``items``."""
        self.running = True
        self._items.items = items
        if not self.workers:
            self._iterator = map(self._here, items)
            return
        if self._loader is None:
            self._loader = DataLoader(
                self.steps,
                batch_size=None,
                sampler=self._items,
                num_workers=self.workers,
                collate_fn=_as_is,
                pin_memory=self.pin,
                prefetch_factor=PREFETCH,
                persistent_workers=True,
                worker_init_fn=_start_worker,
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                generator=torch.Generator(),  # or the loader would draw its seed from the global state
            )
            _POOLS.add(self)
        with _own_child_signals():
            self._iterator = iter(self._loader)

    def _here(self, item: tuple[int, int]) -> Any:
        batch = self.steps[item]
        return batch.pin_memory() if self.pin and not isinstance(batch, _Failure) else batch

    def __next__(self) -> Any:
        assert self._iterator is not None
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or not self._dead():
                raise
            message = self._epitaph()
            self.close()
            raise WorkFailed(message) from error
        if isinstance(batch, _Failure):
            self.running = False
            raise batch.error
        return batch

    def _processes(self) -> list[Any]:
        return list(getattr(self._iterator, "_workers", []))

    def _dead(self) -> list[int]:
        """Exit codes of the workers that are gone."""
        return [p.exitcode for p in self._processes() if p.exitcode is not None]

    def _epitaph(self) -> str:
        code = next((c for c in self._dead() if c), 0)
        if code == -signal.SIGBUS:
            why = "shared memory (/dev/shm) ran out: give the machine more of it, or use fewer workers"
        elif code == -signal.SIGKILL:
            why = "it was killed, most often because memory ran out: use fewer workers or a smaller batch"
        else:
            why = f"exit status {code}: try with 0 workers to see the reason"
        return (
            f"a process that prepares pictures died; {why}. What was saved is kept; --resume goes on from it"
        )

    def close(self) -> None:
        """Stop the workers, and do not wait for one that hangs."""
        if os.getpid() != self._home:  # a worker of another pool, which inherited this one
            return
        processes = self._processes()
        stop = getattr(self._iterator, "_shutdown_workers", None)
        self._iterator = self._loader = None
        self.running = False
        if stop is not None:
            with contextlib.suppress(Exception):
                stop()
        for process in processes:
            if process.is_alive():
                process.kill()

    def __del__(self) -> None:
        self.close()


@atexit.register
def _close_all() -> None:
    """Workers ignore SIGTERM, so the end of the program has to tell them."""
    for pool in list(_POOLS):
        pool.close()


@contextlib.contextmanager
def _own_child_signals() -> Iterator[None]:
    """Undo the SIGCHLD handler that torch's loader installs: it raises wherever the main process happens to be.

    A dead worker is noticed when its batch is asked for.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if before is not None:
        signal.signal(signal.SIGCHLD, before)
