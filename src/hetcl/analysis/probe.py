"""``hetcl probe``: what frozen features know of the labels, by kNN and by a linear layer.

The order: read the model and the data; features of central views of all pictures; kNN; the linear probe; and a check
that no weight or statistic of the backbone has moved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hetcl.analysis.extract import Extractor, features_of
from hetcl.analysis.knn import knn_accuracies
from hetcl.analysis.labelled import LabelledFeatures, open_parts
from hetcl.analysis.linear import COLUMNS, LinearTask, accuracy, choose_logistic
from hetcl.analysis.statistics import Estimate, proportion
from hetcl.errors import InputError, Stopped, WorkFailed
from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder, Table, machine, write_atomic
from hetcl.settings import resolve_probe, to_dict
from hetcl.training.devices import device_name, make_fabric, precision_on, workers_of
from hetcl.training.engine import TIMING_COLUMNS, Loop
from hetcl.training.progress import Reporter, count, duration
from hetcl.training.schedule import schedule
from hetcl.training.signals import StopSignal
from hetcl.types import Source, ViewBatch
from hetcl.views.loader import ViewLoader, ordered
from hetcl.views.photometric import Photometric
from hetcl.views.policies import POLICIES
from hetcl.weights.encoder import digest_of, load_encoder

SCHEMA = 1
"""Version of probe.json."""
OURS = (
    "probe.json",
    "features",
    "log.txt",
    "settings.yaml",
    "metrics.csv",
    "timing.csv",
    "checkpoints",
    "tensorboard",
)


def probe(
    model: str,
    *,
    data: str,
    out: str | Path,
    resume: bool = False,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> dict[str, Any]:
    """kNN and linear accuracy of frozen features on labelled pictures; results in ``out/probe.json``.

    Args:
        model: a MODEL.
        data: labelled pictures: shards with ``KEY.cls``, a folder whose sub-folders are classes, or ``scenes:N``.
        out: the folder to write.
        resume: use what is in ``out`` already.
        overrides: settings by name, as a mapping or as command-line words.

    Returns:
        the content of ``probe.json`` (docs/probe.md describes it).

    Raises:
        InputError: unusable arguments, model or data; nothing has been written then.
        WorkFailed: the work began and could not go on.
        Stopped: a signal came; what was computed is kept.
    """
    return Probe(model, data, Path(out), resume, resolve_probe(overrides)).go()


class Probe:
    """One probe of one model."""

    def __init__(self, model: str, data: str, out: Path, resume: bool, settings: Any) -> None:
        self.began = time.monotonic()
        self.settings = s = settings
        self.data, self.out, self.resume = data, out, resume
        self._check_out()
        self.train, self.test = open_parts(
            data,
            folder_classes=s.folder_classes,
            window=s.window,
            holdout=s.holdout,
            pictures=s.pictures,
            seed=s.seed,
        )
        assert self.train.classes is not None
        self.classes = len(self.train.classes)
        self.encoder = load_encoder(model)
        self.feature = features_of(self.encoder, s.features)
        self.size = s.size or self.encoder.size or 224
        self.fabric = make_fabric(
            device=s.device, devices=s.devices, precision=s.precision, threads=s.threads
        )
        if self.fabric.world_size > 1:
            raise InputError("a probe runs on one device; set devices to 1, without torchrun")
        if s.linear == "moco" and len(self.train) < s.batch:
            raise InputError(
                f"{count(len(self.train), 'picture')} to train on are fewer than a batch of {s.batch}; lower batch"
            )
        self.extractor = Extractor(self.encoder, [self.feature], unit=False).to(self.fabric.device).eval()
        self.reporter = Reporter(out / "log.txt")
        self.bad = 0

    def _check_out(self) -> None:
        out = self.out
        if out.exists() and not out.is_dir():
            raise InputError(f"--out {out} is a file; name a folder")
        held = {p.name.removesuffix(".part") for p in out.iterdir()} if out.is_dir() else set()
        if held - set(OURS) or (held and not held & {"probe.json", "features", "log.txt"}):
            raise InputError(f"--out {out} holds something that is no probe; name a new or empty folder")
        if held - {"log.txt"} and not self.resume:
            raise InputError(
                f"--out {out} holds a probe; add --resume to use what it has computed, or name a new folder"
            )

    def go(self) -> dict[str, Any]:
        """Everything, in order."""
        say = self.reporter.say
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(
                f"cannot make the folder {self.out}: {e.strerror}; name another with --out"
            ) from None
        before = digest_of(self.extractor.encoder.pyramid.state_dict())
        say(f"train on  {self.train.description}")
        say(f"test on   {self.test.description}")
        say(
            f"model     {self.encoder.name}: {self.encoder.pyramid.arch} at {self.size} pixels, {self.feature}"
        )
        say(f"device    {device_name(self.fabric.device)}")
        try:
            with StopSignal() as signal:
                train, test = (
                    self._features(p, n, signal) for p, n in ((self.train, "train"), (self.test, "test"))
                )
            knn = self._knn(train, test)
            linear = self._linear(train, test)
        finally:
            self.reporter.stop()
        if digest_of(self.extractor.encoder.pyramid.state_dict()) != before:
            raise WorkFailed(
                "the backbone has changed while it was probed; this is a fault of hetcl, please report it"
            )
        report = self._report(train, test, knn, linear)
        write_atomic(self.out / "probe.json", (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
        say("")
        for line in report["said"]:
            say(line)
        say(f"done in {duration(report['seconds'])}: {self.out / 'probe.json'}")
        return report

    # ---- features ------------------------------------------------------------------------------------------------

    def _features(self, part: Source, name: str, signal: StopSignal) -> LabelledFeatures:
        """Features of central views, from disk where they are there."""
        s = self.settings
        key = {
            "schema": SCHEMA,
            "weights": self.encoder.digest,
            "arch": self.encoder.pyramid.arch,
            "features": self.feature,
            "size": self.size,
            "data": part.fingerprint,
            "classes": self.train.classes,
            "precision": precision_on(s.precision, self.fabric.device.type),
        }
        kept = LabelledFeatures(self.out / "features", name, key)
        if kept.finished:
            self.reporter.say(f"features  of {name} are here already")
        else:
            began, done, total = time.monotonic(), 0, len(part)
            self.reporter.start(f"features of {name}", 0, total)

            def advance(rows: int) -> None:
                nonlocal done
                done += rows
                self.reporter.advance(done)
                pace = done / (time.monotonic() - began)
                left = duration((total - done) / pace)
                self.reporter.row(
                    f"features of {name}  {done:,} of {total:,}  {pace:.0f} a second, {left} left"
                )
                if signal.number:
                    raise Stopped(
                        signal.number, f"stopped after {done:,} of {total:,} pictures; go on with --resume"
                    )

            kept.write(self._batches(part), advance)
            self.reporter.stop()
        labels = kept.read()[1]
        if len(np.unique(labels)) < 2:
            raise WorkFailed(
                f"of {count(len(part), 'picture')} to {name} {len(labels)} can be used with a label, of "
                f"{count(len(np.unique(labels)), 'class')}: nothing to tell apart; give more pictures"
            )
        return kept

    def _batches(self, part: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Features and labels of usable pictures."""
        s = self.settings
        plain = Photometric(POLICIES["none"])
        seen = 0
        for batch in ordered(
            part,
            range(len(part)),
            size=self.size,
            batch=s.batch,
            workers=workers_of(s.workers),
            pin=self.fabric.device.type == "cuda",
        ):
            seen += len(batch.index) + len(batch.bad)
            self.bad += len(batch.bad)
            for record in batch.bad[:1]:
                self.reporter.note(f"{record.name} cannot be used ({record.reason}) and is left out")
            if seen >= min(len(part), 1000) and self.bad > s.max_bad * seen:
                raise WorkFailed(
                    f"{self.bad} of the first {seen} pictures cannot be used, more than max_bad = {s.max_bad:.0%}, "
                    f"e.g. {batch.bad[0].name if batch.bad else 'earlier ones'}; mend the data or raise max_bad"
                )
            images = plain(batch.images[0].to(self.fabric.device), batch.colour[0])
            x = self._extract(images).cpu().numpy()
            if not np.isfinite(x).all():
                row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
                raise WorkFailed(
                    f"{self.encoder.model} gives {self.feature} features that are not finite, e.g. for picture "
                    f"{int(batch.index[row])}: its weights are broken, or precision bf16 is too coarse for it"
                )
            assert batch.label is not None
            yield x, batch.label.numpy()

    @torch.no_grad()
    def _extract(self, images: torch.Tensor) -> torch.Tensor:
        """``[B, D]`` fp32, not of unit length."""
        memory = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        with self.fabric.autocast():
            return self.extractor(images.contiguous(memory_format=memory))[self.feature].float()

    # ---- probes --------------------------------------------------------------------------------------------------

    def _knn(self, train: LabelledFeatures, test: LabelledFeatures) -> dict[str, Any]:
        """Accuracy for each k."""
        s, device = self.settings, self.fabric.device
        if not s.knn:
            return {}
        parts = [torch.from_numpy(np.array(a)).to(device) for f in (train, test) for a in f.read()]
        found = knn_accuracies(*parts, ks=s.knn)
        n, bank = len(parts[3]), len(parts[1])
        for k in s.knn:
            if k > bank:
                self.reporter.warn(f"kNN of {k}: there are {bank} pictures to vote; all of them do")
        return {str(k): {"top1": _estimate(proportion(round(v * n), n))} for k, v in found.items()}

    def _linear(self, train: LabelledFeatures, test: LabelledFeatures) -> dict[str, Any] | None:
        """The linear probe that was asked for."""
        kind = self.settings.linear
        if kind == "none":
            return None
        if kind == "moco":
            return self._moco(test)
        x, y = train.read()
        if len(y) < 10:
            raise WorkFailed(
                f"{count(len(y), 'picture')} to train on are too few for a linear probe; set linear to none"
            )
        device = self.fabric.device
        model = choose_logistic(
            x, y, classes=self.classes, seed=self.settings.seed, device=device, said=self.reporter.say
        )
        test_x, test_y = test.read()
        right = accuracy(model, test_x, test_y, device=device)
        n = len(test_y)
        return {
            "kind": "lbfgs",
            "penalty": model.penalty,
            **{f"top{k}": _estimate(proportion(v, n)) for k, v in right.items()},
        }

    def _moco(self, test: LabelledFeatures) -> dict[str, Any]:
        """The MoCo recipe through the training loop, with checkpoints in ``out``."""
        s, folder, device = self.settings, RunFolder(self.out), self.fabric.device
        folder.checkpoints.mkdir(exist_ok=True)
        plain = Photometric(POLICIES["none"])
        workers = workers_of(s.workers)

        def tested() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for batch in ordered(
                self.test, range(len(self.test)), size=self.size, batch=s.batch, workers=workers
            ):
                assert batch.label is not None
                known = batch.label >= 0
                x = self._extract(plain(batch.images[0].to(device), batch.colour[0]))
                yield x[known.to(device)], batch.label[known].to(device)

        def on_bad(batch: ViewBatch) -> None:
            for record in batch.bad:
                self.reporter.note(f"{record.name} cannot be used ({record.reason}); another takes its place")

        policy, lr = POLICIES["supervised"], s.lr * s.batch / 256
        task = LinearTask(
            self.encoder.pyramid,
            self._extract,
            dim=sum(self.extractor.dims(self.feature).values()),
            classes=self.classes,
            loader=ViewLoader(
                self.train,
                policy=policy,
                size=self.size,
                batch=s.batch,
                seed=s.seed,
                stage="linear",
                views=1,
                workers=workers,
                window=s.window,
                pin=device.type == "cuda",
            ),
            photometric=Photometric(policy),
            test=tested,
            epochs=s.epochs,
            batch=s.batch,
            seed=s.seed,
            lr=lr,
            device=device,
            on_bad=on_bad,
        )
        key = {
            "weights": self.encoder.digest,
            "data": self.train.fingerprint,
            "size": self.size,
            "features": self.feature,
            "settings": {k: v for k, v in to_dict(s).items() if k in ("batch", "epochs", "lr", "seed")},
        }
        found = checkpoint.latest(folder.checkpoints) if self.resume else None
        state = found[1] if found and found[1].get("probe") == json.dumps(key, sort_keys=True) else None
        if found and state is None:
            self.reporter.warn(
                f"{found[0]} is of another model, data or setting; the linear probe begins anew"
            )
        metrics = Table(folder.metrics, COLUMNS)
        metrics.cut(state["metrics_bytes"] if state else 0)
        Table(folder.timing, TIMING_COLUMNS).cut(None if state else 0)
        marks = tuple(max(1, round(s.epochs * share)) for share in (0.6, 0.8))
        loop = Loop(
            task,
            fabric=self.fabric,
            folder=folder,
            metrics=metrics,
            reporter=self.reporter,
            log_every=50,
            checkpoint_every=500,
            extra={"probe": json.dumps(key, sort_keys=True)},
            learning_rate=schedule(
                "step", lr=lr, epochs=s.epochs, steps_per_epoch=task.steps_per_epoch, milestones=marks
            ),
        )
        try:
            if state is None or state["epoch"] < s.epochs:
                loop.fit(state)
        finally:
            task.close()
        last = folder.read_metrics()[-1]
        n = len(test.read()[1])
        tops = {k: _estimate(proportion(round(float(last[k]) * n), n)) for k in ("top1", "top5")}
        return {"kind": "moco", "epochs": s.epochs, "lr": lr, **tops}

    # ---- for people ------------------------------------------------------------------------------------------------

    def _report(
        self,
        train: LabelledFeatures,
        test: LabelledFeatures,
        knn: dict[str, Any],
        linear: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """The content of probe.json."""
        e = self.encoder
        labels = {name: f.read()[1] for name, f in (("train", train), ("test", test))}
        report: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": "hetcl-probe",
            "model": {
                "name": e.name,
                "model": e.model,
                "arch": e.pyramid.arch,
                "features": self.feature,
                "size": self.size,
                "dims": self.extractor.dims(self.feature),
                "weights": e.digest,
            },
            "data": {
                "data": self.data,
                "train": self.train.description,
                "test": self.test.description,
                "train_pictures": len(labels["train"]),
                "test_pictures": len(labels["test"]),
                "classes": self.classes,
                "chance": 1 / self.classes,
                "left_out": self.bad,
                "unlabelled": train.unlabelled + test.unlabelled,
                "missing": {name: self.classes - len(np.unique(y)) for name, y in labels.items()},
            },
            "knn": knn,
            "linear": linear,
            "backbone_unchanged": True,
        }
        report["said"] = list(sentences(report))
        report["machine"] = machine() | {"device": device_name(self.fabric.device)}
        report["seconds"] = round(time.monotonic() - self.began, 1)
        return report


