"""``hetcl contrast``: how well features tell images apart (paper sections 3.2 and 3.4, Figures 2 and 4).

The order: read models and data; one pass over the images fills the folders of features that are not there yet; every
query is searched for; what became of them is counted, compared, drawn and said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from hetcl.analysis import feature_pass, yardstick
from hetcl.analysis.contrast import figures, plotting, report_text, verdict
from hetcl.analysis.contrast.examples import sheet_of
from hetcl.analysis.contrast.part_examples import part_sheet
from hetcl.analysis.contrast.report import SCHEMA, Tested, compare, models_of, overview, parts_of, results_of
from hetcl.analysis.contrast.retrieval import gallery_length
from hetcl.analysis.contrast.search_results import FIFO_BATCH, SearchResults
from hetcl.analysis.contrast.vectors import Features, vectors_of
from hetcl.analysis.extractor import EMBEDDINGS, Extractor, aligned_sides
from hetcl.analysis.store import Store, plain
from hetcl.analysis.yardstick import Entry
from hetcl.errors import InputError, WorkFailed
from hetcl.images.sources import open_source
from hetcl.model.frames import sides_of
from hetcl.paths import expand
from hetcl.quantities import count, duration
from hetcl.runs.folder import write_atomic
from hetcl.runs.lock import FolderLock
from hetcl.runs.output import claim, held_in, reserved, write_report
from hetcl.runs.resume import check_own
from hetcl.settings import ContrastSettings, resolve_contrast
from hetcl.signals import StopSignal
from hetcl.training.session import ReportingSession
from hetcl.types import ViewPolicy
from hetcl.views.pairs import Pairs
from hetcl.views.policies import policy_of

OURS = ("contrast.json", "figures", "features", "log.txt", "bad_images.csv")
"""What ``--out`` may hold when it is resumed."""


def contrast(
    models: str | Sequence[str],
    *,
    data: str,
    out: str | Path,
    resume: bool = False,
    allow_partial: str | Sequence[str] = (),
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> dict[str, Any]:
    """Test how well the features of models tell images apart; results in ``out/contrast.json`` and ``out/figures``.

    Args:
        models: a MODEL or several; several are compared pair by pair on the same views. Each is held against its own
            architecture with random weights, unless the setting ``yardstick`` is ``none``.
        data: a folder of images, tar shards or ``scenes:N``. Labels are not used.
        out: the folder to write.
        resume: use the features that are in ``out`` already.
        allow_partial: globs of keys, of any of the models, that may be missing, unknown or of another shape (missing
            weights stay random); anything else that does not fit is refused.
        overrides: settings by name, as a mapping or as command-line words.

    Returns:
        the content of ``contrast.json`` (docs/contrast.md describes it).

    Raises:
        InputError: unusable arguments, models or data; nothing has been written then.
        WorkFailed: the work began and could not go on.
        Stopped: a signal came; what was computed is kept.
    """
    out = Path(expand(out))
    with reserved(FolderLock(out), lambda: _check_out(out, resume)) as lock:
        models = [models] if isinstance(models, str | os.PathLike) else list(models)
        models, data = [os.fspath(model) for model in models], os.fspath(data)
        settings = resolve_contrast(overrides)
        return Test(models, data, out, settings, allow_partial, lock=lock, resume=resume).go()


def _check_out(out: Path, resume: bool) -> None:
    held = held_in(out)
    ours = {name for name in held if name.partition(".damaged")[0].removesuffix(".part") in OURS}
    foreign = bool(held - ours) or (bool(held) and not held & {"contrast.json", "features"})
    check_own(out, "a contrastive test", foreign=foreign, again=bool(held) and not resume)


@dataclass(frozen=True)
class Subject:
    """One model, one kind of features, one kind of views: what a folder of features is for."""

    entry: Entry
    views: str
    policy: ViewPolicy
    folder: Store
    dims: dict[str, int]


class Test(ReportingSession[list[Tested]]):
    """One test: reads, extracts, searches, counts, draws, says."""

    __test__ = False  # (not a test of pytest's)

    def __init__(
        self, models: Sequence[str], data: str, out: Path, settings: ContrastSettings,
        allow_partial: str | Sequence[str] = (), *, lock: FolderLock, resume: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings = s = settings
        self.data, self.out = data, out
        self.claim = lambda: claim(
            lock, lambda: _check_out(out, resume), lambda: (out / "features").mkdir(exist_ok=True)
        )
        self.policies = dict(policy_of(text) for text in s.views)
        if len(self.policies) < len(s.views):
            raise InputError(f"setting views names something twice: {', '.join(s.views)}")
        self.source = open_source(data, split=s.data_split, window=s.window)
        self.images = min(s.images or len(self.source), len(self.source))
        if self.images < 2:
            raise InputError(
                f"{self.source.description}: one image cannot be told from others; give at least two, "
                "and many more for figures that mean something"
            )
        self.encoders = yardstick.distinct(models, allow_partial)
        self.pixels = yardstick.check_images(self.source, self.encoders[0])
        self.entries, self.held, self.skipped = yardstick.entries_of(
            self.encoders, s.features, size=s.size, yardstick=s.yardstick == "auto"
        )
        self.start(s, out / "log.txt")
        self.subjects = list(self._subjects())

    def _subjects(self) -> Iterator[Subject]:
        """Every entry under every kind of views, with its folder."""
        s = self.settings
        window = s.window or self.source.prefers_window
        for views, policy in self.policies.items():
            for entry in self.entries:
                key = {
                    "schema": 1,
                    "weights": entry.digest,
                    "arch": entry.encoder.pyramid.arch,
                    "features": entry.features,
                    "policy": asdict(policy),
                    "size": entry.size,
                    "data": self.source.fingerprint,
                    "images": self.images,
                    "seed": s.seed,
                    "window": window,
                    "precision": self.precision,
                }
                dims = Extractor(entry.encoder, [entry.features]).dims(entry.features)
                view = ("float32", (sum(dims.values()),))
                columns = {"query": view, "key": view, "boxes": ("float32", (2, 4))}
                root, name = self.out / "features", f"{entry.name}-{views}"
                folder = Store(root, name, key, columns, images=self.images, batch=s.batch)
                yield Subject(entry, views, policy, folder, dims)

    def _work(self) -> list[Tested]:
        with StopSignal() as signal:
            self._extract(signal)
            return self._search(signal)

    def _introduce(self) -> None:
        s, say = self.settings, self.reporter.say
        of = f" ({self.images:,} of them drawn at random)" if self.images < len(self.source) else ""
        say(f"data      {self.source.description}{of}")
        for encoder in self.encoders:
            own = [e for e in self.entries if e.of == encoder.name and e.role == "model"]
            kinds = [e.features for e in own]
            shown = " + ".join(
                f"{part} {d}" for part, d in encoder.dims.items() if set(EMBEDDINGS) & set(kinds)
            )
            if shown and s.dims and len(encoder.dims) == 1:
                shown += ", one part: PCA takes all dimensions from this one"
            shown = ", ".join(kinds) + (f" ({shown})" if shown else "")
            yardstick.say_model(say, encoder, own[0].size, shown, asked=bool(s.size))
        for e in self.entries:
            if e.role in ("random", "before"):
                say(f"yardstick {e.name}: {e.encoder.model} at {e.size} pixels")
        self.say_where(self.out)

    # ---- images to features ------------------------------------------------------------------------------------

    def _extract(self, signal: StopSignal) -> None:
        """One pass over the images for all folders that are not whole."""
        s = self.settings
        todo = [subject for subject in self.subjects if not subject.folder.finished]
        if len(todo) < len(self.subjects):
            self.reporter.say(
                f"features  {len(self.subjects) - len(todo)} of {len(self.subjects)} are here already"
            )
        columns = ("query", "key")
        jobs = [
            feature_pass.Job(t.entry.encoder, t.entry.features, t.policy, t.entry.size, t.folder, columns)
            for t in todo
        ]
        passes = [(jobs, self._pairs(todo))] if todo else []
        feature_pass.measure(
            passes, self.source, self, seed=s.seed, window=s.window, images=self.images,
            stop=lambda: signal.check("stopped before the first image; go on with --resume"),
        )  # fmt: skip
        stores = {subject.views: subject.folder for subject in self.subjects}  # models share their images
        feature_pass.complete(
            passes, [*stores.values()], session=self, signal=signal, channels_last=s.channels_last,
            left_out=self.out / "bad_images.csv", max_bad=s.max_bad,
            fewer="name another --out, or set images to test on fewer",
        )  # fmt: skip

    def _pairs(self, subjects: Sequence[Subject]) -> Pairs:
        s = self.settings
        return Pairs(
            self.source, list(dict.fromkeys(t.policy for t in subjects)), batch=s.batch, seed=s.seed,
            size=sorted({t.entry.size for t in subjects}), workers=self.workers, window=s.window,
            images=self.images, pin=self.fabric.device.type == "cuda", pixels=self.pixels,
        )  # fmt: skip

    # ---- features to search results ------------------------------------------------------------------------------

    def _search(self, signal: StopSignal) -> list[Tested]:
        """Search for every query with every vector, where that has not been done."""
        s = self.settings
        tested = []
        for subject in self.subjects:
            features = Features(**subject.folder.read(), dims=subject.dims)
            if len(features) < 2:
                raise WorkFailed(
                    f"{count(len(features), 'image')} of {self.images} can be used; "
                    f"{self.out / 'bad_images.csv'} says why; give other images"
                )
            gallery = gallery_length(len(features), s.gallery, FIFO_BATCH)
            entry = subject.entry
            named = entry.role == "model"  # of the others the full vector answers what is asked
            found = vectors_of(features, gallery=gallery, dims=s.dims if named else (), splits=s.splits)
            self.skipped += [f"{entry.name}: {why}" for why in found.refused]
            held = {
                v.name: SearchResults(subject.folder.path, features, v, gallery=gallery)
                for v in (found.vectors if named else found.vectors[:1])
            }
            tested.append(Tested(entry.name, subject.views, features, held, found.geometry, gallery))
        self.skipped = list(dict.fromkeys(self.skipped))
        todo = [one for t in tested for one in t.searched.values() if not one.store.finished]
        done, total = 0, sum(len(one.features) for one in todo)
        if not todo:
            return tested
        began = time.monotonic()
        self.reporter.start("searching", 0, total)
        self.fabric.barrier()

        def advance(rows: int) -> None:
            nonlocal done
            done += rows * self.fabric.world_size
            self.reporter.advance(min(done, total))
            left = f"{duration((time.monotonic() - began) / done * max(0, total - done))} left"
            self.reporter.row(f"searching {done / total:.0%}  {left}", left=left)
            signal.check("stopped while searching; the features are kept: go on with --resume")

        for one in todo:
            one.search(self.fabric, advance)
        self.reporter.stop()
        return tested

    # ---- results to people --------------------------------------------------------------------------------------

    def _write(self, tested: list[Tested]) -> dict[str, Any]:
        """contrast.json, then figures and example sheets."""
        s = self.settings
        rows = len(tested[0].features)
        report: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": "hetcl-contrast",
            "verdict": [],
            "data": {
                "data": self.data,
                "description": self.source.description,
                "fingerprint": self.source.fingerprint,
                "images": self.images,
                "left_out": self.images - rows,
            },
            "test": {
                "queries": rows,
                "gallery": tested[0].gallery,
                "chance": 1 / (1 + tested[0].gallery),
                "batch": FIFO_BATCH,
                "seed": s.seed,
                "confidence": s.confidence,
                "bins": [k / s.bins for k in range(s.bins + 1)],
            },
            "views": overview(tested, self.policies, confidence=s.confidence),
            "models": models_of(self.entries, {s.entry.name: s.dims for s in self.subjects}),
            "yardsticks": [asdict(held) for held in self.held],
            "results": [row for t in tested for row in results_of(t, bins=s.bins, confidence=s.confidence)],
            "parts": [row for t in tested for row in parts_of(t)],
            "differences": compare(tested, pairs=self._pairs_of_models(), confidence=s.confidence),
            "skipped": self.skipped,
        }
        report["verdict"] = verdict.verdicts(report)
        lines = [row["line"] for row in report["verdict"]]
        report["sentences"] = [
            *lines,
            *verdict.remarks(report),
            *verdict.boxes_known(report),
            *report_text.sentences(report),
        ]
        report |= self.cost()
        write_report(self.out / "contrast.json", report)
        self._draw(report, tested)
        return report

    def _pairs_of_models(self) -> set[frozenset[str]]:
        """Whose figures are compared: models that were named, and each with what it is held against."""
        named = [e.name for e in self.entries if e.role == "model"]
        pairs = {frozenset(pair) for pair in combinations(named, 2)}
        return pairs | {frozenset(pair) for h in self.held for pair in h.pairs}

    def _draw(self, report: Mapping[str, Any], tested: Sequence[Tested]) -> None:
        """Figures and example sheets, for every kind of views."""
        place = self.out / "figures"
        place.mkdir(exist_ok=True)
        for views in report["views"]:
            for kind, figure in figures.figures_of(report, views):
                plotting.save(figure, place / f"{kind}-{plain(views)}")
        if not self.settings.examples:
            return
        for subject, t in zip(self.subjects, tested, strict=True):
            if subject.entry.role != "model":
                continue
            pairs = self._pairs([subject])
            image = sheet_of(
                t, self.source, pairs, policy=subject.policy, size=subject.entry.size,
                bins=self.settings.bins, count=self.settings.examples,
            )  # fmt: skip
            name = subject.folder.path.name.rsplit("-", 1)[0]
            write_atomic(place / f"examples-{name}.png", image)
            if len(t.features.dims) > 1:
                random = {h.random_embedding for h in self.held if h.embedding == t.name}
                beside = next((o for o in tested if o.name in random and o.views == t.views), None)
                image = part_sheet(
                    t, beside, self.source, pairs, policy=subject.policy, size=subject.entry.size,
                    maps=self._maps(subject),
                )  # fmt: skip
                write_atomic(place / f"parts-{name}.png", image)
            pairs.close()

    def _maps(self, subject: Subject) -> dict[str, tuple[int, str]]:
        """The side of each map of an embedding, and what its picture shows, by part."""
        encoder, where = subject.entry.encoder, "square" if subject.policy.square else "image"
        laid = aligned_sides(encoder) if subject.entry.features == "aligned" else {}
        return {
            part: (side, f"{part} map in the {where}" if part in laid else f"its {part} map")
            for part, side in sides_of(encoder.embedding).items()
        }

    def _say(self, report: Mapping[str, Any]) -> None:
        """The verdict, the table and the other sentences."""
        verdicts = len(report["verdict"])
        self.reporter.say("")
        for line in report["sentences"][:verdicts]:
            self.reporter.say(line, style="bold", wrap=True)
        self.reporter.show(report_text.table(report))
        for line in report["skipped"]:
            self.reporter.warn(line)
        for line in report["sentences"][verdicts:]:
            self.reporter.say(line, wrap=True)
        self.say_done(report["seconds"], f"{self.out / 'contrast.json'}, {self.out / 'figures'}")
