"""The built-in images: textured objects on textured grounds, with boxes, masks and classes.

A scene is a function of (seed, index): nothing is stored, any scene is drawn when asked for. One object is
clearly larger than the others and gives the image its class. A class is a shape together with a family of
textures; colours, sizes, places, turns and the ground are free, so each image has details of its own, and
where things are tells much.

Lengths are shares of the image's side until they are drawn; canvases are float32 ``[H, W, 3]`` in [0, 255].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hetcl.draws import digest, generator
from hetcl.errors import InputError
from hetcl.types import Sample

SHAPES = ("disc", "box", "triangle", "star", "ring")
TEXTURES = ("striped", "dotted")
CLASSES = tuple(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)
"""Class ``c`` has the texture ``c // 5`` and the shape ``c % 5``."""

SIZE = 96
"""Side of a scene in pixels unless asked otherwise."""
DOMINANT = (0.24, 0.36)
"""Radius of the dominant object, least and most."""
OTHERS = (0.07, 0.14)
"""Radius of the others, least and most."""
COUNT = (2, 5)
"""How many others, least and most."""

_REACH = 1.25  # no shape is further from its centre than this many radii
_STRETCH = (0.8, 1.25)
_VISIBLE = 0.35  # an object of which less than this share can be seen is no object of the scene
_VISIBLE_PX = 12
_TRAIN, _HELD = 0, 1
_SEED_VERSION = "scene-1"


@dataclass(frozen=True)
class Scene:
    """An image and what is in it; the first object is the dominant one. n objects, H = W = size."""

    pixels: np.ndarray
    """uint8 ``[H, W, 3]``, RGB."""
    boxes: np.ndarray
    """float32 ``[n, 4]``: left, top, right, bottom of what can be seen of each object, in pixels."""
    masks: np.ndarray
    """bool ``[n, H, W]``: what can be seen of each object; no pixel is in two masks."""
    labels: np.ndarray
    """int64 ``[n]``: index into ``CLASSES``."""


@dataclass(frozen=True)
class Thing:
    """An object before it is drawn."""

    label: int
    x: float
    y: float
    radius: float
    angle: float
    stretch: float


def label_of(index: int, *, seed: int) -> int:
    """Class of the dominant object of a scene, without drawing it."""
    return digest(_SEED_VERSION, "class", seed, index) % len(CLASSES)


def scene(index: int, *, seed: int, size: int = SIZE) -> Scene:
    """Draw a scene.

    Args:
        index: which scene.
        seed: which series of scenes.
        size: side of the image in pixels; at another size the same scene shows the same things.
    """
    rng = generator(_SEED_VERSION, seed, index)
    things = _layout(rng, label_of(index, seed=seed))
    canvas = _ground(rng, size)
    covers = np.zeros((len(things), size, size), bool)
    # Of the others, the second half of the list lies below the dominant object, the first half above it.
    half = 1 + (len(things) - 1 + index % 2) // 2
    for i in (*range(half, len(things)), *range(half)):
        cover = _draw(rng, canvas, things[i])
        covers[i] = cover
        covers[:i] &= ~cover
        covers[i + 1 :] &= ~cover
    return _annotate(canvas, things, covers)


def _layout(rng: np.random.Generator, label: int) -> list[Thing]:
    """The dominant object, then the others, which keep off each other's middle."""
    things: list[Thing] = []
    for i in range(1 + int(rng.integers(COUNT[0], COUNT[1] + 1))):
        radius = float(rng.uniform(*(OTHERS if i else DOMINANT)))
        kind = int(rng.integers(len(CLASSES))) if i else label
        angle, stretch = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(*_STRETCH))
        for x, y in rng.uniform(0.8 * radius, 1 - 0.8 * radius, (12, 2)).tolist():
            if all((x - t.x) ** 2 + (y - t.y) ** 2 > (0.9 * (radius + t.radius)) ** 2 for t in things):
                things.append(Thing(kind, x, y, radius, angle, stretch))
                break
    return things


def _annotate(canvas: np.ndarray, things: list[Thing], masks: np.ndarray) -> Scene:
    """Boxes and labels of the objects of which enough can be seen."""
    size = len(canvas)
    area = masks.sum((1, 2))
    whole = np.array([2.0 * (t.radius * size) ** 2 for t in things])
    kept = (area >= _VISIBLE * whole) & (area >= _VISIBLE_PX)
    kept[0] = True
    masks = masks[kept]
    boxes = np.empty((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        box[:] = x[0], y[0], x[-1] + 1, y[-1] + 1
    labels = np.array([t.label for t in things], np.int64)[kept]
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), boxes, masks, labels)


