"""``hetcl reproduce``: the paper's tables and figures, run cell by cell, beside the paper's own numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hetcl.downstream.parts import open_part
from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.images.sources import open_source
from hetcl.paths import expand
from hetcl.printable import say
from hetcl.quantities import count, duration
from hetcl.reporting.page import report
from hetcl.reporting.reproduction import shown, spread, tally
from hetcl.reproduce import results, text
from hetcl.reproduce.cells import Plan
from hetcl.reproduce.cost import Cost, cost_of
from hetcl.reproduce.experiments import EXPERIMENTS, experiment
from hetcl.reproduce.runner import PAUSE, read_record, run
from hetcl.reproduce.scales import load_scale
from hetcl.reproduce.work import contents, settings_of
from hetcl.runs.files import seal, unseal, write_atomic
from hetcl.runs.folder import absolute, machine
from hetcl.runs.lock import NAME, FolderLock, Held
from hetcl.runs.output import held_in, making, write_report
from hetcl.settings.parse import near
from hetcl.training.devices import make_fabric
from hetcl.trees import TreeError
from hetcl.weights.sources import read_weights

PLAN = "plan.json"
ROOTS = ("images", "coco", "lvis", "voc", "cityscapes", "places")
SCHEMES = ("coco", "lvis", "voc", "cityscapes")


def reproduce(
    which: str | Sequence[str],
    *,
    out: str | Path,
    scale: str = "full",
    data: Mapping[str, str] | None = None,
    weights: Mapping[str, str] | None = None,
    seeds: int = 0,
    compute: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run tables and figures of the paper, and write what came out beside the paper's numbers.

    Cells that are done are not run again, so the same call goes on after a stop; several processes, also on several
    machines, may share ``out``.

    Args:
        which: ``table1`` to ``table6``, ``fig2``, ``fig4``; ``fused``, ``flip``, ``overhead`` (what the paper says in
            its text), ``frozen`` (ours); ``all``.
        out: the folder. ``reproduction.json``, ``results.md``, ``results.csv``, ``model-index.yml`` and ``report.html``
            are written there.
        scale: ``full``, ``mini`` or ``quick``.
        data: ``images`` -> DATA to pre-train on; ``coco``, ``lvis``, ``voc``, ``cityscapes`` and ``places`` -> DATASET.
            The small scales have built-in scenes where one is not given.
        weights: method -> MODEL that takes the place of its pre-training.
        seeds: how many; 0: as many as the scale has.
        compute: settings that say where and how: ``device``, ``devices``, ``threads``, ``workers``.
        dry_run: say what would be done and what it would cost, and do nothing.

    Returns:
        the content of ``reproduction.json``.

    Raises:
        InputError: unusable arguments; nothing has been written then.
        WorkFailed: some cells failed; the others are done and the results written.
        Stopped: a signal came; what is done is kept.
    """
    out = Path(expand(out)).absolute()
    asked = _names([which] if isinstance(which, str) else which)
    held = _held_plan(out)
    data = {name: absolute(_dataset(name, value)) for name, value in (data or {}).items()}
    identity = {"scale": scale, "data": data, "weights": dict(weights or {})}
    _refuse_other(out, held, identity)
    size = load_scale(scale)
    seeds = seeds or size.seeds
    roots = {**size.data, **held.get("data", {}), **data}
    plan = _plan(size, asked, out, roots, weights or {}, seeds, compute or {})
    _refuse_missing(plan)
    _refuse_changed(plan)
    _refuse_unusable(plan)
    cost = _introduce(plan, asked)
    if dry_run:
        for cell in plan.cells.values():
            say(cell.command(out))
        return {}
    with making(out, "folder"):
        (out / "cells").mkdir(parents=True, exist_ok=True)
    _note(out, {**identity, "experiments": asked, "seeds": seeds})
    began = time.monotonic()
    try:
        _, failed = run(plan, say, quiet=scale != "full")
    except Stopped as e:
        raise Stopped(
            e.signum, "stopped; what is done is kept: the same command goes on with the rest"
        ) from None
    with _alone(out):
        held = _held_plan(out)
        roots, kept = {**size.data, **held["data"]}, held["experiments"]
        whole = _plan(size, kept, out, roots, weights or {}, held["seeds"], compute or {})
        tree = _write(whole, kept, failed, cost)
    _say(tree, out, time.monotonic() - began)
    if failed:
        raise WorkFailed(*(f"{key}: {why}" for key, why in failed.items()))
    return tree


