"""What names of folders and shards say: of which split they speak, which are label maps, which say nothing.

A name is taken apart into words (``Train-Images_2017`` -> train, images); a split is a word of ``_WORDS``, alone or
glued to one that means data (``traindir``, ``Testdaten``), among words that say nothing (``NEUTRAL``). Accents do not
count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise

UNLABELLED = "unlabelled"
"""A split that data may have besides train, val and test: read for training, without labels."""


def _plain(text: str) -> str:
    """Without accents."""
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFC", "".join(c for c in apart if not unicodedata.combining(c)))


def fold(name: str) -> str:
    """A name as two systems that differ in capitals and in the form of accents both have it."""
    return unicodedata.normalize("NFC", name).casefold()


def _table(words: Mapping[str, str]) -> dict[str, str]:
    return {_plain(word): split for split, line in words.items() for word in line.split()}


_WORDS = _table(
    {
        "train": "train training trainings trn trainset trainingset trainval trainvalid trainvalidation traindata "
        "entrainement apprentissage entrenamiento treino treinamento addestramento allenamento trening "
        "treningowy treningowe treningowa träning tränings træning trenink egitim latih обучение обучающая "
        "обучающие 训练 訓練 学習 훈련 학습",
        "val": "val valid validation validate vali valset validset validationset dev devel devset eval evaluation "
        "evalset heldout holdout validierung validierungs validacion validacao validazione convalida "
        "validatie walidacja walidacyjny walidacyjne validering validerings validace dogrulama validasi "
        "валидация 验证 驗證 検証 검증",
        "test": "test testing tst testset testingset testdata tests teste testes testen prueba pruebas testowy "
        "testowe testowa uji тест тестовая тестовые 测试 測試 テスト 테스트",
        UNLABELLED: "unlabelled unlabeled unlabel unlab unsup unsupervised unannotated",
    }
)
_WEAK = _table({"train": "tr", "val": "cv", "test": "te ts query gallery unseen"})
"""Words that mean other things as well (languages, documents): splits only where every name beside speaks of one."""
_DATA = (
    "image images img imgs picture pictures pic pics photo photos data dataset datasets set sets split splits folder "
    "folders dir dirs file files daten datensatz bilder satz datos imagenes donnees dados imagens dati immagini dane "
    "gegevens veri verisi 数据 数据集 集 图像 图片 資料 資料集 データ セット 画像 用 데이터 세트 셋 이미지"
)
_GLUED = tuple(_plain(word) for word in _DATA.split())
"""Words that mean data: they say nothing, and may be glued to a split's."""
NEUTRAL = frozenset(_GLUED) | frozenset(
    "jpg jpeg jpegs png seg stg stage labelled labeled class classes imagenet ilsvrc coco voc de des du da do di del "
    "van".split()
)
IMAGES = frozenset(
    "image images img imgs jpegimages leftimgbit rightimgbit picture pictures photo photos rgb jpegs frames".split()
)
_MAPS = frozenset(
    "mask masks annotation annotations annots label labels labelmap labelmaps labelids gt gtfine gtcoarse groundtruth "
    "segmentation segmentations segmentationclass segmentationobject segmentationclassaug depth disparity "
    "semantic semantics instance instances disp flow".split()
)
ASIDE = frozenset(
    "doc docs readme sample samples example examples figure figures asset assets preview previews thumbnail thumbnails "
    "demo predict prediction predictions pred preds submission submissions result results output outputs".split()
)
"""Beside a single training folder, what is no class."""
FOLDS = frozenset("fold folds kfold cv crossval split splits partition partitions subset subsets".split())
"""Words of parts of a set that are no classes."""
_PARTS = FOLDS | frozenset("part parts batch batches chunk chunks".split())
GENERIC = frozenset(
    "left right front back rear top bottom side sides up down upper lower above below inside outside "
    "inner outer near far close wide horizontal vertical frontal lateral day night morning evening before "
    "after pre post old new first second third last early late raw original originals orig processed crop "
    "crops cropped resized augmented augmentation aug clean noisy color colour gray grey grayscale rgb ir "
    "nir thermal small medium large low high mid full half session sessions subject subjects take takes "
    "view views angle angles cam cams camera cameras frame frames video videos seq sequence sequences "
    "clip clips shot shots pose poses visit scan scans slice slices series patch patches tile tiles other "
    "others misc unknown indoor indoors outdoor outdoors studio version ver level year month week person "
    "user zoom mag scale".split()
)
"""Words of what a class may be filed by: sides, times, places, cameras, treatments."""
_SPEAKS = re.compile(
    "|".join(sorted({*_WORDS, *IMAGES, *_MAPS, "held", "hold", "label", "ground", "gt", "t10k"}))
    + rf"|(?<![a-z])(?:{'|'.join(sorted(_WEAK))})(?![a-z])"
)
"""A name without any of these is neither that of a split nor of images nor of maps: most names are judged at once."""


