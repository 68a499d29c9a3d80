"""Fine-tuning as a task of the training loop: named losses, evaluation, batch norm measured anew at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hetcl.datasets.annotations import Metrics
from hetcl.downstream.loader import Batch, TargetLoader
from hetcl.downstream.models import param_groups, precise_bn
from hetcl.downstream.predict import EvaluationResult
from hetcl.downstream.report_text import in_words
from hetcl.errors import InputError
from hetcl.model.momentum import average_buffers
from hetcl.types import BadRecord
from hetcl.views.photometric import in_unit

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
"""The losses of detectors, by torchvision's names."""
SHORT = dict(zip(LOSSES, ("objectness", "rpn box", "class", "box", "mask"), strict=True))
"""Their names in a line for people."""


@dataclass(frozen=True)
class FinetuneConfig:
    """The numbers of fine-tuning, as its settings name them."""

    steps: int
    """S, in all."""
    evaluations: int
    """E; a period of S / E steps ends with one (S must be a multiple)."""
    batch: int
    lr: float
    sgd_momentum: float
    weight_decay: float
    norm_weight_decay: float
    clip_grad: float = 0.0
    """Largest norm of the gradient; 0: none."""
    precise_bn: int = 0
    """Batches over which batch norm's statistics are measured anew before the last evaluation; 0: none."""
    channels_last: bool = False
    seed: int = 0


class Finetune:
    """Trains a detector or a segmenter, all layers of it.

    Args:
        model: on the device; gives named losses in training (``hetcl.downstream.models``).
        loader: gives its batches.
        evaluate: the model -> what was seen and its figures; called on every rank.
        on_bad: called with the unusable images of each batch.
    """

    name = "finetune"
    lr_setting = "lr"
    slow_evaluation = True

    def __init__(
        self,
        model: nn.Module,
        config: FinetuneConfig,
        *,
        fabric: Fabric,
        loader: TargetLoader,
        evaluate: Callable[[nn.Module], tuple[EvaluationResult, Metrics]],
        on_bad: Callable[[tuple[BadRecord, ...]], None],
    ) -> None:
        self.fabric, self.loader, self._evaluate, self._on_bad = fabric, loader, evaluate, on_bad
        self.seed, self.clip_grad, self.precise_bn = config.seed, config.clip_grad, config.precise_bn
        self.epochs, self.images_per_step = config.evaluations, config.batch
        self.steps_per_epoch = config.steps // config.evaluations
        self.format = torch.channels_last if config.channels_last else torch.contiguous_format
        groups = param_groups(model, config.lr, config.weight_decay, config.norm_weight_decay)
        optimizer: Any = torch.optim.SGD(groups, lr=config.lr, momentum=config.sgd_momentum)
        self.raw = model
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.model.train()
        self.last: tuple[EvaluationResult, Metrics] | None = None

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Batches of a period from step ``start`` on, on the device."""
        first = epoch * self.steps_per_epoch
        for batch in self.loader.steps(first + start, first + self.steps_per_epoch):
            self._on_bad(batch.bad)
            yield batch.to(self.fabric.device)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Losses, their gradient, one step of SGD."""
        with self.fabric.autocast():
            losses = self.model(*self._arguments(batch))
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self.fabric.backward(total)
        if self.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.raw.parameters(), self.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**{name: loss.detach() for name, loss in losses.items()}, "loss": total.detach()}

    def _arguments(self, batch: Batch) -> tuple[Any, Any]:
        """What the model takes."""
        images = [in_unit(image) for image in batch.images]
        if all("boxes" in target for target in batch.targets):
            return images, [dict(target) for target in batch.targets]
        stacked = torch.stack(images).contiguous(memory_format=self.format)
        return stacked, torch.stack([target["labels"] for target in batch.targets])

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Figures on the validation part; before training there is nothing to see."""
        if epoch == 0:
            return {}
        if epoch == self.epochs and self.precise_bn:
            self._measure()
        self.last = self._evaluate(self.raw)
        return dict(self.last[1].figures)

    def _measure(self) -> None:
        """PreciseBN over the first batches of training."""
        batches = (self._arguments(b.to(self.fabric.device)) for b in self.loader.steps(0, self.precise_bn))
        try:
            with self.fabric.autocast():
                precise_bn(self.raw, batches, self.precise_bn)
        except InputError:  # nothing to measure: all norms are frozen, or there are none
            return
        average_buffers(self.raw)

    def messages(self, row: Mapping[str, float]) -> Iterable[str]:
        """None: losses and figures speak for themselves."""
        return ()

    def line(self, row: Mapping[str, float]) -> str:
        """Losses by name, then figures."""
        words = []
        if "loss" in row:
            parts = ", ".join(f"{SHORT[n]} {row[n]:.3f}" for n in LOSSES if n in row)
            words.append(f"loss {row['loss']:.3f}" + (f" ({parts})" if parts else ""))
        words += [f"{in_words(n)} {row[n]:.1f}" for n in HEADLINES if n in row]
        if "lr" in row:
            words.append(f"lr {row['lr']:.2g}")
        return "  ".join(words)

    def brief(self, row: Mapping[str, float]) -> list[str]:
        """The loss, and the first figure of the last evaluation."""
        figures = self.last[1].figures if self.last is not None else {}
        return [f"loss {row['loss']:.3f}"] * ("loss" in row) + [
            f"{in_words(n)} {figures[n]:.1f}" for n in HEADLINES if n in figures
        ][:1]

    def close(self) -> None:
        """Stop the workers."""
        self.loader.close()

    def before_save(self) -> None:
        """Ranks agree on running statistics."""
        average_buffers(self.raw)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.raw.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.raw.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


HEADLINES = ("box_ap", "box_ap50", "mask_ap", "mask_ap50", "miou", "pixel_accuracy")
"""Figures of a line for people."""
