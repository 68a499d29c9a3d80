"""``hetcl probe``: what frozen features know of the labels, by kNN and by a linear classifier.

The order: read model and data; features of central views, in blocks that outlive a stop; kNN; the linear probe; the
check that nothing in the encoder has moved; what was found, in words.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetcl.analysis import yardstick
from hetcl.analysis.extract import Extractor, features_of
from hetcl.analysis.probe.knn import knn_hits
from hetcl.analysis.probe.labelled import Bank, Part, fill, list_bad, open_parts
from hetcl.analysis.probe.linear import COLUMNS, LinearTask, logistic_regression
from hetcl.analysis.probe.report_text import sentences, table
from hetcl.analysis.statistics import paired_difference, proportion
from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.model.norm_statistics import is_unmeasured
from hetcl.ranks import first_process
from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder, Table, machine, write_atomic
from hetcl.runs.lock import is_lock
from hetcl.settings import resolve_probe, to_dict
from hetcl.signals import StopSignal
from hetcl.training.devices import device_name, make_fabric, not_finite_because, precision_on, workers_of
from hetcl.training.engine import TIMING_COLUMNS, Loop
from hetcl.training.memory import Need, bytes_of, outlook
from hetcl.training.progress import Reporter, count, duration
from hetcl.training.schedule import schedule
from hetcl.views.loader import ViewLoader
from hetcl.views.photometric import NOTHING, Photometric
from hetcl.views.policies import POLICIES
from hetcl.views.workers import room
from hetcl.weights.encoder import digest_of, load_encoder

SCHEMA = 1
"""Version of probe.json; it rises when a name changes its meaning or goes away."""
KIND = "hetcl-probe"


def probe(
    model: str,
    *,
    data: str,
    out: str | Path,
    resume: bool = False,
    allow_partial: str | Sequence[str] = (),
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> dict[str, Any]:
    """kNN and linear accuracy of a model's frozen features on labelled images; results in ``out/probe.json``.

    Args:
        model: a MODEL.
        data: labelled images: shards with ``KEY.cls``, a folder whose sub-folders are classes, or ``scenes:N``.
        out: the folder to write.
        resume: use the features that are in ``out`` already, and go on with a linear probe by SGD.
        allow_partial: globs of keys that may be missing, unknown or of another shape (missing weights stay random);
            anything else that does not fit is refused.
        overrides: settings by name, as a mapping or as command-line words.

    Returns:
        the content of ``probe.json`` (docs/probe.md describes it).

    Raises:
        InputError: unusable arguments, model or data; nothing has been written then.
        WorkFailed: the work began and could not go on.
        Stopped: a signal came; what was computed is kept.
    """
    folder = RunFolder(out)
    if first_process():
        _check_out(folder, resume)
    model, data = os.fspath(model), os.fspath(data)
    with folder.lock:
        return Probe(model, data, folder, resume, resolve_probe(overrides), allow_partial).go()


def _check_out(folder: RunFolder, resume: bool) -> None:
    """Raises ``InputError`` unless the folder is free, or a probe's and to be resumed."""
    path = folder.path
    if path.exists() and not path.is_dir():
        raise InputError(f"--out {path} is a file; name a folder")
    paths = path.iterdir() if path.is_dir() else ()
    held = [p for p in paths if p.name != "log.txt" and not is_lock(p.name)]
    ours = folder.settings.is_file() and folder.read_settings().get("kind") == KIND
    if held and not ours and [p.name for p in held] != ["settings.yaml.part"]:
        raise InputError(f"--out {path} holds something that is no probe; name a new or empty folder")
    if ours:
        folder.check_kinds()
    if ours and not resume:
        raise InputError(
            f"--out {path} holds a probe; add --resume to use its features again, or name a new folder"
        )


