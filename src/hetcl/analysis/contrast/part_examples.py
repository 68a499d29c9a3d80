"""What each part of an embedding finds alone, as images: the semantic part, the spatial one, both together.

A row for each way it can come out, the commonest kind of example of it: the original with both crops, the views with
their spatial maps, and what each part took for the partner. S side of a view in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from hetcl.images.channels import drawable
from hetcl.images.decode import open_image
from hetcl.types import PixelFormat, Source, ViewBatch, ViewPolicy
from hetcl.views.pairs import Pairs

LOOKED_AT = 5_000
"""Queries that are looked at to find the examples: the first of the random order."""
RIGHT, WRONG = "#009E73", "#D55E00"
"""Frames of what was found, told apart by people with any kind of colour vision (the caption says it, too)."""
RANDOM = "all, random weights"
"""Heading of the column of random weights."""
ROW = HEAD + CELL + GAP
EDGE = 4 * GAP
"""Between what is given and what was found."""


def part_sheet(
    tested: Tested,
    random: Tested | None,
    source: Source,
    pairs: Pairs,
    *,
    policy: ViewPolicy,
    size: int,
    maps: Mapping[str, tuple[int, str]],
) -> bytes:
    """A PNG of what the parts of ``tested``, which has two or more, found for some queries.

    Args:
        random: the same embedding with random weights, whose finds stand beside.
        maps: the side of each part that is a map, and the heading of its column.
    """
    found = _found(tested, random)
    right = {name: rank == 1 for name, (rank, _) in found.items()}
    overlap = overlap_of(tested.features, slice(0, min(len(tested.features), LOOKED_AT)))
    chosen = choose({name: flags for name, flags in right.items() if name != RANDOM}, overlap)
    own_map = [heading for _, heading in maps.values()]
    given = ["original", "view 1", *own_map, "view 2, the partner", *own_map]
    xs = [GAP + i * (CELL + GAP) + (EDGE if i >= len(given) else 0) for i in range(len(given) + len(found))]
    top = GAP + HEAD + LINE + 2 * GAP + 2 * LINE
    page = Image.new("RGB", (xs[-1] + CELL + GAP, top + len(chosen) * ROW), "white")
    draw = ImageDraw.Draw(page)
    _heading(draw, tested, page.width)
    for x, head in zip(xs, [*given, *found], strict=True):
        draw.text((x, top - 2 * LINE - 4), fitted(head, font(11), CELL), INK, font(11))
    for x, flags in zip(xs[len(given) :], right.values(), strict=True):
        draw.text((x, top - LINE - 4), f"{flags.mean():.1%} found", QUIET, font(11))
    for i, (words, row) in enumerate(chosen):
        y = top + i * ROW
        draw.text((GAP, y), f"{words} (the crops overlap by {overlap[row]:.0%})", "black", font(12))
        cells = _row(
            tested,
            row,
            found,
            {part: side for part, (side, _) in maps.items()},
            source,
            lambda image: pairs.render([image], policy, size),
            policy,
            pairs.pixels,
        )
        for x, cell in zip(xs, cells, strict=True):
            page.paste(cell, (x, y + HEAD - 4))
    out = io.BytesIO()
    page.save(out, "PNG")
    return out.getvalue()


def _heading(draw: ImageDraw.ImageDraw, tested: Tested, width: int) -> None:
    """The title and how to read the sheet."""
    title = (
        f"{tested.name}: which of {tested.gallery + 1:,} views each part takes for the other view of the same image, "
        f"the partner (views: {tested.views})"
    )
    draw.text((GAP, GAP), fitted(title, font(15), width - 2 * GAP), "black", font(15))
    few = len(tested.features) > LOOKED_AT
    how = (
        "Frames: green, the partner was found; red, another image's view was taken for it. "
        f"Shares: of {f'the first {LOOKED_AT:,}' if few else 'all'} queries. "
        "Maps: dark is low, light is high, each on a scale of its own."
    )
    draw.text((GAP, GAP + HEAD), fitted(how, font(11), width - 2 * GAP), QUIET, font(11))


def _row(
    tested: Tested, row: int, found: Found, maps: Mapping[str, int], source: Source, views: Callable[[int], ViewBatch],
    policy: ViewPolicy, pixels: PixelFormat,
) -> Iterator[Image.Image]:  # fmt: skip
    """The cells of one query: its original, its views with their maps, and what each column found."""
    index = int(tested.features.index[row])
    own = views(index)
    first, second = (tuple(box) for box in own.boxes[:, 0].tolist())
    original = drawable(open_image(source.sample(index), pixels=pixels).pixels())
    yield drawn(original, [(first, QUERY), (second, PARTNER)])
    for view, vectors, color in ((0, tested.features.query, QUERY), (1, tested.features.key, PARTNER)):
        yield framed(shown(own, policy, view), color)
        for part, side in maps.items():
            yield map_of(vectors[row], tested.features.dims, part, side)
    for rank, taken in found.values():
        if rank[row] == 1:
            yield framed(shown(own, policy, 1), RIGHT)
        elif taken[row] >= 0:
            yield framed(shown(views(int(taken[row])), policy, 1), WRONG)
        else:
            yield Image.new("RGB", (CELL, CELL), "#eeeeee")


Found = dict[str, tuple[np.ndarray, np.ndarray]]
"""Heading of a column -> of the first rows, the rank of the partner and which image was taken for it."""


def _found(tested: Tested, random: Tested | None) -> Found:
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


def map_of(vector: np.ndarray, dims: Mapping[str, int], name: str, side: int) -> Image.Image:
    """A part that is a map of ``side`` cells a side, as an image: dark is low, light is high. Of several channels the
    length of each cell's vector."""
    start = sum(d for part, d in dims.items() if list(dims).index(part) < list(dims).index(name))
    values = np.asarray(vector[start : start + dims[name]], np.float64).reshape(-1, side, side)
    values = values[0] if len(values) == 1 else np.linalg.norm(values, axis=0)
    low, high = values.min(), values.max()
    pixels = (colormaps["viridis"]((values - low) / max(high - low, 1e-12))[:, :, :3] * 255).round()
    return Image.fromarray(pixels.astype(np.uint8)).resize((CELL, CELL), Image.Resampling.NEAREST)


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
