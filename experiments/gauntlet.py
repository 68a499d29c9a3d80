"""What can happen to a run, tried again and again: does each try end in the right numbers, or in one clear line?

    python experiments/gauntlet.py [--kinds KIND,...] [--verbs VERB,...] [--tries N] [--seed 0] [--limit 60] [--out DIR]

Each try takes a copy of what a verb has written (finished, or stopped half way), does something to it, and lets a real
``hetcl`` go on with it in a process of its own. It *survived* when the results are those of an undisturbed run, to the
byte, or when it was refused with one line and no checkpoint was lost; otherwise it is *lost*: other numbers, a
traceback, a hang of more than ``--limit`` seconds. A function of :data:`KINDS` makes the tries of a kind. Prints each
try that is lost, and tries, survived and lost by kind and verb; exit status 1 when any is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from safetensors.numpy import load

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gauntlet_files import DAMAGES, checkpoints
from gauntlet_processes import KINDS as PROCESSES

HERE = "--threads 1 --workers 0 --device cpu".split()
VIEWS = "--size 32 --batch 8".split()
SMALL = (
    "--recipe demo --backbone timm:test_resnet --groups 2 --spatial.side 4 --spatial.width 8 --semantic.dim 8 "
    "--log_every 3 --checkpoint_every 2 --stage1.queue 13 --stage2.queue 13 --knn.every 2 --knn.bank 8 "
    "--knn.queries 4 --stage1.epochs 2 --stage2.epochs 2 --stage2.lr 0.05"
).split()
DETECTOR = (
    "--model faster-rcnn --batch 2 --base_batch 2 --steps 4 --milestones 3 --warmup 1 --lr 0.01 --min_size 48,64 "
    "--test_size 64 --max_size 96 --anchor_scale 0.25 --regions 16 --test_proposals 20 --detections 10 "
    "--evaluations 2 --log_every 1 --checkpoint_every 1 --precise_bn 0 --norm tuned"
).split()
SERVER = multiprocessing.get_context("forkserver")
ROOMS = (
    "hetcl.pretraining.run",
    "hetcl.analysis.contrast.run",
    "hetcl.analysis.probe.run",
    "hetcl.downstream.evaluate",
)


@dataclass(frozen=True)
class Verb:
    """How a verb begins and goes on, ``{out}`` being its folder; ``{pretrain}`` and ``{finetune}`` runs to read."""

    begin: list[str]
    go_on: list[str]
    results: tuple[str, ...]
    """Files that must be the same in the end; of JSON all but ``machine``, ``seconds`` and what names a folder."""
    half_way: tuple[str, bytes] | None = None
    """A file and what is in it half way through; None where there is no such moment."""
    reads: str = "{out}"
    """The folder that is damaged: its own, or one that it reads."""


def words(text: str, *more: Sequence[str]) -> list[str]:
    return [*text.split(), *(w for ws in more for w in ws)]


VERBS = {
    "pretrain": Verb(
        words("pretrain --data scenes:27 --out {out}", SMALL, VIEWS, HERE),
        words("pretrain --data scenes:27 --out {out} --resume", SMALL, VIEWS, HERE),
        ("backbone.safetensors", "metrics.csv"),
        ("metrics.csv", b"stage2,0,3,"),
    ),
    "finetune": Verb(
        words("finetune --init timm:test_resnet --data scenes:6@64 --out {out}", DETECTOR, HERE),
        words("finetune --init timm:test_resnet --data scenes:6@64 --out {out} --resume", DETECTOR, HERE),
        ("backbone.safetensors", "metrics.csv", "results.json"),
        ("metrics.csv", b"finetune,1,"),
    ),
    "contrast": Verb(
        words("contrast {pretrain} --data scenes:40 --dims 4 --examples 0 --out {out}", VIEWS, HERE),
        words("contrast {pretrain} --data scenes:40 --dims 4 --examples 0 --resume --out {out}", VIEWS, HERE),
        ("contrast.json",),
    ),
    "probe": Verb(
        words("probe {pretrain} --data scenes:60 --linear moco --epochs 3 --knn 3 --out {out}", VIEWS, HERE),
        words(
            "probe {pretrain} --data scenes:60 --linear moco --epochs 3 --knn 3 --resume --out {out}",
            VIEWS,
            HERE,
        ),
        ("probe.json", "metrics.csv"),
        ("metrics.csv", b"linear,1,"),
    ),
    "evaluate": Verb(
        words("evaluate {finetune} --data scenes:6@64 --out {out}", HERE),
        words("evaluate {finetune} --data scenes:6@64 --overwrite --out {out}", HERE),
        ("evaluation.json", "results.json"),
        reads="{finetune}",
    ),
    "export": Verb(
        words("export {pretrain} --format safetensors --out {out}/backbone.safetensors"),
        words("export {pretrain} --format safetensors --overwrite --out {out}/backbone.safetensors"),
        ("backbone.safetensors",),
        reads="{pretrain}",
    ),
}


@dataclass
class End:
    """How a command ended."""

    status: int | None
    """None: it did not end in time."""
    out: str
    complaints: list[str]
    """What it said on stderr."""

    @property
    def refused(self) -> bool:
        """Whether it ended with one line."""
        own = [line for line in self.complaints if line.startswith("hetcl: ")]
        return self.status in (1, 2) and len(own) == 1 and "debug shows where" not in own[0]


@dataclass
class Ground:
    """Where tries are made: runs of every verb that nothing disturbed, to be copied."""

    root: Path
    rng: random.Random
    limit: float
    count: int = 0
    made: dict[str, Path] = field(default_factory=dict)

    def start(self, argv: Sequence[str], log: Path) -> BaseProcess:
        """``hetcl ARGV`` in a process of its own; what it says goes to ``log.out`` and ``log.err``."""
        process = SERVER.Process(target=_child, args=([*argv], str(log), str(self.root)))
        process.start()
        return process

    def end(self, process: BaseProcess, log: Path) -> End:
        """Wait for a process; it is killed when it takes too long."""
        process.join(self.limit)
        hung = process.is_alive()
        if hung:
            process.kill()
            process.join()
        out, err = (log.with_suffix(s).read_text(errors="replace") for s in (".out", ".err"))
        return End(None if hung else process.exitcode, out, err.splitlines())

    def run(self, argv: Sequence[str]) -> End:
        """A command from beginning to end."""
        log = self.new("log")
        return self.end(self.start(argv, log), log)

    def new(self, name: str) -> Path:
        """A path that was not used before."""
        self.count += 1
        return self.root / f"{name}{self.count}"

    def argv(self, line: Sequence[str], out: Path, **runs: Path) -> list[str]:
        """A verb's words with folders in them."""
        wanted = {n for w in line for n in re.findall(r"\{(\w+)\}", w)}
        paths = {n: out if n == "out" else runs.get(n) or self.whole(n) for n in wanted}
        return [w.format(**{n: str(p) for n, p in paths.items()}) for w in line]

    def whole(self, verb: str) -> Path:
        """The folder of a verb that nothing disturbed; made when it is first asked for."""
        if verb not in self.made:
            out = self.made[verb] = self.root / verb
            out.mkdir() if verb == "export" else None
            end = self.run(self.argv(VERBS[verb].begin, out))
            if end.status != 0:
                raise SystemExit(f"{verb} does not run: {end.complaints[-3:]}")
        return self.made[verb]

    def half(self, verb: str) -> Path:
        """The folder of a verb that was asked to stop half way."""
        name = f"{verb}-half"
        if name not in self.made:
            out, log = self.root / name, self.new("log")
            process = self.start(self.argv(VERBS[verb].begin, out), log)
            self.wait_for(process, out, VERBS[verb])
            os.kill(process.pid or 0, signal.SIGTERM)
            if (end := self.end(process, log)).status != 143:
                raise SystemExit(f"{verb} does not stop half way: {end}")
            self.made[name] = out
        return self.made[name]

    def wait_for(self, process: BaseProcess, out: Path, verb: Verb) -> None:
        """Until a process has come half way."""
        file, sign = verb.half_way or (".lock.json", b"pid")
        while process.is_alive():
            if (out / file).is_file() and sign in (out / file).read_bytes():
                return
            time.sleep(0.002)

    def results(self, verb: str, out: Path) -> dict[str, str]:
        """A digest of each file of results; of JSON without what differs from run to run."""
        found = {}
        for name in VERBS[verb].results:
            data = (out / name).read_bytes() if (out / name).is_file() else b""
            if name.endswith(".json") and data:
                tree = json.loads(data)
                if isinstance(tree, dict):
                    tree = {
                        k: v
                        for k, v in tree.items()
                        if k not in ("machine", "seconds", "memory_mb", "run", "models")
                    }
                    tree.pop("model", None)
                data = json.dumps(tree, sort_keys=True).encode()
            if (
                verb == "export" and data
            ):  # its header names the commit that made the run, where that is known
                data = b"".join(v.tobytes() for _, v in sorted(load(data).items()))
            found[name] = hashlib.sha256(data).hexdigest()[:12]
        return found

    def judge(self, verb: str, end: End, out: Path, before: set[str], reads: Path) -> str | None:
        """Why a try is lost; None when it survived."""
        stated = "\n".join(end.complaints)
        if end.status is None:
            return f"hung for {self.limit:g} s"
        if "Traceback" in stated:
            return f"traceback: {end.complaints[-1]}"
        if end.status == 0:
            same = self.results(verb, out) == self.results(verb, self.whole(verb))
            notes = "takes its place" in stated + end.out and reads != out  # another checkpoint, said aloud
            return None if same or notes else "other numbers, in silence"
        if not end.refused:
            return f"status {end.status}: {stated[-300:]}"
        gone = before - checkpoints(reads)
        return f"{len(gone)} checkpoints lost" if gone else None