def _estimate(e: Estimate) -> dict[str, float]:
    return {"value": e.value, "low": e.low, "high": e.high}


def sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """What was found, in words."""
    data, name = report["data"], report["model"]["name"]
    chance = data["chance"]
    shown = f"of {data['classes']} classes, {data['test_pictures']:,} pictures never used to train the probe"
    best = 0.0
    for k, row in report["knn"].items():
        e = row["top1"]
        best = max(best, e["low"])
        yield f"kNN of {k}: {name} is right for {_interval(e)} ({shown}; chance {chance:.1%})."
    if report["linear"] is not None:
        e, how = report["linear"]["top1"], report["linear"]
        best = max(best, e["low"])
        kind = (
            f"L-BFGS, penalty {how['penalty']:g}"
            if how["kind"] == "lbfgs"
            else f"MoCo recipe, {how['epochs']} epochs"
        )
        yield f"linear ({kind}): {_interval(e)}, among the first five {_interval(how['top5'])}."
    if best and best <= chance:
        yield "no better than chance: these features know nothing of the labels, or the labels are of other pictures."
    for part, missing in data["missing"].items():
        if missing:
            yield f"{missing} of {data['classes']} classes have no picture to {part} on."
    if data["unlabelled"]:
        yield f"{data['unlabelled']:,} pictures without a label were left out."
    if data["left_out"]:
        yield f"{data['left_out']:,} pictures could not be read and were left out."


def _interval(e: Mapping[str, float]) -> str:
    return f"{e['value']:.1%} (95% interval {100 * e['low']:.1f} to {100 * e['high']:.1f})"