@lru_cache(maxsize=64)
def _steps(cells: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """To spread ``cells`` points over ``size`` pixels smoothly: left and right point, weight of the right."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size * (cells - 1)
    left = np.minimum(at.astype(np.intp), cells - 2)
    share = at - left
    return left, left + 1, (share * share * (3 - 2 * share)).astype(np.float32)


def _noise(rng: np.random.Generator, cells: int, size: int, channels: int) -> np.ndarray:
    """Smooth noise in [-1, 1] with about ``cells`` bumps a side: float32 ``[size, size, channels]``."""
    grid = rng.random((cells, cells, channels), dtype=np.float32) * 2 - 1
    left, right, share = _steps(cells, size)
    rows = grid[left]
    rows += (grid[right] - rows) * share[:, None, None]
    across = rows.transpose(1, 0, 2)
    out = across[left]
    out += (across[right] - out) * share[:, None, None]
    return out


@lru_cache(maxsize=8)
def _plane(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x ``[1, size]`` and y ``[size, 1]`` of the pixels' middles, as shares of the side."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    return at[None, :], at[:, None]


def _colors(rng: np.random.Generator, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Two colours whose brightness differs by at least ``apart`` (of 255)."""
    pair = rng.uniform(15, 240, (2, 3)).astype(np.float32)
    gap = float(pair[1].mean() - pair[0].mean())
    short = apart - abs(gap)
    if short > 0:
        push = (short if gap >= 0 else -short) / 2
        pair[0] -= push
        pair[1] += push
    return np.clip(pair[0], 0, 255), np.clip(pair[1], 0, 255)


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """A gradient with colour noise at several scales and, mostly, stripes, ripples or tiles."""
    x, y = _plane(size)
    first, second = _colors(rng, 20)
    turn, period, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.2), rng.uniform(0, 2 * np.pi)
    strength, roughness = rng.uniform(8, 30), rng.uniform(0.4, 1.4)
    kind = int(rng.integers(5))
    along = (np.cos(turn) * (x - 0.5) + np.sin(turn) * (y - 0.5)).astype(np.float32)
    canvas = _noise(rng, 3, size, 3) * np.float32(45)
    canvas += first + (second - first) * np.clip(along + 0.5, 0, 1)[:, :, None]
    canvas += _noise(rng, 7, size, 3) * np.float32(22 * roughness)
    fine = _noise(rng, 20, size, 1)[:, :, 0] * np.float32(16 * roughness)
    fine += _noise(rng, 64, size, 1)[:, :, 0] * np.float32(14 * roughness)
    wave = np.float32(2 * np.pi / period)
    if kind == 0:  # stripes that sway
        fine += strength * np.sin(wave * along + phase + fine * np.float32(0.05))
    elif kind == 1:  # ripples around a point
        cx, cy = rng.uniform(-0.2, 1.2, 2)
        fine += strength * np.sin(wave * np.sqrt((x - cx) ** 2 + (y - cy) ** 2).astype(np.float32) + phase)
    elif kind == 2:  # tiles
        across = (-np.sin(turn) * (x - 0.5) + np.cos(turn) * (y - 0.5)).astype(np.float32)
        fine += strength * np.sign(np.sin(wave * along + phase) * np.sin(wave * across))
    elif kind == 3:  # a horizon: two grounds
        edge = np.clip((along - np.float32(rng.uniform(-0.25, 0.25))) * size, 0, 1)
        canvas += edge[:, :, None] * rng.uniform(-70, 70, 3).astype(np.float32)
    canvas += fine[:, :, None]
    return canvas


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """About the distance to the edge of a shape of radius 1 (negative inside), for coordinates in radii."""
    if shape == "box":
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.85)
    if shape == "triangle":
        slanted = np.float32(0.8660254) * np.abs(u) - np.float32(0.5) * v
        return np.maximum(slanted, v) - np.float32(0.6)
    away = np.sqrt(u * u + v * v)
    if shape == "disc":
        return away - np.float32(0.95)
    if shape == "ring":
        return np.abs(away - np.float32(0.75)) - np.float32(0.28)
    fifth = np.float32(2 * np.pi / 5)
    spoke = np.abs(np.mod(np.arctan2(u, v), fifth) - fifth / 2)  # 0 between two points, fifth / 2 at a point
    # The straight line from a notch (radius 0.5) to a point (radius 1.2) of the star.
    point, notch = (1.2 * np.cos(fifth / 2), 1.2 * np.sin(fifth / 2)), (0.5, 0.0)
    dx, dy = point[0] - notch[0], point[1] - notch[1]
    norm = np.hypot(dx, dy)
    return away * (
        np.float32(dy / norm) * np.cos(spoke) - np.float32(dx / norm) * np.sin(spoke)
    ) - np.float32(dy * notch[0] / norm)