def _child(argv: list[str], log: str, root: str) -> None:
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log + suffix, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ["HETCL_CACHE"] = f"{root}/cache"
    sys.argv = ["hetcl", *argv]
    from hetcl.cli import main

    status = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# ---- damaged files ---------------------------------------------------------------------------------------------------


def damaged_files(ground: Ground, verbs: Sequence[str], tries: int) -> Iterator[tuple[str, str, str | None]]:
    """Each file of a folder damaged in each way, in random order; then the verb goes on with it, or reads it."""
    every = []
    for verb in verbs:
        name = VERBS[verb].reads.strip("{}")
        states = [ground.whole(verb if name == "out" else name)]
        states += [ground.half(verb)] if VERBS[verb].half_way else []
        for state in states:
            files = sorted(p.relative_to(state) for p in state.rglob("*") if p.is_file())
            every += [(verb, state, file, damage) for file in files for damage in DAMAGES]
    ground.rng.shuffle(every)
    for verb, state, file, damage in every[:tries]:
        copy, out = ground.new("damaged"), ground.new("out")
        shutil.copytree(state, copy, symlinks=True)
        damage(copy / file, ground.rng)
        before = checkpoints(copy)
        own = VERBS[verb].reads == "{out}"
        if own:
            argv = ground.argv(VERBS[verb].go_on, copy)
        else:
            out.mkdir()
            argv = ground.argv(VERBS[verb].begin, out, **{VERBS[verb].reads.strip("{}"): copy})
        why = ground.judge(verb, ground.run(argv), copy if own else out, before, copy)
        yield verb, f"{state.name}/{file} {damage.__name__}", why
        if why is None:
            shutil.rmtree(copy)
            shutil.rmtree(out, ignore_errors=True)


