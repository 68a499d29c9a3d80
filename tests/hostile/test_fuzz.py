"""Fuzzing: whatever bytes stand in a file, it is read or refused in words, and memory stays below ``MOST`` MiB.

Each test takes some seconds and the same examples each time; ``HETCL_FUZZ=SECONDS`` goes on with new ones for so long.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import random
import resource
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hetcl.datasets import masks, open_detection, open_segmentation
from hetcl.errors import InputError
from hetcl.images.decode import open_image
from hetcl.images.labels import class_names
from hetcl.images.sources import open_source
from hetcl.runs import checkpoint
from hetcl.runs.folder import RunFolder
from hetcl.runs.table import Table
from hetcl.settings import resolve, resolve_finetune
from hetcl.types import BadImage
from hetcl.weights.encoder import load_encoder
from tests.damage import DAMAGES
from tests.downstream import layouts
from tests.images.make import encoded, pixels, tar

MOST = 700
LONGER = float(os.environ.get("HETCL_FUZZ", "0"))
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**30,
        -(10**30),
        0.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "1",
        "x",
    ),
    *("../x", "/", "\0", "\ud800", "nan", "1e9", [], {}, [[]], [None], {"a": 1}, [1, 2], "x" * 5000),
)


def tries(count: int, one: Callable[[random.Random], None]) -> None:
    """``one`` with fixed seeds (and then new ones, where more time is given); memory is looked at in the end."""
    before = peak()
    for seed in range(count):
        attempt(one, seed)
    end = time.monotonic() + LONGER
    while time.monotonic() < end:
        attempt(one, random.randrange(10**9, 10**12))
    assert peak() - before < MOST


def attempt(one: Callable[[random.Random], None], seed: int) -> None:
    try:
        with contextlib.suppress(InputError, BadImage):
            one(random.Random(seed))
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


def peak() -> int:
    """MiB that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some damages one after the other."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(DAMAGES)(data, rng) if data else data
    return data


def changed(tree: Any, rng: random.Random) -> Any:
    """A tree with some of its values odd, gone, swapped or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        stack = [tree]
        while stack:
            node = stack.pop()
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            places += [(node, key) for key in keys]
            stack += [node[key] for key in keys if isinstance(node[key], dict | list)]
        if not places:
            return tree
        node, key = rng.choice(places)
        what = rng.randrange(4)
        if what == 0:
            del node[key]
        elif what == 1 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            node[key] = copy.deepcopy(rng.choice(ODD))
    return tree


def looked_at(data: Any) -> None:
    """All that training and evaluation ask of a set."""
    data.skipped.lines()
    for i in range(len(data)):
        with contextlib.suppress(BadImage):
            data.image(i)
        with contextlib.suppress(BadImage):
            if hasattr(data, "label_map"):
                data.label_map(i)
            else:
                truth = data.annotations(i)
                for segment in truth.segments or ():
                    if segment is not None:
                        masks.bitmap(segment, truth.size)


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_trees_of_json_annotations(kind: str, tmp_path: Path) -> None:
    if kind == "coco":
        layouts.write_coco(tmp_path, train=1, val=2, masks="mixed", size=32)
    else:
        layouts.write_lvis(tmp_path, train=1, val=2, size=32)
    path = next(p for p in tmp_path.rglob("*.json") if "val" in p.name)
    tree = json.loads(path.read_text())

    def one(rng: random.Random) -> None:
        path.write_bytes(json.dumps(changed(tree, rng)).encode("utf-8", "surrogatepass"))
        looked_at(open_detection(f"{kind}:{tmp_path}", "val"))

    tries(150, one)


FILES = {
    "coco": "*val*.json",
    "voc": "Annotations/*.xml",
    "voc list": "ImageSets/Main/*.txt",
    "voc map": "SegmentationClass/*.png",
    "voc names": "classes.txt",
    "cityscapes": "val/*/*instanceIds.png",
    "cityscapes map": "val/*/*labelIds.png",
    "cityscapes image": "val/*/*leftImg8bit.png",
}


@pytest.mark.parametrize("what", FILES)
def test_bytes_of_annotations(what: str, tmp_path: Path) -> None:
    kind = what.split()[0]
    if kind == "coco":
        layouts.write_coco(tmp_path, train=1, val=2, masks="mixed", size=32)
    else:
        (layouts.write_voc if kind == "voc" else layouts.write_cityscapes)(tmp_path, train=2, val=2, size=32)
    opened = open_segmentation if what in ("voc map", "voc names", "cityscapes map") else open_detection
    path = sorted(tmp_path.rglob(FILES[what]))[0]
    whole = path.read_bytes()

    def one(rng: random.Random) -> None:
        path.write_bytes(damaged(whole, rng))
        for split in ("train", "val"):
            looked_at(opened(f"{kind}:{tmp_path}", split))

    tries(40, one)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "TGA", "JPEG2000"])
def test_bytes_of_images(kind: str) -> None:
    whole = [encoded(pixels(64, 48), kind), encoded(Image.fromarray(pixels(64, 48)).convert("L"), kind)]

    def one(rng: random.Random) -> None:
        data = bytearray(damaged(rng.choice(whole), rng))
        for _ in range(rng.randint(0, 3)):  # headers above all
            if data:
                data[rng.randrange(min(64, len(data)))] = rng.choice(
                    (0, 1, 127, 128, 255, rng.randrange(256))
                )
        image = open_image(bytes(data), max_pixels=4_000_000)
        found = image.pixels(rng.choice((1, 2, 8)))
        assert found.dtype == np.uint8
        assert found.ndim == 3

    tries(250, one)


def test_bytes_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETCL_CACHE", str(tmp_path / "cache"))
    members = [
        (f"{i}.{end}", encoded(pixels(8, 8, seed=i)) if end == "jpg" else b"1")
        for i in range(3)
        for end in ("jpg", "cls")
    ]
    whole = tar(tmp_path / "a.tar", members).read_bytes()

    def one(rng: random.Random) -> None:
        (tmp_path / "b.tar").write_bytes(damaged(whole, rng))
        source = open_source(str(tmp_path / "b.tar"))
        for i in range(len(source)):
            open_image(source.sample(i)).pixels()

    tries(80, one)


def test_what_fuzzing_found(tmp_path: Path) -> None:
    """Ends of zips that name another disk, or a place before the file; LVIS's lists of classes that are numbers."""
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"w": torch.zeros(2)})
    whole = path.read_bytes()
    at = whole.rindex(b"PK\x05\x06")
    another = b"PK\x06\x07" + b"\1\0\0\0" + bytes(8) + b"\2\0\0\0"
    size = whole.rindex(b"PK\x06\x06") + 40  # of the list of parts
    before = whole[:size] + b"\xff\xff\xff\x7f" + whole[size + 4 :]
    for data in (whole[:at] + another + whole[at:], before):
        path.write_bytes(data)
        with pytest.raises(InputError, match="damaged, cut short or of another kind"):
            checkpoint.load(path)
        with pytest.raises(InputError):
            load_encoder(str(path))
    layouts.write_lvis(tmp_path / "set", train=1, val=2, size=32)
    document = next(p for p in (tmp_path / "set").rglob("*.json") if "val" in p.name)
    tree = json.loads(document.read_text())
    tree["images"][0]["neg_category_ids"], tree["annotations"][0]["bbox"] = 0.5, [1e308] * 4
    document.write_text(json.dumps(tree))
    data = open_detection(f"lvis:{tmp_path / 'set'}", "val")
    assert data.annotations(0).negative == ()
    assert any("neg_category_ids that is no list" in line for line in data.skipped.lines())


