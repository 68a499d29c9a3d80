"""The methods as tasks of the training loop. ``run.py`` hands weights over from one stage to the next.

A contrastive step reads as the algorithm (:meth:`Contrast.step`). Shapes: B local batch, R ranks, D dimensions of the
concatenated parts, K keys in the queue (``hetcl/types.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from hetcl.model.frames import in_image, sides_of
from hetcl.model.group_norm import group_batch_norm, micro_batch
from hetcl.model.infonce import info_nce
from hetcl.model.momentum import MomentumPair, average_buffers, gather, shuffle_of
from hetcl.model.queue import KeyQueue
from hetcl.pretraining import monitors
from hetcl.types import Parts, ViewBatch
from hetcl.views.crops import crops_of
from hetcl.views.loader import ViewLoader
from hetcl.views.photometric import Photometric

Evaluate = Callable[[nn.Module], dict[str, float]]
"""Figures of a backbone (the kNN check)."""


@dataclass(frozen=True)
class StageConfig:
    """The numbers of a stage, as its settings name them."""

    epochs: int
    batch: int
    """Images in a step, over all ranks."""
    lr: float
    """Learning rate of SGD over every parameter of the encoder, as the next two are its."""
    sgd_momentum: float
    weight_decay: float
    seed: int = 0
    accumulate: int = 1
    """Pieces in which each rank takes its part of the batch."""
    channels_last: bool = False
    knn_every: int = 0
    """Epochs between kNN checks; 0: never."""


class _Stage:
    """What every method shares: batches, views, the optimiser, the kNN check, messages.

    Args:
        encoder: what is trained, on the device, and whose backbone is checked.
        encoders: the encoder, and the one that follows it where there is one.
    """

    def __init__(
        self,
        name: str,
        config: StageConfig,
        *,
        fabric: Fabric,
        loader: ViewLoader,
        photometric: Photometric,
        evaluate: Evaluate,
        on_bad: Callable[[ViewBatch], None],
        encoder: nn.Module,
        encoders: nn.Module,
    ) -> None:
        self.lr_setting, self.slow_evaluation = f"{name}.lr", False
        self.name, self.fabric, self.loader, self.photometric = name, fabric, loader, photometric
        self._evaluate, self._on_bad = evaluate, on_bad
        c = config
        self.epochs, self.steps_per_epoch, self.images_per_step = c.epochs, loader.steps_per_epoch, c.batch
        self.seed, self.accumulate, self.knn_every = c.seed, c.accumulate, c.knn_every
        self.format = torch.channels_last if c.channels_last else torch.contiguous_format
        self.watch = monitors.Watch()
        self.encoder, self.encoders = encoder, encoders
        optimizer = torch.optim.SGD(
            encoder.parameters(), lr=c.lr, momentum=c.sgd_momentum, weight_decay=c.weight_decay
        )
        self.trained, self.optimizer = fabric.setup(encoder, optimizer)
        encoders.train()

    def batches(self, epoch: int, start: int) -> Iterator[ViewBatch]:
        """Batches of an epoch on the device; bad images are reported on the way."""
        for batch in on_device(self.loader.epoch(epoch, start), self.fabric.device):
            self._on_bad(batch)
            yield batch

    def views(self, batch: ViewBatch) -> list[Tensor]:
        """The views as the encoder takes them: V of ``[B, 3, H, W]``."""
        return [
            self.photometric(images, color).contiguous(memory_format=self.format)
            for images, color in zip(batch.images, batch.color, strict=True)
        ]

    def messages(self, row: Mapping[str, float]) -> Iterator[str]:
        """See :class:`monitors.Watch`."""
        return self.watch.messages(row)

    def line(self, row: Mapping[str, float]) -> str:
        """See :func:`monitors.line`."""
        return monitors.line(row)

    def brief(self, row: Mapping[str, float]) -> list[str]:
        """See :func:`monitors.brief`."""
        return monitors.brief(row)

    def close(self) -> None:
        """Stop the workers."""
        self.loader.close()

    def evaluate(self, epoch: int) -> dict[str, float]:
        """The kNN check on the backbone of :attr:`encoder`."""
        pyramid: Any = self.encoder.pyramid
        due = self.knn_every and (epoch % self.knn_every == 0 or epoch == self.epochs)
        if not due:
            return {}
        training = pyramid.training
        pyramid.eval()
        try:
            return self._evaluate(pyramid)
        finally:
            pyramid.train(training)

    def before_save(self) -> None:
        """Ranks agree on their batch-norm statistics."""
        average_buffers(self.encoders)


def pieces_of(count: int, pieces: int) -> list[slice]:
    """Rows 0 to ``count``, a multiple of ``pieces``, as slices of one length: the micro-batches."""
    each = count // pieces
    return [slice(i * each, (i + 1) * each) for i in range(pieces)]


def on_device(batches: Iterator[ViewBatch], device: torch.device) -> Iterator[ViewBatch]:
    """Batches on ``device``. To a GPU they are copied on a stream of their own, so that the copy runs beside the step
    before, which the GPU still computes when the next batch is asked for."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    aside = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(aside):
            moved = batch.to(device)
        stream = torch.cuda.current_stream(device)
        stream.wait_stream(aside)
        for tensor in (moved.images, moved.boxes, moved.frames, moved.index, moved.label):
            if tensor is not None:
                tensor.record_stream(stream)  # its memory is not given away while this stream reads it
        yield moved