def _texture(rng: np.random.Generator, kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Share of the second colour, [0, 1], for coordinates in radii."""
    turn, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
    period, hard, duty = rng.uniform(0.42, 0.75), rng.uniform(1.5, 5), rng.uniform(-0.25, 0.25)
    sway = rng.uniform(0, 0.5)
    a = np.float32(2 * np.pi / period * np.cos(turn)) * u + np.float32(2 * np.pi / period * np.sin(turn)) * v
    b = np.float32(-2 * np.pi / period * np.sin(turn)) * u + np.float32(2 * np.pi / period * np.cos(turn)) * v
    if kind == "striped":
        wave = np.sin(a + np.float32(phase[0]) + np.float32(sway) * np.sin(b * np.float32(0.4)))
    else:
        wave = np.cos(a + np.float32(phase[0])) + np.cos(b + np.float32(phase[1])) - np.float32(0.6)
    return np.clip((wave - np.float32(duty)) * np.float32(hard) * np.float32(0.5) + np.float32(0.5), 0, 1)


def _draw(rng: np.random.Generator, canvas: np.ndarray, thing: Thing) -> np.ndarray:
    """Paint a thing and its shadow onto the canvas, in place; bool ``[H, W]``: the pixels it takes."""
    size = len(canvas)
    first, second = _colors(rng, 80)
    light, shade, rim = rng.uniform(0, 2 * np.pi), rng.uniform(10, 45), rng.uniform(0, 0.5)
    reach = _REACH * thing.radius * max(thing.stretch, 1 / thing.stretch) + 0.04
    x0, x1, y0, y1 = (
        int(np.clip(np.floor(at * size), 0, size))
        for at in (thing.x - reach, thing.x + reach + 1 / size, thing.y - reach, thing.y + reach + 1 / size)
    )
    x, y = _plane(size)
    dx, dy = (x[:, x0:x1] - np.float32(thing.x)), (y[y0:y1] - np.float32(thing.y))
    cos, sin = np.cos(thing.angle) / thing.radius, np.sin(thing.angle) / thing.radius
    u = (np.float32(cos) * dx + np.float32(sin) * dy) * np.float32(thing.stretch)
    v = (np.float32(cos) * dy - np.float32(sin) * dx) / np.float32(thing.stretch)
    texture, shape = divmod(thing.label, len(SHAPES))
    distance = _distance(SHAPES[shape], u, v)
    pixels = np.float32(thing.radius * size)
    cover = np.clip(0.5 - distance * pixels, 0, 1)
    part = canvas[y0:y1, x0:x1]
    # The shadow: the same shape, blurred by dividing its distance, darkens the ground around.
    part *= 1 - np.float32(0.45) * np.clip(0.7 - distance * np.float32(4), 0, 1)[:, :, None]
    share = _texture(rng, TEXTURES[texture], u, v)
    body = first + (second - first) * share[:, :, None]
    relief = np.float32(shade * np.cos(light)) * u + np.float32(shade * np.sin(light)) * v
    grain = _noise(rng, 9, size, 1)[y0:y1, x0:x1, 0] * np.float32(14)
    body += (relief + grain)[:, :, None]
    body *= 1 - np.float32(rim) * np.clip(1 + distance * np.float32(8), 0, 1)[:, :, None]
    part += (body - part) * cover[:, :, None]
    taken = np.zeros((size, size), bool)
    taken[y0:y1, x0:x1] = cover >= 0.5
    return taken


class ScenesSource:
    """Scenes as images (``types.Source``), drawn when asked for.

    Args:
        count: how many.
        seed: which series.
        size: side in pixels.
    """

    classes: tuple[str, ...] | None = CLASSES
    unlabelled = 0
    prefers_window = 0

    def __init__(self, count: int, *, seed: int = _TRAIN, size: int = SIZE) -> None:
        self.count, self.seed, self.size = count, seed, size
        self.fingerprint = f"{digest(_SEED_VERSION, count, seed, size):032x}"[:16]
        self.description = f"{count:,} built-in scenes of {size} pixels in {len(CLASSES)} classes"

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Sample:
        """The pixels of scene ``index``, labelled with its dominant object's class."""
        drawn = scene(index, seed=self.seed, size=self.size)
        return Sample(drawn.pixels, int(drawn.labels[0]), self.name(index))

    def name(self, index: int) -> str:
        """The scene's number."""
        return f"scene {index}"

    def label(self, index: int) -> int | None:
        """The dominant object's class, without drawing."""
        return label_of(index, seed=self.seed)

    def blocks(self) -> np.ndarray | None:
        """None: every scene is as near as any other."""
        return None


def scenes_source(data: str, *, validation: bool = False) -> ScenesSource:
    """Open ``scenes:N``; its held-out images are a fifth as many (50 to 1,000) scenes of another series.

    Raises:
        InputError: ``N`` is no positive number.
    """
    text = data.removeprefix("scenes:").replace("_", "")
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 1 << 62:
        raise InputError(
            f"{data}: N in scenes:N is how many images to generate, 1 or more, such as scenes:1000"
        )
    count = int(text)
    if validation:
        return ScenesSource(min(1000, max(50, count // 5)), seed=_HELD)
    return ScenesSource(count, seed=_TRAIN)
