"""Data that cannot be used: one clear line, and nothing written."""

from __future__ import annotations

import csv
import struct
import zlib
from pathlib import Path

import numpy as np

from tests.hostile.conftest import TINY, Says, linux
from tests.images.make import encoded, folder, pixels, shard


def test_data_that_is_not_there(says: Says) -> None:
    folder(Path("photos"), ["a.jpg", "b.jpg"])
    assert "missing does not exist: DATA is a folder of images, tar shards" in says.pretrain(data="missing")
    assert "did you mean" in says.pretrain(data="photo")
    assert "photos?" in says.pretrain(data="photo")
    assert "matches no file" in says.pretrain(data="x-{00..04}.tar")
    assert "such as scenes:1000" in says.pretrain(data="scenes:0")
    assert "such as scenes:1000" in says.pretrain(data="scenes:many")
    assert "DATA is empty" in says.pretrain(data="")
    assert "is a single image: name the folder" in says.pretrain(data="photos/a.jpg")


def test_folders_without_images(says: Says) -> None:
    Path("empty").mkdir()
    assert "no images in" in says.pretrain(data="empty")
    assert "it holds no files" in says.pretrain(data="empty")
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("hello")
    assert "found 1 .txt (a.txt)" in says.pretrain(data="texts")


def test_shards_that_are_cut_short_or_none(says: Says) -> None:
    whole = shard(Path("whole.tar"), 12).read_bytes().rstrip(b"\0")  # the end may be padded
    for share in (0, 0.3, 0.5, 0.9):
        cut = Path(f"cut{share}.tar")
        cut.write_bytes(whole[: int(len(whole) * share)])
        assert f"the shard {cut} is cut short" in says.pretrain(data=str(cut))
        assert "copy or download it again" in says.pretrain(data=str(cut))
    Path("text.tar").write_bytes(b"hello" * 1000)
    assert "is not a tar archive" in says.pretrain(data="text.tar")
    Path("packed.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    assert "unpack it once (gzip -d)" in says.pretrain(data="packed.tar.gz")


def test_a_tar_that_ends_behind_a_long_name_is_cut_short(says: Says) -> None:
    import tarfile

    with tarfile.open("pax.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(4):
            Path("a.jpg").write_bytes(encoded(pixels(8, 8, seed=i)))
            tar.add("a.jpg", f"{'x' * 120}{i}.jpg")
    data = Path("pax.tar").read_bytes()
    for blocks in range(1, len(data.rstrip(b"\0")) // 512):
        Path("cut.tar").write_bytes(data[: blocks * 512])
        assert "the shard cut.tar is cut short" in says.pretrain(data="cut.tar")


def test_too_few_images(says: Says) -> None:
    folder(Path("one"), ["a.jpg"])
    assert says.pretrain(data="one") == "1 image in the folder one: too few to contrast; give at least 2"


def test_few_images_are_enough(says: Says) -> None:
    folder(Path("tw élve 照片"), [f"{i} ü.jpg" for i in range(3)])
    says.pretrain("--batch", "64", "--accumulate", "2", data="tw élve 照片", out="out ü 照", status=0)
    for told in ("batch 64 -> 3", "groups 2 -> 1", "queue 65536 -> 3, the number of images"):
        assert told in says.out
    assert Path("out ü 照/backbone.safetensors").is_file()


def test_labels_that_are_not_there(says: Says) -> None:
    folder(Path("loose"), [f"{i}.jpg" for i in range(8)])
    said = says.pretrain("--stage1.method", "supervised", data="loose")
    assert "has no labels" in said
    assert "--folder_classes true" in said
    said = says.pretrain("--folder_classes", "yes", data="loose")
    assert "folder_classes is true, but all its images lie in one folder, loose" in said
    assert "leave folder_classes out" in said


# ---- images --------------------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says it has very many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def spoiled() -> dict[str, str]:
    """The folder ``photos``: 30 good images (one a PNG by another name), 5 that cannot be used -> their reasons."""
    folder(Path("photos"), [f"good{i:02}.jpg" for i in range(29)])
    whole = encoded(pixels(60, 50))
    files = {
        "png.jpg": encoded(pixels(), "PNG"),
        "empty.jpg": b"",
        "cut.jpg": whole[: len(whole) // 2],
        "text.jpg": b"hello, no image",
        "bomb.png": bomb(60_000, 60_000),
        "zeros.jpg": bytes(4000),
    }
    for name, data in files.items():
        Path("photos", name).write_bytes(data)
    Path("photos/folder.jpg").mkdir()
    return {
        "empty.jpg": "the file is empty",
        "cut.jpg": "truncated",
        "text.jpg": "not an image",
        "bomb.png": "a decompression bomb?",
        "zeros.jpg": "not an image",
    }


def test_images_that_cannot_be_used_are_replaced_counted_and_listed(says: Says) -> None:
    bad = spoiled()
    says.pretrain("--max_bad", "0.5", data="photos", status=0)
    with open("new/bad_images.csv", newline="") as f:
        listed = {row["name"]: row["reason"] for row in csv.DictReader(f)}
    assert set(listed) == set(bad)
    assert all(reason in listed[name] for name, reason in bad.items())
    assert "another image takes its place" in says.out
    assert "5 images could not be used: new/bad_images.csv lists them" in says.out


@linux
def test_names_that_are_no_text_or_hold_anything(says: Says) -> None:
    folder(Path("photos"), [f"{i}.jpg" for i in range(12)])
    for name in (b"photos/\xff\xfe.jpg", b'photos/new\nline, "quoted".jpg'):
        with open(name, "wb") as f:
            f.write(b"x")
    says.pretrain("--max_bad", "0.5", data="photos", out="out\udcff", status=0)
    with open("out\udcff/bad_images.csv", newline="", encoding="utf-8") as f:
        listed = {row["name"] for row in csv.DictReader(f)}
    assert listed == {r"\udcff\udcfe.jpg", r'new\nline, "quoted".jpg'}
    says("pretrain", "--out", "out\udcff", "--resume", status=0)


def test_replacing_a_image_changes_no_other_sample() -> None:
    """Views of the images that were good all along, with and without five others spoiled."""
    from hetcl.images.sources import open_source
    from hetcl.types import ViewPolicy
    from hetcl.views.loader import ViewLoader

    bad = spoiled()

    def views() -> dict[int, tuple[np.ndarray, np.ndarray]]:
        loader = ViewLoader(open_source("photos"), policy=ViewPolicy(), size=32, batch=7, seed=3, stage="s")
        rows = {}
        for step, batch in enumerate(loader.epoch(1)):
            for i in range(7):
                rows[step * 7 + i] = (
                    int(batch.index[i]),
                    batch.images[:, i].numpy(),
                    batch.color[:, i].numpy(),
                )
        return rows

    with_bad = views()
    for name in bad:
        Path("photos", name).write_bytes(encoded(pixels(40, 30, seed=99)))
    without = views()
    same = [
        here for here in without
        if with_bad[here][0] == without[here][0] and np.array_equal(with_bad[here][1], without[here][1])
    ]  # fmt: skip
    assert all(np.array_equal(with_bad[i][2], without[i][2]) for i in without), (
        "the draws belong to the place"
    )
    assert len(without) - len(same) == 5


def test_too_many_bad_images_stop_the_run_and_resume_goes_on(says: Says) -> None:
    folder(Path("photos"), [f"{i:02}.jpg" for i in range(20)])
    for i in range(5):
        Path(f"photos/bad{i}.jpg").write_text("x")
    said = says.pretrain(data="photos", status=1)
    assert "images opened cannot be used, more than max_bad = 10%; new/bad_images.csv lists them" in said
    assert "raise max_bad and go on with --resume" in said
    says("pretrain", "--out", "new", "--resume", "--max_bad", "0.5", status=0)
    assert Path("new/backbone.safetensors").is_file()


def test_the_share_counts_images_not_attempts(says: Says) -> None:
    """Half of the images are bad, so replacements fail too: still half of what was opened."""
    folder(Path("photos"), [f"{i:02}.jpg" for i in range(20)])
    for i in range(20):
        Path(f"photos/bad{i}.jpg").write_text("x")
    says.pretrain("--max_bad", "0.7", data="photos", status=0)


def test_no_usable_image_at_all(says: Says) -> None:
    Path("photos").mkdir()
    for i in range(9):
        Path(f"photos/{i}.jpg").write_text("x")
    said = says.pretrain(data="photos", status=1)
    assert "no image could be used" in said
    assert "not an image" in said
    assert "none of 9 images can be read" in says("doctor", "--data", "photos", *TINY)


def test_doctor_counts_bad_images(says: Says) -> None:
    spoiled()
    says("doctor", "--data", "photos", *TINY, status=0)
    assert "5 of 35 images cannot be used" in says.out


# ---- the run folder --------------------------------------------------------------------------------------------------
