"""Workers that die, hang, are stopped or left alone; batches that arrive whatever there is room for."""

from __future__ import annotations

import faulthandler
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.signals import StopSignal
from hetcl.types import BadRecord
from hetcl.views import handover, workers
from hetcl.views.handover import Inbox, send
from hetcl.views.workers import Pool
from tests.pretraining import processes

LARGE = 300_000
"""Bytes of a batch that goes through memory of its own."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's own")


def batch_of(epoch: int, step: int) -> dict[str, Any]:
    return {"step": step, "x": torch.full((LARGE,), step, dtype=torch.uint8), "epoch": epoch}


def steps(pool: Pool, count: int, start: int = 0) -> list[int]:
    """The steps of the next batches, each checked."""
    found = []
    for _ in range(count):
        batch = next(pool)
        assert batch["x"].shape == (LARGE,)
        assert (batch["x"] == batch["step"] % 256).all()
        found.append(batch["step"])
    return found


def items(count: int) -> Any:
    return iter([(0, step) for step in range(count)])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become hundredths."""
    monkeypatch.setattr(workers, "LOOK", 0.01)


# ---- what is handed over -------------------------------------------------------------------------------------------

tensors = st.builds(
    lambda shape, dtype, seed: (
        torch.from_numpy(np.random.default_rng(seed).integers(0, 100, shape)).to(dtype).clone()
    ),
    st.lists(st.integers(0, 40), max_size=3),
    st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.float64, torch.bool, torch.bfloat16]),
    st.integers(0, 99),
)
arrays = tensors.map(lambda t: t.float().numpy())
leaves = st.integers() | st.text(max_size=5) | st.none() | tensors | arrays
contents = st.recursive(
    leaves, lambda some: st.lists(some, max_size=4) | st.dictionaries(st.text(max_size=3), some), max_leaves=8
)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b)) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize("least", [1, 2000, 10**9], ids=["files", "both", "socket"])
@settings(max_examples=60, deadline=None)
@given(given_contents=st.lists(contents, min_size=1, max_size=4))
def test_what_is_sent_arrives(least: int, given_contents: list[Any]) -> None:
    ours, theirs = socket.socketpair()
    inbox, found = Inbox(ours), []

    def sender() -> None:
        with theirs:
            for content in given_contents:
                send(theirs, content)

    thread = threading.Thread(target=sender)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handover, "SMALL", least)
        thread.start()
        while inbox.read():
            found += list(inbox.messages())
        thread.join()
    inbox.close()
    assert equal(found, given_contents)


def test_what_arrives_can_be_written_and_is_nobody_elses() -> None:
    pool = Pool(batch_of, 1, False)
    pool.restart(items(3))
    first, second = next(pool)["x"], next(pool)["x"]
    first.fill_(77)
    assert (second == 1).all()
    pool.close()
    assert (first == 77).all()  # memory outlives the worker