class Probe:
    """One probe of one model: reads, extracts, classifies, checks, says."""

    def __init__(
        self,
        model: str,
        data: str,
        folder: RunFolder,
        resume: bool,
        settings: Any,
        allow_partial: str | Sequence[str] = (),
    ) -> None:
        self.began = time.monotonic()
        self.settings = s = settings
        self.data, self.folder, self.resume = data, folder, resume
        if not s.knn and s.linear == "none":
            raise InputError("neither knn nor linear is to be done; set one of them")
        self.parts = open_parts(
            data, folder_classes=s.folder_classes, window=s.window, holdout=s.holdout,
            images=s.images, seed=s.seed, data_split=s.data_split, test_split=s.test_split,
        )  # fmt: skip
        assert self.parts.train.classes is not None
        self.classes = len(self.parts.train.classes)
        self.encoder = load_encoder(model, allow_partial=allow_partial)
        self.digest = self.encoder.digest
        self.feature = features_of(self.encoder, s.features)
        self.size = s.size or self.encoder.size or 224
        self.fabric = make_fabric(
            device=s.device, devices=s.devices, precision=s.precision, threads=s.threads
        )
        self.main = self.fabric.global_rank == 0
        self.reporter = Reporter(folder.log, quiet=not self.main)
        self.format = torch.channels_last if s.channels_last else torch.contiguous_format
        self.extractor = (
            Extractor(self.encoder, [self.feature], unit=False)
            .to(self.fabric.device, memory_format=self.format)  # type: ignore[call-overload]
            .eval()
        )
        self.dims = self.extractor.dims(self.feature)
        self.central = Photometric(POLICIES["none"])
        self.notes: list[str] = []

    def go(self) -> dict[str, Any]:
        """Everything, in order."""
        if self.main:
            self._open_folder()
        self.fabric.barrier()
        self._introduce()
        try:
            with StopSignal() as signal:
                train, test = self._features(signal)
                hits = self._knn(train, test, signal)
                linear, ranks = (
                    self._lbfgs(train, test, signal) if self.settings.linear == "lbfgs" else (None, None)
                )
            if self.settings.linear == "moco":
                linear, ranks = self._moco(train, test)
        except InputError as e:  # the work had begun
            raise WorkFailed(str(e)) from e
        finally:
            self.reporter.stop()
        self._check_unchanged()
        report: dict[str, Any] = {}
        if self.main:
            report = self._report(train, test, hits, linear, ranks)
            with self.reporter.reporting():
                self._say(report)
        self.fabric.barrier()
        return report

    def _open_folder(self) -> None:
        """Make the folder and save what was asked."""
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(
                f"cannot make the folder {self.folder.path}: {e.strerror}; name another with --out"
            ) from None
        self.folder.lock.hold()
        _check_out(self.folder, self.resume)
        self.folder.write_settings(
            {
                "kind": KIND,
                "model": self.encoder.model,
                "data": self.data,
                "hetcl": machine()["hetcl"],
                "settings": to_dict(self.settings),
            }
        )

    def _introduce(self) -> None:
        say, p, e = self.reporter.say, self.parts, self.encoder
        say(f"train     {p.train.description}")
        say(
            f"test      {p.test.description}"
            + (" (held out: there is no validation or test part with labels)" * p.held_out)
        )
        unsure = (
            ""
            if self.settings.size or e.size
            else " (its weights do not say at which size it was trained; see --size)"
        )
        shown = " + ".join(f"{part} {d}" for part, d in self.dims.items())
        say(f"model     {e.name}: {e.pyramid.arch} at {self.size} pixels, {shown}{unsure}")
        if not e.facts.ours:
            say(f"          its images with {e.facts}")
        ranks = self.fabric.world_size
        say(f"device    {device_name(self.fabric.device)}" + (f" x {ranks}" if ranks > 1 else ""))
        say(f"folder    {self.folder.path}")

    # ---- features ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def look(self, images: Tensor, color: Tensor, photometric: Photometric | None = None) -> Tensor:
        """uint8 ``[B, 3, H, W]`` -> features ``[B, D]``, fp32; levels as the backbone gives them."""
        x = (photometric or self.central)(images.to(self.fabric.device), color)
        with self.fabric.autocast():
            return self.extractor(x.contiguous(memory_format=self.format))[self.feature].float()

    def _features(self, signal: StopSignal) -> tuple[Bank, Bank]:
        """Features of central views of all images, from disk where they are there already."""
        s, fabric, train = self.settings, self.fabric, self.parts.train
        if unmeasured := is_unmeasured(self.encoder.pyramid):
            self.reporter.say("          no batch-norm statistics: measured on some of the training images")
            yardstick.measure(
                self.encoder, train, size=self.size, fabric=fabric, seed=s.seed, window=s.window,
                images=len(train), workers=workers_of(s.workers), stop=lambda: _stop_at(signal, "stopped"),
            )  # fmt: skip
            self.digest = self._digest()
        key = {
            "schema": SCHEMA,
            "weights": self.encoder.digest,
            "measured": unmeasured and train.hash,
            "arch": self.encoder.pyramid.arch,
            "features": self.feature,
            "size": self.size,
            "precision": precision_on(s.precision, fabric.device.type),
        }
        banks = [self._bank(part, key) for part in (self.parts.train, self.parts.test)]
        missing = sum(len(bank.rows_of(b)) for bank in banks for b in bank.todo())
        have = sum(len(bank.part) for bank in banks) - missing
        if have:
            self.reporter.say(f"features  of {count(have, 'image')} are here already")
        needed, free = 4 * missing * banks[0].dim, shutil.disk_usage(self.folder.path).free
        if needed > free:
            raise WorkFailed(
                f"the features of {count(missing, 'image')} need {needed / 1e9:.1f} GB and {self.folder.path} has "
                f"{free / 1e9:.1f} GB free; make room and go on with --resume, or set images to train on fewer"
            )
        if missing:
            self._foretell_memory()
        fill(
            banks,
            lambda batch: self.look(batch.images[0], batch.color[0]),
            size=self.size, batch=s.batch, workers=workers_of(s.workers), reporter=self.reporter, signal=signal,
            max_bad=s.max_bad, why=not_finite_because(fabric), rank=fabric.global_rank, ranks=fabric.world_size,
            pin=fabric.device.type == "cuda",
        )  # fmt: skip
        fabric.barrier()
        if self.main:
            list_bad(self.folder.bad_images, banks)
        self._check_enough(*banks)
        return banks[0], banks[1]

    def _foretell_memory(self) -> None:
        """Warn where a batch may not fit. Raises ``InputError``."""
        s, pixels = self.settings, 3 * self.size**2
        images = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8)
        one = bytes_of(lambda: self.look(images, torch.from_numpy(NOTHING)[None]))
        need = Need(s.batch * (one + pixels), room(workers_of(s.workers), s.batch * pixels))
        _, warned = outlook(need, self.fabric.device, "lower batch or workers")
        if warned:
            self.reporter.warn(warned)

    def _bank(self, part: Part, key: Mapping[str, Any]) -> Bank:
        return Bank(self.folder.path / "features", part, key, dim=sum(self.dims.values()))

    def _check_enough(self, train: Bank, test: Bank) -> None:
        """What is left when unusable images are gone. Raises ``WorkFailed``."""
        left = len(np.unique(train.part.labels[train.rows()]))
        if left < 2 or not len(test.rows()):
            raise WorkFailed(
                f"too few usable images: {len(train.rows())} to train on, of {left} of the {self.classes} classes, "
                f"and {len(test.rows())} to test on; {self.folder.bad_images} lists the others: mend them"
            )

    # ---- classifiers -----------------------------------------------------------------------------------------------

    def _knn(self, train: Bank, test: Bank, signal: StopSignal) -> dict[int, np.ndarray]:
        """For each k, whether each test image is right."""
        if not self.settings.knn:
            return {}

        def watched() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for block in train.blocks():
                _stop_at(signal, "stopped while looking for neighbours")
                yield block

        hits = knn_hits(watched(), test.blocks(), ks=self.settings.knn, device=self.fabric.device)
        n = len(train.rows())
        self.notes += [
            f"kNN with k = {k}: there are only {n} training images, and all of them vote"
            for k in self.settings.knn
            if k > n
        ]
        return {k: v.numpy() for k, v in hits.items()}

    def _lbfgs(self, train: Bank, test: Bank, signal: StopSignal) -> tuple[dict[str, Any], np.ndarray]:
        """Logistic regression."""
        found = logistic_regression(
            train.blocks(), test.blocks(), classes=self.classes, seed=self.settings.seed,
            device=self.fabric.device, say=self.reporter.say,
            interrupt=lambda: _stop_at(signal, "stopped while fitting the linear probe"),
        )  # fmt: skip
        if not found.tried:
            self.notes.append(
                f"linear: too few training images to choose a penalty; {found.penalty:g} was taken"
            )
        return {
            "kind": "lbfgs",
            "penalty": found.penalty,
            "tried": {f"{k:g}": v for k, v in found.tried.items()},
        }, found.ranks

    def _moco(self, train: Bank, test: Bank) -> tuple[dict[str, Any], np.ndarray]:
        """SGD on augmented views, by the training loop; checkpoints in the folder."""
        s, fabric, folder = self.settings, self.fabric, self.folder
        part, policy = train.part.only(train.rows()), POLICIES["supervised"]
        batch = min(s.batch, len(part) // fabric.world_size * fabric.world_size)
        if batch < s.batch:
            self.notes.append(f"linear: batch {s.batch} -> {batch}, since there are only {len(part)} images")
        lr = s.lr * batch / 256
        loader = ViewLoader(
            part, policy=policy, size=self.size, batch=batch, seed=s.seed, stage="linear", views=1,
            rank=fabric.global_rank, ranks=fabric.world_size, workers=workers_of(s.workers), window=s.window,
            pin=fabric.device.type == "cuda",
        )  # fmt: skip
        photometric = Photometric(policy)
        task = LinearTask(
            lambda images, color: self.look(images, color, photometric),
            dim=train.dim, classes=self.classes, loader=loader, test=test.blocks(), epochs=s.epochs, batch=batch,
            seed=s.seed, lr=lr, device=fabric.device,
        )  # fmt: skip
        asked = json.loads(train.key) | {
            "labels": part.fingerprint, "batch": batch, "epochs": s.epochs, "lr": lr, "seed": s.seed,
            "window": s.window or part.prefers_window,
        }  # fmt: skip
        found = self._resumed(asked)
        state = found.state if found else None
        metrics = Table(folder.metrics, COLUMNS)
        if self.main:
            folder.checkpoints.mkdir(exist_ok=True)
            for line in checkpoint.settle(found, metrics, Table(folder.timing, TIMING_COLUMNS)):
                self.reporter.warn(line)
        fabric.barrier()
        loop = Loop(
            task, fabric=fabric, folder=folder, metrics=metrics, reporter=self.reporter, checkpoint_every=1000,
            extra={"probe": json.dumps(asked, sort_keys=True)},
            learning_rate=schedule(
                "step", lr=lr, epochs=s.epochs, steps_per_epoch=task.steps_per_epoch,
                milestones=[-(-tenths * s.epochs // 10) for tenths in (6, 8)],
            ),
        )  # fmt: skip
        try:
            loop.fit(state)
        except WorkFailed as e:
            if "not finite" not in str(e):
                raise
            raise WorkFailed(
                f"the linear probe diverged at lr {lr:g} ({s.lr:g} scaled to the batch); set a lower lr"
            ) from e
        finally:
            task.close()
        return {"kind": "moco", "epochs": s.epochs, "batch": batch, "lr": lr}, task.ranks()

    def _resumed(self, asked: Mapping[str, Any]) -> checkpoint.Found | None:
        """What to go on from. Raises ``WorkFailed`` when it is of something else."""
        found = checkpoint.resume(self.folder, [LinearTask.name])
        if not found:
            return None
        try:
            then = dict(json.loads(found.state.get("probe", "{}")))
        except (TypeError, ValueError):
            then = {}
        differ = [f"{k} was {then.get(k)}, now {v}" for k, v in asked.items() if then.get(k) != v]
        if differ:
            raise WorkFailed(
                f"{found.path} is of another linear probe ({', '.join(differ[:3])}); name a new --out, or set these "
                "back"
            )
        self.reporter.say(
            f"going on with the linear probe at epoch {found.state['epoch']}, step {found.state['step']}"
        )
        return found

    def _digest(self) -> str:
        """Of the encoder's weights and statistics as they are now."""
        e = self.encoder
        return digest_of((e.pyramid if e.embedding is None else e.embedding).state_dict(), e.facts)

    def _check_unchanged(self) -> None:
        """Raises ``WorkFailed`` when a weight or a statistic of the encoder has moved."""
        if (now := self._digest()) != self.digest:
            raise WorkFailed(
                f"the weights of {self.encoder.model} changed while they were probed ({self.digest}, now {now}), so "
                "the figures would mean nothing: this is a fault of hetcl, please report it"
            )

    # ---- what was found ------------------------------------------------------------------------------------------

    def _report(
        self,
        train: Bank,
        test: Bank,
        hits: Mapping[int, np.ndarray],
        linear: dict[str, Any] | None,
        ranks: np.ndarray | None,
    ) -> dict[str, Any]:
        """The content of probe.json."""
        e, p = self.encoder, self.parts
        n = len(test.rows())
        truth = test.part.labels[test.rows()]
        often = np.bincount(train.part.labels[train.rows()], minlength=self.classes)
        report: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": KIND,
            "model": {
                "name": e.name,
                "model": e.model,
                "arch": e.pyramid.arch,
                "features": self.feature,
                "size": self.size,
                "dims": self.dims,
                "weights": e.digest,
            },
            "data": {
                "data": self.data,
                "fingerprint": p.train.source.fingerprint,
                "train": p.train.description,
                "test": p.test.description,
                "held_out": p.held_out,
                "train_images": len(train.rows()),
                "test_images": n,
                "classes": self.classes,
                "chance": 1 / self.classes,
                "commonest": float((truth == often.argmax()).mean()),
                "missing": {"train": p.untrained, "test": p.untested},
                "alone": int((often == 1).sum()),
                "left_out": len(train.bad()) + len(test.bad()),
                "unlabelled": p.unlabelled,
            },
            "knn": {str(k): {"top1": _share(v)} for k, v in sorted(hits.items())},
            "linear": None,
            "difference": None,
            "backbone_unchanged": True,
        }
        if linear is not None and ranks is not None:
            report["linear"] = linear | {"top1": _share(ranks == 1), "top5": _share(ranks <= 5)}
            if hits:
                best = max(hits, key=lambda k: (int(hits[k].sum()), -k))
                a, b = ranks == 1, hits[best]
                gap = paired_difference(int((a & ~b).sum()), int((b & ~a).sum()), n)
                report["difference"] = {"k": best, "top1": asdict(gap)}
        report["said"] = [*self.notes, *sentences(report)]
        report["machine"] = machine() | {
            "device": device_name(self.fabric.device),
            "ranks": self.fabric.world_size,
        }
        report["seconds"] = round(time.monotonic() - self.began, 1)
        write_atomic(
            self.folder.path / "probe.json", (json.dumps(report, indent=1, allow_nan=False) + "\n").encode()
        )
        return report

    def _say(self, report: Mapping[str, Any]) -> None:
        """The table and the sentences."""
        self.reporter.say("")
        self.reporter.show(table(report))
        for line in report["said"]:
            self.reporter.say(line)
        self.reporter.say(f"done in {duration(report['seconds'])}: {self.folder.path / 'probe.json'}")


def _stop_at(signal: StopSignal, what: str) -> None:
    if signal.number:
        raise Stopped(signal.number, f"{what}; the features are kept: go on with --resume")


def _share(right: np.ndarray) -> dict[str, float]:
    return asdict(proportion(int(right.sum()), len(right)))
