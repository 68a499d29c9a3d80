"""Sections in processes of their own: one that fails or hangs takes nothing with it, and every row is kept at once.

A section appends its rows to a file, one line of JSON each. The parent reads what is new a few times a second and
writes the whole report anew, so that at any moment all finished rows are on disk. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

POLL = 0.2
"""Seconds between two looks at a section."""


def run(
    command: Sequence[str],
    *,
    rows: Path,
    log: Path,
    limit: float,
    changed: Callable[[Mapping[str, Any]], None],
    env: Mapping[str, str] = {},
) -> dict[str, Any]:
    """Run a section and collect what it finds.

    Args:
        command: starts it; it appends to ``rows``.
        rows: lines of JSON.
        log: what it says goes there, behind what is there.
        limit: seconds after which it is ended, and all it has started.
        changed: called with the section's state a few times a second.
        env: added to its environment.

    Returns:
        ``{"status": "done" | "failed" | "out of time", "seconds", "limit", "rows", "error"}``.
    """
    began = time.monotonic()
    state: dict[str, Any] = {"status": "running", "seconds": 0.0, "limit": limit, "rows": [], "error": None}
    rows.touch()
    with open(log, "ab") as out, open(rows, encoding="utf-8") as lines:
        start = out.tell()
        process = subprocess.Popen(
            command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        half = ""
        status: int | None = None
        try:
            while status is None and state["status"] == "running":
                status = process.poll()  # first, so that the rows of its last moment are read below
                half = _read(lines, half, state["rows"])
                state["seconds"] = round(time.monotonic() - began, 1)
                changed(state)
                if status is None and state["seconds"] > limit:
                    state |= {"status": "out of time", "error": f"ended after {limit:.0f} s"}
                if status is None:
                    time.sleep(POLL)
        finally:
            end(process)
    if status is not None:
        state["status"] = "failed" if status else "done"
        state["error"] = _why(status, log, start) if status else None
    changed(state)
    return state


def _read(lines: Any, half: str, into: list[dict[str, Any]]) -> str:
    """Whole new lines as rows; returns the beginning of one that is not whole yet."""
    *whole, half = (half + lines.read()).split("\n")
    into.extend(json.loads(line) for line in whole if line)
    return half


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a session, with everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _why(status: int, log: Path, start: int) -> str:
    """The last line of what a section said, which is the error where Python ended with one."""
    with open(log, "rb") as f:
        f.seek(start)
        stated = f.read().decode(errors="replace").strip().splitlines()
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"{how}: {stated[-1][:300]}" if stated else how


def write_atomic(path: Path, text: str) -> None:
    """Replace a file wholly or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
