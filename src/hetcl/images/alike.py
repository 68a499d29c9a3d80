"""Whether folders that would be classes hold the same folders again: then they are splits, domains or folds.

``amazon/{bike,mug,pen}`` and ``webcam/{bike,mug,pen}`` are two domains of three classes, whatever they are called;
``cat/{left,right}`` and ``dog/{left,right}`` are two classes. The first is told from the second by what the shared
names say (``split_words.tells``) and by their number: there are no fewer classes than domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from hetcl.images.listing import Branch
from hetcl.images.split_words import FOLDS, fold, is_map, says_only, tells

_FOLDERS_AT_MOST = 100
"""More folders side by side are no splits."""
_NAMES_AT_MOST = 10_000
"""Sub-folders of one folder that are looked at."""


@dataclass(frozen=True)
class Alike:
    """Folders that hold folders of the same names."""

    folders: list[Branch]
    names: list[str]
    sure: bool
    """They cannot well be classes; otherwise they may be."""


def alike(branch: Branch) -> Alike | None:
    """Those of the folders in ``branch`` that hold folders of nearly the same names; None where they may be classes.

    A folder is alike where two thirds of its sub-folders' names, and at least two, are among those of the folder that
    has most, and are a third of those. Alike folders hold more than half of the images. ``sure``: all of them are
    called like splits or folds; or two of the shared names or more tell what is in the images, and no fewer than there
    are folders. Not sure: fewer, or numbers of up to three digits and letters. Sides, times, cameras and the like in
    every class say nothing.
    """
    tops = list(islice(branch.children(), _FOLDERS_AT_MOST + 1))
    if not 2 <= len(tops) <= _FOLDERS_AT_MOST:
        return None
    below = [_names(top) for top in tops]
    most = max(below, key=len)
    held = [
        (top, names)
        for top, names in zip(tops, below, strict=True)
        if len(both := names.keys() & most.keys()) >= 2
        and 3 * len(both) >= 2 * len(names)
        and 3 * len(both) >= len(most)
    ]
    if len(held) < 2 or 2 * sum(top.images for top, _ in held) <= branch.images:
        return None
    shared = [name for key, name in most.items() if sum(key in names for _, names in held) > 1]
    folders = [top for top, _ in held]
    telling = [name for name in shared if tells(name)]
    bare = [name for name in shared if len(name) == 1 or (name.isdigit() and len(name) < 4)]
    if all(says_only(top.name, FOLDS) for top in folders):
        return Alike(folders, shared, sure=True)
    if len(telling) >= 2:
        return Alike(folders, shared, sure=len(telling) >= len(folders))
    return Alike(folders, shared, sure=False) if len(bare) >= max(2, len(folders)) else None


def _names(branch: Branch) -> dict[str, str]:
    """The sub-folders, without label maps, below folders that hold nothing but one other; by folded name."""
    while True:
        below = [b for b in islice(branch.children(), _NAMES_AT_MOST) if not is_map(b.name)]
        if len(below) != 1 or branch.loose:
            return {fold(b.name): b.name for b in below}
        branch = below[0]
