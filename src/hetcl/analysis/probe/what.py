"""What frozen features know of the labels, by kNN and by a linear classifier.

The order: read model and data; features of central views, in blocks that outlive a stop; kNN; the linear probe; the
check that nothing in the encoder has moved; what was found, in words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetcl.analysis import feature_pass, yardstick
from hetcl.analysis.extractor import Extractor, features_of, look
from hetcl.analysis.probe.bank import Bank
from hetcl.analysis.probe.knn import knn_hits
from hetcl.analysis.probe.linear import COLUMNS, LinearTask, logistic_regression
from hetcl.analysis.probe.parts import open_parts
from hetcl.analysis.probe.report_text import sentences, table
from hetcl.analysis.statistics import paired_difference, proportion
from hetcl.analysis.store import Store
from hetcl.errors import InputError, WorkFailed
from hetcl.images.subset import Subset
from hetcl.model.norm_statistics import is_unmeasured
from hetcl.quantities import count
from hetcl.runs.folder import RunFolder
from hetcl.runs.output import write_report
from hetcl.runs.resume import LastCheckpoint, changes, checkpoint_of
from hetcl.settings import ProbeSettings
from hetcl.signals import StopSignal
from hetcl.training.schedule import schedule
from hetcl.training.session import ReportingSession, TrainingSession
from hetcl.views.central import Central
from hetcl.views.loader import ViewLoader
from hetcl.views.photometric import Photometric
from hetcl.views.policies import POLICIES
from hetcl.weights.encoder import digest_of, load_encoder
from hetcl.weights.facts import view_normalization

SCHEMA = 1
"""Version of probe.json; it rises when a name changes its meaning or goes away."""
KIND = "hetcl-probe"
KEPT = "; the features are kept: go on with --resume"


Answers = tuple[Bank, Bank, dict[int, np.ndarray], dict[str, Any] | None, np.ndarray | None]
"""Training and test images; whether each test image is right, by k; the linear probe, and of each image the rank of its
class by it."""


class Probe(ReportingSession[Answers], TrainingSession):
    """One probe of one model: reads, extracts, classifies, checks, says.

    Args:
        model: a MODEL.
        data: the DATA argument.
        folder: where to write; the caller has looked at it.
        claim: makes and locks it, and saves what was asked.
        settings: of ``hetcl probe``.
        allow_partial: as of ``load_encoder``.
        resume: go on with a linear probe by SGD.
    """

    def __init__(
        self,
        model: str,
        data: str,
        folder: RunFolder,
        claim: Callable[[], None],
        settings: ProbeSettings,
        allow_partial: str | Sequence[str] = (),
        *,
        resume: bool,
    ) -> None:
        super().__init__(folder, resume=resume)
        self.settings = s = settings
        self.data, self.claim = data, claim
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
        self.pixels = yardstick.check_images(self.parts.train.source, self.encoder)
        self.feature = features_of(self.encoder, s.features)
        self.size = s.size or self.encoder.size or 224
        self.start(s, folder.log)
        self.format = torch.channels_last if s.channels_last else torch.contiguous_format
        self.extractor = (
            Extractor(self.encoder, [self.feature], unit=False)
            .to(self.fabric.device, memory_format=self.format)  # type: ignore[call-overload]
            .eval()
        )
        self.dims = self.extractor.dims(self.feature)

    def _work(self) -> Answers:
        with StopSignal() as signal:
            train, test = self._features(signal)
            hits = self._knn(train, test, signal)
            linear, ranks = (
                self._lbfgs(train, test, signal) if self.settings.linear == "lbfgs" else (None, None)
            )
        if self.settings.linear == "moco":
            linear, ranks = self._moco(train, test)
        self._check_unchanged()
        return train, test, hits, linear, ranks

    def _introduce(self) -> None:
        say, p = self.reporter.say, self.parts
        say(f"train     {p.train.description}")
        say(
            f"test      {p.test.description}"
            + (" (held out: there is no validation or test part with labels)" * p.held_out)
        )
        shown = " + ".join(f"{part} {d}" for part, d in self.dims.items())
        yardstick.say_model(say, self.encoder, self.size, shown, asked=bool(self.settings.size))
        self.say_where(self.folder.path)

    # ---- features ------------------------------------------------------------------------------------------------

    def look(self, images: Tensor, color: Tensor, photometric: Photometric) -> Tensor:
        """``[B, C, H, W]`` as of a loader -> features ``[B, D]``, fp32; levels as the backbone gives them."""
        found = look(self.extractor, images, color, photometric, fabric=self.fabric, layout=self.format)
        return found[self.feature].float()

    def _features(self, signal: StopSignal) -> tuple[Bank, Bank]:
        """Features of central views of all images, from disk where they are there already."""
        s, fabric, train = self.settings, self.fabric, self.parts.train
        if unmeasured := is_unmeasured(self.encoder.pyramid):
            self.reporter.say("          no batch-norm statistics: measured on some of the training images")
            yardstick.measure(
                self.encoder, train, size=self.size, fabric=fabric, seed=s.seed, window=s.window,
                images=len(train), workers=self.workers, stop=lambda: signal.check(f"stopped{KEPT}"),
            )  # fmt: skip
            self.digest = self._digest()
        key = {
            "schema": SCHEMA,
            "weights": self.encoder.digest,
            "measured": unmeasured and train.hash,
            "arch": self.encoder.pyramid.arch,
            "features": self.feature,
            "size": self.size,
            "precision": self.precision,
        }
        banks = (self._bank("train", train, key), self._bank("test", self.parts.test, key))
        missing = [bank for bank in banks if not bank.store.finished]
        if have := sum(len(bank.part) for bank in banks if bank not in missing):
            self.reporter.say(f"features  of {count(have, 'image')} are here already")
        feature_pass.complete(
            [self._pass(bank) for bank in missing], [bank.store for bank in banks], session=self, signal=signal,
            channels_last=s.channels_last, left_out=self.folder.bad_images, max_bad=s.max_bad,
            fewer="or set images to train on fewer",
        )  # fmt: skip
        self._check_enough(*banks)
        return banks

    def _bank(self, name: str, part: Subset, key: Mapping[str, Any]) -> Bank:
        columns, key = {"features": ("float32", (sum(self.dims.values()),))}, {**key, "images": part.hash}
        root, batch = self.folder.path / "features", self.settings.batch
        return Bank(part, Store(root, name, key, columns, images=len(part), batch=batch))

    def _pass(self, bank: Bank) -> tuple[list[feature_pass.Job], Central]:
        """What is to be computed for a bank."""
        views = Central(
            bank.part.source, bank.part.index, size=self.size, batch=self.settings.batch,
            workers=self.workers, pin=self.fabric.device.type == "cuda", pixels=self.pixels,
        )  # fmt: skip
        columns = ("features",)
        job = feature_pass.Job(
            self.encoder, self.feature, POLICIES["none"], self.size, bank.store, columns, unit=False
        )
        return [job], views

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
                signal.check(f"stopped while looking for neighbours{KEPT}")
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
            interrupt=lambda: signal.check(f"stopped while fitting the linear probe{KEPT}"),
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
        s, fabric = self.settings, self.fabric
        part, policy = train.part.only(train.rows()), POLICIES["supervised"]
        batch = min(s.batch, len(part) // fabric.world_size * fabric.world_size)
        if batch < s.batch:
            self.notes.append(f"linear: batch {s.batch} -> {batch}, since there are only {len(part)} images")
        lr = s.lr * batch / 256
        loader = ViewLoader(
            part, policy=policy, size=self.size, batch=batch, seed=s.seed, stage="linear", views=1,
            rank=fabric.global_rank, ranks=fabric.world_size, workers=self.workers, window=s.window,
            pin=fabric.device.type == "cuda", pixels=self.pixels,
        )  # fmt: skip
        photometric = Photometric(policy, *view_normalization(self.pixels))
        task = LinearTask(
            lambda images, color: self.look(images, color, photometric),
            dim=train.dim, classes=self.classes, loader=loader, test=test.blocks(), epochs=s.epochs, batch=batch,
            seed=s.seed, lr=lr, device=fabric.device,
        )  # fmt: skip
        asked = train.store.key | {
            "labels": part.fingerprint, "batch": batch, "epochs": s.epochs, "lr": lr, "seed": s.seed,
            "window": s.window or part.prefers_window,
        }  # fmt: skip
        found = self._resumed(asked)
        self.folder.checkpoints.mkdir(exist_ok=True)
        for line in self.settle(found, COLUMNS):
            self.reporter.warn(line)
        milestones = [-(-tenths * s.epochs // 10) for tenths in (6, 8)]
        loop = self.loop(
            task,
            schedule(
                "step", lr=lr, epochs=s.epochs, steps_per_epoch=task.steps_per_epoch, milestones=milestones
            ),
            checkpoint_every=1000,
            extra={"probe": json.dumps(asked, sort_keys=True)},
        )
        try:
            loop.fit(found.state if found else None)
        except WorkFailed as e:
            if "not finite" not in str(e):
                raise
            raise WorkFailed(
                f"the linear probe diverged at lr {lr:g} ({s.lr:g} scaled to the batch); set a lower lr"
            ) from e
        finally:
            task.close()
        return {"kind": "moco", "epochs": s.epochs, "batch": batch, "lr": lr}, task.ranks()

    def _resumed(self, asked: Mapping[str, Any]) -> LastCheckpoint | None:
        """What to go on from. Raises ``InputError`` when it is of something else."""
        found = checkpoint_of(self.folder, [LinearTask.name])
        if not found:
            return None
        try:
            then = dict(json.loads(found.state.get("probe", "{}")))
        except (TypeError, ValueError):
            then = {}
        if differ := changes(then, asked):
            raise InputError(
                f"{found.path} is of another linear probe ({', '.join(differ[:3])}); name a new --out, or set these "
                "back"
            )
        self.reporter.say(
            f"going on with the linear probe at epoch {found.state['epoch']}, step {found.state['step']}"
        )
        return found

    def _digest(self) -> str:
        """The digest of the encoder's weights and statistics as they are now."""
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

    def _write(self, found: Answers) -> dict[str, Any]:
        e, p = self.encoder, self.parts
        train, test, hits, linear, ranks = found
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
                "left_out": len(train.part) + len(test.part) - len(train.rows()) - n,
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
        report["sentences"] = [*self.notes, *sentences(report)]
        report |= self.cost()
        write_report(self.folder.path / "probe.json", report)
        return report

    def _say(self, report: Mapping[str, Any]) -> None:
        self.reporter.say("")
        self.reporter.show(table(report))
        for line in report["sentences"]:
            self.reporter.say(line, wrap=True)
        self.say_done(report["seconds"], self.folder.path / "probe.json")


def _share(right: np.ndarray) -> dict[str, float]:
    return asdict(proportion(int(right.sum()), len(right)))