class Contrast(_Stage):
    """MoCo-v1, MoCo-v2, HCL and its like: they differ in the branches of the pair, their frames and the views alone.

    Args:
        pair: query and key encoder, on the device.
        queue: on the device.
        temperature: of the loss.
        mask_own: keep an image's own earlier keys out of its negatives.
        batch_negatives: the keys of the step's other images are negatives, too.
        laid_back: parts that are compared in the image's frame (``model/frames.py``).
        **common: see :class:`_Stage`.
    """

    def __init__(
        self,
        name: str,
        config: StageConfig,
        *,
        pair: MomentumPair,
        queue: KeyQueue,
        temperature: float,
        mask_own: bool,
        batch_negatives: bool = False,
        laid_back: Collection[str] = (),
        **common: Any,
    ) -> None:
        super().__init__(name, config, encoder=pair.query, encoders=pair, **common)
        self.pair, self.queue, self.temperature = pair, queue, temperature
        self.mask_own, self.batch_negatives = mask_own, batch_negatives
        self.sides = {part: side for part, side in sides_of(pair.query).items() if part in laid_back}
        self.watch.settle = monitors.settling(
            queue_steps=queue.length / self.images_per_step,
            key_momentum=pair.momentum,
            steps=self.epochs * self.steps_per_epoch,
        )

    def step(self, batch: ViewBatch, step: int) -> dict[str, Tensor]:
        """One step of momentum contrast (paper section 3.3, equation 1; MoCo algorithm 1)."""
        index = batch.index
        x_query, x_key = self.views(batch)

        # The momentum update reads the query's weights only, so it may stand before the query pass.
        self.pair.update_key()
        shuffle = shuffle_of(self.images_per_step, self.seed, self.name, step)
        with self.fabric.autocast():
            key = self.pair.encode_keys(x_key, shuffle, chunks=self.accumulate)
        key = self.compared(key, batch, 1)
        k = self.concat(key)
        if self.batch_negatives:
            self.queue.push(gather(k), gather(index))
        pieces: list[tuple[Parts, Tensor, Tensor]] = []
        for i, rows in enumerate(pieces_of(len(index), self.accumulate)):
            last = i == self.accumulate - 1
            with (
                self.fabric.no_backward_sync(self.trained, enabled=not last),
                self.pair.micro_batch(self.pair.query, i, self.accumulate),
            ):
                query = self.compared(self.trained(x_query[rows]), batch, 0, rows)
                logits, loss = info_nce(
                    self.concat(query),
                    k[rows],
                    self.queue.keys,
                    temperature=self.temperature,
                    index=index[rows] if self.mask_own else None,
                    queue_index=self.queue.index,
                )
                self.fabric.backward(loss / self.accumulate)
            pieces.append(({n: p.detach() for n, p in query.items()}, logits.detach(), loss.detach()))
        self.optimizer.step()
        self.optimizer.zero_grad()

        query = {n: torch.cat([p[0][n] for p in pieces]) for n in key}
        figures = self.figures(query, key, torch.cat([p[1] for p in pieces]), index)
        if not self.batch_negatives:
            self.queue.push(gather(k), gather(index))
        return {"loss": torch.stack([p[2] for p in pieces]).mean(), **figures}

    def compared(self, parts: Parts, batch: ViewBatch, view: int, rows: slice = slice(None)) -> Parts:
        """Parts of some rows of a view as they are compared: as they are, or laid back into the image's frame."""
        return in_image(parts, crops_of(batch, view)[rows], self.sides) if self.sides else parts

    def concat(self, parts: Parts) -> Tensor:
        """Parts side by side in the queue's order: ``[B, D]``."""
        return torch.cat([parts[name] for name in self.queue.dims], dim=1)

    def figures(self, query: Parts, key: Parts, logits: Tensor, index: Tensor) -> dict[str, Tensor]:
        """See :func:`monitors.figures`; besides, the chance level log(1 + K) and how full the queue is."""
        known = {"chance": math.log(1 + self.queue.length), "queue_filled": self.queue.filled}
        return {
            **{name: torch.full((), value, device=index.device) for name, value in known.items()},
            **monitors.figures(query, key, self.queue, logits, index, mask_own=self.mask_own, gather=gather),
        }

    def state_dict(self) -> dict[str, Any]:
        """Both encoders, the queue, the optimiser."""
        return {
            "query": self.pair.query.state_dict(),
            "key": self.pair.key.state_dict(),
            "queue": self.queue.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        self.pair.query.load_state_dict(state["query"])
        self.pair.key.load_state_dict(state["key"])
        self.queue.load_state_dict(state["queue"])
        self.optimizer.load_state_dict(state["optimizer"])


class Supervised(_Stage):
    """Training with labels: cross-entropy on the pooled last map.

    Args:
        model: a ``Classifier`` on the device.
        groups: batch-norm groups of this process's batch.
        **common: see :class:`_Stage`.
    """

    def __init__(
        self,
        name: str,
        config: StageConfig,
        *,
        model: nn.Module,
        groups: int,
        **common: Any,
    ) -> None:
        self.model, self.groups = group_batch_norm(model, groups), groups
        super().__init__(name, config, encoder=self.model, encoders=self.model, **common)

    def step(self, batch: ViewBatch, step: int) -> dict[str, Tensor]:
        """One step of SGD on the cross-entropy."""
        (images,) = self.views(batch)
        assert batch.label is not None
        losses, right = [], []
        for i, rows in enumerate(pieces_of(len(images), self.accumulate)):
            last = i == self.accumulate - 1
            with (
                self.fabric.no_backward_sync(self.trained, enabled=not last),
                micro_batch(self.model, self.groups, i, self.accumulate),
            ):
                logits = self.trained(images[rows])
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                loss = F.cross_entropy(logits, batch.label[rows])
                self.fabric.backward(loss / self.accumulate)
            losses.append(loss.detach())
            right.append((logits.argmax(dim=1) == batch.label[rows]).float().mean())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": torch.stack(losses).mean(), "accuracy": torch.stack(right).mean()}

    def state_dict(self) -> dict[str, Any]:
        """The model and the optimiser."""
        return {"query": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        self.model.load_state_dict(state["query"])
        self.optimizer.load_state_dict(state["optimizer"])
