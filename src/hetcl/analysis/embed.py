"""``hetcl embed``: features of every image in a file, with the images' names beside it.

The order: read model and data; features of central views, in a store that outlives a stop (``FILE.npy.part/``); then
what they are (``FILE.json``), the names (``FILE.csv``), and last the features under their own name (``FILE.npy``).
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetcl.analysis import feature_pass, yardstick
from hetcl.analysis.extractor import Extractor, features_of
from hetcl.analysis.store import Store
from hetcl.errors import InputError, WorkFailed
from hetcl.images.sources import open_source
from hetcl.model.norm_statistics import is_unmeasured
from hetcl.paths import expand
from hetcl.printable import csv_row
from hetcl.quantities import count
from hetcl.runs.files import crc_of, disk_problem, replacing, seal, unseal, write_atomic
from hetcl.runs.lock import FolderLock
from hetcl.runs.output import claim, held_in, reserved
from hetcl.settings import EmbedSettings, resolve_embed
from hetcl.signals import StopSignal
from hetcl.training.session import ReportingSession
from hetcl.trees import TreeError
from hetcl.types import Source
from hetcl.views.central import Central
from hetcl.views.policies import POLICIES
from hetcl.weights.encoder import load_encoder

KIND = "hetcl-embed"
COLUMN = "features"
"""The column of the store, and the first word of its folder's name."""


