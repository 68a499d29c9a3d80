"""Images of a run's own data: its views with their boxes, nearest neighbours, what the spatial branch makes of them.

The one part of the page that opens data and weights, so the one part that loads torch. B images, S side of the map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hetcl.analysis.extractor import Extractor
from hetcl.draws import permute
from hetcl.errors import InputError, WorkFailed
from hetcl.images.channels import drawable
from hetcl.images.sources import open_source
from hetcl.model.embedding import normalize
from hetcl.reporting.blocks import Picture, Text, picture
from hetcl.reporting.read import Result, mapping
from hetcl.types import BadImage, PixelFormat, Source, ViewPolicy
from hetcl.views.central import Central
from hetcl.views.photometric import Photometric
from hetcl.views.policies import POLICIES
from hetcl.views.sheet import sheet
from hetcl.weights.encoder import Encoder, load_encoder
from hetcl.weights.facts import view_normalization

SEARCHED = 256
"""Images that neighbours are looked for among: a ResNet-50 at 224 pixels looks at them in a minute of one core."""
NEIGHBOURS = 5
CELL, GAP = 112, 4


def examples_of(run: Result, count: int) -> Iterator[Picture | Text]:
    """The images of a run of pre-training; what cannot be shown is a line that says why.

    Args:
        count: images of each kind.
    """
    try:
        source = _source(run)
        yield from _views(run, source, count)
        encoder = load_encoder(str(run.path))
        yield from _looked_at(run, source, encoder, count)
    except (InputError, WorkFailed, BadImage) as e:
        yield Text([f"Not shown: {' '.join(str(e).splitlines())}"], "note")
    except (
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
    ) as e:  # weights or data damaged in new ways
        yield Text([f"Not shown: {type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"], "note")


def _source(run: Result) -> Source:
    """The run's data. Raises ``InputError``: it is gone, holds other images now, or would have to be fetched."""
    s, data = run.settings, str(run.tree.get("data"))
    if "://" in data:
        raise InputError(f"{data} is at an address, and a page fetches nothing")
    source = open_source(
        data,
        split=str(s.get("data_split", "train")),
        folder_classes=bool(s.get("folder_classes")),
    )
    if run.tree.get("fingerprint") not in (None, source.fingerprint):
        raise InputError(f"{data} does not hold the images that {run.name} was trained on")
    return source


def _pixels(run: Result) -> PixelFormat:
    """As what the run reads images."""
    return PixelFormat(int(run.settings.get("in_chans") or 3), float(run.settings.get("pixel_max") or 0))


def _views(run: Result, source: Source, count: int) -> Iterator[Picture]:
    """Two views of some images as the last stage draws them."""
    stage = "stage2" if mapping(run.settings.get("stage2")).get("epochs") else "stage1"
    stated = mapping(mapping(run.settings.get(stage)).get("views"))
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stated.items()}
    policy = ViewPolicy(**fields)
    drawn = sheet(
        source, policy, size=int(run.settings["size"]), count=min(count, len(source)), pixels=_pixels(run)
    )
    yield picture(
        f"Two views of each image, as {stage} draws them: where they were cut, and in the same colours what came out",
        f"{min(count, len(source))} images in a row, each with two crop boxes drawn in; under each its two views, "
        "resized and with their colour changes.",
        drawn,
    )


def _looked_at(run: Result, source: Source, encoder: Encoder, count: int) -> Iterator[Picture | Text]:
    """Nearest neighbours by the pooled backbone, and maps of the spatial branch, of images drawn at random."""
    chosen = permute(np.arange(min(SEARCHED, len(source))), len(source), 0, "report")
    spatial = encoder.embedding is not None and "spatial" in encoder.embedding.branches
    extractor = Extractor(encoder, ["pooled", *(["spatial"] if spatial else [])], unit=False).eval()
    size, form = int(encoder.size or run.settings["size"]), encoder.facts.pixels
    plain = Photometric(POLICIES["none"], *view_normalization(form))
    loader = Central(source, chosen, size=size, batch=32, whole=True, pixels=form)
    pixels, found = list[np.ndarray](), list[Mapping[str, Tensor]]()
    try:
        for _, views in loader.run(range(loader.steps)):
            (batch,) = views.values()
            if len(batch.index):
                found.append(extractor(plain(batch.images[0], batch.color[0])))
                pixels += [drawable(one) for one in batch.images[0].permute(0, 2, 3, 1).numpy()]
    finally:
        loader.close()
    if len(pixels) < 2:
        yield Text(["Nearest neighbours are not shown: too few of the images can be read."], "note")
        return
    count = min(count, len(pixels))
    features = normalize(torch.cat([f["pooled"] for f in found]).float())
    likeness = (features[:count] @ features.T).fill_diagonal_(-2)
    near = likeness.argsort(dim=1, descending=True, stable=True)[:, : min(NEIGHBOURS, len(pixels) - 1)]
    rows = [[pixels[i], *(pixels[j] for j in near[i].tolist())] for i in range(count)]
    yield picture(
        f"Nearest neighbours by the backbone among {len(pixels):,} images drawn at random, each row of its first image",
        f"{count} rows: first the image that is asked about, then the {NEIGHBOURS} images most like it, nearest first.",
        _tiled(rows, first_apart=True),
    )
    if spatial:
        maps = torch.cat([f["spatial"][:count] for f in found])[:count]
        side = round(maps.shape[1] ** 0.5)
        yield picture(
            f"Maps of the spatial branch ({side} x {side}) laid over images: yellow is high, blue is low",
            f"Above {count} images, below the same with the map laid over: light where it is high, dark where low, "
            "each stretched to its own least and greatest value.",
            _tiled(
                [
                    pixels[:count],
                    [_over(p, m) for p, m in zip(pixels, maps.view(count, side, side), strict=False)],
                ]
            ),
        )


def _over(pixels: np.ndarray, values: Tensor) -> np.ndarray:
    """A map ``[S, S]`` over an image uint8 ``[H, W, 3]``, from dark blue to yellow."""
    span = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)
    drawn = Image.fromarray((span.numpy() * 255).astype(np.uint8)).resize(
        pixels.shape[1::-1], Image.Resampling.BICUBIC
    )
    level = np.asarray(drawn, np.float32)[..., None] / 255
    low, high = np.array([20, 30, 120], np.float32), np.array([255, 225, 60], np.float32)
    gray = pixels.mean(axis=2, keepdims=True)
    return (0.4 * gray + 0.6 * (low + level * (high - low))).round().astype(np.uint8)


def _tiled(rows: Sequence[Sequence[np.ndarray]], *, first_apart: bool = False) -> Image.Image:
    """Images in rows; ``first_apart``: a wider gap after the first column."""
    extra = 3 * GAP if first_apart else 0
    size = (max(map(len, rows)) * (CELL + GAP) + GAP + extra, len(rows) * (CELL + GAP) + GAP)
    page = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            cell: Any = Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC)
            page.paste(cell, (GAP + x * (CELL + GAP) + (extra if x else 0), GAP + y * (CELL + GAP)))
    return page