def speaks(name: str) -> bool:
    """Whether a name may be one of a split, of images or of maps."""
    return _SPEAKS.search(_plain(name).lower()) is not None


def words_of(name: str) -> list[str]:
    """The words of a name in lower case: at signs, digits and changes from small to capital letters."""
    return [word.lower() for word in re.findall(r"[^\W\d_]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])|[A-Z]", name)]


@lru_cache(maxsize=4096)
def _split_word(word: str) -> str | None:
    """The split that a word means, alone or glued to words that mean data."""
    if word in _WORDS:
        return _WORDS[word]
    for data in _GLUED:
        for rest in (word.removeprefix(data), word.removesuffix(data)):
            if rest and rest != word and (split := _split_word(rest)):
                return split
    return None


def split_of(name: str, *, weak: bool = True) -> tuple[str | None, tuple[str, ...]]:
    """The split that a name speaks of, if any, and its other words that say something; ``weak``: by weak words too."""
    words = words_of(re.sub("t10k", "test", _plain(name), flags=re.IGNORECASE))  # MNIST's
    pairs = {
        "held out": "heldout",
        "hold out": "holdout",
        "un labelled": "unlabelled",
        "un labeled": "unlabeled",
    }
    for at, two in enumerate(pairwise(words)):
        if joined := pairs.get(" ".join(two)):
            words[at : at + 2] = [joined]
            break
    spoken = {word: _split_word(word) or (_WEAK.get(word) if weak else None) for word in words}
    found = {split for split in spoken.values() if split}
    if found == {"train", "val"}:
        found = {"train"}  # train_val
    rest = tuple(w for w in words if not spoken[w] and w not in NEUTRAL and len(w) > 1)
    return (found.pop() if len(found) == 1 else None), rest


def besides(name: str) -> str:
    """What a name says besides its split: ``cat_1`` for ``train-Cat1-images``; empty where that is no class."""
    pieces = re.findall(r"\d+|[^\W\d_]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])|[A-Z]", _plain(name))
    kept = [p for p in map(str.lower, pieces) if not (_split_word(p) or p in _WEAK or p in NEUTRAL)]
    return "_".join(kept) if any(not p.isdigit() and p not in _PARTS for p in kept) else ""


def says_only(name: str, words: frozenset[str]) -> bool:
    """Whether a name has words, and none but these and those of splits."""
    own = words_of(_plain(name))
    return bool(own) and all(word in words or _split_word(word) for word in own)


def tells(name: str) -> bool:
    """Whether a name says what is in the images: not a number, a letter, a side, a time, a camera ..."""
    own = [word for word in words_of(_plain(name)) if len(word) > 1 or not word.isascii()]
    if any(word not in GENERIC | NEUTRAL | FOLDS and not split_of(word)[0] for word in own):
        return not is_map(name)
    return re.search(r"[^\W\d_]\d{4,}", name) is not None  # n01440764


def is_map(name: str) -> bool:
    """Whether a name is one of label maps, which look like images and are none."""
    return "".join(words_of(name)) in _MAPS or any(word in _MAPS for word in words_of(name))
