"""LVIS's repeat factors: how often an image of rare classes is seen in an epoch."""

from __future__ import annotations

import numpy as np

from hetcl.datasets.annotations import DetectionSet
from hetcl.datasets.packed import PackedDetection


def repeat_factors(
    data: DetectionSet, threshold: float = 0.001, *, images: np.ndarray | None = None
) -> np.ndarray:
    """LVIS's repeat factors (Gupta et al., 2019, appendix B.2).

    A class c that is in a share f_c of the images has the factor max(1, sqrt(threshold / f_c)); an image has the
    largest factor of its classes, and 1 when there are none.

    Args:
        threshold: share of the images below which a class is repeated.
        images: those that are trained on, int64 ``[N]``; None: all.

    Returns:
        float64 ``[N]``, each at least 1.
    """
    chosen = np.arange(len(data)) if images is None else images

    def labels(index: int) -> np.ndarray:
        return data.labels(index) if isinstance(data, PackedDetection) else data.annotations(index).labels

    present = [np.unique(labels(int(i))) for i in chosen]
    seen = np.zeros(len(data.classes))
    for classes in present:
        seen[classes] += 1
    share = np.maximum(seen, 1) / max(len(chosen), 1)
    factor = np.maximum(1.0, np.sqrt(threshold / share))
    return np.array([factor[classes].max(initial=1.0) for classes in present])