# ---- locks -----------------------------------------------------------------------------------------------------------


def locks(ground: Ground, verbs: Sequence[str], tries: int) -> Iterator[tuple[str, str, str | None]]:
    """A second process in a folder that is being written, then one after the first was killed."""
    for number in range(tries):
        verb = verbs[number % len(verbs)]
        out, log = ground.new("locked"), ground.new("log")
        out.mkdir() if verb == "export" else None
        first = ground.start(ground.argv(VERBS[verb].begin, out), log)
        if not _stopped(first, out):
            yield verb, "it ended before it could be stopped", None if first.exitcode == 0 else "it failed"
            continue
        again = ground.argv(VERBS[verb].go_on, out)
        second = ground.run(again)
        os.kill(first.pid or 0, signal.SIGCONT)
        named = second.refused and f"process {first.pid} " in second.complaints[-1]
        why = None if named else f"the second was let in: {second.status} {second.complaints[-1:]}"
        if number // len(verbs) % 2:  # the first ends, undisturbed
            end = ground.end(first, log)
            same = end.status == 0 and ground.results(verb, out) == ground.results(verb, ground.whole(verb))
            why = why or (None if same else f"the first was disturbed: {end.status} {end.complaints[-1:]}")
            yield verb, "a second process", why
        else:
            first.kill()
            first.join()
            yield (
                verb,
                "a second process, and one after a kill",
                why or ground.judge(verb, ground.run(again), out, checkpoints(out), out),
            )


