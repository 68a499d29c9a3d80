"""Runs the cells of a plan: each once, in any number of processes that share the folder, again after any stop.

``DIR/cells/KEY.json`` says that a cell is done and what came out. A process locks a cell while it works on it; the lock
ends with the process, whatever ends it, and whoever comes next goes on with the cell's own checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hetcl.errors import InputError, WorkFailed
from hetcl.quantities import duration
from hetcl.reproduce.cells import Cell, Plan
from hetcl.reproduce.work import contents, work
from hetcl.runs.files import seal, set_aside, unseal, write_atomic
from hetcl.runs.folder import machine
from hetcl.runs.lock import NAME, FolderLock, Held
from hetcl.trees import TreeError

PAUSE = 2.0
"""Seconds between two looks at cells that other processes work on."""


def record_of(out: Path, key: str) -> Path:
    """The file that says that a cell is done."""
    return out / "cells" / f"{key.replace('/', '.')}.json"


def read_record(out: Path, key: str) -> dict[str, Any] | None:
    """What came out of a cell; None: it is not done. A damaged file is set aside, and the cell counts as not done."""
    path = record_of(out, key)
    try:
        return unseal(path.read_bytes())
    except FileNotFoundError:
        return None
    except TreeError:
        set_aside(path)
        return None


def run(plan: Plan, say: Callable[[str], None], *, quiet: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Do every cell that is not done.

    Args:
        say: takes a line for a person.
        quiet: the verbs keep their words to their logs.

    Returns:
        the records of the cells that are done, by key, and for those that failed why.

    Raises:
        Stopped: a signal came; the cell in hand saved itself.
    """
    done: dict[str, Any] = {}
    failed: dict[str, str] = {}
    waited = ""
    while todo := [cell for key, cell in plan.cells.items() if key not in done and key not in failed]:
        moved, busy = False, ""
        for cell in todo:
            lost = next((need for need in cell.needs if need in failed), None)
            if lost is not None:
                failed[cell.key], moved = f"{lost} failed", True
                continue
            if record := read_record(plan.out, cell.key):
                done[cell.key], moved = record, True
                continue
            if not all(need in done for need in cell.needs):
                continue
            try:
                with FolderLock(plan.out / "cells", f"{NAME}-{cell.key.replace('/', '.')}"):
                    if (record := read_record(plan.out, cell.key)) is None:
                        at = f"[{len(done) + len(failed) + 1}/{len(plan.cells)}] {cell.key}"
                        record = _do(cell, plan.out, say, at, quiet=quiet)
                done[cell.key] = record
            except Held as e:
                busy = str(e)
                continue
            except (InputError, WorkFailed) as e:
                failed[cell.key] = str(e)
                say(f"! {cell.key} failed: {e}")
            moved = True
        if not moved:
            if busy != waited:
                say(f"waiting for another process: {busy}")
                waited = busy
            time.sleep(PAUSE)
    return done, failed


def _do(cell: Cell, out: Path, say: Callable[[str], None], at: str, *, quiet: bool) -> dict[str, Any]:
    say(f"{at}: {cell.command(out)}")
    began = time.monotonic()
    figures = work(cell, out, quiet=quiet)
    seconds = round(time.monotonic() - began, 1)
    record = {
        "key": cell.key, "command": cell.command(out), "figures": figures, "seconds_of_the_last_process": seconds,
        "of": contents(cell, out), "machine": machine(),
    }  # fmt: skip
    write_atomic(record_of(out, cell.key), seal(record))
    say(f"{at}: done in {duration(seconds)}")
    return record
