"""Runs a function in a process of its own and says what it took: for tests that nothing is taken on a file's word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MIB = 1 << 20
_CODE = """
import resource, sys
{imports}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1 << 20)
before = peak()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with open("/proc/self/statm") as f:
    room = int(f.read().split()[0]) * resource.getpagesize() + {room} * (1 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, resource.getrlimit(resource.RLIMIT_AS)[1]))
try:
    {code}
except (InputError, BadImage) as error:
    print("refused:", error)
print("took", peak() - before)
"""


def taken(imports: str, code: str, *, room: int = 2048, cwd: Path | None = None) -> tuple[int, str]:
    """MiB that ``code`` took at most beyond what was there before, and what was printed.

    It may ask the system for ``room`` MiB at most; an error other than ``InputError`` and ``BadImage`` fails.
    """
    imports = "\n".join(
        ["from hetcl.errors import InputError", "from hetcl.types import BadImage", *imports.split("; ")]
    )
    text = _CODE.format(imports=imports, code=code.replace("\n", "\n    "), room=room)
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=120, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.rsplit("took", 1)[1]), done.stdout