def _plan(
    size: Any, names: Sequence[str], out: Path, roots: Mapping[str, str], weights: Mapping[str, str], seeds: int,
    compute: Mapping[str, Any],
) -> Plan:  # fmt: skip
    if unknown := set(weights) - set(size.methods):
        raise InputError(
            f"--weights {sorted(unknown)[0]}=...: no such row; there are {', '.join(size.methods)}"
        )
    return Plan(
        size, [experiment(name) for name in names], out=out, data=roots, weights=weights, seeds=seeds,
        compute=compute,
    )  # fmt: skip


def _dataset(name: str, value: str) -> str:
    """``coco:ROOT`` where the user gave ``ROOT`` alone for ``coco``, and likewise."""
    return f"{name}:{value}" if name in SCHEMES and ":" not in value else value


def _names(which: Sequence[str]) -> list[str]:
    """The experiments that are asked for, each once. Raises ``InputError``."""
    for name in which:
        if name not in (*EXPERIMENTS, "all"):
            hint = near(name, EXPERIMENTS)
            raise InputError(f"no table or figure {name!r}{hint}; there are {', '.join(EXPERIMENTS)} and all")
    if not which:
        raise InputError(f"no table or figure is named; there are {', '.join(EXPERIMENTS)} and all")
    return [name for name in EXPERIMENTS if name in which or "all" in which]


def _held_plan(out: Path) -> dict[str, Any]:
    """What the folder was begun with; empty: it is free. Raises ``InputError``: it holds something else."""
    held = held_in(out)
    if not held:
        return {}
    try:
        tree = unseal((out / PLAN).read_bytes())
    except (OSError, TreeError):
        if held <= {"cells", f"{PLAN}.part"}:
            return {}
        raise InputError(
            f"--out {out} holds something that is no reproduction; name a new or empty folder"
        ) from None
    return tree


