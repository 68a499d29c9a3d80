"""Sizes that files state are held against what is there before memory is taken."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hetcl.datasets import open_detection, packed
from hetcl.downstream import loader
from hetcl.errors import InputError
from hetcl.images.decode import open_image
from hetcl.images.labels import class_names
from hetcl.images.sources import open_source
from hetcl.types import BadImage
from tests.downstream import layouts
from tests.hostile.memory import taken
from tests.images.make import encoded, tar

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux's processes")


def coco(root: Path, segmentation: Any, *, sides: tuple[Any, Any] = (480, 640)) -> Path:
    """A set of one image of 640 x 480 pixels with one object."""
    for split in ("train", "val"):
        layouts.save(root / "images" / f"{split}.png", np.full((480, 640, 3), 90, np.uint8))
        image = {"id": 1, "file_name": f"{split}.png", "height": sides[0], "width": sides[1]}
        thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 640, 480]}
        document = {
            "images": [image],
            "annotations": [thing | {"segmentation": segmentation}],
            "categories": [{"id": 1, "name": "thing"}],
        }
        layouts.write_json(root / "annotations" / f"instances_{split}.json", document)
    return root


LOOK = "from hetcl.datasets import open_detection; from hetcl.datasets import masks"
READ = """data = open_detection('coco:{}', 'val')
truth = data.annotations(0)
for segment in truth.segments or ():
    masks.bitmap(segment, truth.size)
data.image(0)"""


@pytest.mark.parametrize("far", [640, 1_000_000])
@pytest.mark.parametrize("rings", [1, 300])
def test_polygons_take_no_more_than_their_image(far: int, rings: int, tmp_path: Path) -> None:
    ring = [v for i in range(2000) for v in ((0 if i % 2 else far), 480 * i / 2000)]
    segmentation = [ring] if rings == 1 else [ring[:60]] * rings
    took, out = taken(LOOK, READ.format(coco(tmp_path / "set", segmentation)))
    assert took < 200, out


@pytest.mark.parametrize("sides", [(1 << 19, 1 << 19), (10**9, 10**9), ("999999", "999999"), (1e18, 1e18)])
def test_stated_sides_of_an_image_are_bounded(sides: tuple[Any, Any], tmp_path: Path) -> None:
    ring = [0, 0, 600, 0, 600, 400]
    took, out = taken(LOOK, READ.format(coco(tmp_path / "set", [ring], sides=sides)))
    assert took < 200, out


def test_run_lengths_of_a_stated_size_do_not_count(tmp_path: Path) -> None:
    side = 1 << 19
    runs = {"size": [side, side], "counts": [0, side * side]}
    took, out = taken(LOOK, READ.format(coco(tmp_path / "set", runs, sides=(side, side))))
    assert took < 200
    assert "mask of another size than its image" in out


def bomb(path: Path, side: int, *, mode: int = 2) -> Path:
    """A PNG of side x side pixels of one colour, in a few KB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pack, row = zlib.compressobj(9), bytes(1 + side * {0: 1, 2: 3}[mode])
    body = b"".join(pack.compress(row) for _ in range(side)) + pack.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, mode, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


def test_images_of_another_size_than_annotated_are_not_decoded(tmp_path: Path) -> None:
    root = coco(tmp_path / "set", [])
    bomb(root / "images" / "val.png", 8000)
    took, out = taken(LOOK, READ.format(root))
    assert took < 60, out
    assert "refused:" in out


@pytest.mark.parametrize("kind", ["voc", "cityscapes"])
def test_label_maps_of_another_size_than_their_image_are_not_decoded(kind: str, tmp_path: Path) -> None:
    if kind == "voc":
        layouts.write_voc(tmp_path, train=2, val=2)
        path = max(tmp_path.rglob("SegmentationClass/*val*.png"))
    else:
        layouts.write_cityscapes(tmp_path, train=2, val=2)
        path = max(tmp_path.rglob("val/*/*labelIds.png"))
    bomb(path, 6000)
    code = f"data = open_segmentation('{kind}:{tmp_path}', 'val')\nfor i in range(2):\n    data.label_map(i)"
    took, out = taken("from hetcl.datasets import open_segmentation", code)
    assert took < 100, out
    assert "refused:" in out
    assert "6000 x 6000 pixels, its image" in out


def test_an_image_file_with_more_bytes_than_an_image_has_is_not_read(tmp_path: Path) -> None:
    root, plain = coco(tmp_path / "set", []), tmp_path / "d"
    plain.mkdir()
    for path in (root / "images" / "val.png", plain / "a.jpg"):
        with open(path, "ab") as f:
            f.truncate(1 << 36)  # a hole
    took, out = taken(
        "import os; from hetcl.images.sources import open_source",
        f"os.environ['HETCL_CACHE'] = '{tmp_path}'\nopen_source('{tmp_path / 'd'}').sample(0)",
    )
    with pytest.raises(BadImage, match="68,719,476,736 bytes"):
        open_detection(f"coco:{root}", "val").image(0)
    assert took < 100
    assert "68,719,476,736 bytes, more than any image has" in out


def test_headers_of_tars_state_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    tar(path, [("1.jpg", encoded(np.zeros((8, 8, 3), np.uint8), "JPEG"))])
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE, tarfile.REGTYPE):
        header = tarfile.TarInfo("x")
        header.type, header.size = kind, 7 << 30
        (tmp_path / "b.tar").write_bytes(header.tobuf() + path.read_bytes())
        took, out = taken(
            "import os; from hetcl.images.sources import open_source",
            f"os.environ['HETCL_CACHE'] = '{tmp_path}'\nopen_source('{tmp_path / 'b.tar'}')",
            room=1024,
        )
        assert took < 100
        assert "refused:" in out


