"""Linear probes of frozen features: logistic regression by L-BFGS, and the MoCo recipe as a task of the training loop.

n pictures, D dimensions, C classes, B local batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetcl.draws import permute, seed_of
from hetcl.model.pyramid import Pyramid
from hetcl.types import ViewBatch
from hetcl.views.loader import ViewLoader
from hetcl.views.photometric import Photometric

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""L2 penalties that are tried, on weights of standardised features."""
CHUNK = 16384
"""Pictures whose logits are held at a time."""


@dataclass(frozen=True)
class Logistic:
    """A linear classifier on standardised features."""

    weight: Tensor
    """``[D, C]``."""
    bias: Tensor
    """``[C]``."""
    mean: Tensor
    """``[D]``, of the training features."""
    std: Tensor
    """``[D]``; 1 where a feature is constant."""
    penalty: float

    def __call__(self, features: Tensor) -> Tensor:
        """``[n, D]`` -> logits ``[n, C]``."""
        return (features - self.mean) / self.std @ self.weight + self.bias


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    penalty: float,
    iterations: int = 200,
    start: Logistic | None = None,
    device: torch.device | str = "cpu",
) -> Logistic:
    """Minimise mean cross-entropy + penalty / 2 * |weight|^2 by L-BFGS with a strong-Wolfe line search.

    Args:
        features: ``[n, D]``, may be memory-mapped: read in chunks, so memory does not grow with n.
        labels: ``[n]`` of 0 to C - 1.
        penalty: on the weights of standardised features, not on the bias.
        start: begin from there (another penalty's solution).
    """
    n, d = features.shape
    mean, std = _moments(features, device)
    weight = torch.zeros(d, classes, device=device) if start is None else start.weight.clone()
    bias = torch.zeros(classes, device=device) if start is None else start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = penalty / 2 * weight.square().sum()
        total.backward()
        value = total.detach()
        for x, y in _chunks(features, labels, device):
            loss = F.cross_entropy((x - mean) / std @ weight + bias, y, reduction="sum") / n
            loss.backward()
            value = value + loss.detach()
        return value

    optimizer.step(closure)
    return Logistic(weight.detach(), bias.detach(), mean, std, penalty)