def embed(
    model: str,
    *,
    data: str,
    out: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    allow_partial: str | Sequence[str] = (),
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> dict[str, Any]:
    """Features of the images of ``data``, one row each, in ``out``.

    ``FILE.npy`` is float32 ``[N, D]``; ``FILE.csv`` has the name of the image of each row, in the rows' order (and its
    class, where the data has labels); ``FILE.json`` says what it is of. Images that cannot be read have no row;
    ``FILE.bad_images.csv`` lists them.

    Args:
        model: a MODEL.
        data: a folder of images, tar shards or ``scenes:N``.
        out: ``FILE.npy``.
        resume: go on with what a stopped call has computed for ``out``; features that are whole are left as they are.
        overwrite: replace features that are there.
        allow_partial: globs of keys that may be missing, unknown or of another shape (missing weights stay random);
            anything else that does not fit is refused.
        overrides: settings by name, as a mapping or as command-line words.

    Returns:
        the content of ``FILE.json``.

    Raises:
        InputError: unusable arguments, model or data; nothing has been written then.
        WorkFailed: the work began and could not go on.
        Stopped: a signal came; what was computed is kept.
    """
    files = _Files.of(Path(expand(out)))
    lock = FolderLock(files.part)
    try:
        with reserved(lock, lambda: files.check(resume=resume, overwrite=overwrite)):
            settings = resolve_embed(overrides)
            how = {"resume": resume, "overwrite": overwrite}
            return Embed(os.fspath(model), os.fspath(data), files, settings, allow_partial, lock, **how).go()
    finally:
        with contextlib.suppress(OSError):  # what was computed is kept in it
            files.part.rmdir()


@dataclass(frozen=True)
class _Files:
    """The files of one ``--out``."""

    features: Path
    names: Path
    report: Path
    bad: Path
    part: Path
    """The folder of what is being computed."""

    @classmethod
    def of(cls, out: Path) -> _Files:
        """Raises ``InputError`` unless ``out`` ends in .npy."""
        if out.suffix != ".npy":
            other = ": docs/embed.md makes a .parquet file of them in four lines"
            why = other if out.suffix in (".parquet", ".arrow", ".feather") else ""
            raise InputError(
                f"--out {out}: features are written as .npy, with a .csv of names beside it{why}"
            )
        names, report, bad = (out.with_suffix(end) for end in (".csv", ".json", ".bad_images.csv"))
        return cls(out, names, report, bad, out.with_name(f"{out.name}.part"))

    def read_report(self) -> dict[str, Any]:
        """What FILE.json says; empty where it is none of ours, or damaged."""
        with contextlib.suppress(OSError, TreeError):
            report = unseal(self.report.read_bytes())
            return report if report.get("kind") == KIND else {}
        return {}

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Raises ``InputError`` unless the files are free, or ours and to be replaced or gone on with."""
        held = [path for path in (self.features, self.names, self.report, self.bad) if path.exists()]
        if held and not self.read_report():
            raise InputError(f"{held[0]} is there, and is no file of hetcl embed's; name another --out")
        if foreign := [name for name in held_in(self.part) if not name.startswith(f"{COLUMN}-")]:
            raise InputError(f"{self.part} holds something else ({foreign[0]}); name another --out")
        if resume or overwrite:
            return
        if self.features.exists():
            raise InputError(
                f"--out {self.features} is there; add --overwrite to replace it, or name another file"
            )
        if held or held_in(self.part):
            raise InputError(
                f"features for --out {self.features} were begun; add --resume to go on with them, or --overwrite to "
                "begin again"
            )


class Embed(ReportingSession[dict[str, Any]]):
    """One model's features of one data: reads, extracts, names, says."""

    def __init__(
        self, model: str, data: str, files: _Files, settings: EmbedSettings, allow_partial: str | Sequence[str],
        lock: FolderLock, *, resume: bool, overwrite: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings = s = settings
        self.data, self.files = data, files
        self.claim = lambda: claim(
            lock,
            lambda: files.check(resume=resume, overwrite=overwrite),
            lambda: self._clear(resume, overwrite),
        )
        self.source = open_source(data, split=s.data_split, window=s.window)
        self.encoder = load_encoder(model, allow_partial=allow_partial)
        self.pixels = yardstick.check_images(self.source, self.encoder)
        self.feature = features_of(self.encoder, s.features)
        self.size = s.size or self.encoder.size or 224
        self.start(s, None)
        # Levels as the backbone gives them, as a probe takes them; parts as they are contrasted.
        self.unit = self.feature in ("embedding", *self.encoder.dims)
        self.dims = Extractor(self.encoder, [self.feature]).dims(self.feature)
        self.store = self._store()

    def _store(self) -> Store:
        """The place of what is computed; its key is all that the features are a function of."""
        e, n = self.encoder, len(self.source)
        key = {
            "schema": 1,
            "weights": e.digest,
            "measured": is_unmeasured(e.pyramid) and [self.settings.seed, self.settings.window],
            "arch": e.pyramid.arch,
            "features": self.feature,
            "size": self.size,
            "data": self.source.fingerprint,
            "precision": self.precision,
        }
        columns = {COLUMN: ("float32", (sum(self.dims.values()),))}
        return Store(self.files.part, COLUMN, key, columns, images=n, batch=self.settings.batch)

    def _clear(self, resume: bool, overwrite: bool) -> None:
        """What was there and is to be replaced; features of other things than these are refused. Raises ``OSError``."""
        f = self.files
        then = f.read_report()
        if then and not overwrite and then["key"] != self.store.key:
            differ = [name for name, value in self.store.key.items() if then["key"].get(name) != value]
            raise InputError(
                f"--out {f.features} is there with another {', '.join(differ)}; add --overwrite to replace it, or name "
                "another file"
            )
        if resume and held_in(f.part) and not self.store.path.exists():
            raise InputError(
                f"other features were begun for --out {f.features} (another model, data or settings); name another "
                "file, or leave --resume out and add --overwrite to begin again"
            )
        if not resume:
            for name in held_in(f.part):
                shutil.rmtree(f.part / name)
            f.bad.unlink(missing_ok=True)

    def _introduce(self) -> None:
        say = self.reporter.say
        say(f"data      {self.source.description}")
        shown = " + ".join(f"{part} {d}" for part, d in self.dims.items())
        yardstick.say_model(say, self.encoder, self.size, shown, asked=bool(self.settings.size))
        self.say_where(self.files.features, "file", precision=self.precision)

    def _work(self) -> dict[str, Any]:
        """Features of all images, in the store; the report of those that were whole already, else nothing."""
        s, signal = self.settings, StopSignal()
        if whole := self._whole():
            self.reporter.say(f"features  of {count(whole['images'], 'image')} are here already")
            return whole
        policy, e = POLICIES["none"], self.encoder
        views = Central(
            self.source, range(len(self.source)), size=self.size, batch=s.batch, workers=self.workers,
            pin=self.fabric.device.type == "cuda", pixels=self.pixels,
        )  # fmt: skip
        job = feature_pass.Job(e, self.feature, policy, self.size, self.store, (COLUMN,), unit=self.unit)
        passes = [] if self.store.finished else [([job], views)]
        with signal:
            if passes and is_unmeasured(e.pyramid):
                self.reporter.say("          no batch-norm statistics: measured on some of the images")
            feature_pass.measure(
                passes, self.source, self, seed=s.seed, window=s.window, images=len(self.source),
                stop=lambda: signal.check("stopped before the first image; go on with --resume"),
            )  # fmt: skip
            feature_pass.complete(
                passes, [self.store], session=self, signal=signal, channels_last=s.channels_last,
                left_out=self.files.bad, max_bad=s.max_bad, fewer="or name another --out",
            )  # fmt: skip
        if not len(self.store.read()["index"]):
            raise WorkFailed(f"no image of {self.data} can be used; {self.files.bad} says why")
        return {}

    def _whole(self) -> dict[str, Any]:
        """The report of what is there already, where that is what was asked for, whole and undamaged; else nothing."""
        with contextlib.suppress(OSError):
            then = self.files.read_report()
            if then and then["key"] == self.store.key and self.files.names.is_file():
                return then if crc_of(self.files.features) == then["crc32_of_features"] else {}
        return {}

    def _write(self, found: dict[str, Any]) -> dict[str, Any]:
        if found:
            return found
        f, index = self.files, self.store.read()["index"]
        features = self.store.path / f"{COLUMN}.npy"
        labelled = self.source.classes is not None
        report = {
            "kind": KIND,
            "key": self.store.key,
            "model": {
                "model": self.encoder.model,
                "name": self.encoder.name,
                "arch": self.encoder.pyramid.arch,
            },
            "features": self.feature,
            "parts": self.dims,
            "unit_length": self.unit,
            "size": self.size,
            "data": {"data": self.data, "description": self.source.description},
            "images": len(index),
            "left_out": self.store.lost,
            "files": {"features": f.features.name, "names": f.names.name},
            "crc32_of_features": crc_of(features),
            **self.cost(),
        }
        write_atomic(f.report, seal(report))  # first: with it the others are known for ours
        try:
            with replacing(f.names) as file:
                file.writelines(_lines(self.source, index, labelled))
            os.replace(features, f.features)  # last: where it is, all is whole
            shutil.rmtree(self.store.path)
        except OSError as e:
            raise disk_problem(f.features, e) from None
        return report

    def _say(self, report: Mapping[str, Any]) -> None:
        n, wide = report["images"], sum(report["parts"].values())
        self.reporter.say(f"features  {n:,} x {wide:,}, float32, {4 * n * wide / 1e6:,.1f} MB")
        if report["left_out"]:
            self.reporter.warn(f"{count(report['left_out'], 'image')} left out: {self.files.bad} lists them")
        self.say_done(self.seconds(), f"{self.files.features}; its rows in order: {self.files.names}")


def _lines(source: Source, index: Any, labelled: bool) -> Iterator[bytes]:
    """The table of names: a header, then a line for each row of the features."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")

    def line(cells: Sequence[Any]) -> bytes:
        text.seek(0)
        text.truncate()
        writer.writerow(csv_row(cells))
        return text.getvalue().encode()

    yield line(["name", "class"] if labelled else ["name"])
    for i in map(int, index):
        label = source.label(i) if labelled else None
        name = "" if label is None or source.classes is None else source.classes[label]
        yield line([source.name(i), name] if labelled else [source.name(i)])