class Odd:
    """Pickles as one of the calls that a state dict may hold, with odd arguments."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.args


def test_pickles_and_bytes_of_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    state = torch.nn.Linear(4, 4).state_dict()
    calls = (
        torch.Size,
        bytearray,
        set,
        complex,
        dict,
        torch.Tensor,
        torch.device,
        torch._utils._rebuild_tensor_v2,
    )
    checkpoint.save(path, {"task": {"query": dict(state)}, "arch": "resnet18"})
    whole = path.read_bytes()

    def one(rng: random.Random) -> None:
        if rng.randrange(2):
            data = damaged(whole, rng)
        else:
            odd = Odd(rng.choice(calls), *(rng.choice(ODD) for _ in range(rng.randint(0, 3))))
            stream = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
                for name in old.namelist():
                    content = pickle.dumps({"w": odd}, 2) if name.endswith("data.pkl") else old.read(name)
                    new.writestr(name, content)
            data = stream.getvalue()
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            checkpoint.load(path)
        load_encoder(str(path))

    tries(120, one)


def test_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    tree = {
        "settings": {"batch": 8, "views": ["crop"], "stage1": {"epochs": 1}},
        "data": "scenes:9",
        "hetcl": "0.1",
    }
    folder.write_settings(tree)
    whole = folder.settings.read_bytes()
    recipe = tmp_path / "r.yaml"

    def one(rng: random.Random) -> None:
        folder.settings.write_bytes(damaged(whole, rng))
        with contextlib.suppress(InputError):
            folder.read_settings()
            folder.check_seal()
        recipe.write_bytes(
            damaged(whole, rng) if rng.randrange(2) else json.dumps(changed(tree, rng)).encode()
        )
        for settings in (resolve, resolve_finetune):
            with contextlib.suppress(InputError):
                settings(str(recipe))
        with contextlib.suppress(InputError):
            resolve(None, changed(tree["settings"], rng))

    tries(200, one)


def test_tables_and_names_of_classes(tmp_path: Path) -> None:
    table = Table(tmp_path / "metrics.csv", ["step", "loss"])
    table.cut(None)
    for step in range(20):
        table.append({"step": step, "loss": 0.5})
    whole = table.path.read_bytes()
    names = [["a", "b"], {"0": "a"}, {"a": 0}, {"names": [{"id": 0, "name": "a"}]}]

    def one(rng: random.Random) -> None:
        table.path.write_bytes(damaged(whole, rng))
        Table(table.path, ["step", "loss"]).cut(None)
        table.read()
        class_names(
            json.dumps(changed(rng.choice(names), rng)).encode("utf-8", "surrogatepass"), "classes.json"
        )
        class_names(damaged(b"cat\ndog\nhorse\n", rng), "classes.txt")

    tries(150, one)
