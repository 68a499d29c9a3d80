"""What only Linux has is never taken for granted: no unguarded import or use, and modules load without it.

Worker processes that are spawned, as on macOS and Windows: ``tests/views/test_workers.py``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hetcl.training.devices import peak_memory

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "hetcl"
MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "msvcrt", "winreg"}
"""Of the standard library, and not on every system."""
NAMES = {
    "signal": {
        "SIGKILL",
        "SIGHUP",
        "SIGUSR1",
        "SIGUSR2",
        "SIGXCPU",
        "SIGSTOP",
        "SIGBUS",
        "SIGALRM",
        "alarm",
        "pause",
    },
    "os": {
        *(
            "fork",
            "forkpty",
            "getuid",
            "geteuid",
            "getgid",
            "kill",
            "killpg",
            "setsid",
            "uname",
            "mkfifo",
            "nice",
        ),
        *(
            "sched_getaffinity",
            "memfd_create",
            "statvfs",
            "chown",
            "wait",
            "WNOHANG",
            "O_NOFOLLOW",
            "O_CLOEXEC",
        ),
    },
    "socket": {"AF_UNIX", "send_fds", "recv_fds"},
}
"""Attributes that not every system has. (os.kill exists on Windows, where it ends whatever it is given.)"""
GUARDS = ("hasattr", "platform", "memfd_create")


def unguarded(source: str) -> list[str]:
    """Imports outside of a ``try`` with ``ImportError``, and attributes outside of an ``if`` that asks for them."""
    found = []

    def walk(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found.extend(f"{node.lineno}: import {n}" for n in names if n in MODULES and not guarded)
        of = getattr(getattr(node, "value", None), "id", "")
        if isinstance(node, ast.Attribute) and node.attr in NAMES.get(of, ()) and not guarded:
            found.append(f"{node.lineno}: {of}.{node.attr}")
        if isinstance(node, ast.Try):
            caught = {
                n.id
                for h in node.handlers
                for n in ast.walk(h.type or ast.Name("x"))
                if isinstance(n, ast.Name)
            }
            guarded = guarded or "ImportError" in caught
        if isinstance(node, ast.If | ast.IfExp | ast.BoolOp):
            test = node if isinstance(node, ast.BoolOp) else node.test
            guarded = guarded or any(guard in ast.unparse(test) for guard in GUARDS)
        if isinstance(node, ast.FunctionDef):  # `if not hasattr(...): return` before it
            first = "".join(ast.unparse(n) for n in node.body[:2])
            guarded = guarded or "hasattr(" in first
        for child in ast.iter_child_nodes(node):
            walk(child, guarded)

    walk(ast.parse(source), False)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_of_one_system_is_used_unguarded(path: Path) -> None:
    sends = {
        "views/handover.py": {"socket.send_fds", "socket.recv_fds"}
    }  # only with a descriptor, or in the else
    allowed = sends.get(path.relative_to(PACKAGE).as_posix(), set())
    found = unguarded(path.read_text(encoding="utf-8"))
    assert not [line for line in found if line.split(": ")[1] not in allowed]


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import resource", True),
        ("def f():\n    from fcntl import flock", True),
        ("try:\n    import resource\nexcept ImportError:\n    pass", False),
        ("try:\n    import resource\nexcept OSError:\n    pass", True),
        ("a = signal.SIGKILL", True),
        ("a = getattr(signal, 'SIGKILL', 9)", False),
        ("if sys.platform == 'linux':\n    signal.SIGKILL", False),
        ("os.fork()", True),
        ("a = os.getuid() if hasattr(os, 'getuid') else 0", False),
    ],
)
def test_the_rule_sees_it(source: str, caught: bool) -> None:
    assert bool(unguarded(source)) is caught


HIDDEN = """
import importlib, sys, warnings
warnings.simplefilter("ignore")  # filelock speaks of it
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in sys.argv[2:]:
    importlib.import_module(name)
import torch
from pathlib import Path
from hetcl.machine import memory
from hetcl.runs.lock import FolderLock, Held
from hetcl.training.devices import peak_memory
assert peak_memory(torch.device("cpu")) is None
memory()
one, two = FolderLock(Path(sys.argv[1])), FolderLock(Path(sys.argv[1]))
one.hold()
try:
    two.hold()
except Held:
    pass
else:
    raise SystemExit("held twice")
one.release()
two.hold()
two.release()
"""


def test_every_module_loads_and_locks_lock_without_what_is_of_posix_alone(tmp_path: Path) -> None:
    parts = [p.relative_to(PACKAGE.parent).with_suffix("").parts for p in sorted(PACKAGE.rglob("*.py"))]
    names = [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts]
    done = subprocess.run([sys.executable, "-c", HIDDEN, tmp_path, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not [*tmp_path.iterdir()]


def test_memory_that_is_not_known_is_not_said() -> None:
    found = peak_memory(torch.device("cpu"))
    assert found is None or found > 50