def choose_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    seed: int,
    device: torch.device | str = "cpu",
    said: Callable[[str], None] = lambda _: None,
    penalties: Sequence[float] = PENALTIES,
) -> Logistic:
    """The penalty that does best on a fifth of the training pictures, then fitted on all of them.

    Penalties are tried from the largest down, each from the solution before, until accuracy falls twice in a row.
    """
    n = len(labels)
    order = permute(np.arange(n), n, seed, "probe", "penalty")
    held, rest = np.sort(order[: max(1, n // 5)]), np.sort(order[max(1, n // 5) :])
    best, score, start, falls = penalties[-1], -1.0, None, 0
    train, test = (features[rest], labels[rest]), (features[held], labels[held])
    for penalty in sorted(penalties, reverse=True):
        start = fit_logistic(*train, classes=classes, penalty=penalty, start=start, device=device)
        right = accuracy(start, *test, device=device)[1] / len(held)
        said(f"linear    penalty {penalty:g}: {right:.1%} of a held-out fifth")
        falls = 0 if right > score else falls + 1
        if right > score:
            best, score = penalty, right
        if falls == 2:
            break
    return fit_logistic(features, labels, classes=classes, penalty=best, device=device)


def accuracy(
    model: Callable[[Tensor], Tensor],
    features: np.ndarray,
    labels: np.ndarray,
    *,
    device: torch.device | str = "cpu",
) -> dict[int, int]:
    """Among how many pictures the label is the first, and among the first five: ``{1: .., 5: ..}``."""
    right = {1: 0, 5: 0}
    with torch.no_grad():
        for x, y in _chunks(features, labels, device):
            for k, hits in hits_of(model(x), y).items():
                right[k] += int(hits)
    return right


def hits_of(logits: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """Rows whose label is the first, and among the first five (or all classes, if fewer). Scalars, no sync."""
    order = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {1: order[:, :1].sum(), 5: order.sum()}


def _chunks(
    features: np.ndarray, labels: np.ndarray, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(labels), CHUNK):
        rows = slice(start, start + CHUNK)
        x = torch.from_numpy(np.array(features[rows], np.float32)).to(device)
        yield x, torch.from_numpy(np.array(labels[rows], np.int64)).to(device)


def _moments(features: np.ndarray, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each dimension, summed in float64."""
    n, shift = len(features), np.asarray(features[0], np.float64)
    total, squares = np.zeros_like(shift), np.zeros_like(shift)
    for start in range(0, n, CHUNK):
        x = np.asarray(features[start : start + CHUNK], np.float64) - shift
        total, squares = total + x.sum(axis=0), squares + (x**2).sum(axis=0)
    mean = total / n
    std = np.sqrt((squares / n - mean**2).clip(min=0))
    std = np.where(std > 1e-6 * max(float(std.max()), 1e-12), std, 1.0)
    return (torch.from_numpy(v).float().to(device) for v in (mean + shift, std))  # type: ignore[return-value]


class LinearTask:
    """The MoCo recipe: one linear layer on the pooled features of a frozen backbone, by SGD on augmented views.

    The backbone stays in eval mode: neither its weights nor its batch-norm statistics move (FACTS, "linear probe").

    Args:
        pyramid: the backbone, on the device.
        features: ``(images) -> [B, D]``, without gradients.
        loader: one view of each picture, with labels.
        test: labelled features ``(features, labels)`` on the device, made anew for each evaluation.
    """

    name = "linear"

    def __init__(
        self,
        pyramid: Pyramid,
        features: Callable[[Tensor], Tensor],
        *,
        dim: int,
        classes: int,
        loader: ViewLoader,
        photometric: Photometric,
        test: Callable[[], Iterable[tuple[Tensor, Tensor]]],
        epochs: int,
        batch: int,
        seed: int,
        lr: float,
        device: torch.device,
        on_bad: Callable[[ViewBatch], None],
    ) -> None:
        self.pyramid, self.features = pyramid, features
        self.loader, self.photometric, self.test, self.on_bad = loader, photometric, test, on_bad
        self.epochs, self.steps_per_epoch, self.images_per_step = epochs, loader.steps_per_epoch, batch
        self.seed, self.device = seed, device
        self.fc = nn.Linear(dim, classes)
        generator = torch.Generator().manual_seed(seed_of(seed, "probe", "fc"))
        with torch.no_grad():
            self.fc.weight.normal_(0, 0.01, generator=generator)
            self.fc.bias.zero_()
        self.fc.to(device)
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            self.fc.parameters(), lr=lr, momentum=0.9, weight_decay=0.0
        )

    def batches(self, epoch: int, start: int) -> Iterator[ViewBatch]:
        """Batches of an epoch on the device."""
        for batch in self.loader.epoch(epoch, start):
            self.on_bad(batch)
            yield batch.to(self.device)

    def step(self, batch: ViewBatch, step: int) -> dict[str, Tensor]:
        """One step of SGD on the cross-entropy; pictures without a label do not count."""
        assert batch.label is not None
        x = self.features(self.photometric(batch.images[0], batch.colour[0]))
        logits, known = self.fc(x), batch.label >= 0
        count = known.sum().clamp(min=1)
        loss = F.cross_entropy(logits, batch.label, ignore_index=-1, reduction="sum") / count
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        right = ((logits.argmax(dim=1) == batch.label) & known).sum() / count
        return {"loss": loss.detach(), "accuracy": right}

    @torch.no_grad()
    def evaluate(self, epoch: int) -> dict[str, float]:
        """Top-1 and top-5 on the test pictures."""
        if epoch == 0:
            return {}
        hits, n = {1: 0, 5: 0}, 0
        for x, labels in self.test():
            for k, v in hits_of(self.fc(x), labels).items():
                hits[k] += int(v)
            n += len(labels)
        return {"top1": hits[1] / n, "top5": hits[5] / n}

    def messages(self, row: Mapping[str, float]) -> Iterable[str]:
        """Nothing to warn of."""
        return ()

    def line(self, row: Mapping[str, float]) -> str:
        """A row in words."""
        words = [f"{name} {row[key]:.{digits}}" for name, key, digits in _WORDS if key in row]
        return "  ".join(words)

    def close(self) -> None:
        """Stop the workers."""
        self.loader.close()

    def before_save(self) -> None:
        """Nothing to agree on: one process."""

    def state_dict(self) -> dict[str, Any]:
        """The linear layer and the optimiser; the backbone does not change."""
        return {"fc": self.fc.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        self.fc.load_state_dict(state["fc"])
        self.optimizer.load_state_dict(state["optimizer"])


_WORDS = (
    ("loss", "loss", "3f"),
    ("right in training", "accuracy", "1%"),
    ("in test: top-1", "top1", "1%"),
    ("top-5", "top5", "1%"),
    ("lr", "lr", "2g"),
)
COLUMNS = ("stage", "epoch", "step", "loss", "accuracy", "top1", "top5", "lr")
"""The header of metrics.csv."""
