"""What tells a person that it works: figures of a step, and messages about what surprises.

Shapes: B queries, D dimensions, K keys in the queue, N images (``hetcl/types.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetcl.analysis.vector_spread import alignment, uniformity
from hetcl.draws import Key, permute
from hetcl.methods import METHODS, parts_of
from hetcl.model.infonce import logits_of, top1, top1_in_batch
from hetcl.model.queue import KeyQueue
from hetcl.types import Parts, Source
from hetcl.views.order import Order


def columns(methods: Iterable[str]) -> tuple[str, ...]:
    """The header of metrics.csv of a run of some methods; a method leaves empty what it has not."""
    parts = parts_of(methods)
    return (
        *("stage", "epoch", "step", "loss", "chance", "queue_filled", "accuracy_queue", "accuracy_batch"),
        *(f"{part}_accuracy_{where}" for part in parts for where in ("queue", "batch")),
        *("alignment", "uniformity"),
        *(f"{part}_{figure}" for part in parts for figure in ("alignment", "uniformity")),
        *("accuracy", "knn", "lr"),
    )


@torch.no_grad()
def figures(
    query: Parts,
    key: Parts,
    queue: KeyQueue,
    logits: Tensor,
    index: Tensor,
    *,
    mask_own: bool,
    gather: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, Tensor]:
    """Accuracies, alignment and uniformity of a step, together and for each part. Scalars on the device, no sync.

    Args:
        query, key: parts of this rank's batch.
        queue: as it was when ``logits [B, 1 + K]`` were made.
        index: int64 ``[B]``.
        gather: rows of this rank to rows of all ranks; what is said of the batch is then said of the global one.
    """
    out = {"accuracy_queue": top1(logits)}
    owned = {"index": index, "queue_index": queue.index} if mask_own else {}
    past = dict(zip(queue.dims, queue.keys.split(list(queue.dims.values()), dim=1), strict=True))
    if len(query) > 1:
        for name in query:
            out[f"{name}_accuracy_queue"] = top1(logits_of(query[name], key[name], past[name], **owned))
    query, key = ({name: gather(part) for name, part in parts.items()} for parts in (query, key))
    index = gather(index)
    if len(query) > 1:
        for name in query:
            q, k = query[name], key[name]
            out[f"{name}_accuracy_batch"] = top1_in_batch(q, k, index)
            out[f"{name}_alignment"], out[f"{name}_uniformity"] = alignment(q, k), uniformity(q)
    scale = len(query) ** -0.5
    q = torch.cat([query[n] for n in query], dim=1) * scale
    k = torch.cat([key[n] for n in query], dim=1) * scale
    return out | {
        "accuracy_batch": top1_in_batch(q, k, index),
        "alignment": alignment(q, k),
        "uniformity": uniformity(q),
    }


def some_images(source: Source, count: int, *key: Key, near: bool) -> np.ndarray:
    """``count`` different images, a function of ``key``, in no order: int64 ``[count]``.

    Args:
        near: from as few shards (or runs of neighbours) as hold them, where reading anywhere would be slow.
    """
    if not near:
        return permute(np.arange(count), len(source), *key)
    order = Order(len(source), *key, window=count, blocks=source.blocks())
    return order.indices(0, np.arange(count))


def settling(*, queue_steps: float, key_momentum: float, steps: int) -> int:
    """Steps for which keys may look told by age before it is called a fault; every encoder starts that way.

    20 turnovers of the queue and 10 time constants of the key encoder; at most a quarter of the stage, at least 500.

    Args:
        queue_steps: steps after which every key of the queue is new.
        key_momentum: of the key encoder.
        steps: of the whole stage.
    """
    constants = 1 / max(1e-6, 1 - key_momentum)
    return round(max(500.0, min(max(20 * queue_steps, 10 * constants), steps / 4)))


def owners() -> list[str]:
    """Prefixes of the figures of the whole embedding and of each part of any method."""
    return ["", *(f"{part}_" for part in parts_of(METHODS))]


@dataclass
class Watch:
    """Tells a person, once a stage, about figures that surprise or warn.

    No warning rests on one row: an encoder that has just begun looks ill in many ways and mends by itself.

    Args:
        smallest: uniformity above this is a collapse (0: all embeddings are equal).
        patience: steps before a collapse is called one; an untrained encoder is nearly constant.
        settle: steps for which keys must have been told by age; see :func:`settling`.
    """

    smallest: float = -0.02
    patience: int = 300
    settle: int = 500
    best_knn: float = 0.0
    _said: set[str] = field(default_factory=set)
    _losses: list[float] = field(default_factory=list)
    _aged: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _flat: dict[str, float] = field(default_factory=dict)
    _fallen: int = 0

    def messages(self, row: Mapping[str, float]) -> Iterator[str]:
        """Messages about a row of figures that have not been given before."""
        for key, text in (*self._filling(row), *self._age(row), *self._leak(row), *self._collapse(row)):
            if key not in self._said:
                self._said.add(key)
                yield text
        self.best_knn = max(self.best_knn, row.get("knn", 0.0))

    def _filling(self, row: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        filled, loss = row.get("queue_filled", 1.0), row.get("loss")
        if loss is None or filled >= 1:
            return
        if self._losses and loss > min(self._losses) + 0.05:
            yield (
                "filling",
                (
                    f"the loss rises while the queue fills ({filled:.0%}): real keys are harder negatives "
                    "than the random ones it starts with. This is expected early, and may last for some time after the "
                    "queue is full; accuracy within the batch says whether the encoder learns"
                ),
            )
        self._losses.append(loss)

    def _age(self, row: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """Keys told by age: for ``settle`` steps on end, while accuracy within the batch hardly grows."""
        step, filled = row.get("step", 0.0), row.get("queue_filled", 1.0)
        for name in owners():
            in_queue, in_batch = row.get(f"{name}accuracy_queue"), row.get(f"{name}accuracy_batch")
            if in_queue is None or in_batch is None:
                continue
            held = self._aged.setdefault(name, [])
            if filled < 1 or in_queue <= 2 * in_batch + 0.05:
                held.clear()
                continue
            held.append((step, in_batch))
            lasted = step - held[0][0]
            if lasted < self.settle:
                continue
            middle = held[0][0] + lasted / 2
            early, late = ([a for s, a in held if (s < middle) == first] for first in (True, False))
            if np.mean(late) > 1.2 * np.mean(early):  # it learns to tell images as well: wait and see
                self._aged[name] = [(s, a) for s, a in held if s >= middle]
                continue
            whose = f" of the {name.rstrip('_')} part" if name else ""
            yield (
                f"age {name}",
                (
                    f"accuracy{whose} against the queue ({in_queue:.1%}) has been far above accuracy within the "
                    f"batch ({in_batch:.1%}, hardly growing) for {lasted:,.0f} steps: the encoder tells old keys from "
                    "fresh ones instead of images from each other. That is expected early, not for so long. "
                    "Raise key_momentum, shorten the queue or lower lr"
                ),
            )

    def _leak(self, row: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """Perfect accuracy while kNN is below its best: at two checks in a row, since a single one may be chance."""
        if "knn" not in row:
            return
        queue, knn = row.get("accuracy_queue", 0.0), row["knn"]
        self._fallen = self._fallen + 1 if queue > 0.999 and knn < 0.9 * self.best_knn else 0
        if self._fallen > 1:
            yield (
                "leak",
                (
                    f"training accuracy is {queue:.2%} while kNN falls (best {self.best_knn:.1%}, now {knn:.1%}): "
                    "batch norm may leak which key belongs to which query. Use more than one batch-norm group"
                ),
            )

    def _collapse(self, row: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """One vector for all: in two rows on end, and not on the way out of it."""
        if row.get("step", 0) < self.patience:
            return
        for name in owners():
            value = row.get(f"{name}uniformity")
            if value is None:
                continue
            before = self._flat.pop(name, None)
            if value <= self.smallest:
                continue
            self._flat[name] = value
            if before is not None and value > 1.25 * before - 0.0003:  # no more spread out than before
                what = f"the {name.rstrip('_')} part" if name else "the embedding"
                yield (
                    f"collapse {name}",
                    (
                        f"{what} has collapsed: all images get nearly the same vector "
                        f"(uniformity {value:.3f}, 0 is collapse, -4 is spread out). "
                        "Lower lr, or raise temperature or key_momentum"
                    ),
                )


def in_batch_alone(row: Mapping[str, Any]) -> dict[str, float]:
    """Accuracy within the batch of each part alone, of a row that has several."""
    found = {part: row.get(f"{part}_accuracy_batch") for part in parts_of(METHODS)}
    return {part: float(value) for part, value in found.items() if value is not None}


def brief(row: Mapping[str, float]) -> list[str]:
    """The two figures of a row that say most."""
    words = [f"loss {row['loss']:.3f}"] if "loss" in row else []
    if "accuracy_batch" in row:
        words.append(f"in batch {row['accuracy_batch']:.1%}")
    elif "accuracy" in row:
        words.append(f"accuracy {row['accuracy']:.1%}")
    return words


def line(row: Mapping[str, float]) -> str:
    """A row of figures in words."""
    words = []
    if "loss" in row:
        words.append(
            f"loss {row['loss']:.3f}" + (f" (chance {row['chance']:.2f})" if "chance" in row else "")
        )
    if row.get("queue_filled", 1.0) < 1:
        words.append(f"queue {row['queue_filled']:.0%} full")
    if "accuracy_queue" in row:
        words.append(f"right in queue {row['accuracy_queue']:.1%}, in batch {row['accuracy_batch']:.1%}")
    alone = [f"{part} {value:.1%}" for part, value in in_batch_alone(row).items()]
    if alone:
        words.append(f"({', '.join(alone)} in batch)")
    if "accuracy" in row:
        words.append(f"accuracy {row['accuracy']:.1%}")
    if "alignment" in row:
        words.append(f"alignment {row['alignment']:.2f}, uniformity {row['uniformity']:.2f}")
    if "knn" in row:
        words.append(f"kNN {row['knn']:.1%}")
    if "lr" in row:
        words.append(f"lr {row['lr']:.2g}")
    return "  ".join(words)
