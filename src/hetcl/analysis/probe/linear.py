"""Linear probes of frozen features: logistic regression by L-BFGS, and the MoCo recipe as a task of the training loop.

Shapes: n images, b of a block, D dimensions, C classes, B local batch, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hetcl.draws import permute, seed_of
from hetcl.types import ViewBatch
from hetcl.views.loader import ViewLoader

Blocks = Sequence[tuple[Any, Any]]
"""Features ``[b, D]`` and labels ``[b]`` (0 to C - 1), as numpy arrays (memory-mapped, say) or tensors."""

PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""L2 penalties that are tried, from the strongest."""
USUAL = 1e-2
"""The penalty where there are too few images to choose one."""
HELD, FEWEST, MOST = 0.2, 10, 20_000
"""Share of the training images that a penalty is chosen on, the least and the largest number of them."""
KEEP = 2 << 30
"""Bytes of features that are kept standardised on the device; more are read again for each evaluation."""
LOGITS = 1 << 24
"""Numbers in the logits that are held at a time."""


class Standardised:
    """Features of mean 0 and standard deviation 1, on a device, in pieces whose logits fit in memory.

    Args:
        blocks: raw features and labels.
        mean, std: float64 ``[D]``.
        classes: C.
        chosen: bool ``[n]``, of the rows in the order of the blocks: take only those; None: all.
    """

    def __init__(
        self,
        blocks: Blocks,
        mean: np.ndarray,
        std: np.ndarray,
        *,
        classes: int,
        chosen: np.ndarray | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._blocks, self._chosen, self.device, self.dtype = blocks, chosen, device, dtype
        self._mean, self._std = (torch.from_numpy(x).to(dtype).to(device) for x in (mean, std))
        self._step = max(1, LOGITS // classes)
        self.n = sum(len(y) for _, y in blocks) if chosen is None else int(chosen.sum())
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        if self.n * len(mean) * dtype.itemsize <= KEEP:
            self._kept = list(self._read())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._read() if self._kept is None else iter(self._kept)

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        at = 0
        for x, y in self._blocks:
            rows = np.arange(len(y))
            if self._chosen is not None:
                rows = rows[self._chosen[at : at + len(y)]]
            at += len(y)
            for i in range(0, len(rows), self._step):
                some = rows[i : i + self._step]
                features = torch.as_tensor(np.asarray(x)[some]).to(self.device, self.dtype)
                yield (
                    (features - self._mean) / self._std,
                    torch.as_tensor(np.asarray(y)[some]).to(self.device),
                )


def scale_of(blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each dimension over all rows, float64 ``[D]``; 1 where all rows are equal."""
    n = sum(len(y) for _, y in blocks)
    mean = sum(np.asarray(x, np.float64).sum(axis=0) for x, _ in blocks) / n
    square = sum(((np.asarray(x, np.float64) - mean) ** 2).sum(axis=0) for x, _ in blocks) / n
    std = np.sqrt(square)
    return mean, np.where(std > 1e-6 * max(std.max(), 1e-30), std, 1.0)


@torch.no_grad()
def objective(theta: Tensor, data: Standardised, penalty: float) -> tuple[float, Tensor]:
    """Mean cross-entropy plus penalty / 2 times the squared length of the weights, and its gradient.

    Args:
        theta: ``[C, D + 1]``: weights, and the bias as the last column, which is not penalised.
    """
    weight, bias = theta[:, :-1], theta[:, -1]
    loss, gradient = 0.0, torch.zeros_like(theta)
    for x, y in data:
        logits = torch.addmm(bias, x, weight.t())
        log_p = logits.log_softmax(dim=1)
        loss -= float(log_p.gather(1, y[:, None]).sum())
        error = log_p.exp_()
        error[torch.arange(len(y), device=y.device), y] -= 1
        gradient[:, :-1].addmm_(error.t(), x)
        gradient[:, -1] += error.sum(dim=0)
    gradient /= data.n
    gradient[:, :-1].add_(weight, alpha=penalty)
    return loss / data.n + penalty / 2 * float(weight.square().sum()), gradient


def fit(
    data: Standardised, *, classes: int, dim: int, penalty: float, start: Tensor | None = None,
    iterations: int = 500, tolerance: float = 1e-5, interrupt: Callable[[], None] = lambda: None,
) -> Tensor:  # fmt: skip
    """Multinomial logistic regression by L-BFGS with a strong-Wolfe line search: theta ``[C, D + 1]``.

    Args:
        start: a theta to begin from.
        tolerance: the largest entry of the gradient at which it is solved.
        interrupt: called at each evaluation; may raise.
    """
    theta = (
        torch.zeros(classes, dim + 1, device=data.device, dtype=data.dtype)
        if start is None
        else start.clone()
    )
    theta.requires_grad_()
    solver = torch.optim.LBFGS(
        [theta],
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        interrupt()
        value, theta.grad = objective(theta.detach(), data, penalty)
        return value

    solver.step(closure)
    return theta.detach()


@torch.no_grad()
def ranks(theta: Tensor, data: Standardised) -> np.ndarray:
    """1 + how many other classes score at least as high as the true one (ties count against): int64 ``[n]``.

    Rows whose label is -1 get C + 1.
    """
    out = [rank_of(torch.addmm(theta[:, -1], x, theta[:, :-1].t()), y).cpu() for x, y in data]
    return torch.cat(out).numpy()


def rank_of(logits: Tensor, label: Tensor) -> Tensor:
    """The rank of each row's label among ``logits [B, C]``; C + 1 for the label -1."""
    own = logits.gather(1, label.clamp(min=0)[:, None])
    rank = (~(logits < own)).sum(dim=1)  # (so that NaN is never right)
    return torch.where(label >= 0, rank, logits.shape[1] + 1)


@dataclass(frozen=True)
class FittedLinear:
    """What a linear probe found."""

    penalty: float
    ranks: np.ndarray
    """int64 ``[M]``: of the true class of each test image."""
    tried: dict[float, float]
    """Top-1 on the training images held out for the choice, for each penalty that was tried; empty: none was."""


def logistic_regression(
    train: Blocks, test: Blocks, *, classes: int, seed: int, device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda _: None, interrupt: Callable[[], None] = lambda: None,
) -> FittedLinear:  # fmt: skip
    """Fit on ``train``, rank the true classes of ``test``.

    The penalty is chosen by top-1 on a keyed fifth of the training images, from the strongest on, each fit beginning
    where the last one ended, until two in a row are worse than the best; then all training images are fitted.
    """
    mean, std = scale_of(train)
    made: dict[str, Any] = {"classes": classes, "device": device}
    shape: dict[str, Any] = {"classes": classes, "dim": len(mean), "interrupt": interrupt}
    penalty, tried = _choose(train, mean, std, made, shape, seed=seed, say=say)
    theta = fit(Standardised(train, mean, std, **made), penalty=penalty, **shape)
    return FittedLinear(penalty, ranks(theta, Standardised(test, mean, std, **made)), tried)


def _choose(
    train: Blocks, mean: np.ndarray, std: np.ndarray, made: Mapping[str, Any], shape: Mapping[str, Any], *,
    seed: int, say: Callable[[str], None],
) -> tuple[float, dict[float, float]]:  # fmt: skip
    """The penalty, and what each one tried was worth."""
    n = sum(len(y) for _, y in train)
    held = min(MOST, int(HELD * n))
    if held < FEWEST:
        return USUAL, {}
    aside = np.zeros(n, np.bool_)
    aside[permute(np.arange(held), n, seed, "probe", "penalty")] = True
    rest, judge = (Standardised(train, mean, std, chosen=c, **made) for c in (~aside, aside))
    tried: dict[float, float] = {}
    theta, best = None, PENALTIES[0]
    for penalty in PENALTIES:
        theta = fit(rest, penalty=penalty, start=theta, **shape)
        tried[penalty] = float((ranks(theta, judge) == 1).mean())
        say(f"linear    penalty {penalty:g}: {tried[penalty]:.1%} of {held:,} training images held out")
        best = penalty if tried[penalty] > tried[best] else best
        if len(tried) > 2 and max(list(tried.values())[-2:]) < tried[best]:
            break
    return best, tried


# ---- the MoCo recipe ---------------------------------------------------------------------------------------------

COLUMNS = ("stage", "epoch", "step", "loss", "accuracy", "top1", "top5", "lr")
"""The header of metrics.csv."""


class LinearTask:
    """One linear layer on the features of a frozen backbone, by SGD on augmented views (docs/facts.md).

    Every rank holds the layer; gradients are averaged by hand.

    Args:
        features: ``(images uint8 [B, 3, H, W], color [B, P]) -> [B, D]``, fp32, without gradients.
        dim, classes: D, C.
        loader: one view of each training image, with labels of 0 to C - 1.
        test: features and labels of central views of the test images.
        lr: of SGD, for this batch.
        device: where to compute.
    """

    name = "linear"
    lr_setting = "lr"
    slow_evaluation = False

    def __init__(
        self, features: Callable[[Tensor, Tensor], Tensor], *, dim: int, classes: int, loader: ViewLoader,
        test: Blocks, epochs: int, batch: int, seed: int, lr: float, device: torch.device,
    ) -> None:  # fmt: skip
        self.features, self.loader, self.test, self.device = features, loader, test, device
        self.epochs, self.steps_per_epoch, self.images_per_step = epochs, loader.steps_per_epoch, batch
        self.seed = seed
        self.fc = nn.Linear(dim, classes)
        with torch.no_grad():
            draw = torch.Generator().manual_seed(seed_of(seed, self.name, "fc"))
            self.fc.weight.normal_(0, 0.01, generator=draw)
            self.fc.bias.zero_()
        self.fc.to(device)
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            self.fc.parameters(), lr=lr, momentum=0.9, weight_decay=0.0
        )

    def batches(self, epoch: int, start: int) -> Iterator[ViewBatch]:
        """Batches of an epoch on the device."""
        for batch in self.loader.epoch(epoch, start):
            yield batch.to(self.device)

    def step(self, batch: ViewBatch, step: int) -> dict[str, Tensor]:
        """One step of SGD on the cross-entropy."""
        assert batch.label is not None
        x = self.features(batch.images[0], batch.color[0])  # [B, D]
        logits = self.fc(x)
        loss = F.cross_entropy(logits, batch.label)
        self.optimizer.zero_grad()
        loss.backward()
        self._average_gradients()
        self.optimizer.step()
        right = (logits.argmax(dim=1) == batch.label).float().mean()
        return {"loss": loss.detach(), "accuracy": right}

    def _average_gradients(self) -> None:
        if dist.is_available() and dist.is_initialized():
            for p in self.fc.parameters():
                assert p.grad is not None
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()

    @torch.no_grad()
    def ranks(self) -> np.ndarray:
        """The rank of the true class of each test image: int64 ``[M]``."""
        out = []
        step = max(1, LOGITS // self.fc.out_features)
        for features, labels in self.test:
            for i in range(0, len(labels), step):
                x = torch.as_tensor(np.array(features[i : i + step])).to(self.device)
                out.append(rank_of(self.fc(x), torch.as_tensor(labels[i : i + step]).to(self.device)).cpu())
        return torch.cat(out).numpy()

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Top-1 and top-5 on the test images."""
        rank = self.ranks()
        return {"top1": float((rank == 1).mean()), "top5": float((rank <= 5).mean())}

    def messages(self, row: Mapping[str, float]) -> Iterable[str]:
        """Nothing to warn of."""
        return ()

    def line(self, row: Mapping[str, float]) -> str:
        """A row in words."""
        words = {
            "loss": "loss {:.3f}",
            "accuracy": "right in training {:.1%}",
            "top1": "in test {:.1%}",
            "top5": "among five {:.1%}",
            "lr": "lr {:.2g}",
        }
        return "  ".join(text.format(row[key]) for key, text in words.items() if key in row)

    def brief(self, row: Mapping[str, float]) -> list[str]:
        """The first two words of :meth:`line`."""
        return self.line(row).split("  ")[:2]

    def close(self) -> None:
        """Stop the workers."""
        self.loader.close()

    def before_save(self) -> None:
        """Nothing to agree on: ranks hold the same layer."""

    def state_dict(self) -> dict[str, Any]:
        """The layer and the optimiser; the backbone does not change."""
        return {"fc": self.fc.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What :meth:`state_dict` gave."""
        self.fc.load_state_dict(state["fc"])
        self.optimizer.load_state_dict(state["optimizer"])
