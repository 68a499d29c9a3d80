"""Fresh, resume, or refuse and why: what becomes of ``--out``.

For ``pretrain`` and ``finetune`` all of it is decided here. ``contrast``, ``probe``, ``evaluate`` and ``demo`` say
which names are their own files and leave the answer to :func:`check_own`; whether features can be used again is said
by ``analysis/store.py``, and ``probe`` compares the settings of a linear layer by SGD itself
(``analysis/probe/run.py``). In the order in which a verb that trains asks:

1. :func:`check_run`, :func:`check_own`: is what the folder holds this verb's, and was it allowed to go on with it?
2. :func:`is_known`, :func:`saved_by`, :func:`refuse_other`, :func:`refuse_changes`, :func:`refuse_other_data`: is the
   work that is asked for the one that the folder began with? (The settings themselves are read in the verb's plan.)
3. :func:`begin`: the folder is made and locked, and looked at again.
4. :func:`checkpoint_of`: the newest sound checkpoint; none: the work begins, unless something would be lost.
5. :func:`settle`: tables as they were at that checkpoint.

"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch

from hetcl import __version__
from hetcl.errors import InputError
from hetcl.runs.checkpoint import Damaged, load
from hetcl.runs.files import disk_problem
from hetcl.runs.folder import RunFolder, absolute
from hetcl.runs.output import claim, held_in
from hetcl.runs.table import Table

# ---- what the folder holds -------------------------------------------------------------------------------------------


def check_run(run: RunFolder, *, resume: bool) -> None:
    """Raises ``InputError`` when the folder holds a run and ``resume`` is off, or is not a run at all."""
    held = held_in(run.path, "a folder for the run") - {"log.txt"}
    if held and run.settings.is_file() and not resume:
        raise InputError(f"--out {run.path} holds a run; add --resume to go on with it, or name a new folder")
    # a run may have been killed before its settings were written
    unborn = held <= {"checkpoints", "settings.yaml.part"} and not any(run.checkpoints.glob("*.ckpt"))
    if held and not run.settings.is_file() and not unborn:
        raise InputError(f"--out {run.path} is not empty and holds no run; name a new or empty folder")
    run.check_kinds()


def check_own(
    out: Path, what: str, *, foreign: bool, again: bool, add: str = "--resume to use its features again"
) -> None:
    """Raises ``InputError`` unless a folder without stages is free, or the verb's own and given back to it.

    Args:
        what: the verb's results with their article: ``a probe``.
        foreign: whether the folder holds something else.
        again: whether it holds such results, and the user did not say what becomes of them.
        add: what the user may say then.
    """
    if foreign:
        noun = what.partition(" ")[2]
        raise InputError(f"--out {out} holds something that is no {noun}; name a new or empty folder")
    if again:
        raise InputError(f"--out {out} holds {what}; add {add}, or name a new folder")


def begin(run: RunFolder, *, resume: bool, known: bool) -> None:
    """Make and lock the folder, and look again whether it may be written.

    Args:
        known: what is to be done was read from the folder.

    Raises:
        InputError: the folder cannot be made, as :func:`check_run`, or another process was here since the folder was
            first looked at.
    """

    def check() -> None:
        check_run(run, resume=resume)
        if run.settings.is_file() and not known:
            raise InputError(
                f"a run was begun in {run.path} meanwhile; give the command again to go on with it"
            )

    claim(run.lock, check, lambda: run.checkpoints.mkdir(exist_ok=True), "run folder")


# ---- whether it is the same work -------------------------------------------------------------------------------------


class Request(NamedTuple):
    """What the user asked for in words; None, or empty: nothing."""

    data: str | None
    recipe: str | None
    init: str | None
    allow_partial: str | Sequence[str]
    overrides: Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class RunPlan:
    """What a run was asked to do, settled."""

    FIELDS: ClassVar[Mapping[str, Any]]
    """What settings.yaml holds, in this order: name to type."""
    data: str
    recipe: str | None
    init: str | None
    settings: Any
    fingerprint: str | None = None
    """Of the data that the run began with; None for a new run."""
    allow_partial: tuple[str, ...] = ()
    """Globs of the keys of ``init`` that need not fit."""

    @classmethod
    def of(cls, saved: Mapping[str, Any], settings: Any) -> Self:
        """The plan that settings.yaml holds, with other settings."""
        held = {f.name: saved[f.name] for f in fields(cls)}
        return cls(**held | {"settings": settings, "allow_partial": tuple(map(str, held["allow_partial"]))})

    @property
    def known(self) -> bool:
        """Whether the folder of a run held it."""
        return self.fingerprint is not None

    def tree(self, **more: Any) -> dict[str, Any]:
        """The content of settings.yaml; ``more`` is what only the run knows."""
        own = {"recipe": self.recipe, "init": self.init and absolute(self.init), "hetcl": __version__}
        held: dict[str, Any] = {**own, "allow_partial": list(self.allow_partial), **more}
        return {name: held[name] for name in self.FIELDS}


def is_known(run: RunFolder, *, resume: bool) -> bool:
    """Whether the work to do is read from the folder."""
    return resume and run.settings.is_file()


def is_begun(run: RunFolder, *, resume: bool) -> bool:
    """Whether there is a checkpoint: it holds what the run began with, whose file may be gone by now."""
    return resume and any(run.checkpoints.glob("*.ckpt"))


def saved_by(run: RunFolder, kind: str | None) -> dict[str, Any]:
    """What a run of that kind has saved in settings.yaml. Raises ``InputError`` when it is another command's."""
    saved = run.read_settings(newer=False)
    if saved.get("kind") != kind:
        other = f" ({saved['kind']})" if "kind" in saved else ""
        raise InputError(f"--out {run.path} holds a run of another command{other}; name a new folder")
    return saved


