"""What the encoder gets to see, drawn for people: images with their crops, and the views that come of them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from hetcl.images.channels import drawable
from hetcl.images.decode import open_image
from hetcl.types import RGB, PixelFormat, Source, ViewPolicy
from hetcl.views.loader import ViewLoader
from hetcl.views.photometric import Photometric


def sheet(
    source: Source, policy: ViewPolicy, *, size: int, count: int = 8, seed: int = 0, pixels: PixelFormat = RGB
) -> Image.Image:
    """An image for people: originals with both crop boxes, and under each its two views after colour changes."""
    loader = ViewLoader(
        source, policy=policy, size=size, batch=count, seed=seed, stage="sheet", pixels=pixels
    )
    batch = next(iter(loader.epoch(0)))
    plain = Photometric(policy, mean=(0,), std=(1,))
    cell, gap = max(96, size), 6
    page = Image.new("RGB", (count * (cell + gap) + gap, 3 * (cell + gap) + gap), "white")
    colors = ("#e4572e", "#2e86e4")
    for i, index in enumerate(batch.index.tolist()):
        whole = drawable(open_image(source.sample(index), pixels=pixels).pixels())
        scale = cell / max(whole.shape[:2])
        original = Image.fromarray(whole).resize(
            (round(whole.shape[1] * scale), round(whole.shape[0] * scale))
        )
        draw = ImageDraw.Draw(original)
        left = gap + i * (cell + gap)
        for view in range(2):
            box = [round(float(b) * scale) - (k > 1) for k, b in enumerate(batch.boxes[view, i])]
            draw.rectangle(box, outline=colors[view], width=2)
            image = plain(batch.images[view, i : i + 1], batch.color[view, i : i + 1])[0].clamp(0, 1)
            array = image.permute(1, 2, 0).numpy()
            array = (array * 255).round().astype(np.uint8) if pixels.rgb else drawable(array)
            shown = Image.fromarray(array).resize((cell, cell), Image.Resampling.NEAREST)
            ImageDraw.Draw(shown).rectangle((0, 0, cell - 1, cell - 1), outline=colors[view], width=2)
            page.paste(shown, (left, gap + (view + 1) * (cell + gap)))
        page.paste(original, (left, gap))
    return page
