"""Slow, obvious versions of what `hetcl.images` lists and groups."""

from __future__ import annotations

import os

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def listed(root: str) -> list[str]:
    """Relative paths of the images below `root`: a folder's own by name, then its sub-folders by name."""
    out = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=os.fsencode)
        for file in sorted(files, key=os.fsencode):
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in IMAGES:
                out.append(os.path.relpath(os.path.join(folder, file), root))
    return out


def grouped(members: list[tuple[str, bytes]]) -> list[tuple[bytes, int | None]]:
    """(image, label) of each webdataset sample among the members (name, data) of a tar, in order."""
    samples: list[tuple[str, dict[str, bytes]]] = []
    for name, data in members:
        folder, base = os.path.split(name)
        key, _, extension = base.partition(".")
        if not key:
            continue
        full = os.path.join(folder, key)
        if not samples or samples[-1][0] != full or extension in samples[-1][1]:
            samples.append((full, {}))
        samples[-1][1][extension] = data
    out = []
    for _, fields in samples:
        images = [v for k, v in fields.items() if "." + k in IMAGES]
        if images:
            out.append((images[0], int(fields["cls"]) if "cls" in fields else None))
    return out
