"""What each part of an embedding finds alone, as images: the semantic part, the spatial one, both together.

A row for each way it can come out, the commonest kind of example of it: the original with both crops, the views with
their spatial maps, and what each part took for the partner. S side of a view in pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from hetcl.analysis.contrast.examples import shown
from hetcl.analysis.contrast.report import Tested, overlap_of
from hetcl.analysis.contrast.sheets import (
    CELL,
    GAP,
    HEAD,
    INK,
    LINE,
    PARTNER,
    QUERY,
    QUIET,
    drawn,
    fitted,
    font,
    framed,
)
from hetcl.images.decode import open_image
from hetcl.types import Source, ViewPolicy
from hetcl.views.pairs import Pairs

LOOKED_AT = 5_000
"""Queries that are looked at to find the examples: the first of the random order."""
RIGHT, WRONG = "#009E73", "#D55E00"
"""Frames of what was found, told apart by people with any kind of colour vision (the caption says it, too)."""
ROW = HEAD + CELL + GAP
EDGE = 4 * GAP
"""Between what is given and what was found."""


def part_sheet(
    tested: Tested, random: Tested | None, source: Source, pairs: Pairs, *, policy: ViewPolicy, size: int
) -> bytes:
    """A PNG of what the parts of ``tested``, which has two or more, found for some queries.

    Args:
        random: the same embedding with random weights, whose finds stand beside.
    """
    found = _found(tested, random)
    chosen = choose(
        {name: rank == 1 for name, (rank, _) in found.items() if name != RANDOM}, _overlap(tested)
    )
    maps = [name for name in tested.features.dims if name == "spatial"]
    heads = [
        "original",
        "view 1",
        *(f"its {m} map" for m in maps),
        "view 2, the partner",
        *(f"its {m} map" for m in maps),
    ]
    given = len(heads)
    width = GAP + (given + len(found)) * (CELL + GAP) + EDGE
    top = GAP + HEAD + LINE + 2 * GAP + 2 * LINE
    page = Image.new("RGB", (width, top + len(chosen) * ROW), "white")
    draw = ImageDraw.Draw(page)
    title = (
        f"{tested.name}: which of {tested.gallery + 1:,} views each part takes for the other view of the same image, "
        f"the partner (views: {tested.views})"
    )
    draw.text((GAP, GAP), fitted(title, font(15), width - 2 * GAP), "black", font(15))
    looked_at = min(len(tested.features), LOOKED_AT)
    of = "all" if looked_at == len(tested.features) else f"the first {looked_at:,}"
    how = (
        f"Frames: green, the partner was found; red, another image's view was taken for it. Shares: of {of} queries. "
        "Maps: dark is low, light is high, each on a scale of its own."
    )
    draw.text((GAP, GAP + HEAD), fitted(how, font(11), width - 2 * GAP), QUIET, font(11))
    xs = [GAP + i * (CELL + GAP) + (EDGE if i >= given else 0) for i in range(given + len(found))]
    shares = [f"{float((rank == 1).mean()):.1%}" for rank, _ in found.values()]
    for x, head in zip(xs, [*heads, *found], strict=True):
        draw.text((x, top - 2 * LINE - 4), fitted(head, font(11), CELL), INK, font(11))
    for x, share in zip(xs[given:], shares, strict=True):
        draw.text((x, top - LINE - 4), f"{share} found", QUIET, font(11))
    for i, (words, row) in enumerate(chosen):
        y = top + i * ROW
        index = int(tested.features.index[row])
        own = pairs.render([index], policy, size)
        boxes = [tuple(b) for b in own.boxes[:, 0].tolist()]
        cells = [drawn(open_image(source.sample(index)).pixels(), [(boxes[0], QUERY), (boxes[1], PARTNER)])]
        for view, vectors, color in ((0, tested.features.query, QUERY), (1, tested.features.key, PARTNER)):
            cells.append(framed(shown(own, policy, view), color))
            cells += [map_of(vectors[row], tested.features.dims, name) for name in maps]
        for rank, taken in found.values():
            right = rank[row] == 1
            other = (
                own if right else pairs.render([int(taken[row])], policy, size) if taken[row] >= 0 else None
            )
            cells.append(framed(shown(other, policy, 1), RIGHT if right else WRONG) if other else _blank())
        iou = float(overlap_of(tested.features, slice(row, row + 1))[0])
        draw.text((GAP, y), f"{words} (the crops overlap by {iou:.0%})", "black", font(12))
        for x, cell in zip(xs, cells, strict=True):
            page.paste(cell, (x, y + HEAD - 4))
    out = io.BytesIO()
    page.save(out, "PNG")
    return out.getvalue()


RANDOM = "all, random weights"
"""Heading of the column of random weights."""


def _found(tested: Tested, random: Tested | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Heading of a column -> rank of the partner, and which image was taken for it; of the first rows."""
    parts = list(tested.features.dims)
    named = {f"{part} alone": tested.searched[part] for part in parts} | {
        "all together": tested.searched["full"]
    }
    if random is not None:
        named[RANDOM] = random.searched["full"]
    out = {}
    for name, results in named.items():
        rows = results.read()[:LOOKED_AT]
        out[name] = np.asarray(rows["rank"]), np.asarray(rows["found"])
    return out


def map_of(vector: np.ndarray, dims: Mapping[str, int], name: str) -> Image.Image:
    """A part that is a map, as an image: dark is low, light is high."""
    start = sum(d for part, d in dims.items() if list(dims).index(part) < list(dims).index(name))
    values = np.asarray(vector[start : start + dims[name]], np.float64).reshape(math.isqrt(dims[name]), -1)
    low, high = values.min(), values.max()
    pixels = (colormaps["viridis"]((values - low) / max(high - low, 1e-12))[:, :, :3] * 255).round()
    return Image.fromarray(pixels.astype(np.uint8)).resize((CELL, CELL), Image.Resampling.NEAREST)


def _blank() -> Image.Image:
    return Image.new("RGB", (CELL, CELL), "#eeeeee")


def _overlap(tested: Tested) -> np.ndarray:
    return overlap_of(tested.features, slice(0, min(len(tested.features), LOOKED_AT)))


def choose(right: Mapping[str, np.ndarray], overlap: np.ndarray) -> list[tuple[str, int]]:
    """``(what came of it, row)``: of each way it can come out the row whose overlap is the median of its kind.

    Args:
        right: heading -> bool ``[n]``, of all parts together last.
        overlap: float ``[n]``.
    """
    *parts, together = right
    alone = np.stack([right[p] for p in parts])
    kinds: Sequence[tuple[str, np.ndarray]] = [
        ("Every part finds it", alone.all(0) & right[together]),
        *(
            (f"Only the {p.removesuffix(' alone')} part finds it, and all together do",
             right[p] & (alone.sum(0) == 1) & right[together])
            for p in parts
        ),
        ("No part alone finds it, all together do", ~alone.any(0) & right[together]),
        ("A part finds it, all together do not", alone.any(0) & ~right[together]),
        ("Neither any part nor all together find it", ~alone.any(0) & ~right[together]),
    ]  # fmt: skip
    out = []
    for words, mask in kinds:
        here = np.flatnonzero(mask)
        if len(here):
            row = int(here[np.argsort(overlap[here], kind="stable")[(len(here) - 1) // 2]])
            out.append((f"{words}: {len(here):,} of {len(overlap):,} queries", row))
    return out
