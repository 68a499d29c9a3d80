"""Labelled pictures to train and to test a probe with, and their frozen features on disk. N pictures, D dimensions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hetcl.draws import permute
from hetcl.errors import InputError
from hetcl.images.sources import open_source, open_validation
from hetcl.runs.folder import disk_problem, write_atomic
from hetcl.types import Sample, Source


class Part:
    """Some pictures of a source: positions ``start`` to ``stop`` of a keyed permutation, nothing stored.

    Args:
        name: ends its description and its fingerprint.
    """

    def __init__(self, source: Source, start: int, stop: int, *, seed: int, name: str) -> None:
        self.source, self.start, self.stop, self.seed = source, start, stop, seed
        self.classes, self.prefers_window = source.classes, 0
        self.fingerprint = f"{source.fingerprint}-{name}-{seed}-{start}-{stop}"
        self.description = f"{stop - start:,} of {source.description}"

    def __len__(self) -> int:
        return self.stop - self.start

    def _at(self, index: int) -> int:
        return int(permute(np.array(index + self.start), len(self.source), self.seed, "probe"))

    def sample(self, index: int) -> Sample:
        """The picture at ``index``."""
        return self.source.sample(self._at(index))

    def label(self, index: int) -> int | None:
        """Its label."""
        return self.source.label(self._at(index))

    def blocks(self) -> None:
        """Pictures lie anywhere."""


def open_parts(
    data: str, *, folder_classes: bool, window: int, holdout: float, pictures: int, seed: int
) -> tuple[Source, Source]:
    """Pictures to train and to test on: the data's own validation part, or a random share held out.

    Args:
        holdout: that share, where the data has no validation part with labels.
        pictures: at most so many to train on, drawn at random; 0: all.

    Raises:
        InputError: no labels, one class, or too few pictures.
    """
    source = open_source(data, folder_classes=folder_classes, window=window)
    if source.classes is None:
        raise InputError(
            f"{data} has no labels, which a probe needs: in shards they are KEY.cls beside KEY.jpg, in a folder "
            "sub-folders one deep are the classes (folder_classes true)"
        )
    if len(source.classes) < 2:
        raise InputError(f"{data} has one class ({source.classes[0]}): there is nothing to tell apart")
    test = open_validation(data, folder_classes=folder_classes, window=window)
    n = len(source)
    if test is not None and test.classes is not None:
        held = 0
    else:
        held = round(n * holdout)
        if not 0 < held < n:
            raise InputError(
                f"{source.description}: a share of {holdout:g} held out leaves {n - held} to train and {held} to test; "
                "give more pictures, or another holdout"
            )
        test = Part(source, 0, held, seed=seed, name="test")
    stop = min(n, held + pictures) if pictures else n
    train = source if held == 0 and stop == n else Part(source, held, stop, seed=seed, name="train")
    return train, test


class LabelledFeatures:
    """Features with labels in a folder: written in one go, read memory-mapped.

    Args:
        root: the folder of all of them.
        name: for people.
        key: everything that they are a function of.
    """

    def __init__(self, root: Path, name: str, key: Mapping[str, Any]) -> None:
        text = json.dumps(dict(key), sort_keys=True)
        self.path = root / f"{name}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
        self.key = json.loads(text)

    def _facts(self) -> dict[str, Any]:
        try:
            facts = json.loads((self.path / "facts.json").read_text(encoding="utf-8"))
            sizes = [(self.path / name).stat().st_size for name in ("features.f32", "labels.i64")]
        except (OSError, ValueError):
            return {}
        whole = isinstance(facts, dict) and facts.get("key") == self.key
        return facts if whole and sizes == [4 * facts["n"] * facts["dim"], 8 * facts["n"]] else {}

    @property
    def finished(self) -> bool:
        """Whether they are there."""
        return bool(self._facts())

    def write(self, batches: Iterator[tuple[np.ndarray, np.ndarray]], advance: Callable[[int], None]) -> None:
        """Features ``[b, D]`` and labels ``[b]`` of usable pictures; rows without a label (-1) are left out.

        Raises:
            WorkFailed: the disk refuses.
        """
        n = unlabelled = dim = 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self.path / "features.f32", "wb") as f, open(self.path / "labels.i64", "wb") as g:
                for features, labels in batches:
                    kept = labels >= 0
                    f.write(np.ascontiguousarray(features[kept], np.float32).tobytes())
                    g.write(np.ascontiguousarray(labels[kept], np.int64).tobytes())
                    n, unlabelled, dim = (
                        n + int(kept.sum()),
                        unlabelled + int((~kept).sum()),
                        features.shape[1],
                    )
                    advance(len(labels))
                for file in (f, g):
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as e:
            raise disk_problem(self.path, e) from None
        facts = {"key": self.key, "n": n, "dim": dim, "unlabelled": unlabelled}
        write_atomic(self.path / "facts.json", (json.dumps(facts, indent=2) + "\n").encode())

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 ``[n, D]`` and int64 ``[n]``, memory-mapped."""
        facts = self._facts()
        n, dim = facts["n"], facts["dim"]
        if not n:
            return np.zeros((0, dim), np.float32), np.zeros(0, np.int64)
        return (
            np.memmap(self.path / "features.f32", np.float32, "r", shape=(n, dim)),
            np.memmap(self.path / "labels.i64", np.int64, "r", shape=(n,)),
        )

    @property
    def unlabelled(self) -> int:
        """Usable pictures that had no label."""
        return int(self._facts()["unlabelled"])