def test_a_number_makes_no_list_of_classes(tmp_path: Path) -> None:
    image = encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")
    tar(tmp_path / "a.tar", [("1.jpg", image), ("1.cls", b"9000000"), ("2.jpg", image), ("2.cls", b"1")])
    took, out = taken(
        "import os; from hetcl.images.sources import open_source",
        f"os.environ['HETCL_CACHE'] = '{tmp_path}'\ns = open_source('{tmp_path / 'a.tar'}')\n"
        "print(s.classes, s.why_no_labels)",
    )
    assert took < 60
    assert (
        "None no image has a label beside it that can be read; there is the label 9,000,000 among 2 images"
        in out
    )
    for text in ('{"99999999": "x"}', '[{"id": 1e400}]', '[{"id": Infinity}]', '[{"id": 99999999}]'):
        assert class_names(text.encode(), "classes.json") is None
    assert class_names(b'{"3": "x"}', "classes.json") == ("0", "1", "2", "x")


def test_pickles_state_what_is_not_there(tmp_path: Path) -> None:
    """A bytearray of 40 GB; a storage of 40 GB in a file of before zips."""

    class Much:
        def __reduce__(self) -> Any:
            return bytearray, (40 << 30,)

    path = tmp_path / "a.pth"
    state = {"w": torch.zeros(4), "x": Much()}
    torch.save(state, path)
    torch.save({"w": torch.zeros(4)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.pth").read_bytes()
    assert data.count(b"K\x04Nt") == 1  # the storage's length
    (tmp_path / "old.pth").write_bytes(
        data.replace(b"K\x04N", b"\x8a\x06" + (10 << 30).to_bytes(6, "little") + b"N")
    )
    imports = "from pathlib import Path; "
    imports += "from hetcl.weights.unpack import open_file; from hetcl.runs.checkpoint import load"
    for name in ("a.pth", "old.pth"):
        read = "load" if name == "a.pth" else "open_file"
        took, out = taken(imports, f"{read}(Path('{tmp_path / name}'))")
        assert took < 300, out
        assert "refused:" in out


def test_headers_of_safetensors_state_what_is_not_there(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    facts = {"arch": "resnet18", "method": "moco-v2", "semantic_dim": 10**9, "format": "full"}
    state = {"branches.x": torch.zeros(2), "pyramid.y": torch.zeros(2)}
    save_file(state, tmp_path / "a.safetensors", {"hetcl": json.dumps(facts)})
    tensor = {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    head = json.dumps(tensor).encode()
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(16))
    for name in ("a", "b"):
        path = tmp_path / f"{name}.safetensors"
        took, out = taken("from hetcl.weights.encoder import load_encoder", f"load_encoder('{path}')")
        assert took < 300
        assert "refused:" in out


@pytest.mark.parametrize("depth", [100, 200_000])
def test_deep_and_growing_xml_is_no_annotation(depth: int, tmp_path: Path) -> None:
    layouts.write_voc(tmp_path, train=2, val=2)
    paths = sorted(tmp_path.rglob("Annotations/*.xml"))
    grown = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
    text = f'<!DOCTYPE a [<!ENTITY e0 "{"x" * 1000}">{grown}]><annotation>&e9;</annotation>'
    nested = "<annotation>" + "<a>" * depth + "</a>" * depth + "</annotation>"
    paths[0].write_text(text)
    paths[1].write_text(nested)
    took, out = taken(
        "from hetcl.datasets import open_detection",
        f"for s in ('train', 'val'):\n    print(open_detection('voc:{tmp_path}', s).skipped.lines())",
    )
    assert took < 300, out


def test_many_classes_take_no_square_of_time(tmp_path: Path) -> None:
    root = coco(tmp_path / "set", [])
    path = root / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    document["categories"] = [{"id": i, "name": f"c{i}"} for i in range(100_000)]
    path.write_text(json.dumps(document))
    assert len(open_detection(f"coco:{root}", "val").classes) == 100_000


def test_other_formats_of_pillow_are_not_decoded(tmp_path: Path) -> None:
    """EPS is a program, which Pillow would hand to Ghostscript."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "EPS")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jpg").write_bytes(stream.getvalue())
    with pytest.raises(BadImage, match="not an image"):
        open_image(open_source(str(tmp_path / "d"), cache=tmp_path).sample(0))


def test_masks_of_an_image_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [{"size": [8, 8], "counts": b""}] * 5
    monkeypatch.setattr(loader, "MOST_BYTES", 4 * 64)
    with pytest.raises(BadImage, match="5 masks of 8 x 8 pixels"):
        loader._bitmaps(segments, np.ones(5, bool), (8, 8))


def test_objects_of_an_image_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training takes memory by their square."""
    monkeypatch.setattr(packed, "MOST_OBJECTS", 3)
    root = coco(tmp_path / "set", [[0, 0, 600, 0, 600, 400]])
    file = root / "annotations" / "instances_val.json"
    document = json.loads(file.read_text())
    first = document["annotations"][0]
    document["annotations"] = [first | {"id": i, "bbox": [i, 0, 9, 9]} for i in range(1, 5)]
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"val\.png has 4 objects, and at most 3 .* cut it into tiles"):
        open_detection(f"coco:{root}", "val")


def test_polygons_of_an_object_are_bounded(tmp_path: Path) -> None:
    ring = [0, 0, 60, 0, 60, 40]
    with pytest.raises(InputError, match="annotation of more than 10,000 polygons"):
        open_detection(f"coco:{coco(tmp_path / 'set', [ring] * 10_001)}", "val")
