"""How vectors lie on their sphere: alignment, uniformity, effective rank. B vectors, D dimensions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def alignment(query: Tensor, key: Tensor) -> Tensor:
    """Mean squared distance of unit vectors of positive pairs, 0 to 4 (Wang and Isola 2020). Scalar."""
    return (query - key).square().sum(dim=1).mean()


@torch.no_grad()
def uniformity(x: Tensor) -> Tensor:
    """log mean exp(-2 d^2) over pairs of unit vectors ``[B, D]`` (Wang and Isola 2020). Scalar.

    0 when all are equal (collapse); about -4 when they are spread over a sphere of many dimensions.
    """
    if len(x) < 2:
        return torch.zeros((), device=x.device)
    exponents = (-4 * (1 - x @ x.t())).fill_diagonal_(float("-inf"))
    return torch.logsumexp(exponents.flatten(), dim=0) - math.log(len(x) * (len(x) - 1))


def effective_rank(variances: np.ndarray) -> float:
    """exp of the entropy of the singular values normalised to sum one (Roy and Vetterli 2007).

    Args:
        variances: of the principal axes, ``[D]``; their roots are proportional to the singular values of the centred
            features.

    Returns:
        1 when all vectors lie on a line, D when they spread evenly, 0 when they are all equal.
    """
    singular = np.sqrt(np.asarray(variances, np.float64).clip(min=0))
    total = singular.sum()
    if total <= 1e-6:
        return 0.0
    p = singular[singular > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))
