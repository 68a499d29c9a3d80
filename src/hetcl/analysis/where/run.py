"""``hetcl probe --ask where``: what frozen maps know of places, of several models on the same images.

The order: read models and data; one pass over the images fills the stores that are not there yet; every question is
answered for every image; what was found is compared, drawn and said.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from hetcl.analysis import feature_pass, yardstick
from hetcl.analysis.contrast.plotting import save
from hetcl.analysis.statistics import Bins
from hetcl.analysis.where import questions, report_text
from hetcl.analysis.where.annotated import Both, Located, open_question_images
from hetcl.analysis.where.answers import Answer, Answers, mean
from hetcl.analysis.where.cells import iou_of, paired_mean_iou
from hetcl.analysis.where.correspondence import WITHIN
from hetcl.analysis.where.figure import draw
from hetcl.analysis.where.localization import GOOD, overlap
from hetcl.analysis.where.maps import DENSE, Maps
from hetcl.analysis.where.possible import LEAST, possible, size_and_grid
from hetcl.analysis.yardstick import Entry
from hetcl.errors import InputError, WorkFailed
from hetcl.quantities import count
from hetcl.runs.folder import RunFolder
from hetcl.runs.output import write_report
from hetcl.settings import ProbeSettings
from hetcl.signals import StopSignal
from hetcl.training.session import ReportingSession
from hetcl.types import BadImage
from hetcl.views.policies import policy_of
from hetcl.weights.encoder import Encoder, digest_of

KEPT = "; the features are kept: go on with --resume"
SCHEMA = 1
"""Version of where.json; it rises when a name changes its meaning or goes away."""
BIN = WITHIN.index(1.0)
"""The distance that is shown by overlap."""


class Unanswerable(WorkFailed):
    """The images do not give what a question needs."""


class Where(ReportingSession[Answers]):
    """One test of one or several models: reads, extracts, answers, compares, draws, says.

    Args:
        models: each a MODEL.
        data: the DATA argument.
        folder: where to write; the caller has looked at it.
        claim: makes and locks it.
        settings: of ``hetcl probe``.
        asked: names of :data:`QUESTIONS`; none: all that the data can answer.
        allow_partial: as of ``load_encoder``.
    """

    def __init__(
        self, models: Sequence[str], data: str, folder: RunFolder, claim: Callable[[], None], settings: ProbeSettings,
        asked: Sequence[str], allow_partial: str | Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.data, self.out, self.claim = data, folder.path, claim
        self.settings = s = settings
        self.question_images = open_question_images(
            data, boxes=s.boxes, images=s.images, test_images=s.test_images, holdout=s.holdout, seed=s.seed,
            data_split=s.data_split, test_split=s.test_split, window=s.window,
        )  # fmt: skip
        self.named = set(asked)
        self.questions, self.notes = possible(asked, self.question_images, data)
        policy = policy_of(s.views)[1]
        if policy.flip_p and "correspondence" in self.questions:
            raise InputError(
                f"views {s.views} flips images, which correspondence does not undo; add :flip_p=0"
            )
        self.encoders = yardstick.distinct(models, allow_partial)
        check_backbones(self.encoders)
        pixels = self.encoders[0].facts.pixels
        if not pixels.rgb:
            raise InputError(
                f"{self.encoders[0].model} takes images of {pixels}, and where is asked of RGB images of 8 bits alone; "
                "ask what (--ask what), or hetcl contrast"
            )
        size, grid = size_and_grid(self.question_images.images[0], self.encoders, s.size, s.grid)
        entries, held, missing = yardstick.entries_of(
            self.encoders, ["pooled"], size=size, yardstick=True, maps=True
        )
        self.notes += missing
        self.entries = [replace(e, name=_plain(e.name)) for e in entries]
        self.pairs = [(_plain(a), _plain(b)) for one in held for a, b in one.pairs]
        self.start(s, folder.log)
        self.maps = Maps(
            self.out / "features", self.entries, self.question_images, size=size, grid=grid, policy=policy,
            key={"schema": SCHEMA, "precision": self.precision}, seed=s.seed, batch=s.batch,
        )  # fmt: skip
        self.chance: dict[str, dict[str, float]] = {}

    def _work(self) -> Answers:
        with StopSignal() as signal:
            self._extract(signal)
            entries = self.entries if self.main else ()
            return {e.name: {a.key: a for a in self._answers(e, signal)} for e in entries}

    def _introduce(self) -> None:
        say, a = self.reporter.say, self.question_images
        for title, both in (("images", a.images), ("boxes", a.boxes), ("cells", a.cells)):
            if both is not None and (title == "images" or both is not a.images):
                say(f"{title:<10}{both[0].description}; tested on {both[1].description}")
        say(f"asked     {', '.join(self.questions)}, at {self.maps.size} pixels")
        for e in self.entries:
            say(f"{'model' if e.role == 'model' else 'yardstick':<10}{e.name}: {e.encoder.pyramid.arch}")
        self.say_where(self.out)

    # ---- images to stores ----------------------------------------------------------------------------------------

    def _extract(self, signal: StopSignal) -> None:
        """One pass over the images of each split for all stores that are not whole."""
        s, split = self.settings, self.question_images.images[0]
        passes = self.maps.passes(self.questions, workers=self.workers, pin=self.fabric.device.type == "cuda")
        if not passes:
            self.reporter.say("features  are here already")
        feature_pass.measure(
            passes, split, self, seed=s.seed, window=s.window, images=len(split),
            stop=partial(signal.check, "stopped before the first image" + KEPT),
        )  # fmt: skip
        feature_pass.complete(
            passes, self.maps.stores(self.questions), session=self, signal=signal, channels_last=s.channels_last,
            left_out=self.out / "bad_images.csv", max_bad=s.max_bad, fewer="or set images and test_images to fewer",
        )  # fmt: skip

    # ---- stores to answers ---------------------------------------------------------------------------------------

    def _answers(self, entry: Entry, signal: StopSignal) -> Iterator[Answer]:
        """Every answer of one model."""
        signal.check("stopped before the last question" + KEPT)
        self.reporter.note(f"asking {entry.name}")
        if "correspondence" in self.questions:
            yield from self._correspondence(entry)
        if "localization" in self.questions and self.question_images.boxes:
            yield from self._unless_unanswerable(
                {"localization"}, self._localization(entry, self.question_images.boxes, signal)
            )
        if self.question_images.cells and (dense := DENSE & set(self.questions)):
            yield from self._unless_unanswerable(
                dense, self._cells(entry, self.question_images.cells, signal)
            )

    def _unless_unanswerable(self, names: set[str], answers: Iterator[Answer]) -> Iterator[Answer]:
        """The answers; of a question that was not named and cannot be answered none, and a note says why."""
        try:
            yield from answers
        except Unanswerable as error:
            if names & self.named or not set(self.questions) - names:
                raise
            self.notes.append(f"{' and '.join(sorted(names))}: left out; {error}")
            self.questions = [q for q in self.questions if q not in names]

    def _correspondence(self, entry: Entry) -> Iterator[Answer]:
        bins = Bins(5)
        for feature, side in self.maps.matched(entry.encoder).items():
            rows = self.maps.of_crops(entry, feature).read()
            seen = rows["cells"] > 0
            if len(seen) < 2:
                raise WorkFailed(
                    f"{count(len(seen), 'image')} of {len(self.question_images.images[1])} to test on can be used; "
                    f"{self.out / 'bad_images.csv'} says why"
                )
            if seen.sum() < 2:
                raise WorkFailed(
                    "the crops of fewer than two images overlap; give more images, or set views to a policy with "
                    "larger crops"
                )
            order = np.argsort(rows["index"][seen], kind="stable")
            index = rows["index"][seen][order]
            place = bins.assign(rows["iou"][seen])
            for i, within in enumerate(WITHIN):
                found, position = rows["found"][seen, i], rows["position"][seen, i]
                more: dict[str, Any] = {
                    "side": side,
                    "chance": float(rows["chance"][seen, i].mean()),
                    "position": float(position.mean()),
                    "minus_position": asdict(mean(found - position, least=-1.0)),
                }
                if i == BIN:
                    more["bins"] = [
                        {"low": low, "high": high, "count": int(here.sum()), **asdict(mean(found[here]))}
                        for b in range(len(bins))
                        if (here := place == b).any()
                        for low, high in [bins.bounds(b)]
                    ]
                level = feature.partition("x")[0]
                yield Answer("correspondence", f"pck{within:g}", level, found[order], index, more)

    def _localization(self, entry: Entry, both: Both, signal: StopSignal) -> Iterator[Answer]:
        for feature in self.maps.boxes:
            signal.check("stopped while looking for boxes" + KEPT)
            (x, boxes, _), (z, truth, index) = (self._with_boxes(entry, feature, split) for split in both)
            if len(x) < LEAST or not len(z):
                file = f" in {self.settings.boxes}" if self.settings.boxes else ""
                raise Unanswerable(
                    f"{count(len(x), 'image')} with a box{file} to fit and {len(z)} to test on: too few; localization "
                    f"needs {LEAST} and 1; give more images or boxes, or leave it out of ask"
                )
            iou, share = questions.localize(x, boxes, z, truth, seed=self.settings.seed)
            floor = overlap(np.repeat(boxes.mean(axis=0)[None], len(truth), axis=0), truth)
            self.chance["localization"] = {
                "mean_box": float(floor.mean()),
                "found75": float((floor >= GOOD).mean()),
            }
            more, level = {"penalty": share}, feature.partition("x")[0]
            above = {"minus_floor": asdict(mean(iou - floor, least=-1.0))}
            yield Answer("localization", "iou", level, iou, index, more | above)
            yield Answer("localization", "found75", level, iou >= GOOD, index, more)

    def _with_boxes(
        self, entry: Entry, feature: str, split: Located
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features, boxes and indices of the images of a split that have a box."""
        rows = self.maps.of_images(entry, feature, split).read()
        boxes = [_known(split.box, int(i)) for i in rows["index"]]
        kept = np.array([i for i, box in enumerate(boxes) if box is not None], np.int64)
        found = [box for box in boxes if box is not None]
        return rows["features"][kept], np.array(found).reshape(-1, 4), rows["index"][kept]

    def _cells(self, entry: Entry, both: Both, signal: StopSignal) -> Iterator[Answer]:
        s, k = self.settings, len(self.question_images.classes)
        held = [
            [self.maps.of_images(entry, name, split).read() for name in self.maps.cells] for split in both
        ]
        labels = []
        for split, rows in zip(both, held, strict=True):
            known = [
                _known(lambda i, split=split: split.cells(i, self.maps.grid), int(i))
                for i in rows[0]["index"]
            ]
            empty = np.full((self.maps.grid, self.maps.grid), -1, np.int16)
            labels.append(np.stack([(empty if c is None else c).ravel() for c in known]))
        index = held[1][0]["index"]
        there = np.unique(labels[0][labels[0] >= 0])
        if len(there) < 2:
            raise Unanswerable(
                f"cells of the images of {self.data} to fit are of {count(len(there), 'class')} (grid "
                f"{self.maps.grid}); give images with more, or a finer grid where objects are small, or leave "
                f"{' and '.join(sorted(DENSE & set(self.questions)))} out of ask"
            )
        features = [[r["features"] for r in rows] for rows in held]
        for name in (q for q in self.questions if q in DENSE):
            unit = name == "dense-knn"
            train = questions.Cells(features[0], labels[0], unit=unit, most=s.cells, seed=s.seed)
            test = questions.Cells(features[1], labels[1], unit=unit, spread=train.spread)
            more: dict[str, Any] = {}
            stop = partial(signal.check, f"stopped during {name}" + KEPT)
            if unit:
                nearest = s.knn[0] if s.knn else 20
                predicted = questions.dense_knn(
                    train, test, k=nearest, device=self.fabric.device, interrupt=stop
                )
            else:
                stop()
                predicted, more["penalty"] = questions.dense_linear(train, test, classes=k, seed=s.seed)
            counts = test.counts(predicted, len(index), k)
            iou = iou_of(counts.sum(axis=0))
            more["classes"] = {
                c: round(float(v), 6)
                for c, v in zip(self.question_images.classes, iou, strict=True)
                if not np.isnan(v)
            }
            self.chance["cells"] = questions.by_chance(train.labels, test.labels, k)
            common = np.full_like(predicted, np.bincount(train.labels, minlength=k).argmax())
            floor = test.counts(common, len(index), k)
            more["minus_floor"] = asdict(paired_mean_iou(counts, floor))
            yield Answer(name, "miou", "c2-c5", counts, index, more)

    # ---- answers to a report -------------------------------------------------------------------------------------

    def _write(self, answers: Answers) -> dict[str, Any]:
        pairs = list(self.pairs)
        named = [e.name for e in self.entries if e.role == "model"]
        pairs += [(a, b) for i, a in enumerate(named) for b in named[i + 1 :] if (a, b) not in pairs]
        report: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": "hetcl-where",
            "models": [
                {"name": e.name, "model": e.encoder.model, "arch": e.encoder.pyramid.arch, "role": e.role,
                 "weights": e.digest} for e in self.entries
            ],
            "data": {
                "data": self.data,
                "size": self.maps.size,
                "grid": self.maps.grid,
                "views": self.settings.views,
                "held_out": self.question_images.held_out,
                **self._parts(),
            },
            "chance": self.chance,
            "results": [
                {"model": name, "question": a.question, "measure": a.measure, "level": a.level, "images": len(a.index),
                 **asdict(a.estimate()), **a.more}
                for name, found in answers.items() for a in found.values()
            ],
            "differences": [
                {"first": a, "second": b, "question": q, "measure": m, "level": level,
                 **asdict(one.minus(other))}
                for a, b in pairs for (q, m, level), one in answers[a].items()
                if (other := answers[b].get((q, m, level))) and one.comparable(other)
            ],
        }  # fmt: skip
        report["sentences"] = [*self.notes, *report_text.sentences(report)]
        report |= self.cost()
        self._state_what_goes()
        save(draw(report), self.out / "where")
        write_report(self.out / "where.json", report)
        return report

    def _state_what_goes(self) -> None:
        """A line about the answers of another command in the folder that this one does not give again."""
        before: set[str] = set()
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError
        ):  # not there, or damaged: nothing is lost
            before = {
                row["question"] for row in json.loads((self.out / "where.json").read_bytes())["results"]
            }
        if gone := sorted(before - set(self.questions)):
            self.reporter.say(
                f"where.json answered {', '.join(gone)} as well, and is replaced; name all questions in ask to "
                "have them together (features that are kept cost no second pass)"
            )

    def _parts(self) -> dict[str, dict[str, str]]:
        a = self.question_images
        both = {"images": a.images, "boxes": a.boxes, "cells": a.cells}
        return {
            name: {"train": one[0].description, "test": one[1].description}
            for name, one in both.items()
            if one is not None
        }

    def _say(self, report: Mapping[str, Any]) -> None:
        self.reporter.say("")
        for part in report_text.tables(report):
            self.reporter.show(part)
        for line in report["sentences"]:
            self.reporter.say(line, wrap=True)
        self.say_done(report["seconds"], f"{self.out / 'where.json'}, where.png")


def _known(of: Any, index: int) -> np.ndarray | None:
    """What is known of an image; None where its annotation cannot be read."""
    try:
        found: np.ndarray | None = of(index)
    except BadImage:
        return None
    return found


def _plain(name: str) -> str:
    """The name of an entry without its features, which are the maps of all."""
    return name.removesuffix(" pooled").replace(" pooled for ", " for ")


def check_backbones(encoders: Sequence[Encoder]) -> None:
    """Raises ``InputError`` when two models differ in their branches alone: their backbones' maps are the same."""
    seen: dict[str, str] = {}
    for encoder in encoders:
        digest = digest_of(encoder.pyramid.state_dict(), encoder.facts)
        if digest in seen:
            raise InputError(f"{seen[digest]} and {encoder.model} hold the same backbone; leave one out")
        seen[digest] = encoder.model
