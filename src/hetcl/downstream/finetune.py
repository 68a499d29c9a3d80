"""``hetcl finetune``: a backbone and a data set to a run folder with a detector or a segmenter in it.

The order: open the data, settle the settings, try one image, make or resume the folder, then train and evaluate.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hetcl.datasets.annotations import Metrics
from hetcl.datasets.repeat_factors import repeat_factors
from hetcl.downstream.build import build_model, model_words, take_weights
from hetcl.downstream.estimate import Estimate, estimate
from hetcl.downstream.loader import DetectionExamples, Stream, TargetLoader
from hetcl.downstream.models import pyramid_state
from hetcl.downstream.parts import examples_of, joined, open_part, settle_pixels
from hetcl.downstream.plan import (
    KIND,
    FinetunePlan,
    example_words,
    new_plan,
    part_words,
    resumed_plan,
    scaled,
)
from hetcl.downstream.predict import EvaluationContext, EvaluationResult, evaluate_on
from hetcl.downstream.renamed import names_of
from hetcl.downstream.report_text import figure_names, meaning, plain, say_metrics, write_results
from hetcl.downstream.task import LOSSES, Finetune, FinetuneConfig
from hetcl.errors import InputError
from hetcl.guidance import random_start
from hetcl.images.look import channel_words
from hetcl.quantities import count
from hetcl.runs.folder import RunFolder, absolute, write_atomic
from hetcl.runs.output import reserved
from hetcl.runs.resume import Request, check_run, is_known, refuse_other_data
from hetcl.settings import to_dict
from hetcl.training.devices import peak_memory, use_threads
from hetcl.training.schedule import schedule
from hetcl.training.session import TrainingSession
from hetcl.weights.channels import with_channels
from hetcl.weights.facts import InputFacts
from hetcl.weights.sealed import seal_backbone
from hetcl.weights.sources import Weights, no_arch, read_weights


def finetune(
    *,
    init: str | None = None,
    data: str | None = None,
    out: str | Path,
    recipe: str | None = None,
    resume: bool = False,
    allow_partial: str | Sequence[str] = (),
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> RunFolder:
    """Fine-tune a detector or segmenter on a data set, and evaluate it on its validation part.

    Args:
        init: the backbone, a MODEL; with ``resume`` the run knows it.
        data: ``coco:ROOT``, ``lvis:ROOT``, ``voc:ROOT``, ``cityscapes:ROOT`` or ``scenes:N``; likewise.
        out: the run folder.
        recipe: name or file of a recipe; default ``coco-mask-rcnn-r50-fpn-1x``.
        resume: go on with the run in ``out`` if there is one.
        allow_partial: globs of keys of ``init`` that may be missing, unknown or of another shape (missing weights stay
            random); anything else that does not fit is refused.
        overrides: settings by name, as a mapping or as command-line words.

    Returns:
        the run folder.

    Raises:
        InputError: unusable arguments or data; nothing has been written then.
        WorkFailed: the work began and could not go on.
        Stopped: a signal came; the run saved itself.
    """
    folder = RunFolder(out)
    with reserved(folder.lock, lambda: check_run(folder, resume=resume)):
        asked = Request(data, recipe, init, allow_partial, overrides)
        plan = resumed_plan(folder, asked) if is_known(folder, resume=resume) else new_plan(asked)
        return FinetuneRun(folder, plan, resume=resume).go()


# ---- the run -----------------------------------------------------------------------------------------------------


class FinetuneRun(TrainingSession):
    """One fine-tuning run: opens, tries, trains, evaluates, says.

    Args:
        folder: where to write.
        plan: what to do.
        resume: go on if the folder holds a checkpoint.
    """

    def __init__(self, folder: RunFolder, plan: FinetunePlan, *, resume: bool) -> None:
        super().__init__(folder, resume=resume)
        self.plan = plan
        self.settings, self.notes = scaled(plan.settings)
        use_threads(plan.settings.threads)  # before the dry run
        s, spec = self.settings, plan.data
        train, val = (
            open_part(spec, split, s.model, follow_links=s.follow_links) for split in ("train", "val")
        )
        parts = joined(spec, train, val, **part_words(s))
        self.train, self.val, self.notes = parts.train, parts.val, self.notes + parts.notes
        self.now = {"fingerprint": self.train.fingerprint, "fingerprint_test": self.val.fingerprint}
        refuse_other_data(folder, spec, vars(plan), self.now)
        self.classes = names_of(self.train)
        self.examples, notes = examples_of(self.train, spec, **example_words(s))
        self.notes += notes
        if not plan.known and (few := random_start(plan.init, len(self.examples))):
            self.notes.append(few)
        self.init: Weights | None = None
        self.arch, self.facts = plan.arch, InputFacts.from_dict(plan.facts, "settings.yaml")
        if not self.begun:
            self._read_init()
        if self.init is not None and not plan.facts:
            self.facts = settle_pixels(
                (train, val), self.init, in_chans=s.in_chans, pixel_max=s.pixel_max, given=(s.mean, s.std)
            )
        for part in (train, val):
            part.pixels = self.facts.pixels
        self.estimate: Estimate | None = None
        if not plan.known:  # before anything is written
            self.estimate = estimate(self.examples, s.seed, self._model)
        self.start(s, folder.log, folder.tensorboard, batch=s.batch)
        if s.norm == "sync" and self.fabric.world_size > 1 and self.fabric.device.type != "cuda":
            self.notes.append("norm sync -> tuned: PyTorch synchronises batch norm on GPUs only")
            self.settings = replace(s, norm="tuned")
        self.keep_ledger(s.max_bad, len(self.examples))
        self.memory = ""
        if self.estimate is not None:
            self.memory, warned = self.estimate.memory(
                self.fabric.device, batch=s.batch, devices=s.devices, ranks=self.fabric.world_size,
                half=self.precision == "bf16", workers=self.workers,
            )  # fmt: skip
            self.notes += [warned] if warned else []

    def _read_init(self) -> None:
        """The backbone's weights. Raises ``InputError``."""
        self.init = weights = read_weights(self.plan.init, allow_partial=self.plan.allow_partial)
        if weights.arch is None:
            raise InputError(no_arch(self.plan.init))
        self.arch = weights.arch
        channels = len(self.plan.facts["mean"]) if self.plan.facts else self.settings.in_chans
        self.init = with_channels(weights, channels or weights.in_chans)

    def _model(self) -> nn.Module:
        """With the backbone's weights in it, if they were read."""
        s = self.settings
        model = build_model(
            **model_words(to_dict(s)), arch=self.arch, classes=len(self.classes), facts=self.facts
        )
        if self.init is not None:
            take_weights(model, self.init, fpn=s.inherit_fpn)
        return model

    # ---- training --------------------------------------------------------------------------------------------------

    def go(self) -> RunFolder:
        """Find what to go on from, train, evaluate, and write what was learned."""
        last = self._last_state()
        self._introduce()
        with self.working():
            task = self._task()
            self._fit(task, last)
            self._finish(task)
        return self.folder

    def _last_state(self) -> dict[str, Any] | None:
        """Make the folder or find the last checkpoint in it; settle the tables."""
        settings = self.plan.tree(
            data=absolute(self.plan.data), **self.now, arch=self.arch, facts=self.facts.to_dict(),
            classes=list(self.classes), settings=to_dict(self.plan.settings),
        )  # fmt: skip
        figures = figure_names(self.val, self.settings.model)
        return self.begin(
            ["finetune"], ("stage", "epoch", "step", "loss", *LOSSES, *figures, "lr"), {"kind": KIND} | settings,
            known=self.plan.known, kind=KIND, arch=self.arch,
        )  # fmt: skip

    def _introduce(self) -> None:
        say, s = self.reporter.say, self.settings
        for name, data in (("train", self.train), ("test", self.val)):
            say(f"{name:<9} {data.description}")
            for line in data.skipped.lines():
                self.reporter.warn(f"{name}: {line}")
        kind = s.model if s.model == "fcn" else f"{s.model}, neck {s.neck}"
        say(f"model     {kind}, {self.arch}, {count(len(self.classes), 'class')}")
        if not self.facts.pixels.rgb:
            say(f"pixels    {channel_words(self.facts.pixels, self.facts.mean, self.facts.std)}")
        say(
            f"training  {count(s.steps, 'step')} of {count(s.batch, 'image')}, lr {s.lr:g}, batch norm {s.norm}"
        )
        self.say_where(self.folder.path, precision=self.precision, memory=self.memory)
        seconds = 0.0
        if self.estimate is not None:
            words, seconds = self.estimate.time(
                s, self.fabric.device, ranks=self.fabric.world_size, tested=len(self.val)
            )
            say(f"time      {words}")
        for line in self.notes:
            self.reporter.warn(line)
        self.warn_of(seconds, "`hetcl recipes` lists smaller ones")

    def _task(self) -> Finetune:
        s, fabric = self.settings, self.fabric
        factors = None
        if s.repeat_threshold and isinstance(self.examples, DetectionExamples):
            factors = repeat_factors(self.train, s.repeat_threshold, images=self.examples.images)
        loader = TargetLoader(
            self.examples, Stream(len(self.examples), s.seed, "finetune", factors=factors), batch=s.batch,
            seed=s.seed, rank=fabric.global_rank, ranks=fabric.world_size, workers=self.workers,
            pin=fabric.device.type == "cuda",
        )  # fmt: skip
        model = self._model().to(fabric.device)
        if s.channels_last:
            model = model.to(memory_format=torch.channels_last)
        config = FinetuneConfig(**{f.name: getattr(s, f.name) for f in fields(FinetuneConfig)})
        return Finetune(
            model, config, fabric=fabric, loader=loader, evaluate=self._evaluate,
            on_bad=lambda bad: self.bad.see(s.batch // fabric.world_size, bad),
        )  # fmt: skip

    def _evaluate(self, model: nn.Module) -> tuple[EvaluationResult, Metrics]:
        return evaluate_on(model, self.val, self._look())

    def _look(self) -> EvaluationContext:
        s = self.settings
        return EvaluationContext(self.fabric, self.workers, s.channels_last, s.max_bad)

    def _fit(self, task: Finetune, last: dict[str, Any] | None) -> None:
        s = self.settings
        loop = self.loop(
            task,
            schedule(
                "step", lr=s.lr, epochs=s.steps, steps_per_epoch=1, milestones=s.milestones, warmup=s.warmup
            ),
            s,
            extra={
                "kind": KIND,
                "arch": self.arch,
                "classes": list(self.classes),
                "steps": s.steps,
                "steps_per_epoch": task.steps_per_epoch,
            },
        )
        if last is not None:
            at = last["epoch"] * task.steps_per_epoch + last["step"]
            self.reporter.say(f"going on at step {at:,} of {s.steps:,}")
        loop.fit(last)
        task.close()

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _finish(self, task: Finetune) -> None:
        """Write what was learned; a run that was done already is evaluated again."""
        if task.last is None:
            task.last = self._evaluate(task.raw)
        seen, metrics = task.last
        if not self.main:
            return
        self._write_backbone(task.raw)
        seconds = self.write_summary(
            {
                "figures": plain(metrics.figures),
                "per_class": {name: plain(row) for name, row in metrics.per_class.items()},
                "data": {
                    "train": self.train.description,
                    "test": self.val.description,
                    "bad": self.bad.known,
                },
            },
            memory_mb=peak_memory(self.fabric.device),
        )
        write_results(
            self.folder.path, self.val, seen, model=task.raw, look=self._look(), images=range(len(self.val))
        )
        with self.reporter.reporting():
            megabytes = peak_memory(self.fabric.device)
            say_metrics(self.reporter, metrics, len(self.val))
            self.reporter.say(meaning(metrics.figures))
            self.say_done(seconds, self.folder.path, megabytes=megabytes)
            where = self.folder.path
            self.reporter.say(
                f"look at:  {where / 'predictions.png'}: validation images, the truth beside what was found"
            )
            self.reporter.say(f"use it:   hetcl predict {shlex.quote(str(where))} photos/ --out predictions")

    def _write_backbone(self, model: nn.Module) -> None:
        """The fine-tuned backbone, for whoever wants it alone."""
        facts = {"arch": self.arch, **self.facts.to_dict()}
        facts.pop("source")
        write_atomic(self.folder.backbone, seal_backbone(pyramid_state(model), facts))