def _refuse_other(out: Path, held: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises ``InputError`` when the folder was begun at another scale, with other data or weights."""
    if not held:
        return
    if held["scale"] != asked["scale"]:
        raise InputError(
            f"--out {out} was begun at the scale {held['scale']}, not {asked['scale']}; name a new folder"
        )
    for name, value in asked["data"].items():
        if held["data"].get(name, value) != value:
            raise InputError(
                f"--out {out} was begun with --{name} {held['data'][name]}; name a new folder for {value}"
            )
    if held["weights"] != asked["weights"]:
        was = " ".join(f"--weights {k}={v}" for k, v in held["weights"].items()) or "no --weights"
        raise InputError(f"--out {out} was begun with {was}; give the same, or name a new folder")


def _refuse_missing(plan: Plan) -> None:
    """Raises ``InputError`` for data that is not named, or not there: a line each."""
    faults = [
        f"--{name} is missing, which {', '.join(sorted(of))} {'needs' if len(of) == 1 else 'need'}: give it, or leave "
        f"{'that' if len(of) == 1 else 'these'} out"
        for name, of in sorted(plan.wanted.items())
    ]
    used = {cell.data for cell in plan.cells.values() if cell.data}
    for name, value in plan.data.items():
        path = value.partition(":")[2] if value.partition(":")[0] in SCHEMES else value
        near_by = "://" not in value and not value.startswith("scenes:") and "{" not in value
        if value in used and near_by and not Path(expand(path)).exists():
            faults.append(f"--{name} {value}: {path} is not there")
    if faults:
        raise InputError(*faults)


def _refuse_unusable(plan: Plan) -> None:
    """Raises ``InputError`` for settings, a device, weights or data that no cell could be done with."""
    kinds: dict[tuple[str, str], str] = {}
    for cell in plan.cells.values():
        for s in settings_of(cell, cell.words).values():
            make_fabric(device=s.device, devices=1, precision="fp32", threads=s.threads)
            if cell.verb == "finetune":
                kinds[cell.data, "fcn" if s.model == "fcn" else "detector"] = s.model
    for model in plan.weights.values():
        read_weights(model)
    if any(cell.verb in ("pretrain", "contrast") for cell in plan.cells.values()):
        open_source(plan.data["images"])
    for (data, _), model in kinds.items():
        for split in ("train", "val"):
            open_part(data, split, model)


def _refuse_changed(plan: Plan) -> None:
    """Raises ``InputError`` when a cell is done, but with other settings than it has now."""
    for key, cell in plan.cells.items():
        then, now = (read_record(plan.out, key) or {}).get("of", {}), contents(cell, plan.out)
        changed = [k for k in now if k in then and then[k] != now[k]]
        if changed:
            name, first = changed[0].rpartition("settings.")[2].lstrip("."), changed[0]
            raise InputError(
                f"{key} of {plan.out} was done with {name} {then[first]}, and is {now[first]} in this version of "
                "hetcl; name a new folder"
            )


def _introduce(plan: Plan, asked: Sequence[str]) -> Cost | None:
    """Say what is to be done and what it costs."""
    verbs: dict[str, int] = {}
    todo = [cell for key, cell in plan.cells.items() if read_record(plan.out, key) is None]
    for cell in todo:
        verbs[cell.verb] = verbs.get(cell.verb, 0) + 1
    say(f"reproduce {', '.join(asked)}; {plan.scale.about}; {count(plan.seeds, 'seed')}")
    for change in plan.scale.changes:
        say(f"          not as in the paper: {change}")
    parts = ", ".join(f"{n} {verb}" for verb, n in verbs.items())
    say(
        f"cells     {len(plan.cells)}, of which {len(plan.cells) - len(todo)} are done; to do: {parts or 'none'}"
    )
    say(f"folder    {plan.out}")
    if not todo or plan.scale.name == "quick":
        return None
    cost = cost_of(todo, plan, say)
    say(f"cost      {cost}")
    return cost


def _write(plan: Plan, names: Sequence[str], failed: Mapping[str, str], cost: Cost | None) -> dict[str, Any]:
    """All results, from the records of all processes."""
    records = {key: record for key in plan.cells if (record := read_record(plan.out, key))}
    tree = {
        "schema": results.SCHEMA, "kind": results.KIND, "scale": plan.scale.name, "about": plan.scale.about,
        "seeds": plan.seeds, "changes": list(plan.scale.changes), "data": dict(plan.data),
        "weights": dict(plan.weights),
        "experiments": results.tables(plan, [experiment(name) for name in names], records),
        "cells": [{k: v for k, v in r.items() if k != "figures"} for r in records.values()],
        "failed": dict(failed), "cost": None if cost is None else str(cost), "machine": machine(),
    }  # fmt: skip
    write_report(plan.out / "reproduction.json", tree)
    write_atomic(plan.out / "results.md", text.markdown(tree).encode())
    write_atomic(plan.out / "results.csv", text.comma_separated(tree).encode())
    write_atomic(plan.out / "model-index.yml", text.model_index(tree).encode())
    report(plan.out, out=plan.out / "report.html")
    return tree


def _note(out: Path, asked: Mapping[str, Any]) -> None:
    """Add to the folder's plan what is asked for now."""
    with _alone(out):
        held = _held_plan(out)
        names = {*asked["experiments"], *held.get("experiments", ())}
        tree = {
            "kind": results.KIND, "scale": asked["scale"], "weights": asked["weights"],
            "data": {**held.get("data", {}), **asked["data"]},
            "experiments": [name for name in EXPERIMENTS if name in names],
            "seeds": max(asked["seeds"], held.get("seeds", 0)),
        }  # fmt: skip
        write_atomic(out / PLAN, seal(tree))


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Inside, no other process writes plan or results there."""
    while True:
        try:
            with FolderLock(out / "cells", f"{NAME}-results"):
                yield
            return
        except Held:
            time.sleep(PAUSE)


def _say(tree: Mapping[str, Any], out: Path, seconds: float) -> None:
    """The claims and what came of them."""
    for table in tree["experiments"]:
        say()
        say(f"{table['name']}: {table['title']} ({table['source']})")
        for claim in table["claims"]:
            ours = spread(claim["ours"], sign=True) or "-"
            paper = f", paper {shown(claim['paper'], sign=True)}" if claim["paper"] is not None else ""
            say(f"  {claim['verdict']:<12}  {claim['text']}")
            say(f"                {ours}{paper}; must be {claim['condition']}")
    say()
    say(tally(tree))
    say(f"done in {duration(seconds)}: {out / 'results.md'} and {out / 'report.html'}")
