"""How often a picture is to be seen in an epoch."""

from __future__ import annotations

import numpy as np

from hetcl.downstream.data.packed import PackedDetection
from hetcl.downstream.objects import DetectionSet


def repeat_factors(data: DetectionSet, threshold: float = 0.001) -> np.ndarray:
    """LVIS's repeat factors (Gupta et al., 2019, appendix B.2).

    A class c that is in a share f_c of the pictures has the factor max(1, sqrt(threshold / f_c)); a picture has the
    largest factor of its classes, and 1 when there are none.

    Args:
        threshold: share of the pictures below which a class is repeated.

    Returns:
        float64 ``[N]``, each at least 1.
    """

    def labels(index: int) -> np.ndarray:
        return data.labels(index) if isinstance(data, PackedDetection) else data.truth(index).labels

    present = [np.unique(labels(i)) for i in range(len(data))]
    pictures = np.zeros(len(data.classes))
    for classes in present:
        pictures[classes] += 1
    share = np.maximum(pictures, 1) / max(len(data), 1)
    factor = np.maximum(1.0, np.sqrt(threshold / share))
    return np.array([factor[classes].max(initial=1.0) for classes in present])