def refuse_other(
    run: RunFolder, saved: Mapping[str, Any], given: Mapping[str, str | None], allow_partial: Sequence[str]
) -> None:
    """Raises ``InputError`` when arguments are given and differ from those that the run began with.

    Args:
        given: names of arguments that name files, with what was given now; None: nothing.
        allow_partial: globs; none: nothing was given.
    """
    began = f"the run in {run.path} began with"
    for name, value in given.items():
        if value is not None and saved[name] not in (value, absolute(value)):
            raise InputError(f"--{name} {value}: {began} {saved[name] or 'random weights'}; leave it out")
    then = [str(pattern) for pattern in saved["allow_partial"]]
    if allow_partial and list(allow_partial) != then:
        raise InputError(f"--allow-partial: {began} {', '.join(then) or 'none'}; leave it out")


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, in words; only of the names in ``now``."""
    return [f"{k} was {then.get(k)}, now {v}" for k, v in now.items() if then.get(k) != v]


def refuse_changes(
    run: RunFolder, then: Mapping[str, Any], now: Mapping[str, Any], *, but: Collection[str]
) -> None:
    """Raises ``InputError`` when the settings with which a run is resumed differ from those that it began with.

    Args:
        then, now: by dotted name.
        but: names of settings that may differ.
    """
    differ = changes(then, {k: v for k, v in now.items() if k not in but})
    if differ:
        words = ", ".join(differ[:5]) + (f", and {len(differ) - 5} more" if len(differ) > 5 else "")
        raise InputError(
            f"--resume with other settings than {run.path} began with: {words}. Leave them as they were (or leave "
            "--recipe out), or start a new folder"
        )


def refuse_other_data(run: RunFolder, data: str, saved: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Raises ``InputError`` when the data has other fingerprints, by name, than those that were saved, if any were."""
    if any(saved.get(name) not in (None, value) for name, value in now.items()):
        raise InputError(
            f"{data} does not hold what the run in {run.path} began with (other images or annotations, another order "
            "or changed files); give the same data, or start a new folder"
        )


# ---- from where ------------------------------------------------------------------------------------------------------


class LastCheckpoint(NamedTuple):
    """What a run can go on from."""

    path: Path
    state: dict[str, Any]
    notes: str | None
    """What a person should know: that it is not the newest."""
    damaged: tuple[Path, ...]
    """Newer ones that cannot be read."""

    def set_damaged_aside(self) -> None:
        """Move newer ones that cannot be read out of the way, or the next save would keep one for the spare."""
        for path in self.damaged:
            try:
                os.replace(path, path.with_name(f"{path.name}.damaged"))
            except OSError as e:
                raise disk_problem(path, e) from None


