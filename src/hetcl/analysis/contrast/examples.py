"""Typical successes and failures of each bin of overlap, as images (Figure 2).

Typical: of the queries of a bin that succeeded (or failed), those whose margin, the similarity with the own key minus
that with the most similar other key, is nearest the median. S side of a view in pixels.
"""

from __future__ import annotations

import io

import numpy as np
import torch

from hetcl.analysis.contrast.report import Tested, chunks, overlap_of
from hetcl.analysis.contrast.sheets import Example, examples
from hetcl.analysis.statistics import Bins
from hetcl.images.channels import drawable
from hetcl.images.decode import open_image
from hetcl.types import Source, ViewBatch, ViewPolicy
from hetcl.views.pairs import Pairs
from hetcl.views.photometric import Photometric

CANDIDATES = 500
"""Queries of a bin that are looked at to find the typical ones: the first of the random order."""


def sheet_of(
    tested: Tested, source: Source, pairs: Pairs, *, policy: ViewPolicy, size: int, bins: int, count: int
) -> bytes:
    """A PNG of up to ``count`` successes and failures for each bin of overlap."""
    chosen = choose(tested, bins=bins, count=count)
    shown = [_example(tested, source, pairs, policy, size, label, row) for label, row in chosen]
    page = io.BytesIO()
    title = f"{tested.name}: who was found for whom (views: {tested.views}, {tested.gallery:,} other images)"
    examples(shown, title).save(page, "PNG")
    return page.getvalue()


def choose(tested: Tested, *, bins: int, count: int) -> list[tuple[str, int]]:
    """``(label of the bin, row)`` of typical successes and failures, in the order of the bins."""
    held, edges = tested.searched["full"].read(), Bins(bins)
    found: dict[tuple[int, bool], list[tuple[int, float]]] = {}
    for rows in chunks(len(held)):
        some, places = held[rows], edges.assign(overlap_of(tested.features, rows))
        for place in range(len(edges)):
            for success in (True, False):
                seen = found.setdefault((place, success), [])
                here = np.flatnonzero((places == place) & ((some["rank"] == 1) == success))
                here = here[: CANDIDATES - len(seen)]
                margins = (some["right"] - some["wrong"])[here]
                seen += zip((here + rows.start).tolist(), margins.tolist(), strict=True)
    out = []
    for (place, _), seen in sorted(found.items(), key=lambda item: (item[0][0], not item[0][1])):
        middle = float(np.median([m for _, m in seen])) if seen else 0.0
        nearest = sorted(seen, key=lambda one: (abs(one[1] - middle), one[0]))[:count]
        out += [(edges.label(place), row) for row, _ in nearest]
    return out


def _example(
    tested: Tested, source: Source, pairs: Pairs, policy: ViewPolicy, size: int, label: str, row: int
) -> Example:
    """The images of one query: its original with both crops, its views, and what was found."""
    row_found = tested.searched["full"].read()[row]
    index, found, success = (
        int(tested.features.index[row]),
        int(row_found["found"]),
        bool(row_found["rank"] == 1),
    )
    own = pairs.render([index], policy, size)
    other = pairs.render([found], policy, size) if not success and found >= 0 else None
    boxes = own.boxes[:, 0].tolist()
    return Example(
        bin=label,
        success=success,
        original=drawable(open_image(source.sample(index), pixels=pairs.pixels).pixels()),
        boxes=(tuple(boxes[0]), tuple(boxes[1])),
        query=shown(own, policy, 0),
        partner=shown(own, policy, 1),
        found=None if other is None else shown(other, policy, 1),
        found_original=None
        if other is None
        else drawable(open_image(source.sample(found), pixels=pairs.pixels).pixels()),
        found_box=None if other is None else tuple(other.boxes[1, 0].tolist()),
        iou=float(overlap_of(tested.features, slice(row, row + 1))[0]),
        right=float(row_found["right"]),
        wrong=float(row_found["wrong"]),
    )


def shown(batch: ViewBatch, policy: ViewPolicy, view: int) -> np.ndarray:
    """A view as the encoder gets it, for people: uint8 ``[S, S, 3]``."""
    plain = Photometric(policy, mean=(0,), std=(1,))
    image = plain(batch.images[view], batch.color[view])[0].clamp(0, 1).permute(1, 2, 0)
    if batch.images.dtype != torch.uint8:
        return drawable(image.numpy())
    return (image * 255).round().to(torch.uint8).numpy()
