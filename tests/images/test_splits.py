"""Splits are splits, in any usual spelling, in folders as in shards; classes that are called so stay classes."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from hetcl.errors import InputError
from hetcl.images.sources import braces, open_held_out, open_source
from hetcl.images.split_words import split_of
from hetcl.images.splits import split_shards
from hetcl.types import Source
from tests.images.make import shard

CLASSES = ("a", "b", "c")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def tree(root: Path, *places: str) -> str:
    """A folder with two images in each place; ``train/*`` stands for the three classes in it."""
    for place in places:
        for name in CLASSES if place.endswith("*") else ("",):
            folder = root / place.removesuffix("*") / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(2):
                (folder / f"{i}.jpg").write_bytes(b"x")
    return str(root)


def held(source: Source) -> list[tuple[str, int | None]]:
    """The folder and the label of each image."""
    names = [(source.sample(i).name, source.label(i)) for i in range(len(source))]
    return sorted({(name.rpartition("/")[0], label) for name, label in names})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (n, "train")
            for n in ("train", "Train", "TRAIN", "training", "Training_Set", "train2017", "trainval")
        ),
        *(
            (n, "train")
            for n in ("train-images", "TrainImages", "01_train", "seg_train", "train_256x256", "trainA")
        ),
        *(
            (n, "val")
            for n in ("val", "VAL", "valid", "validation", "Valid Images", "dev", "eval", "held-out")
        ),
        *((n, "test") for n in ("test", "Testing", "TEST", "test1", "test_set", "testset", "test_stg1")),
        *((n, "unlabelled") for n in ("unlabeled", "unlabelled2017", "Unlabeled Images", "unsup")),
        *(
            (n, "train")
            for n in ("traindir", "trainimgs", "imgTrain", "trainset1", "TrainPics", "tr", "dataTr")
        ),
        *((n, "val") for n in ("valdir", "valimages", "vali", "cv")),
        *((n, "test") for n in ("testdir", "testfiles", "te", "unseen", "query", "gallery", "t10k-images")),
        *(
            (n, "train")
            for n in ("Trainingsdaten", "entraînement", "entrai\u0302nement", "datos_entrenamiento")
        ),
        *(
            (n, "train")
            for n in ("训练集", "训练数据", "обучение", "学習用データ", "훈련", "treino", "eğitim")
        ),
        *(
            (n, "val")
            for n in ("Validierung", "validação", "验证集", "検証用", "validering", "valideringsdata")
        ),
        *((n, "test") for n in ("Testdaten", "Testbilder", "pruebas", "测试集", "テスト用データ", "тест")),
    ],
)
def test_spellings(name: str, split: str) -> None:
    assert split_of(name) == (split, ())


@pytest.mark.parametrize(
    "name",
    [
        *("restrain", "interval", "contest", "latest", "trainer", "retrain", "cat", "", "42", "protest"),
        *("tree", "tea", "cvs", "string", "profile", "datamining"),
    ],
)
def test_words_that_hold_others(name: str) -> None:
    assert split_of(name)[0] is None


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("train", "test", "test"),
        ("training", "validation", "val"),
        ("Train", "Val", "val"),
        ("TRAIN", "TEST", "test"),
        ("images/train", "images/valid", "val"),
        ("data/set/train2017", "data/set/val2017", "val"),
        ("Train Images", "Test Images", "test"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("imagenette_train", "imagenette_val", "val"),
        ("train_64x64", "valid_64x64", "val"),
    ],
)
@pytest.mark.parametrize("classes", [True, False])
def test_folders(train: str, other: str, split: str, classes: bool, tmp_path: Path, cache: Path) -> None:
    below = "/*" if classes else ""
    root = tree(tmp_path / "d", train + below, other + below, "docs")
    source = open_source(root, folder_classes=True, cache=cache)
    options = {"folder_classes": True, "cache": cache}
    (other_source,) = open_held_out(root, splits=(split,), **options).values()  # type: ignore[arg-type]
    if classes:
        assert source.classes == other_source.classes == CLASSES
        assert held(source) == [(f"{train}/{c}", i) for i, c in enumerate(CLASSES)]
        assert held(other_source) == [(f"{other}/{c}", i) for i, c in enumerate(CLASSES)]
    else:
        assert source.classes is other_source.classes is None
        assert (held(source), held(other_source)) == ([(train, None)], [(other, None)])
    everything = open_source(root, split="all", cache=cache)
    assert {place for place, _ in held(everything)} >= {"docs", *(place for place, _ in held(other_source))}


@pytest.mark.parametrize(
    ("places", "classes"),
    [
        (["train", "bus", "car"], ("bus", "car", "train")),
        (["train/*", "bus", "car"], ("bus", "car", "train")),
        (["freight_train", "express_train", "bus"], ("bus", "express_train", "freight_train")),
        (["valid", "invalid"], ("invalid", "valid")),
        (["test", "control"], ("control", "test")),
        (["train", "crash_test", "bus"], ("bus", "crash_test", "train")),
    ],
)
def test_classes_that_are_called_like_splits(
    places: list[str], classes: tuple[str, ...], tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "hetcl"):
        source = open_source(tree(tmp_path, *places), folder_classes=True, cache=cache)
    assert source.classes == classes
    assert "is taken for a folder like its neighbours" in caplog.text


@pytest.mark.parametrize(
    ("places", "classes"),
    [
        (["en", "tr", "te"], ("en", "te", "tr")),  # languages
        (["cv", "letter", "train"], ("cv", "letter", "train")),
        (["query", "chart", "train/*"], ("chart", "query", "train")),
    ],
)
def test_words_that_mean_other_things_too(
    places: list[str], classes: tuple[str, ...], tmp_path: Path, cache: Path
) -> None:
    """They are splits only where nothing else lies beside them."""
    root = tree(tmp_path / "a", *places)
    assert open_source(root, folder_classes=True, cache=cache).classes == classes
    beside = tree(tmp_path / "b", "tr/*", "te/*", "docs")
    assert open_source(beside, folder_classes=True, cache=cache).classes == CLASSES


def test_words_of_shards_that_mean_other_things_too() -> None:
    assert split_shards(["tr-0.tar", "te-0.tar"]) == {"train": ["tr-0.tar"], "test": ["te-0.tar"]}
    assert split_shards(["en-0.tar", "tr-0.tar", "te-0.tar"]) == {}


def test_a_word_that_only_holds_that_of_a_split(tmp_path: Path, cache: Path) -> None:
    """``carnival`` is no validation part, and ``medieval`` none of an evaluation."""
    names = ("carnival", "dog", "medieval")
    root = tree(tmp_path, *(f"{name}_{split}" for name in names for split in ("train", "val")))
    assert held(open_source(root, cache=cache)) == [(f"{name}_train", None) for name in names]
    assert len(open_held_out(root, cache=cache)["val"]) == 6


CLASS_WORDS = [
    ("cat_train dog-Train", "cat_test Dog_test"),
    ("train_cat1 train_cat2", "test_cat1 test_cat2"),
    ("train/train_cat train/train_dog", "test/test_cat test/test_dog"),
    ("cat_train dog_train", "test/cat test/dog"),
    ("train/cat train/dog", "cat_test dog_test"),
    ("train/cat train/dog", "val/val_cat val/val_dog"),
    ("cat_tr dog_tr", "cat_te dog_te"),
]


@pytest.mark.parametrize(("train", "other"), CLASS_WORDS)
def test_classes_in_the_names_of_the_folders_of_splits(
    train: str, other: str, tmp_path: Path, cache: Path
) -> None:
    root = tree(tmp_path, *train.split(), *other.split())
    source = open_source(root, folder_classes=True, cache=cache)
    (beside,) = open_held_out(root, splits=("val", "test"), folder_classes=True, cache=cache).values()

    def numbers(source: Source, places: str) -> list[int | None]:
        found = dict(held(source))
        assert found.keys() == set(places.split())
        return [found[place] for place in places.split()]

    assert (numbers(source, train), numbers(beside, other)) == ([0, 1], [0, 1])


def test_no_classes_in_the_names_of_parts(tmp_path: Path, cache: Path) -> None:
    """``train_1`` and ``train_2`` are parts; what is said of the missing labels is true."""
    source = open_source(tree(tmp_path, "train_1", "train_2", "test_1"), folder_classes=True, cache=cache)
    assert source.classes is None
    assert "its images lie right in train_1/, train_2/, not in the folders of classes" in str(
        getattr(source, "why_no_labels", "")
    )


# ---- folders that hold the same folders ------------------------------------------------------------------------------

SURE = [
    "amazon/{cat,dog,eft} webcam/{cat,dog,eft}",
    "amazon/images/{cat,dog,eft} webcam/images/{cat,dog,eft}",
    "in/amazon/{cat,dog} in/webcam/{cat,dog}",
    "fold1/{cat,dog} fold2/{cat,dog} fold3/{cat,dog}",
    "fold1/{0,1} fold2/{0,1} fold3/{0,1}",
    "train/{cat,dog,eft} extern/{cat,dog,eft}",
    "A/{cat,dog,eft} B/{Cat,Dog}",  # nearly the same
    "A/{n01440764,n01443537} B/{n01440764,n01443537}",
    "A/{cat,dog,eft} B/{cat,dog,eft} readme",
    "A/{猫,狗} B/{猫,狗}",
]
UNSURE = [
    "a/{sunny,foggy} b/{sunny,foggy} c/{sunny,foggy} d/{sunny,foggy}",  # classes in two weathers?
    "mnist/{0,1,2,3} usps/{0,1,2,3}",
    "one/{a,b,c} two/{a,b,c}",
]
CLASSES_ALL_THE_SAME = [
    "cat/images dog/images",
    "cat/good dog/good",
    "cat/{left,right} dog/{left,right}",
    "cat/{left,right} bus/{left,right} train/{left,right}",
    "cat/{images,masks} dog/{images,masks}",
    "cat/{left_view,right_view,top_view} dog/{left_view,right_view,top_view}",
    "cat/{session1,session2} dog/{session1,session2}",
    "cat/{2019,2020} dog/{2019} owl/{2019,2020}",
    "cat/{indoor,outdoor} dog/{indoor,outdoor}",
    "cat/{raw,augmented} dog/{raw,augmented}",
    "cat/{40X,100X} dog/{40X,100X}",
    "cat/{persian,siamese,other} dog/{poodle,beagle,other}",
    "cat/{fold1,fold2} dog/{fold1,fold2}",
    "a/{cat,dog} b/{cat,dog} x x2 x3 x4 x5 x6 x7 x8 x9",
    "cat dog",
]


def places(layout: str) -> list[str]:
    """``a/{b,c} d`` as a/b, a/c, d."""
    return [place for part in layout.split() for place in braces(part)]


@pytest.mark.parametrize("layout", SURE)
def test_folders_of_the_same_folders_are_no_classes(
    layout: str, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, *places(layout))
    said = r"hold folders of the same names \(.*\), as splits, domains or folds do"
    with pytest.raises(InputError, match=said + r" and classes do not: name one of them \(--data ") as caught:
        open_source(root, folder_classes=True, strict=True, cache=cache)
    named = str(caught.value).partition("--data ")[2].partition(")")[0]
    assert len(open_source(named, folder_classes=True, strict=True, cache=cache).classes or ()) >= 2
    everything = open_source(root, split="all", folder_classes=True, strict=True, cache=cache)
    assert everything.classes is not None
    assert "same names" not in caplog.text
    for folder_classes in (True, False):
        caplog.clear()
        open_source(root, folder_classes=folder_classes, cache=cache)
        (line,) = [r for r in caplog.records if re.search(said, r.getMessage())]
        assert line.levelno == logging.WARNING


@pytest.mark.parametrize("layout", UNSURE)
def test_folders_of_the_same_folders_that_may_be_classes(
    layout: str, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, *places(layout))
    assert open_source(root, folder_classes=True, strict=True, cache=cache).classes is not None
    assert "if they are no classes, name one of them" in caplog.text
    caplog.clear()
    open_source(root, cache=cache)
    assert not caplog.text


@pytest.mark.parametrize("layout", CLASSES_ALL_THE_SAME)
def test_classes_that_share_the_names_of_their_folders(
    layout: str, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, *places(layout))
    source = open_source(root, folder_classes=True, strict=True, cache=cache)
    assert source.classes == tuple(sorted({place.partition("/")[0] for place in places(layout)}))
    assert not caplog.text


def test_the_same_folders_below_a_split_are_warned_of(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, *places("train/{amazon,webcam}/{cat,dog} test/{amazon,webcam}/{cat,dog}"))
    source = open_source(root, folder_classes=True, strict=True, cache=cache)
    assert source.classes == ("amazon", "webcam")
    assert "train/amazon/, train/webcam/ hold folders of the same names (cat, dog)" in caplog.text


def test_classes_called_train_and_test_by_request(tmp_path: Path, cache: Path) -> None:
    root = tree(tmp_path, "train", "test")
    assert open_source(root, split="all", folder_classes=True, cache=cache).classes == ("test", "train")


def test_what_is_said(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path / "d", "Training/*", "val/*", "Test/*", "extra")
    with caplog.at_level(logging.INFO, "hetcl"):
        open_source(root, cache=cache)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == (
        f"{root} has splits: train is Training/ (6 images); val is val/ (6 images); test is Test/ (6 images). "
        "Read here: train (--data_split all reads everything as one set)"
    )
    assert second.startswith(f"left aside in {root}: extra/ (2 images)")


def test_unlabelled_images_are_trained_on_without_labels(tmp_path: Path, cache: Path) -> None:
    root = tree(tmp_path, "train/*", "unlabeled", "test/*")
    source = open_source(root, folder_classes=True, cache=cache)
    assert held(source) == [*((f"train/{c}", i) for i, c in enumerate(CLASSES)), ("unlabeled", None)]
    assert source.unlabelled == 2


def test_splits_in_the_folders_of_the_classes(tmp_path: Path, cache: Path) -> None:
    root = tree(tmp_path, "cat/train", "cat/test", "dog/train", "dog/test", "dog/ground_truth")
    source = open_source(root, folder_classes=True, cache=cache)
    assert (source.classes, held(source)) == (("cat", "dog"), [("cat/train", 0), ("dog/train", 1)])
    test = open_held_out(root, splits=("test",), folder_classes=True, cache=cache)["test"]
    assert held(test) == [("cat/test", 0), ("dog/test", 1)]


def test_sets_side_by_side_share_their_classes(tmp_path: Path, cache: Path) -> None:
    root = tree(tmp_path, "one/train/*", "one/test/*", "two/train/*", "two/test/*")
    source = open_source(root, folder_classes=True, cache=cache)
    assert source.classes == CLASSES
    assert len(source) == 12


@pytest.mark.parametrize(
    "places",
    [
        ["images/train", "images/val", "labels/train", "labels/val"],
        ["train/images", "train/masks", "val/images", "val/masks"],
        ["JPEGImages", "SegmentationClass", "SegmentationObject"],
        ["leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val"],
    ],
)
def test_label_maps_are_no_images(places: list[str], tmp_path: Path, cache: Path) -> None:
    source = open_source(tree(tmp_path, *places), cache=cache)
    assert [place for place, _ in held(source)] == [places[0]]


def test_label_maps_of_sets_side_by_side(tmp_path: Path, cache: Path) -> None:
    places = [f"VOC{year}/{name}" for year in (2007, 2012) for name in ("JPEGImages", "SegmentationClass")]
    source = open_source(tree(tmp_path, *places), cache=cache)
    assert [place for place, _ in held(source)] == ["VOC2007/JPEGImages", "VOC2012/JPEGImages"]
    assert len(open_source(str(tmp_path), split="all", cache=cache)) == 8


def test_a_training_folder_that_does_not_say_so(tmp_path: Path, cache: Path) -> None:
    """Places365: ``data_large``, ``val_large``, ``test_large``."""
    root = tree(tmp_path, "data_large/*", "val_large", "test_large")
    assert [place for place, _ in held(open_source(root, cache=cache))] == [
        f"data_large/{c}" for c in CLASSES
    ]


def test_trainval_holds_nothing_new_beside_train_and_val(tmp_path: Path, cache: Path) -> None:
    root = tree(tmp_path, "train", "trainval", "val", "test")
    assert held(open_source(root, cache=cache)) == [("train", None)]
    root = tree(tmp_path / "other", "trainval", "test")
    assert held(open_source(root, cache=cache)) == [("trainval", None)]


def test_dev_and_eval(tmp_path: Path, cache: Path) -> None:
    found = open_held_out(tree(tmp_path, "train", "dev", "eval"), splits=("val", "test"), cache=cache)
    assert {split: held(source) for split, source in found.items()} == {
        "val": [("dev", None)],
        "test": [("eval", None)],
    }


def test_no_training_part(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"has no split train \(it has: val, test\).* data_split to all"):
        open_source(
            tree(tmp_path, "val/cat", "val/dog", "test/cat", "test/dog"), folder_classes=True, cache=cache
        )
    assert not caplog.text


def test_class_folders_of_another_system(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Capitals and the form of accents differ between systems; a name that could be either of two is neither."""
    root = tree(tmp_path, "train/Z\u00fcrich", "train/Dog", "val/Zu\u0308rich", "val/dog", "val/owl")
    validation = open_held_out(root, folder_classes=True, cache=cache)["val"]
    assert held(validation) == [("val/Zu\u0308rich", 1), ("val/dog", 0), ("val/owl", None)]
    assert "owl/ (2 images): no training images lie in folders of that name" in caplog.text
    root = tree(tmp_path / "b", "train/Dog", "train/dog", "val/DOG", "val/dog", "val/Dog")
    validation = open_held_out(root, folder_classes=True, cache=cache)["val"]
    assert held(validation) == [("val/DOG", None), ("val/Dog", 0), ("val/dog", 1)]
    assert "Dog and dog differ in capitals or accents only" in caplog.text


def test_the_fingerprint_is_that_of_what_is_read(tmp_path: Path, cache: Path) -> None:
    root = tree(tmp_path, "train/*", "test/*")
    before = [open_source(root, split=split, cache=cache).fingerprint for split in ("train", "test", "all")]
    assert len(set(before)) == 3
    (tmp_path / "test/a/more.jpg").write_bytes(b"x")
    after = [open_source(root, split=split, cache=cache).fingerprint for split in ("train", "test", "all")]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False]
    assert open_source(root, folder_classes=True, cache=cache).fingerprint == before[0]


# ---- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "train", "splits"),
    [
        (["train/0.tar", "train/1.tar", "val/0.tar"], ["train/0.tar", "train/1.tar"], {"val"}),
        (["data/Training/0.tar", "data/Test/0.tar"], ["data/Training/0.tar"], {"test"}),
        (["x-train-0.tar", "x-validation-0.tar", "x-test-0.tar"], ["x-train-0.tar"], {"val", "test"}),
        (["TRAIN_0.tar", "unlabeled_0.tar", "TEST_0.tar"], ["TRAIN_0.tar"], {"unlabelled", "test"}),
        (["train-0.tar", "trainval-0.tar", "val-0.tar"], ["train-0.tar"], {"val"}),
        (["0.tar", "1.tar", "eval/0.tar"], ["0.tar", "1.tar"], {"val"}),
        (["imagenet-val/train-0.tar", "imagenet-val/val-0.tar"], ["imagenet-val/train-0.tar"], {"val"}),
    ],
)
def test_names_of_shards(names: list[str], train: list[str], splits: set[str]) -> None:
    found = split_shards(names)
    assert found.pop("train") == train
    found.pop("", None)
    assert set(found) == splits


@pytest.mark.parametrize(
    "names", [["a.tar", "b.tar"], ["train.tar", "bus.tar"], ["train/0.tar", "bus/0.tar"]]
)
def test_shards_without_splits(names: list[str]) -> None:
    assert split_shards(names) == {}


def test_folders_of_shards(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, count in (("Train", 6), ("Test", 3)):
        (tmp_path / "d/shards" / split).mkdir(parents=True)
        shard(tmp_path / "d/shards" / split / "000.tar", count, classes=3)
    (tmp_path / "d/shards/classes.json").write_bytes(b'\xef\xbb\xbf["a", "b", "c"]\r\n')
    (tmp_path / "d/shards/classes.json").rename(tmp_path / "d/classes.json")
    root = str(tmp_path / "d")
    with caplog.at_level(logging.INFO, "hetcl"):
        source = open_source(root, cache=cache)
    assert len(source) == 6
    assert source.classes == CLASSES
    assert (
        "has splits: train is shards/Train/000.tar; test is shards/Test/000.tar. Read here: train"
        in caplog.text
    )
    (test,) = open_held_out(root, splits=("val", "test"), cache=cache).values()
    assert (len(test), test.classes) == (3, CLASSES)
    assert len(open_source(root, split="all", cache=cache)) == 9


def test_shards_named_one_by_one_are_all_read(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard(tmp_path / "train-0.tar", 4)
    shard(tmp_path / "test-0.tar", 2)
    with caplog.at_level(logging.INFO, "hetcl"):
        assert len(open_source(str(tmp_path / "{train,test}-0.tar"), cache=cache)) == 6
    assert "shards 1 of train, 1 of test were named, and all of them are read" in caplog.text
    assert len(open_source(str(tmp_path / "*.tar"), cache=cache)) == 4  # what is there, as in a folder