def latest(folder: Path, others: Sequence[str] = ()) -> LastCheckpoint | None:
    """The newest sound one of ``last.ckpt``, ``previous.ckpt`` and ``others`` in ``folder``; None when there is none.

    Raises:
        InputError: there are some, and none can be read; or the newest is of a newer hetcl.
    """
    passed: list[str] = []
    damaged: dict[Path, str] = {}
    for name in ("last.ckpt", "previous.ckpt", *others):
        path = folder / name
        try:
            state = load(path)
        except Damaged as e:
            if os.path.lexists(path):
                damaged[path] = str(e)
            passed.append(f"{name} {'cannot be read' if path in damaged else 'is gone'}")
            continue
        why = "".join(f" ({text.rpartition(': it is ')[2]})" for text in damaged.values())
        notes = f"{', '.join(passed)}; {path} takes its place{why}" if passed else None
        return LastCheckpoint(path, state, notes, tuple(damaged))
    if damaged:
        raise InputError(
            f"{next(iter(damaged.values()))}, and there is no other to go on from; put back a sound one, or start a "
            "new folder"
        )
    return None


def checkpoint_of(
    run: RunFolder,
    stages: Sequence[str],
    others: Sequence[str] = (),
    *,
    kind: str | None = None,
    arch: str | None = None,
) -> LastCheckpoint | None:
    """What training goes on from, or None when it has to begin at its beginning.

    Args:
        stages: names of the stages that the run has.
        others: further checkpoints that hold a whole state, the newest first.
        kind: of the run, as in its settings.yaml.
        arch: of its backbone, where the checkpoint says it.

    Raises:
        InputError: the checkpoints cannot be read, are none of this training, or are gone though the run got further.
    """
    found = latest(run.checkpoints, others)
    if found is None:
        _check_nothing_lost(run)
        return None
    s = found.state
    numbers = [s.get(name) for name in ("epoch", "step", "metrics_bytes")]
    whole = all(isinstance(n, int) and n >= 0 for n in numbers) and isinstance(s.get("task"), dict)
    other = "" if whole and s.get("stage") in stages and s.get("kind") == kind else "another run"
    if not other and arch is not None and s.get("arch") != arch:
        other = f"the backbone {s.get('arch')}, this run's is {arch}"
    if other:
        raise InputError(
            f"{found.path} is of {other}; put back the run's own checkpoint or start a new folder"
        )
    return found


def _check_nothing_lost(run: RunFolder) -> None:
    """For a run without any checkpoint: raises ``InputError`` unless all that is here is soon made again."""
    done = next((p for p in (run.backbone, run.summary) if p.exists()), None)
    if done is not None:
        raise InputError(
            f"{run.path} holds a run that has ended ({done.name}) and has no checkpoint to go on from; put its "
            "checkpoints back, or name a new folder"
        )
    rows = _progress(run.metrics)
    first = next((i for i, (_, epoch, _) in enumerate(rows) if epoch), len(rows))
    if len(rows) > first + 1:  # a checkpoint follows the row of an epoch's end
        stage, _, step = rows[-1]
        raise InputError(
            f"the run in {run.path} got to step {step} of {stage}, and its checkpoints are gone; put them back, "
            f"name a new folder, or remove {run.metrics} to begin again"
        )


def _progress(metrics: Path) -> list[tuple[str, int, int]]:
    """Stage, epoch and step of the rows of metrics.csv, whatever else has become of it."""
    rows = []
    with contextlib.suppress(OSError):
        for line in metrics.read_bytes().splitlines() if metrics.is_file() else ():
            with contextlib.suppress(ValueError):
                stage, epoch, step, *_ = line.split(b",")
                rows.append((stage.decode(), int(epoch), int(step)))
    return rows


def settle(found: LastCheckpoint | None, metrics: Table, timing: Table) -> list[str]:
    """Have the tables be as they were when a checkpoint was saved, and damaged checkpoints out of the way.

    Args:
        found: what training goes on from; None: it begins.

    Returns:
        what a person should know.

    Raises:
        WorkFailed: the disk refused.
    """
    if found is None:
        begun = "no checkpoint was saved yet: the run begins again" if metrics.read() else None
        notes = [begun, metrics.cut(0), timing.cut(0)]
    else:
        held = found.state.get("metrics")
        plain = isinstance(held, torch.Tensor) and held.dtype == torch.uint8 and held.is_contiguous()
        saved = held.numpy().tobytes() if plain else None  # type: ignore[union-attr]
        found.set_damaged_aside()
        notes = [found.notes, metrics.cut(found.state["metrics_bytes"], saved), timing.cut(None)]
    return [line for line in notes if line]
