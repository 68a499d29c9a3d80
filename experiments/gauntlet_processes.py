"""What can happen to the processes of a run, for ``gauntlet.py``: kills at any moment, worker processes that are killed
or stopped, ranks that die, a /dev/shm with no room.

Each function yields (verb, what was done, why it is lost or None when it survived), as the kinds of ``gauntlet.py`` do.
Survived is a command that ends in time, by the signal or with one line, and whose results are the undisturbed ones
once it has been gone on with.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Tries = Iterator[tuple[str, str, str | None]]
WAYS = {
    "KILL": (signal.SIGKILL,),
    "TERM": (signal.SIGTERM,),
    "TERM twice": (signal.SIGTERM, signal.SIGTERM),
    "HUP": (signal.SIGHUP,),
    "INT, then TERM": (signal.SIGINT, signal.SIGTERM),
}
"""Signals in order; a second one comes 1.2 seconds after the first, which is late enough to be a second wish."""
LARGE = (
    "pretrain --data scenes:128 --recipe demo --backbone timm:test_resnet --size 224 --batch 64 --groups 2 "
    "--spatial.side 4 --spatial.width 8 --semantic.dim 8 --threads 1 --workers 2 --device cpu --knn.every 0 "
    "--stage1.epochs 1 --stage2.epochs 0 --stage1.queue 100"
).split()
"""Four batches of 19 MB ahead."""


def kills(ground: Any, verbs: Sequence[str], tries: int) -> Tries:
    """Each verb ended by each signal at a random moment, with and without workers, then gone on with."""
    for number in range(tries):
        verb, (name, numbers) = verbs[number % len(verbs)], _pick(ground, WAYS)
        workers = ground.rng.choice([0, 2])
        process, log, out = _begin(ground, verb, workers)
        _at_a_random_moment(ground, verb, process, out)
        team = children(process.pid)
        for i, one in enumerate(numbers):
            if i:
                process.join(1.2)
            _send(process.pid, one)
        end = ground.end(process, log)
        why = _ended(ground, end) or _left_alone(team)
        yield verb, f"{name} with {workers} workers", why or _gone_on(ground, verb, out)


def workers(ground: Any, verbs: Sequence[str], tries: int) -> Tries:
    """A worker process of each verb killed or stopped at a random moment."""
    verbs = [v for v in verbs if v != "export"]
    for number in range(tries):
        verb, stopped = verbs[number % len(verbs)], ground.rng.random() < 0.4
        process, log, out = _begin(ground, verb, 2)
        found: list[int] = []
        while process.is_alive() and len(found := children(process.pid)) < 2:
            time.sleep(0.002)
        time.sleep(ground.rng.random() * 0.3)
        if found:
            _send(ground.rng.choice(found), signal.SIGSTOP if stopped else signal.SIGKILL)
        end = ground.end(process, log)
        what = "a worker stopped" if stopped else "a worker killed"
        why = _ended(ground, end)
        if why is None and stopped and end.status != 0:
            why = f"status {end.status}: {end.complaints[-1:]}"
        if why is None and end.status != 0 and not end.refused:
            why = f"not one line: {end.complaints}"
        yield verb, what, why or _gone_on(ground, verb, out)


def ranks(ground: Any, verbs: Sequence[str], tries: int) -> Tries:
    """One of two ranks killed at a random moment: the other ends, and the run is gone on with to the same bytes."""
    if "pretrain" not in verbs:
        return
    base = ground.argv(_verb(ground, "pretrain").begin, Path("OUT"))
    whole = ground.new("ranks-whole")
    _real(ground, [*_with(base, 2), "--out", str(whole)]).wait()
    for _ in range(tries):
        out, rank = ground.new("ranks"), ground.rng.choice([0, 1])
        process = _real(ground, [*_with(base, 2), "--out", str(out)])
        while process.poll() is None and not (out / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.002)
        time.sleep(ground.rng.random() * 2)
        others = [pid for pid in children(process.pid) if "hetcl.cli" in _words(pid)]
        victim = process.pid if rank == 0 or not others else others[0]
        began = time.monotonic()
        _send(victim, signal.SIGKILL)
        why = None
        try:
            process.wait(ground.limit)
            while any(map(alive, others)) and time.monotonic() - began < ground.limit:
                time.sleep(0.05)
        except subprocess.TimeoutExpired:
            process.kill()
            why = f"hung for {ground.limit:g} s"
        why = why or ("a rank is left" if any(map(alive, others)) else None)
        if why is None:
            status = _real(ground, [*_with(base, 2), "--out", str(out), "--resume"]).wait()
            files = ("backbone.safetensors", "metrics.csv")
            same = status == 0 and all((out / f).read_bytes() == (whole / f).read_bytes() for f in files)
            why = None if same else f"status {status}, or other bytes"
        yield "pretrain", f"rank {rank} of 2 killed", why


def small_shm(ground: Any, verbs: Sequence[str], tries: int) -> Tries:
    """Large batches of two workers where /dev/shm has 64 MB, 4 MB or a page."""
    if "pretrain" not in verbs:
        return
    if shutil.which("unshare") is None:
        print("small-shm: left out, since there is no unshare", flush=True)
        return
    whole = ground.new("shm-whole")
    end = ground.run([*LARGE, "--out", str(whole)])
    for number in range(min(tries, 6)):
        size, out = ("64m", "4m", "4k")[number % 3], ground.new("shm")
        command = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} -m hetcl.cli "$@"'
        try:
            done = subprocess.run(
                ["unshare", "-m", "sh", "-c", command, "sh", *LARGE, "--out", str(out)],
                capture_output=True, text=True, timeout=4 * ground.limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            yield "pretrain", f"/dev/shm of {size}", "hung"
            continue
        if "mount:" in done.stderr:
            print("small-shm: left out, since nothing may be mounted here", flush=True)
            return
        same = end.status == done.returncode == 0
        same = same and (out / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
        yield (
            "pretrain",
            f"/dev/shm of {size}",
            None if same else f"status {done.returncode}: {done.stderr[-300:]}",
        )


KINDS: dict[str, Callable[[Any, Sequence[str], int], Tries]] = {
    "kills": kills,
    "workers": workers,
    "ranks": ranks,
    "small-shm": small_shm,
}


# ---- what they share -----------------------------------------------------------------------------------------------


def _verb(ground: Any, verb: str) -> Any:
    return sys.modules[type(ground).__module__].VERBS[verb]  # type: ignore[attr-defined]


def _pick(ground: Any, table: dict[str, Any]) -> tuple[str, Any]:
    return ground.rng.choice(list(table.items()))


def _begin(ground: Any, verb: str, workers: int) -> tuple[Any, Path, Path]:
    """A verb started in a folder of its own: the process, its log, the folder."""
    out, log = ground.new("run"), ground.new("log")
    if verb == "export":
        out.mkdir()
    argv = ground.argv(_verb(ground, verb).begin, out)
    if "--workers" in argv:
        argv[argv.index("--workers") + 1] = str(workers)
    for suffix in (".out", ".err"):
        log.with_suffix(suffix).touch()  # it may be killed before it does that
    return ground.start(argv, log), log, out


def _at_a_random_moment(ground: Any, verb: str, process: Any, out: Path) -> None:
    """One time in two half way through, else within the first seconds."""
    if ground.rng.random() < 0.5 and _verb(ground, verb).half_way:
        ground.wait_for(process, out, _verb(ground, verb))
        time.sleep(ground.rng.random() * 0.1)
    else:
        process.join(ground.rng.random() * ground.rng.choice([0.3, 3]))


def _ended(ground: Any, end: Any) -> str | None:
    """Why the way a command ended is no good."""
    if end.status is None:
        return f"hung for {ground.limit:g} s"
    if "Traceback" in "\n".join(end.complaints):
        return f"traceback: {end.complaints[-1]}"
    return None


def _left_alone(team: Sequence[int]) -> str | None:
    """Whether workers live on some seconds after the process that they worked for."""
    for _ in range(100):
        if not any(map(alive, team)):
            return None
        time.sleep(0.05)
    return "worker processes are left"


def _gone_on(ground: Any, verb: str, out: Path) -> str | None:
    """Go on with a verb in its folder, and judge the end."""
    if verb == "export":
        out.mkdir(exist_ok=True)
    end = ground.run(ground.argv(_verb(ground, verb).go_on, out))
    why = ground.judge(verb, end, out, set(), out)
    if why is None and end.status == 0:
        shutil.rmtree(out, ignore_errors=True)
    return why if why or end.status == 0 else f"refused: {end.complaints[-1:]}"


def _with(base: Sequence[str], devices: int) -> list[str]:
    """A command without its folder, on so many devices."""
    words = [w for i, w in enumerate(base) if w != "--out" and (i == 0 or base[i - 1] != "--out")]
    return [*words, "--devices", str(devices)]


def _real(ground: Any, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """``hetcl`` as a person starts it."""
    env = {**os.environ, "HETCL_CACHE": f"{ground.root}/cache", "GLOO_SOCKET_IFNAME": "lo"}
    with open(ground.new("log"), "wb") as log:
        return subprocess.Popen([sys.executable, "-m", "hetcl.cli", *words], stdout=log, stderr=log, env=env)


def _send(pid: int | None, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid or 0, number)


def _stat(pid: int) -> list[str]:
    """What /proc says of a process after its name: state, parent, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z", "0"]


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    return _stat(pid)[0] != "Z"


def children(pid: int | None) -> list[int]:
    """Living processes that a process has started."""
    found = [int(p) for p in os.listdir("/proc") if p.isdigit()]
    return [p for p in found if (stat := _stat(p))[1] == str(pid) and stat[0] != "Z"]