@pytest.mark.parametrize("refused", [False, True])
def test_batches_are_the_same_where_memory_of_their_own_is_refused(
    refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    if refused:
        monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    pool = Pool(batch_of, 2, False)
    pool.restart(items(20))
    assert steps(pool, 20) == list(range(20))
    with pytest.raises(StopIteration):
        next(pool)
    pool.close()


class Pinnable:
    def __init__(self, step: int) -> None:
        self.step, self.thread = step, ""

    def pin_memory(self) -> Pinnable:
        self.thread = threading.current_thread().name
        return self


def pinnable(epoch: int, step: int) -> Pinnable:
    return Pinnable(step)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_pinned_in_a_thread_and_come_in_order(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pool = Pool(pinnable, workers, True)
    for _ in range(2):  # the first round is left in the middle
        pool.restart(items(20))
        found = [next(pool) for _ in range(7)]
        assert [batch.step for batch in found] == list(range(7))
        assert all(batch.thread.startswith("pinned") for batch in found)
        assert workers or len(pool._ahead) == 0  # computed here, a batch ahead would be waited for
    assert [batch.step for batch in pool] == list(range(7, 20))
    pool.close()


SMALL_SHM = """
import torch
from hetcl.views.workers import Pool

def batch_of(epoch, step):
    return torch.full((12 << 20,), step, dtype=torch.uint8)

pool = Pool(batch_of, 2, False)
pool.restart(iter([(0, step) for step in range(8)]))
assert [int(batch.max()) for batch in pool] == list(range(8))
print("all there")
"""


@linux
def test_a_small_dev_shm_takes_nothing(tmp_path: Path) -> None:
    """Batches of 12 MiB, four ahead, where /dev/shm has room for none."""
    script = tmp_path / "script.py"
    script.write_text(SMALL_SHM)
    command = f'mount -t tmpfs -o size=1m tmpfs /dev/shm && echo mounted && exec "{sys.executable}" {script}'
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare")
    done = subprocess.run(
        [unshare, "-m", "sh", "-c", command], capture_output=True, text=True, timeout=120, env=os.environ
    )
    if "mounted" not in done.stdout:
        pytest.skip("may not mount here")
    assert "all there" in done.stdout, done.stderr[-2000:]


def test_without_descriptors_one_line_says_so() -> None:
    ours, theirs = socket.socketpair()
    send(theirs, batch_of(0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(WorkFailed, match="ulimit -n"):
            Inbox(ours).read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    theirs.close()


# ---- errors --------------------------------------------------------------------------------------------------------


class Odd(Exception):
    """Cannot be sent: it wants two arguments."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def failing(error: str, epoch: int, step: int) -> Any:
    if step == 3:
        match error:
            case "input":
                raise InputError("no such image")
            case "memory":
                raise MemoryError("cannot allocate 5 bytes")
            case "odd":
                raise Odd(1, 2)
            case "result":
                return lambda: None  # cannot be sent
    return batch_of(epoch, step)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        ("input", InputError, "no such image"),
        ("memory", MemoryError, "cannot allocate 5 bytes"),
        ("odd", RuntimeError, "Odd: 1 and 2"),
        ("result", Exception, "(?i)pickle"),
    ],
)
def test_an_error_in_a_worker_arrives_in_its_turn(error: str, kind: Any, text: str) -> None:
    pool = Pool(partial(failing, error), 2, False)
    pool.restart(items(9))
    assert steps(pool, 3) == [0, 1, 2]
    with pytest.raises(kind, match=text):
        next(pool)
    pool.restart(items(3))  # the workers live
    assert steps(pool, 3) == [0, 1, 2]
    pool.close()


# ---- workers in trouble --------------------------------------------------------------------------------------------


def ending(how: str, epoch: int, step: int) -> Any:
    if step == 5:
        faulthandler.disable()  # pytest's would say where
        match how:
            case "exit":
                os._exit(3)
            case "abort":
                os.kill(os.getpid(), signal.SIGABRT)
            case "bus":
                os.kill(os.getpid(), signal.SIGBUS)
            case "half":  # in the middle of handing a batch over
                sock = next(
                    s for s in map(socket_of, range(3, 1024)) if s is not None and s.family == socket.AF_UNIX
                )
                sock.sendall(b"x" * 20)
                os.kill(os.getpid(), signal.SIGKILL)
    return batch_of(epoch, step)


def socket_of(fd: int) -> socket.socket | None:
    try:
        return socket.socket(fileno=os.dup(fd))
    except OSError:
        return None


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("exit", "exit status 3: try with 0 workers"),
        ("abort", "SIGABRT: try with 0 workers"),
        ("bus", "SIGBUS"),
        ("half", "memory ran out"),
    ],
)
def test_a_worker_that_ends_is_told_in_one_line(how: str, text: str) -> None:
    pool = Pool(partial(ending, how), 2 if how != "half" else 1, False)
    pool.restart(items(30))
    with pytest.raises(WorkFailed, match=text) as caught:
        steps(pool, 30)
    assert "\n" not in str(caught.value)
    assert "--resume goes on" in str(caught.value)
    assert not pool.running
    assert not pool._processes()


def test_a_worker_killed_at_any_moment_is_told_in_one_line() -> None:
    for delay in np.random.default_rng().random(12) * 0.05:
        pool = Pool(batch_of, 2, False)
        pool.restart(items(100_000))
        steps(pool, 3)
        victim = pool._processes()[0].pid or 0
        killer = threading.Timer(delay, os.kill, (victim, signal.SIGKILL))
        killer.start()
        with pytest.raises(WorkFailed, match="memory ran out"):
            steps(pool, 100_000)
        killer.join()


@linux
@pytest.mark.usefixtures("quick")
def test_a_stopped_worker_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(batch_of, 2, False)
    pool.restart(items(40))
    found = steps(pool, 5)
    before = {p.pid for p in pool._processes()}
    os.kill(min(before), signal.SIGSTOP)  # type: ignore[type-var,arg-type]
    found += steps(pool, 35)
    assert found == list(range(40))
    after = {p.pid for p in pool._processes()}
    assert len(before & after) == 1
    assert "stopped (SIGSTOP)" in caplog.text
    pool.close()


def slowly(seconds: float, epoch: int, step: int) -> Any:
    time.sleep(seconds)
    return batch_of(epoch, step)


@pytest.mark.usefixtures("quick")
def test_whoever_waits_long_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(partial(slowly, 1.5), 1, False)
    pool.restart(items(1))
    assert steps(pool, 1) == [0]
    assert caplog.text.count("no images for") == 1
    pool.close()


def later(seconds: float, number: int) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.start()
    return timer


@pytest.mark.parametrize("stuck", [False, True])
def test_a_signal_is_answered_while_a_batch_is_waited_for(stuck: bool) -> None:
    pool = Pool(partial(slowly, 600), 1, False)
    with StopSignal():
        pool.restart(items(1))
        if stuck:
            os.kill(pool._processes()[0].pid or 0, signal.SIGSTOP)
        later(0.2, signal.SIGTERM)
        with pytest.raises(Stopped, match="--resume") as stopped:
            next(pool)
    assert stopped.value.signum == signal.SIGTERM
    pool.close()


def test_with_other_ranks_a_signal_waits_for_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for this one; unless it takes too long."""
    monkeypatch.setattr(workers, "LOOK", 0.05)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    for seconds, given_up in ((0.5, False), (600, True)):
        pool = Pool(partial(slowly, seconds), 1, False)
        with StopSignal():
            pool.restart(items(1))
            later(0.1, signal.SIGTERM)
            if given_up:
                with pytest.raises(Stopped):
                    next(pool)
            else:
                assert steps(pool, 1) == [0]
        pool.close()


# ---- the end of the main process -----------------------------------------------------------------------------------


def alone(how: str, path: str) -> None:
    """Starts workers, says who they are, and stays."""
    pool = Pool(partial(slowly, 600) if how == "busy" else batch_of, 2, False)

    def start() -> None:
        pool.restart(items(4))

    if how == "thread":
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    else:
        start()
    if how != "busy":
        steps(pool, 4)
    Path(path + ".part").write_text(" ".join(str(p.pid) for p in pool._processes()))
    Path(path + ".part").rename(path)
    time.sleep(600)


def gone(pid: int) -> bool:
    """No process, or one that nobody has asked about yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@linux
@pytest.mark.parametrize("how", ["idle", "busy", "thread"])
def test_workers_of_a_killed_process_end_at_once(how: str, tmp_path: Path) -> None:
    """Those that a thread started do not end with the thread, and look for themselves whether the process is there."""
    said = tmp_path / "pids"
    process = processes.SERVER.Process(target=alone, args=(how, str(said)))
    process.start()
    assert processes.wait_for(process, said.exists)
    pids = [int(p) for p in said.read_text().split()]
    assert not any(map(gone, pids))
    processes.kill(process)
    end = time.monotonic() + 20
    while not all(map(gone, pids)):
        assert time.monotonic() < end, "workers are left"
        time.sleep(0.05)


def test_the_spawn_way_of_starting_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "START", "spawn")
    pool = Pool(batch_of, 1, False)
    pool.restart(items(6))
    assert steps(pool, 6) == list(range(6))
    pool.close()


def test_what_an_older_round_asked_for_is_not_computed(tmp_path: Path) -> None:
    def compute(epoch: int, step: int) -> Any:
        with open(tmp_path / "computed", "a") as f:
            f.write(f"{epoch}.{step} ")
        time.sleep(0.2)
        return BadRecord(step, str(epoch), "")

    pool: Any = Pool(compute, 1, False)
    for epoch in range(5):
        pool.restart(iter([(epoch, step) for step in range(9)]))
    assert next(pool).name == "4"
    assert len((tmp_path / "computed").read_text().split()) <= 4
    pool.close()
