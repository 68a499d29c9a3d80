"""A folder of images: what is listed, in which order, and when it is listed again."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetcl.errors import InputError
from hetcl.images import listing as listing_module
from hetcl.images.folder_source import FolderSource
from hetcl.images.listing import walk
from hetcl.images.sources import open_source, open_validation
from hetcl.types import BadImage, Source
from tests.images.make import folder
from tests.reference.images import listed


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names(source: Source) -> list[str]:
    return [source.sample(i).name for i in range(len(source))]


part = st.sampled_from(["a", "b", "B", "ä", "a b", "c.d", ".hidden", "10", "9", "z-1"])
kind = st.sampled_from([".jpg", ".JPG", ".png", ".WebP", ".txt", "", ".tif", ".jpeg.bak", ".ppm"])
tree = st.lists(st.tuples(st.lists(part, max_size=3), part, kind), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=tree)
def test_order_is_that_of_a_sorted_walk(tmp_path_factory: pytest.TempPathFactory, entries: list) -> None:
    root = tmp_path_factory.mktemp("tree")
    for folders, name, ending in entries:
        place = root.joinpath(*(f"{f}_" for f in folders))  # a folder and a file never share a name
        place.mkdir(parents=True, exist_ok=True)
        (place / (name + ending)).write_bytes(b"x")
    expected = listed(str(root))
    assert [os.fsdecode(p) for p in walk(str(root))] == expected
    cache = tmp_path_factory.mktemp("cache")
    if expected:
        source = open_source(str(root), cache=cache)
        assert names(source) == expected
        assert names(open_source(str(root), cache=cache)) == expected  # again, from the cache
    else:
        with pytest.raises(InputError, match="no images"):
            open_source(str(root), cache=cache)


def test_source(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "data", ["b/2.jpg", "b/1.png", "a/x/3.jpg", "top.jpeg"])
    source = open_source(str(root), cache=cache)
    assert isinstance(source, Source)
    assert names(source) == ["top.jpeg", "a/x/3.jpg", "b/1.png", "b/2.jpg"]
    assert source.sample(3).data == (root / "b/2.jpg").read_bytes()
    assert source.classes is None
    assert source.label(0) is None
    assert source.sample(0).label is None
    assert source.blocks() is None
    assert "4 images" in source.description
    assert open_validation(str(root), cache=cache) is None


def test_folder_classes(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "data", ["dog/2.jpg", "cat/deep/1.jpg", "cat/0.jpg", "dog/1.jpg"])
    source = open_source(str(root), folder_classes=True, cache=cache)
    assert source.classes == ("cat", "dog")
    assert [source.label(i) for i in range(4)] == [0, 0, 1, 1] == [source.sample(i).label for i in range(4)]
    folder(root, ["loose.jpg"])
    source = open_source(str(root), folder_classes=True, cache=cache)
    assert [source.label(i) for i in range(5)] == [None, 0, 0, 1, 1]
    assert [source.sample(i).label for i in range(5)] == [None, 0, 0, 1, 1]
    assert source.unlabelled == 1
    assert "5 images in 2 classes (1 without a label)" in source.description
    folder(root, [f"loose{i}.jpg" for i in range(4)])  # most of them: the folders are no classes
    source = open_source(str(root), folder_classes=True, cache=cache)
    assert source.classes is None
    assert source.why_no_labels == "5 of 9 images do not lie in the folder of a class (cat, dog)"


def test_train_and_val_folders(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path, ["d/train/a/1.jpg", "d/train/b/2.jpg", "d/train/c/3.jpg", "d/val/c/4.jpg"]) / "d"
    assert len(open_source(str(root), cache=cache)) == 3
    assert len(open_source(str(root), split="all", cache=cache)) == 4
    held = open_validation(str(root), folder_classes=True, cache=cache)
    assert held is not None
    assert names(held) == ["val/c/4.jpg"]
    assert held.label(0) == 2  # the training images' number
    assert len(open_source(str(root), split="val", cache=cache)) == 1
    folder(root, ["val/d/5.jpg"])
    held = open_validation(str(root), folder_classes=True, cache=cache)
    assert held is not None
    assert [held.label(i) for i in range(2)] == [2, None]
    assert "d/ (1 image): no training images lie in folders of that name" in caplog.text


def test_val_split_asked_for_and_missing(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=r"has no split val \(it has: none\)"):
        open_source(str(folder(tmp_path / "d", ["1.jpg"])), split="val", cache=cache)
    with pytest.raises(InputError, match="train, val, test, all"):
        open_source("scenes:3", split="vall")


def test_changes_are_seen(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "d", ["a/1.jpg", "b/2.jpg"])
    before = open_source(str(root), cache=cache)
    folder(root, ["b/3.jpg"])
    after = open_source(str(root), cache=cache)
    assert len(after) == 3
    assert before.fingerprint != after.fingerprint
    assert len(before) == 2  # the open one goes on
    assert names(pickle.loads(pickle.dumps(before))) == ["a/1.jpg", "b/2.jpg"]  # in a worker, too
    (root / "a/1.jpg").rename(root / "a/0.jpg")
    assert names(open_source(str(root), cache=cache))[0] == "a/0.jpg"


def test_unchanged_folder_is_not_listed_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "d", ["a/1.jpg", "b/2.jpg"])
    for place in (root, root / "a", root / "b"):  # long ago
        os.utime(place, (1e9, 1e9))
    first = open_source(str(root), cache=cache)
    monkeypatch.setattr(listing_module, "walk", lambda *a: pytest.fail("listed again"))
    again = open_source(str(root), cache=cache)
    assert again.fingerprint == first.fingerprint
    assert names(again) == names(first)


def test_damaged_cache_is_made_again(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "d", ["a/1.jpg", "b/2.jpg"])
    for place in (root, root / "a", root / "b"):
        os.utime(place, (1e9, 1e9))
    expected = names(open_source(str(root), cache=cache))
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert names(open_source(str(root), cache=cache)) == expected


def test_same_names_same_fingerprint_elsewhere(tmp_path: Path, cache: Path) -> None:
    a = open_source(str(folder(tmp_path / "a", ["x/1.jpg", "2.jpg"])), cache=cache)
    b = open_source(str(folder(tmp_path / "b", ["x/1.jpg", "2.jpg"])), cache=cache)
    assert a.fingerprint == b.fingerprint


def test_pickle_is_small_and_threads_agree(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "d", [f"{i:03d}.jpg" for i in range(200)])
    source = open_source(str(root), cache=cache)
    source.sample(0)
    packed = pickle.dumps(source)
    assert len(packed) < 2000
    copy = pickle.loads(packed)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: copy.sample(i).data, range(200)))
    assert read == [(root / f"{i:03d}.jpg").read_bytes() for i in range(200)]


def test_links_are_followed_and_loops_survived(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "d", ["a/1.jpg"])
    folder(tmp_path / "elsewhere", ["2.jpg"])
    (root / "a" / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "away").symlink_to(tmp_path / "elsewhere")
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "one.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    assert names(open_source(str(root), cache=cache)) == ["one.jpg", "a/1.jpg", "away/2.jpg"]


def test_what_is_no_plain_file_is_no_image(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "d", ["1.jpg", "folder.jpg/2.jpg", ".hidden/3.jpg", ".4.jpg"])
    os.mkfifo(root / "pipe.jpg")
    assert names(open_source(str(root), cache=cache)) == ["1.jpg", "folder.jpg/2.jpg"]


def test_names_that_are_not_utf8(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "d", ["1.jpg"])
    try:
        Path(os.fsdecode(os.fsencode(root) + b"/\xff.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    source = open_source(str(root), cache=cache)
    assert source.sample(1).data == b"x"


def test_images_that_went_away_are_bad_images(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "d", ["1.jpg", "2.jpg", "3.jpg"])
    source = open_source(str(root), cache=cache)
    (root / "1.jpg").unlink()
    (root / "2.jpg").unlink()
    os.mkfifo(root / "2.jpg")
    with pytest.raises(BadImage, match="No such file"):
        source.sample(0)
    with pytest.raises(BadImage, match="plain file"):
        source.sample(1)
    assert source.sample(2).data


def test_folder_without_images_says_what_it_holds(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InputError, match="holds no files"):
        open_source(str(tmp_path), cache=cache)
    for name in ("1.txt", "2.txt", "x.npy", "README", "deep/3.TXT"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(
        InputError, match=r"no images in .*3 \.txt \(1\.txt\), 1 \.npy \(x\.npy\), 1 without an ending"
    ):
        open_source(str(tmp_path), cache=cache)
    assert not list(cache.glob("*.part"))
    assert not list(cache.glob(".*"))


def test_unreadable_folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "d", ["a/1.jpg", "b/2.jpg"])
    scandir = os.scandir

    def refuse(path: bytes | str) -> object:
        if os.fsencode(path).endswith(b"/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"/d/b \(Permission denied\)"):
        open_source(str(root), cache=cache)


def test_deep_tree(tmp_path: Path, cache: Path) -> None:
    deep = "/".join(["d"] * 300) + "/1.jpg"
    assert names(open_source(str(folder(tmp_path / "t", [deep])), cache=cache)) == [deep]


def test_old_listings_are_removed_in_time(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "d", ["1.jpg"])
    first = open_source(str(root), cache=cache)
    assert isinstance(first, FolderSource)
    os.utime(first.table.path, (1e9, 1e9))
    folder(root, ["2.jpg"])
    second = open_source(str(root), cache=cache)
    assert isinstance(second, FolderSource)
    assert not os.path.exists(first.table.path)
    assert os.path.exists(second.table.path)


def test_a_change_within_the_clocks_tick_is_seen(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "d", ["1.jpg"])
    assert len(open_source(str(root), cache=cache)) == 1
    status = root.stat()
    folder(root, ["2.jpg"])
    os.utime(root, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if the clock had not moved
    assert len(open_source(str(root), cache=cache)) == 2


def _names_in(root: str, cache: Path) -> list[str]:
    return names(open_source(root, cache=cache))


def test_several_processes_list_at_once(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "d", [f"{i % 7}/{i}.jpg" for i in range(60)])
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.starmap(_names_in, [(str(root), cache)] * 12)
    assert all(f == listed(str(root)) for f in found)
    assert not list(cache.glob(".*"))