def _stopped(process: BaseProcess, out: Path) -> bool:
    """Stop a process (SIGSTOP) once it holds a lock in ``out``."""
    while process.is_alive():
        if any(out.glob(".lock*.json")):
            os.kill(process.pid or 0, signal.SIGSTOP)
            return True
        time.sleep(0.001)
    return False


# ---- the whole -------------------------------------------------------------------------------------------------------

Kind = Callable[[Ground, Sequence[str], int], Iterator[tuple[str, str, str | None]]]
KINDS: dict[str, Kind] = {"damaged-files": damaged_files, "locks": locks, **PROCESSES}
"""Name -> function of (ground, verbs, how many tries) that yields (verb, what was done, why it is lost or None)."""


def gauntlet(
    root: Path, *, kinds: Sequence[str], verbs: Sequence[str], tries: int, seed: int, limit: float
) -> dict[tuple[str, str], Counter[str]]:
    """Make the tries; ``{(kind, verb): {"tries": n, "lost": m}}``."""
    SERVER.set_forkserver_preload([*ROOMS])
    root.mkdir(parents=True, exist_ok=True)
    ground = Ground(root, random.Random(seed), limit)
    table: dict[tuple[str, str], Counter[str]] = {}
    with contextlib.suppress(KeyboardInterrupt):  # what was tried until then counts
        for kind in kinds:
            for verb, what, why in KINDS[kind](ground, verbs, tries):
                row = table.setdefault((kind, verb), Counter())
                row["tries"] += 1
                row["lost"] += why is not None
                if why is not None:
                    print(f"LOST  {kind}: {verb}, {what}: {why}", flush=True)
            tried = sum(row["tries"] for (of, _), row in table.items() if of == kind)
            print(f"{kind}: {tried} tries", flush=True)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--verbs", default=",".join(VERBS))
    parser.add_argument("--tries", type=int, default=300, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60, help="seconds after which a try counts as hung")
    parser.add_argument("--out", type=Path, help="default: a temporary folder, removed at the end")
    args = parser.parse_args(argv)
    for given, known in ((args.kinds, KINDS), (args.verbs, VERBS)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(number, signal.default_int_handler)
    root, began = args.out or Path(tempfile.mkdtemp()), time.monotonic()
    kinds, verbs = args.kinds.split(","), args.verbs.split(",")
    table = gauntlet(root, kinds=kinds, verbs=verbs, tries=args.tries, seed=args.seed, limit=args.limit)
    print(f"{'kind':<16}{'verb':<12}{'tries':>6}{'survived':>10}{'lost':>6}")
    for (kind, verb), row in sorted(table.items()):
        print(f"{kind:<16}{verb:<12}{row['tries']:>6}{row['tries'] - row['lost']:>10}{row['lost']:>6}")
    total = sum(table.values(), Counter())
    print(
        f"{total['tries']} tries, {total['tries'] - total['lost']} survived, {total['lost']} lost, "
        f"in {time.monotonic() - began:.0f} s"
    )
    if args.out is None:
        shutil.rmtree(root)
    return 1 if total["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
