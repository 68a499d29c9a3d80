"""Cores and memory that a process may use: affinity, control groups of both kinds, limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hetcl import machine
from hetcl.training.devices import use_threads, workers_of

FIRST = (
    "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
)
SECOND = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"


def files(root: Path, **content: str) -> Path:
    """A file system with these files; ``__`` in a name is a slash, and ``_dot_`` a dot."""
    for name, text in content.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores, all ours by affinity."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 64),
        ("100000 100000", 1),
        ("350000 100000", 4),
        ("10000 100000", 1),
        ("9900000 100000", 64),
        ("", 64),
        ("spoilt", 64),
        ("5 0", 64),
    ],
)
def test_a_quota_of_the_second_kind(quota: str, cores: int, tmp_path: Path) -> None:
    root = files(tmp_path, proc__self__mounts=SECOND, proc__self__cgroup="0::/jobs/mine")
    files(root, sys__fs__cgroup__jobs__mine__cpu_dot_max=quota)
    assert machine.cores(root) == cores


@pytest.mark.usefixtures("many")
def test_the_tightest_of_the_groups_around_counts(tmp_path: Path) -> None:
    root = files(tmp_path, proc__self__mounts=SECOND, proc__self__cgroup="0::/jobs/mine")
    files(root, sys__fs__cgroup__jobs__mine__cpu_dot_max="800000 100000")
    files(root, sys__fs__cgroup__jobs__cpu_dot_max="200000 100000")
    assert machine.cores(root) == 2


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("seen", ["/docker/abc", "/"])
def test_a_quota_of_the_first_kind(seen: str, tmp_path: Path) -> None:
    """Also where a container's group is named as its host sees it, and lies at the top."""
    groups = f"12:pids:{seen}\n4:cpu,cpuacct:{seen}\n3:memory:{seen}"
    root = files(tmp_path, proc__self__mounts=FIRST, proc__self__cgroup=groups)
    files(root, sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us="300000")
    files(root, sys__fs__cgroup__cpu__cpu_dot_cfs_period_us="100000")
    assert machine.cores(root) == 3
    files(root, sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us="-1")
    assert machine.cores(root) == 64


def test_without_any_of_it_there_is_still_an_answer(tmp_path: Path) -> None:
    assert machine.cores(tmp_path) >= 1
    assert machine.memory(tmp_path) is None or machine.memory(tmp_path).of.endswith("(ulimit -v)")  # type: ignore[union-attr]


MEMINFO = "MemTotal: 8000000 kB\nMemAvailable: 3000000 kB\nSwapTotal: 0 kB\nSwapFree: 1000 kB"


def test_memory_is_the_tightest_there_is(tmp_path: Path) -> None:
    root = files(tmp_path, proc__meminfo=MEMINFO)
    room = machine.memory(root)
    assert room is not None
    assert (room.free, room.limit) == (3_001_000 * 1024, 8_000_000 * 1024)
    files(root, proc__self__mounts=SECOND, proc__self__cgroup="0::/a")
    files(
        root,
        sys__fs__cgroup__a__memory_dot_max="700000000",
        sys__fs__cgroup__a__memory_dot_current="600000000",
    )
    files(root, sys__fs__cgroup__a__memory_dot_stat="anon 1\ninactive_file 150000000")
    room = machine.memory(root)
    assert room is not None
    assert (room.free, room.limit) == (250_000_000, 700_000_000)
    assert str(room) == "0.2 of 0.7 GB of this control group (container, job) are free"
    files(root, sys__fs__cgroup__a__memory_dot_max="max")
    assert machine.memory(root) != room


def test_memory_of_a_group_of_the_first_kind(tmp_path: Path) -> None:
    root = files(tmp_path, proc__meminfo=MEMINFO, proc__self__mounts=FIRST, proc__self__cgroup="3:memory:/x")
    files(root, sys__fs__cgroup__memory__memory_dot_limit_in_bytes="9223372036854771712")
    files(root, sys__fs__cgroup__memory__memory_dot_usage_in_bytes="5")
    room = machine.memory(root)
    assert room is not None
    assert room.of == "this machine's memory"
    files(root, sys__fs__cgroup__memory__x__memory_dot_limit_in_bytes="2000")
    files(root, sys__fs__cgroup__memory__x__memory_dot_usage_in_bytes="500")
    room = machine.memory(root)
    assert room is not None
    assert room.free == 1500


def say(code: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**clean, **environment}
    ).stdout.strip()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_threads_and_workers_follow_the_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from hetcl.training.devices import make_fabric, workers_of\n"
        "import torch; make_fabric(device='cpu', devices=1, precision='fp32', threads=0)\n"
        "print(workers_of(-1), torch.get_num_threads(), workers_of(3))"
    )
    assert say(code) == "1 1 3"


def test_threads_follow_the_cores_unless_somebody_has_said(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("hetcl.training.devices.cores", lambda: 3)
    try:
        for asked, processes, given, threads in (
            (0, 1, None, 3),
            (0, 2, None, 1),
            (0, 8, None, 1),
            (5, 2, None, 5),
            (0, 1, "7", 6),
        ):
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            if given:
                monkeypatch.setenv("OMP_NUM_THREADS", given)
            torch.set_num_threads(6)
            use_threads(asked, processes)
            assert torch.get_num_threads() == threads
        assert workers_of(-1) == 3
    finally:
        torch.set_num_threads(before)


WAIT = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"


@pytest.mark.parametrize(
    ("code", "environment", "policy"),
    [
        (f"import hetcl; {WAIT}", {}, "PASSIVE"),
        (f"import hetcl.cli; {WAIT}", {}, "PASSIVE"),
        (f"import hetcl; {WAIT}", {"OMP_WAIT_POLICY": "active"}, "active"),
        (f"import sys; sys.modules['torch'] = sys; import hetcl; {WAIT}", {}, "None"),  # too late to be heard
    ],
)
def test_threads_sleep_while_they_wait(code: str, environment: dict[str, str], policy: str) -> None:
    assert say(code, **environment) == policy
