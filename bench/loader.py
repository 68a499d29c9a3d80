"""Host CPU time per image: our loader against lightly's ``MoCoV2Transform``, and against decoding alone.

::

    python bench/loader.py --data PHOTOS [--size 224] [--rounds 5] [--limit 200] [--json FILE]

Both sides read the same files and give two views of each. Lightly's gives finished floats (that is what its users
run in worker processes). Ours gives uint8 crops and boxes; colour, blur, flip and normalisation follow on the
device, so their cost on this CPU is shown apart. "Decode alone" is what a loader of Pillow's images cannot go below
(lightly's among them); ours has a faster decoder and stops at the last row that it needs, so its own whole decoding
stands beside it. User plus system time of this process (``time.process_time``), no workers. The jobs take turns, 32
photos at a time and in random order, since what else a machine does changes within seconds and each job leaves the
caches to the next; times are medians over the rounds, ratios medians of each round's own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightly.transforms import MoCoV2Transform
from PIL import Image

from hetcl.errors import InputError
from hetcl.images.decode import open_image
from hetcl.images.sources import open_source
from hetcl.views.loader import ViewLoader
from hetcl.views.photometric import Photometric
from hetcl.views.policies import POLICIES

GOAL = 5.5
"""Times less CPU than lightly that we want."""
DECODE_GOAL = 1.25
"""Most that we want to spend, as a multiple of what Pillow takes to decode alone."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of photos")
    parser.add_argument("--size", type=int, default=224, help="side of a view in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of everything")
    parser.add_argument("--limit", type=int, default=200, help="how many photos")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            source = open_source(args.data, split="all")
    except InputError as error:
        parser.error(str(error))
    count = min(args.limit, len(source))
    photos = [source.sample(i).data for i in range(count)]
    policy, batch = POLICIES["moco-v2"], min(32, count)
    transform = MoCoV2Transform(input_size=args.size)
    loader = ViewLoader(source, policy=policy, size=args.size, batch=batch, seed=0, stage="bench")
    change = Photometric(policy)
    steps = count // batch
    ready = next(iter(loader.epoch(1)))
    stream = loader.epoch(0)

    def some(step: int) -> list[bytes]:
        return photos[step * batch : (step + 1) * batch]

    def decode(step: int) -> None:
        for data in some(step):
            Image.open(io.BytesIO(data)).convert("RGB")

    def decode_ours(step: int) -> None:
        for data in some(step):
            open_image(data).pixels()

    def lightly(step: int) -> None:
        for data in some(step):
            transform(Image.open(io.BytesIO(data)).convert("RGB"))

    def ours(step: int) -> None:
        nonlocal stream
        if step == 0:
            stream = loader.epoch(0)
        next(stream)

    def color(_: int) -> None:
        for view in range(2):
            change(ready.images[view], ready.color[view])

    jobs: dict[str, Callable[[int], None]] = {
        "decode alone (Pillow)": decode,
        "decode alone (ours)": decode_ours,
        "ours": ours,
        "lightly": lightly,
        "photometric on this CPU (two views)": color,
    }
    turns = random.Random(0)
    spent = {name: [0.0] * args.rounds for name in jobs}
    for turn in range(-1, args.rounds):  # the first warms up
        for step in range(steps):
            for name in turns.sample(list(jobs), len(jobs)):
                start = time.process_time()
                jobs[name](step)
                if turn >= 0:
                    spent[name][turn] += (time.process_time() - start) / (steps * batch) * 1e3

    ms = {name: statistics.median(values) for name, values in spent.items()}
    for name, value in ms.items():
        print(f"{name:38s} {value:7.2f} ms an image  (from {min(spent[name]):.2f} to {max(spent[name]):.2f})")

    def over(one: str, other: str) -> tuple[float, str]:
        each = [a / b for a, b in zip(spent[one], spent[other], strict=True)]
        middle = statistics.median(each)
        return middle, f"{middle:.2f} (from {min(each):.2f} to {max(each):.2f}"

    ratio, words = over("lightly", "ours")
    limit, _ = over("lightly", "decode alone (Pillow)")
    print(f"lightly / ours = {words}; goal: at least {GOAL:g}; lightly / decode alone = {limit:.2f})")
    share, words = over("ours", "decode alone (Pillow)")
    print(f"ours / decode alone = {words}; goal: at most {DECODE_GOAL:g})")
    images = [Image.open(io.BytesIO(data)).size for data in photos]
    result = {
        "ms_per_image": ms,
        "ratio": ratio,
        "goal": GOAL,
        "limit": limit,
        "over_decode": share,
        "decode_goal": DECODE_GOAL,
        "photos": steps * batch,
        "megapixels": statistics.mean(w * h for w, h in images) / 1e6,
        "size": args.size,
        "rounds": args.rounds,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
    }
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
