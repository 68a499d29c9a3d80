"""``hetcl evaluate``: a fine-tuned run on a data set: figures, results for others' tools, images to look at."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from hetcl.downstream.build import MODEL_WORDS, build_model, model_words
from hetcl.downstream.parts import check_missing, judge, open_part
from hetcl.downstream.plan import KIND, saved_settings
from hetcl.downstream.predict import EvaluationContext, EvaluationResult, evaluate_on
from hetcl.downstream.renamed import Wrapped, under
from hetcl.downstream.report_text import plain, say_metrics, write_results
from hetcl.errors import InputError
from hetcl.paths import create, expand
from hetcl.quantities import count, duration
from hetcl.runs.folder import RunFolder, disk_problem
from hetcl.runs.lock import FolderLock
from hetcl.runs.output import claim, held_in, reserved, write_report
from hetcl.runs.resume import check_own, latest
from hetcl.settings import EvaluateSettings, resolve_evaluate, to_dict
from hetcl.training.devices import peak_memory
from hetcl.training.session import ReportingSession
from hetcl.weights.facts import InputFacts

log = logging.getLogger(__name__)

OURS = ("evaluation.json", "results.json", "predictions.png", "label_maps", "log.txt", "bad_images.csv")
"""What ``--out`` may hold when it is written anew."""


def evaluate(
    run: str | Path,
    *,
    data: str,
    out: str | Path,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate a fine-tuned run on a data set; figures in ``out/evaluation.json``.

    ``out/results.json`` holds a detector's predictions in COCO's results format, ``out/label_maps`` a segmenter's as
    PNGs of class numbers, ``out/predictions.png`` some of them beside the truth.

    Args:
        run: a folder that ``finetune`` wrote.
        data: a data set whose classes are the run's, by name.
        out: the folder to write.
        overwrite: replace an evaluation that is there.
        overrides: settings by name, as a mapping or as command-line words.

    Returns:
        the content of ``evaluation.json``.

    Raises:
        InputError: unusable arguments, run or data; nothing has been written then.
        WorkFailed: the work began and could not go on.
    """
    out = Path(expand(out))
    with reserved(FolderLock(out), lambda: _check_out(out, overwrite)) as lock:
        return Evaluation(RunFolder(run), data, out, resolve_evaluate(overrides), lock, overwrite).go()


def _check_out(out: Path, overwrite: bool) -> None:
    held = held_in(out)
    again = "evaluation.json" in held and not overwrite
    check_own(out, "an evaluation", foreign=not held <= {*OURS}, again=again, add="--overwrite to replace it")


@dataclass(frozen=True)
class FirstImages(Wrapped):
    """The first images of a data set, for a quick look: a detection set of its own."""

    length: int

    def __len__(self) -> int:
        return self.length


