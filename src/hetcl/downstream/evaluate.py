"""``hetcl evaluate``: a fine-tuned run on a data set: figures, results for others' tools, images to look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hetcl.downstream.parts import check_missing, judge, look_at_part, open_part
from hetcl.downstream.predict import EvaluationContext, EvaluationResult, evaluate_on
from hetcl.downstream.renamed import Wrapped, under
from hetcl.downstream.report_text import plain, say_metrics, write_results
from hetcl.downstream.trained import RunSession
from hetcl.paths import create, expand
from hetcl.quantities import count
from hetcl.runs.folder import RunFolder, disk_problem
from hetcl.runs.lock import FolderLock
from hetcl.runs.output import claim, held_in, reserved, write_report
from hetcl.runs.resume import check_own
from hetcl.settings import EvaluateSettings, resolve_evaluate
from hetcl.training.devices import peak_memory

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


class Evaluation(RunSession[EvaluationResult]):
    """One evaluation: reads, looks, scores, writes, says."""

    settings: EvaluateSettings

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
        self.above: str | None = None
        self.spec, self.out = data, out
        self.claim = lambda: claim(lock, lambda: _check_out(out, overwrite), self._clear)
        self.open_run(run, settings)
        settings, saved = self.settings, self.saved
        self.data = open_part(data, settings.split, self.words["model"], follow_links=settings.follow_links)
        check_missing(self.data, settings.max_bad)
        look_at_part(
            self.data, self.pixels, fix=f"the run {run.path} takes images of {self.pixels}: give it such"
        )
        self.data, self.notes = under(self.data, saved["classes"], data, f"the run {run.path}")
        what = f"the {'validation' if settings.split == 'val' else 'training'} part of {data}"
        if settings.images and settings.images < len(self.data):
            self.data = FirstImages(self.data, settings.images)
            what = f"the first {count(settings.images, 'image')} of {what}"
        most = settings.detections or self.words["detections"]
        self.notes += judge(self.data, what, model=self.words["model"], detections=most)
        self.start(settings, out / "log.txt")
        self.look = EvaluationContext(
            self.fabric, self.workers, settings.channels_last, settings.max_bad, self.advance
        )
        self.model = self.load_model()

    def _work(self) -> EvaluationResult:
        self.reporter.start("looking at images", 0, len(self.data))
        seen, self.metrics = evaluate_on(self.model, self.data, self.look, self._keep)
        return seen

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
        self.say_run()
        of = f" (the first {count(len(self.data), 'image')})" if isinstance(self.data, FirstImages) else ""
        say(f"test      {self.data.description}{of}")
        for line in [*self.data.skipped.lines(), *self.notes]:
            self.reporter.warn(line)
        self.say_where(self.out, precision=self.precision)

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
        if (sheet := self.out / "predictions.png").is_file():
            self.reporter.say(f"look at:  {sheet}: the truth beside what was found")
