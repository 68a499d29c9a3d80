"""A run of ``hetcl finetune`` used again: its settings, its model, and what the verbs that use it do alike."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hetcl.downstream.build import MODEL_WORDS, build_model, model_words
from hetcl.downstream.plan import KIND, saved_settings
from hetcl.errors import InputError
from hetcl.quantities import count, duration
from hetcl.runs.folder import RunFolder
from hetcl.runs.resume import latest
from hetcl.settings import EvaluateSettings, PredictSettings, to_dict
from hetcl.training.session import Found, ReportingSession
from hetcl.types import PixelFormat
from hetcl.weights.facts import InputFacts

log = logging.getLogger(__name__)


class RunSession(ReportingSession[Found]):
    """Besides, of a verb that looks at images with a fine-tuned run: the run, its model, how far the pass is."""

    settings: EvaluateSettings | PredictSettings
    steps: tuple[int, int]
    """Steps that the run was trained, and of how many."""
    first: tuple[int, float] | None = None
    """How many images were done when the clock of the time that is left began, and that moment."""

    def open_run(self, run: RunFolder, settings: EvaluateSettings | PredictSettings) -> None:
        """Read the run's settings, which say the precision where ``settings`` do not. Raises ``InputError``."""
        self.run, self.saved = run, read_run(run)
        self.words = model_words(self.saved["settings"])
        if settings.precision == "auto":
            settings = replace(settings, precision=self.saved["settings"].get("precision", "auto"))
        self.settings = settings

    @property
    def pixels(self) -> PixelFormat:
        """As what the run reads images."""
        return InputFacts.from_dict(self.saved["facts"], "settings.yaml").pixels

    def load_model(self) -> nn.Module:
        """The trained model on the device, with what ``settings`` change. Raises ``InputError``."""
        s, changes = self.settings, dict[str, Any]()
        if s.test_size:
            changes |= {"test_size": s.test_size, "max_size": max(self.words["max_size"], s.test_size)}
        changes |= {name: value for name in ("detections", "test_proposals") if (value := getattr(s, name))}
        if s.score_threshold >= 0:
            changes["score_threshold"] = s.score_threshold
        model, self.steps = read_model(self.run, self.saved, **changes)
        model = model.to(self.fabric.device)
        return model.to(memory_format=torch.channels_last if s.channels_last else torch.contiguous_format)

    @property
    def trained(self) -> str:
        """How far the run was trained, in words."""
        done, whole = self.steps
        return f"{done:,} of {count(whole, 'step')}"

    def say_run(self) -> None:
        """The line of the run, and that it is not finished."""
        kind = f"{self.words['model']}, {self.saved['arch']}, {self.trained}"
        self.reporter.say(f"run       {self.run.path}: {kind}")
        if self.steps[0] < self.steps[1]:
            self.reporter.warn(
                f"this run is not finished; hetcl finetune --out {self.run.path} --resume goes on"
            )

    def advance(self, done: int, total: int) -> None:
        """Show how many images are done, of how many, and how long the others take."""
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


def load_finetuned(run: str | Path) -> tuple[nn.Module, tuple[str, ...]]:
    """The detector or segmenter of a run of :func:`hetcl.finetune`, in eval mode, and the names of its classes.

    A detector takes a list of images, float ``[C, H, W]`` in 0..1 (RGB, or the channels that it was trained on), and
    gives for each ``boxes`` ``[n, 4]`` in its pixels, ``scores`` ``[n]``, ``labels`` ``[n]`` (1 is the first class, 0
    the background) and, with masks, ``masks`` bool ``[n, 1, H, W]``. A segmenter takes ``[B, C, H, W]`` and gives
    logits ``[B, K, H, W]``.

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


def read_model(
    folder: RunFolder, saved: Mapping[str, Any], **changes: Any
) -> tuple[nn.Module, tuple[int, int]]:
    """The trained model on the host, in eval mode, with some settings changed; steps that it was trained, of how many.

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
        done = index(content["epoch"] * content["steps_per_epoch"] + content["step"])
        steps = done, index(content["steps"])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise InputError(
            f"{path} does not fit {folder.settings} ({(str(e).splitlines() or [''])[0][:120]}); put back the run's own"
        ) from None
    return model.eval(), steps