class Evaluation(ReportingSession[EvaluationResult]):
    """One evaluation: reads, looks, scores, writes, says."""

    def __init__(
        self,
        run: RunFolder,
        data: str,
        out: Path,
        settings: EvaluateSettings,
        lock: FolderLock,
        overwrite: bool,
    ) -> None:
        super().__init__()
        self.first: tuple[int, float] | None = None
        self.above: str | None = None
        self.run, self.spec, self.out = run, data, out
        self.claim = lambda: claim(lock, lambda: _check_out(out, overwrite), self._clear)
        self.saved = saved = read_run(run)
        self.words = model_words(saved["settings"])
        if settings.precision == "auto":
            settings = replace(settings, precision=saved["settings"].get("precision", "auto"))
        self.settings = settings
        self.data = open_part(data, settings.split, self.words["model"], follow_links=settings.follow_links)
        check_missing(self.data, settings.max_bad)
        self.data, self.notes = under(self.data, saved["classes"], data, f"the run {run.path}")
        what = f"the {'validation' if settings.split == 'val' else 'training'} part of {data}"
        if settings.images and settings.images < len(self.data):
            self.data = FirstImages(self.data, settings.images)
            what = f"the first {count(settings.images, 'image')} of {what}"
        most = settings.detections or self.words["detections"]
        self.notes += judge(self.data, what, model=self.words["model"], detections=most)
        self.start(settings, out / "log.txt")
        self.look = EvaluationContext(
            self.fabric, self.workers, settings.channels_last, settings.max_bad, self._advance
        )
        self.model = self._model()

    def _work(self) -> EvaluationResult:
        self.reporter.start("looking at images", 0, len(self.data))
        seen, self.metrics = evaluate_on(self.model, self.data, self.look, self._keep)
        return seen

    def _model(self) -> nn.Module:
        """The trained model on the device."""
        s, changes = self.settings, dict[str, Any]()
        if s.test_size:
            changes |= {"test_size": s.test_size, "max_size": max(self.words["max_size"], s.test_size)}
        changes |= {name: value for name in ("detections", "test_proposals") if (value := getattr(s, name))}
        if s.score_threshold >= 0:
            changes["score_threshold"] = s.score_threshold
        model, done = read_model(self.run, self.saved, **changes)
        self.trained = done
        model = model.to(self.fabric.device)
        return model.to(memory_format=torch.channels_last if s.channels_last else torch.contiguous_format)

    def _clear(self) -> None:
        """Remove an evaluation that was here."""
        for name in OURS:
            old = self.out / name
            if old.is_dir():
                shutil.rmtree(old)
            elif name != "log.txt":
                old.unlink(missing_ok=True)
        if self.words["model"] == "fcn":
            (self.out / "label_maps").mkdir(exist_ok=True)

    def _introduce(self) -> None:
        say = self.reporter.say
        say(f"run       {self.run.path}: {self.words['model']}, {self.saved['arch']}, {self.trained}")
        of = f" (the first {count(len(self.data), 'image')})" if isinstance(self.data, FirstImages) else ""
        say(f"test      {self.data.description}{of}")
        for line in [*self.data.skipped.lines(), *self.notes]:
            self.reporter.warn(line)
        self.say_where(self.out, precision=self.precision)

    def _advance(self, done: int, total: int) -> None:
        self.reporter.advance(done)
        now = time.monotonic()
        if self.first is None:  # it has the start of the workers and of the device in it
            self.first = done, now
        seconds = (now - self.first[1]) / max(1, done - self.first[0]) * (total - done)
        left = f"{duration(seconds)} left" if self.first[0] < done < total else ""
        at = f"{done:,} of {total:,}"
        self.reporter.row(
            f"images  {at}, {left}".removesuffix(", "), left=left, short=[at], last=done == total
        )

    def _keep(self, index: int, labels: np.ndarray) -> None:
        """Save a label map as a PNG of class numbers. Raises ``WorkFailed``."""
        path = self.out / "label_maps" / f"{self._map_name(index)}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with create(path) as f:
                Image.fromarray(labels).save(f, "PNG")
        except OSError as e:
            raise disk_problem(path, e) from None

    def _map_name(self, index: int) -> str:
        """The image's name; with its folders where images of several folders have the same names."""
        if self.above is None:
            names = [Path(self.data.name(i)) for i in range(len(self.data))]
            apart = len({name.stem for name in names}) == len(names)
            self.above = "" if apart else os.path.commonpath([name.parent for name in names])
        path = Path(self.data.name(index))
        return str(path.relative_to(self.above).with_suffix("")) if self.above else path.stem

    def _write(self, seen: EvaluationResult) -> dict[str, Any]:
        report = {
            "kind": "hetcl-evaluation",
            "run": str(self.run.path),
            "data": {
                "data": self.spec,
                "split": self.settings.split,
                "description": self.data.description,
                "fingerprint": self.data.fingerprint,
                "images": len(self.data),
                "left_out": dict(self.data.skipped.counts),
                "bad": [[r.name, r.reason] for r in seen.bad],
            },
            "figures": plain(self.metrics.figures),
            "per_class": {name: plain(row) for name, row in self.metrics.per_class.items()},
            "machine": self.machine(precision=self.precision),
            "memory_mb": peak_memory(self.fabric.device),
            "seconds": self.seconds(),
        }
        write_results(
            self.out, self.data, seen, model=self.model, look=self.look, images=range(len(self.data)),
            examples=self.settings.examples,
        )  # fmt: skip
        write_report(self.out / "evaluation.json", report)  # last: where it is, the evaluation is whole
        return report

    def _say(self, report: Mapping[str, Any]) -> None:
        say_metrics(self.reporter, self.metrics, len(self.data))
        if report["data"]["bad"]:
            name, reason = report["data"]["bad"][0]
            self.reporter.warn(
                f"{count(len(report['data']['bad']), 'image')} could not be used, e.g. {name} ({reason}): "
                "they count as images in which nothing was found"
            )
        self.say_done(report["seconds"], self.out, megabytes=report["memory_mb"])


