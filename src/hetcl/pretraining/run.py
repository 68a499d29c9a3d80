"""``hetcl pretrain``: settings and data to a run folder with a backbone in it.

The order: open the data, settle the settings, make or resume the folder, then train one stage after the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hetcl.errors import InputError
from hetcl.guidance import too_few
from hetcl.images.look import channel_words
from hetcl.images.sources import absolute_data, open_source
from hetcl.images.subset import with_labels
from hetcl.methods import METHODS, branch_words, facts_of
from hetcl.model.own_backbone import RECORDED, Backbone
from hetcl.model.pyramid import OWN
from hetcl.pretraining import monitors
from hetcl.pretraining.build import (
    DTYPES,
    build_model,
    build_task,
    given_otherwise,
    image_facts,
    normalization,
)
from hetcl.pretraining.knn_check import KnnCheck
from hetcl.pretraining.memory import memory_of
from hetcl.pretraining.pace import measure_step
from hetcl.pretraining.plan import (
    Plan,
    check_classes,
    check_labels,
    common_window,
    fit,
    held_out_of,
    new_plan,
    resumed_plan,
    settle_pixels,
    stages_to_train,
    with_backbone,
)
from hetcl.quantities import count, duration
from hetcl.reporting.console import verdict_lines
from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder, write_atomic
from hetcl.runs.output import reserved
from hetcl.runs.resume import Request, check_run, is_known, refuse_other_data
from hetcl.settings import StageSettings, stages_of, to_dict
from hetcl.signals import StopSignal
from hetcl.training.devices import chosen_kernels
from hetcl.training.dry_run import DryRun, dry_run
from hetcl.training.schedule import schedule
from hetcl.training.session import TrainingSession
from hetcl.training.task import Task
from hetcl.views.loader import ViewLoader
from hetcl.weights.channels import with_channels
from hetcl.weights.facts import input_facts
from hetcl.weights.sealed import seal_backbone
from hetcl.weights.sources import Weights, install, read_weights


def pretrain(
    *,
    data: str | None = None,
    out: str | Path,
    recipe: str | None = None,
    resume: bool = False,
    init: str | None = None,
    allow_partial: str | Sequence[str] = (),
    overrides: Mapping[str, Any] | Sequence[str] = (),
    backbone: Backbone | None = None,
) -> RunFolder:
    """Pre-train a backbone on images without labels, and leave it in ``out/backbone.safetensors``.

    Args:
        data: a folder of images, tar shards or ``scenes:N``; with ``resume`` the run knows it.
        out: the run folder.
        recipe: name or file of a recipe; default ``hcl-r50``.
        resume: go on with the run in ``out`` if there is one.
        init: weights to start from (a MODEL); with an HCL stage after another they take the first stage's place.
        allow_partial: globs of keys of ``init`` that may be missing, unknown or of another shape (missing weights stay
            random); anything else that does not fit is refused.
        overrides: settings by dotted name, as a mapping or as command-line words.
        backbone: one's own, in place of the setting: a module, which is copied and whose weights are the first ones, or
            a class or function that makes one (see ``register_backbone`` for what it must give). Its name is recorded,
            not its code: to resume, give it again.

    Returns:
        the run folder.

    Raises:
        InputError: unusable arguments or data; nothing has been written then.
        WorkFailed: the work began and could not go on.
        Stopped: a signal came; the run saved itself.
    """
    folder = RunFolder(out)
    data, init = (None if given is None else os.fspath(given) for given in (data, init))
    with reserved(folder.lock, lambda: check_run(folder, resume=resume)):
        known = is_known(folder, resume=resume)
        overrides, given = with_backbone(backbone, overrides, recipe, folder if known else None)
        asked = Request(data, recipe, init, allow_partial, overrides)
        plan = resumed_plan(folder, asked) if known else new_plan(asked)
        with chosen_kernels(deterministic=plan.settings.deterministic):
            return PretrainRun(folder, plan, resume=resume, given=given).go()


# ---- the run -----------------------------------------------------------------------------------------------------


class PretrainRun(TrainingSession):
    """One pre-training run: opens, trains, hands over, finishes.

    Args:
        folder: where to write.
        plan: what to do.
        resume: go on if the folder holds a checkpoint.
        given: weights of a backbone that was given from Python; those of ``plan.init`` come before them.
    """

    def __init__(self, folder: RunFolder, plan: Plan, *, resume: bool, given: Weights | None = None) -> None:
        super().__init__(folder, resume=resume)
        self.plan = plan
        self.settings = s = plan.settings
        self.source = open_source(
            plan.data, split=s.data_split, folder_classes=s.folder_classes, window=plan.window
        )
        self.held_out = held_out_of(plan.data, s, plan.window)
        check_classes(self.source, s)
        self.labelled = with_labels(self.source)
        refuse_other_data(folder, plan.data, vars(plan), {"fingerprint": self.source.fingerprint})
        self.init: Weights | None = None
        if plan.init is not None and not self.begun:
            self.init = read_weights(plan.init, arch=s.backbone, allow_partial=plan.allow_partial)
            self.init = with_channels(self.init, s.in_chans)
        if not plan.known:
            plan = self.plan = replace(plan, settings=settle_pixels(s, self.source, self.init))
            s = self.settings = plan.settings
        self.first = given if self.init is None else self.init
        self.dry_runs = self._dry_runs() if not plan.known else {}
        self.start(s, folder.log, folder.tensorboard, batch=s.batch, groups=s.groups)
        if self.first is given and self.fabric.world_size > 1:  # (each process has made a module of its own)
            self.first = self.fabric.broadcast(given)
        self.window = common_window(plan, self.source, self.fabric)
        supervised = any(METHODS[stage.method].labels for stage in self._todo().values())
        fitted = self.labelled if supervised else self.source
        self.settings, self.notes = fit(s, fitted, self.fabric.world_size, plan.init)
        self.keep_ledger(s.max_bad, len(self.source))
        self.memory = self._memory()

    def go(self) -> RunFolder:
        """Find what to go on from, train each stage, and write what was learned."""
        todo, s = self._todo(), self.settings
        if len(todo) < len(stages_of(self.settings)):
            self.notes.append(f"--init {self.plan.init} takes the place of stage 1")
        facts = input_facts(self.init.facts, str(self.init.arch), self.init.origin) if self.init else None
        if facts and facts.source != "assumed" and given_otherwise(facts, s):
            here = "ImageNet's mean and std, RGB," if not s.mean and s.in_chans == 3 else "those of this run"
            self.notes.append(
                f"--init {self.plan.init} was trained with {facts}; here it gets {here} and its first layers must adapt"
            )
        last = self._last_state(list(todo))
        with self.working():
            self._introduce(todo)
            self._stages(todo, last)
            self._finish(todo)
        return self.folder

    def _stages(self, todo: Mapping[str, StageSettings], last: dict[str, Any] | None) -> None:
        """Train what is left to train; ``last`` is the state that a resumed run goes on from."""
        before = self.first
        with StopSignal() as signal:
            for name, stage in todo.items():
                signal.check("stopped between two stages; go on with --resume")
                resumed = last if last is not None and last["stage"] == name else None
                if last is not None and resumed is None:
                    continue  # done; the checkpoint holds all that a later stage took from it
                task = self._task(name, stage, None if resumed else before)
                self._train(task, stage, resumed)
                before, last = read_weights(str(self.folder.checkpoints / f"{name}.ckpt")), None

    def _todo(self) -> dict[str, StageSettings]:
        """The stages to train, by name, in order."""
        return stages_to_train(self.settings, self.plan.init)

    def _dry_runs(self) -> dict[str, DryRun]:
        """One for each stage, before anything is written. Raises ``InputError`` for what cannot run."""
        s, first, found = self.settings, self.first, {}
        images = min(2, s.batch // s.groups)  # two do, since batch norm fails on one where it fails at all
        for name, stage in self._todo().items():
            if METHODS[stage.method].labels:
                check_labels(self.plan.data, self.source)

            def build(stage: StageSettings = stage, weights: Weights | None = first) -> nn.Module:
                model = self._model(stage)
                if weights is not None:
                    install(model, weights.query, weights.origin, arch=weights.arch)
                return model

            found[name] = dry_run(
                build, lambda model: model(torch.zeros(images, s.in_chans, s.size, s.size)), images=images,
                failure=f"the model of {name} does not run on {count(images, 'image')} of {s.size} pixels",
                advice="change size, batch, groups or backbone, or the width of the branches",
            )  # fmt: skip
            first = None  # the first stage takes it
        return found

    def _memory(self) -> str:
        """What the largest stage will take, in words; warns where there is less. Raises ``InputError``."""
        s, fabric = self.settings, self.fabric
        stages = [
            (one, getattr(s, name).method, getattr(s, name).queue) for name, one in self.dry_runs.items()
        ]
        text, warned = memory_of(
            stages, batch=s.batch // fabric.world_size,
            pieces=s.accumulate, size=s.size, precision=self.precision,
            device=fabric.device, processes=s.devices, workers=self.workers, pixels=s.pixels,
        )  # fmt: skip
        self.notes += [warned] if warned else []
        return text

    def _last_state(self, stages: Sequence[str]) -> dict[str, Any] | None:
        """Make the folder or find the last checkpoint in it; settle the tables."""
        settings = self.plan.tree(
            data=absolute_data(self.plan.data), fingerprint=self.source.fingerprint, window=self.window,
            settings=to_dict(self.plan.settings),
        )  # fmt: skip
        return self.begin(
            stages, monitors.columns(t.method for t in self._todo().values()), settings, known=self.plan.known,
            ended=[f"{name}.ckpt" for name in reversed(stages)], arch=self.settings.backbone,
        )  # fmt: skip

    def _introduce(self, todo: Mapping[str, StageSettings]) -> None:
        say, s = self.reporter.say, self.settings
        say(f"data      {self.source.description}")
        methods = ", then ".join(f"{one.method} for {count(one.epochs, 'epoch')}" for one in todo.values())
        say(
            f"training  {s.backbone} at {s.size} pixels: {methods}; batch {s.batch} in {s.groups} batch-norm groups"
        )
        if s.mean:
            say(f"pixels    {channel_words(s.pixels, s.mean, s.std)}")
        self.say_where(self.folder.path, precision=self.precision, memory=self.memory)
        self.reporter.note(f"window    {self.window} (images mixed at a time; 0: all)")
        if s.backbone.startswith(f"{OWN}:"):
            self.notes.append(f"the backbone was given from Python: {s.backbone}{RECORDED}")
        for line in self.notes:
            self.reporter.warn(line)
        if not self.resume:  # every rank takes part
            self._advise(todo)
            self._foretell(todo)
        if s.knn.every and self.source.classes is None:
            say("no labels in the data, so no kNN check; accuracy within the batch is the figure to watch")

    def _advise(self, todo: Mapping[str, StageSettings]) -> None:
        """Say what so few images allow, if they are few; the built-in scenes are for trying things out."""
        epochs = sum(stage.epochs for stage in todo.values())
        few = too_few(len(self.source), epochs, self.settings.backbone, init=self.plan.init)
        if few and not self.plan.data.startswith("scenes:"):
            self.reporter.warn(few)

    def _foretell(self, todo: Mapping[str, StageSettings]) -> None:
        """Say so when this would take more than a day here. Costs a few seconds, and nothing for short runs."""
        n, s = len(self.source), self.settings
        if n * sum(stage.epochs for stage in todo.values()) < 100_000:
            return
        classes = None if self.source.classes is None else len(self.source.classes)
        seconds = sum(
            measure_step(s, stage, fabric=self.fabric, classes=classes).seconds(n * stage.epochs)
            for stage in todo.values()
        )
        if self.fabric.device.type == "cuda":
            torch.cuda.empty_cache()
        if seconds == float("inf"):
            self.reporter.warn(
                f"a batch of {s.batch} does not fit into this GPU's memory; try --accumulate 2 (the same numbers "
                "in two pieces) or a smaller batch"
            )
        else:
            self.warn_of(seconds, "`--recipe small` is made for one small machine")

    # ---- one stage -----------------------------------------------------------------------------------------------

    def _model(self, stage: StageSettings) -> nn.Module:
        return build_model(
            self.settings, stage, None if self.source.classes is None else len(self.source.classes)
        )

    def _task(self, name: str, stage: StageSettings, before: Weights | None) -> Task:
        """The stage with its initial weights: random, or query and key encoder from ``before``."""
        s, fabric = self.settings, self.fabric
        model = self._model(stage)
        if before is not None:
            for line in install(model, before.query, before.origin):
                self.reporter.say(f"{name}: {line}")
        loader = ViewLoader(
            self.labelled if METHODS[stage.method].labels else self.source, policy=stage.views, size=s.size,
            batch=s.batch, seed=s.seed, stage=name, views=METHODS[stage.method].views_per_image,
            rank=fabric.global_rank, ranks=fabric.world_size, workers=self.workers, window=self.window,
            pin=fabric.device.type == "cuda", pixels=s.pixels,
        )  # fmt: skip

        def start_key(key: nn.Module) -> None:
            if before is not None and before.key is not None:
                install(key, before.key, before.origin)

        if s.compile:
            self.reporter.say(f"{name}: compiling in the first steps, about a minute")
        return build_task(
            s, name, stage, model, fabric=fabric, loader=loader, start_key=start_key,
            evaluate=self._knn_check().accuracy, on_bad=lambda batch: self.bad.see(len(batch.index), batch.bad),
        )  # fmt: skip

    def _knn_check(self) -> KnnCheck:
        s = self.settings
        return KnnCheck(
            self.labelled, self.held_out, fabric=self.fabric, bank=s.knn.bank, queries=s.knn.queries, k=s.knn.k,
            size=s.size, batch=s.batch, seed=s.seed, window=self.window, workers=self.workers,
            dtype=DTYPES.get(s.precision, torch.float32), channels_last=s.channels_last, pixels=s.pixels,
            **normalization(s),
        )  # fmt: skip

    def _train(self, task: Task, stage: StageSettings, resumed: dict[str, Any] | None) -> None:
        s = self.settings
        learning_rate = schedule(
            stage.schedule, lr=stage.lr, epochs=stage.epochs, steps_per_epoch=task.steps_per_epoch,
            milestones=stage.milestones, warmup=stage.warmup,
        )  # fmt: skip
        loop = self.loop(
            task,
            learning_rate,
            s,
            extra={
                "arch": s.backbone,
                "method": stage.method,
                "size": s.size,
                **({} if s.pixels.rgb and not s.mean else image_facts(s)),
                **facts_of(branch_words(s)),
            },
        )
        if resumed is not None:
            self.reporter.say(
                f"going on with {task.name} at epoch {resumed['epoch']}, step {resumed['step']}"
            )
        loop.fit(resumed)
        if self.main:
            checkpoint.save(self.folder.checkpoints / f"{task.name}.ckpt", loop.state())
        self.fabric.barrier()
        task.close()

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _finish(self, todo: Mapping[str, StageSettings]) -> None:
        if not self.main:
            return
        s = self.settings
        final = read_weights(str(self.folder.checkpoints / f"{list(todo)[-1]}.ckpt"))
        backbone = {n.removeprefix("pyramid."): v for n, v in final.query.items() if n.startswith("pyramid.")}
        methods = [stage.method for stage in todo.values()]
        facts = {"arch": s.backbone, "method": methods, "size": s.size, **image_facts(s)}
        write_atomic(self.folder.backbone, seal_backbone(backbone, facts))
        rows = self.metrics.rows()
        last = {
            str(r["stage"]): r for r in rows if "loss" in r and r["stage"] in todo
        }  # of each the last row
        knn = [r["knn"] for r in rows if "knn" in r]
        seconds = self.write_summary(
            {
                "backbone": facts,
                "data": {
                    "description": self.source.description,
                    "images": len(self.source),
                    "bad": self.bad.known,
                },
                "stages": last,
                "knn": {"before": knn[0], "after": knn[-1]} if knn else None,
            }
        )
        with self.reporter.reporting():
            self._conclude(seconds)

    def _conclude(self, seconds: float) -> None:
        """The last lines: what was learned, as ``hetcl doctor RUN`` says it, and what now."""
        say = self.reporter.say
        say("")
        say(f"done in {duration(seconds)}: {self.folder.backbone}", style="bold")
        if self.bad.known:
            say(f"{count(self.bad.known, 'image')} could not be used: {self.folder.bad_images} lists them")
        try:
            for line in verdict_lines([self.folder.path], warnings=False):
                say(line)
        except InputError as e:  # the folder was changed meanwhile; the run has ended all the same
            self.reporter.warn(str(e))
