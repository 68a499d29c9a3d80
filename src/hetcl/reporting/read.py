"""What lies in the folders that a page is made of: runs, tests and evaluations, told apart by what they hold.

Nothing here is taken on trust: a file may be damaged, unfinished or somebody else's. Free of torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hetcl.errors import InputError
from hetcl.paths import expand
from hetcl.printable import printable
from hetcl.quantities import count
from hetcl.runs.folder import RunFolder
from hetcl.runs.table import RECORD, Table
from hetcl.trees import TreeError, parse_json

REPORTS = {
    "contrast.json": ("contrast", "hetcl-contrast"),
    "probe.json": ("what", "hetcl-probe"),
    "where.json": ("where", "hetcl-where"),
    "evaluation.json": ("evaluation", "hetcl-evaluation"),
    "reproduction.json": ("reproduction", "hetcl-reproduction"),
}
"""File -> kind of result, and what the file says it is."""
LARGEST = 64 << 20
"""Bytes of a file of results; a contrast of ten models has one or two million."""
KINDS = {
    "pretrain": "pre-training",
    "contrast": "contrastive test",
    "what": "probe, what",
    "where": "probe, where",
    "finetune": "fine-tuning",
    "evaluation": "evaluation",
    "reproduction": "reproduction",
}
"""Kind of result -> what a person calls it, in the order of the page."""
WARNINGS = 5
"""Warnings of a run's log that are shown: the last ones."""


@dataclass(frozen=True)
class Result:
    """One run, or one file of results."""

    kind: str
    path: Path
    name: str
    """Short, and no other result's of the page."""
    tree: Mapping[str, Any]
    """``settings.yaml`` of a run; of a test what it found."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    """``metrics.csv`` of a run, cells that are no finite number left out."""
    timing: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Empty until the run has ended."""
    warnings: Sequence[str] = ()
    """What the run warned of."""
    damage: Sequence[str] = ()
    """What could not be read, a line each."""

    @property
    def machine(self) -> Mapping[str, Any]:
        """Versions, commit and device; empty until the work has ended."""
        held = (self.summary or self.tree).get("machine")
        return held if isinstance(held, Mapping) else {}


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def mapping(value: object) -> Mapping[str, Any]:
    """``value`` where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def read_results(paths: Sequence[str | Path]) -> list[Result]:
    """Everything that some folders hold, kind by kind.

    Raises:
        InputError: nothing was named, or a folder is no run or result, is damaged or holds nothing yet; a line each.
    """
    folders = list(dict.fromkeys(Path(expand(path)).absolute() for path in paths))
    if not folders:
        raise InputError(
            "no RUN is named; give folders that hetcl pretrain, contrast, probe, finetune ... wrote"
        )
    names, found, faults = _names(folders), list[Result](), list[str]()
    for folder, name in zip(folders, names, strict=True):
        try:
            found += _read_folder(folder, name)
        except InputError as e:
            faults.append(str(e))
    if faults:
        raise InputError(*faults)
    return sorted(found, key=lambda result: [*KINDS].index(result.kind))


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths that tell them apart."""
    for parts in range(1, max(len(f.parts) for f in folders) + 1):
        names = ["/".join(f.parts[-parts:]) for f in folders]
        if len(set(names)) == len(names):
            break
    return [printable(name)[-80:] for name in names]


def _read_folder(folder: Path, name: str) -> list[Result]:
    if not folder.is_dir():
        raise InputError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}; name a folder of a run or result"
        )
    run = RunFolder(folder)
    held = [file for file in REPORTS if (folder / file).is_file()]
    tree = run.read_settings() if run.settings.is_file() else {}
    kind = tree.get("kind")
    if held:
        return [_read_report(folder / file, name, mapping(tree.get("settings"))) for file in held]
    if kind == "hetcl-probe" or (folder / "features").is_dir():
        verb = "probe" if kind else "contrast"
        raise InputError(
            f"{folder} holds a hetcl {verb} that has not ended: end it with --resume, or leave it out"
        )
    if kind not in (None, "hetcl-finetune"):
        raise InputError(
            f"{run.settings} is of a kind that this hetcl does not know ({kind!r:.40}); upgrade hetcl"
        )
    if not tree:
        inner = sorted(p.parent.name for p in folder.glob("*/settings.yaml"))
        hint = f"it holds some: name {folder / inner[0]}" if inner else "name one that hetcl wrote"
        raise InputError(f"{folder} is no run and no result; {hint}")
    return [_read_run(run, name, tree, "finetune" if kind else "pretrain")]


def _read_run(run: RunFolder, name: str, tree: Mapping[str, Any], kind: str) -> Result:
    rows, damage = _table(run.metrics, gaps=kind == "finetune")
    timing, more = _table(run.timing)
    summary = run.read_summary()
    damage += more
    if run.summary.is_file() and not summary:
        damage.append(
            f"{run.summary} is damaged or of another hetcl: machine, commit and final figures are missing here"
        )
    return Result(
        kind, run.path, name, tree, mapping(tree["settings"]), rows, timing, summary, _warned(run.log), damage
    )  # fmt: skip


def _table(path: Path, *, gaps: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a table, and what is wrong with it; ``gaps``: that some values are no number is not."""
    try:
        data = path.read_bytes() if path.is_file() else b""
    except OSError as e:
        return [], [f"cannot read {path}: {e.strerror}"]
    if not data:
        return [], []
    header = data.split(b"\n", 1)[0].decode(errors="replace").strip().split(",")
    known = "step" in header
    rows = Table(path, header).read() if known else []
    lines = sum(bool(line.strip()) for line in RECORD.findall(data)) - known
    infinite = sum(isinstance(v, float) and not math.isfinite(v) for row in rows for v in row.values())
    kept = [{k: v for k, v in row.items() if isinstance(v, str) or math.isfinite(v)} for row in rows]
    kept = [row for row in kept if "step" in row]
    damage = []
    if not kept and lines > 0:
        damage.append(f"{path} is damaged: no line of it can be read")
    elif len(kept) < lines:
        damage.append(f"{path} is damaged: {lines - len(kept):,} of its {lines:,} lines are left out")
    if infinite and not gaps:
        are = "is" if infinite == 1 else "are"
        damage.append(f"{path} holds {count(infinite, 'value')} that {are} no finite number; left out")
    return kept, damage


def _warned(log: Path) -> list[str]:
    """The last warnings of a log, each once; of its last megabyte."""
    try:
        with open(log, "rb") as f:
            f.seek(max(0, log.stat().st_size - (1 << 20)))
            lines = f.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    found = [line.split(" ! ", 1)[1] for line in lines if " ! " in line[:24]]
    return [line[:600] for line in list(dict.fromkeys(found))[-WARNINGS:]]


def _read_report(path: Path, name: str, settings: Mapping[str, Any]) -> Result:
    kind, stated = REPORTS[path.name]
    try:
        if path.stat().st_size > LARGEST:
            raise TreeError(f"larger than {LARGEST >> 20} MB")
        tree = parse_json(path.read_bytes())
        json.dumps(tree, allow_nan=False)
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from None
    except ValueError as e:  # TreeError, or a number that is none
        raise InputError(f"{path} is damaged ({e}): run its command again, or leave it out") from None
    if not isinstance(tree, Mapping) or tree.get("kind") != stated:
        raise InputError(
            f"{path} does not say that it is of kind {stated}: put back hetcl's own, or leave it out"
        )
    return Result(kind, path.parent, name, tree, settings)