def load_finetuned(run: str | Path) -> tuple[nn.Module, tuple[str, ...]]:
    """The detector or segmenter of a run of :func:`hetcl.finetune`, in eval mode, and the names of its classes.

    A detector takes a list of images, float ``[3, H, W]`` in 0..1 (RGB), and gives for each ``boxes`` ``[n, 4]`` in
    its pixels, ``scores`` ``[n]``, ``labels`` ``[n]`` (1 is the first class, 0 the background) and, with masks,
    ``masks`` bool ``[n, 1, H, W]``. A segmenter takes ``[B, 3, H, W]`` and gives logits ``[B, K, H, W]``.

    Raises:
        InputError: no such run, or a broken one.
    """
    folder = RunFolder(run)
    saved = read_run(folder)
    return read_model(folder, saved)[0], tuple(saved["classes"])


def read_run(folder: RunFolder) -> dict[str, Any]:
    """The settings of a fine-tuning run. Raises ``InputError`` when it is none."""
    saved = folder.read_settings(newer=False)
    if saved.get("kind") != KIND:
        raise InputError(f"{folder.path} is no run of `hetcl finetune`; name one that is")
    lacking = [name for name in ("arch", "classes", "facts") if name not in saved]
    lacking += [name for name in MODEL_WORDS if name not in saved["settings"]]
    if lacking:
        raise InputError(f"{folder.settings} lacks {lacking[0]}; put back the run's own")
    return saved | {"settings": to_dict(saved_settings(folder, saved))}


def read_model(folder: RunFolder, saved: Mapping[str, Any], **changes: Any) -> tuple[nn.Module, str]:
    """The trained model on the host, in eval mode, with some settings changed; and how far it was trained.

    Raises:
        InputError: no checkpoint, or one that does not fit.
    """
    found = latest(folder.checkpoints)
    if found is None:
        raise InputError(f"{folder.path} has no checkpoint yet; let it train first")
    path, content = found.path, found.state
    if found.notes:
        log.warning(found.notes)
    if content.get("kind") != KIND or content.get("arch") != saved["arch"]:
        raise InputError(f"{path} is not of the run in {folder.path}; put back its own")
    words = model_words(saved["settings"]) | changes
    words["norm"] = "frozen" if words["norm"] == "frozen" else "tuned"  # the same weights, on any device
    model = build_model(
        **words,
        arch=saved["arch"],
        classes=len(saved["classes"]),
        facts=InputFacts.from_dict(saved["facts"], "settings.yaml"),
    )
    try:
        model.load_state_dict(content["task"]["model"])
        done = content["epoch"] * content["steps_per_epoch"] + content["step"]
        trained = f"{done:,} of {count(content['steps'], 'step')}"
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise InputError(
            f"{path} does not fit {folder.settings} ({(str(e).splitlines() or [''])[0][:120]}); put back the run's own"
        ) from None
    return model.eval(), trained
