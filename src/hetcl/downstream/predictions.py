"""``hetcl predict``: a fine-tuned run on somebody's own images: drawings, label maps, JSON and CSV.

The order: list the images, open the run; each image through the model, drawn and put down in a line of
``progress-RANK.jsonl``, so that a stop loses nothing; at the end all lines become ``predictions.json``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from hetcl import __version__
from hetcl.downstream import prediction_files as files
from hetcl.downstream import sheets
from hetcl.downstream.predict import EvaluationContext, answers, prediction_of
from hetcl.downstream.prediction_files import FOLDERS, PROGRESS, RESULT, Record, Stamp
from hetcl.downstream.trained import RunSession
from hetcl.errors import InputError, WorkFailed
from hetcl.images.channels import drawable
from hetcl.images.formats import left_aside
from hetcl.images.image_files import ImageFiles
from hetcl.images.look import GLANCED, chosen
from hetcl.paths import create, expand
from hetcl.quantities import count
from hetcl.runs.files import disk_problem, write_atomic
from hetcl.runs.folder import RunFolder
from hetcl.runs.lock import FolderLock
from hetcl.runs.output import claim, held_in, reserved
from hetcl.runs.resume import changes, check_own
from hetcl.settings import PredictSettings, resolve_predict
from hetcl.signals import StopSignal
from hetcl.training.bad_images import BadImages, check_share
from hetcl.training.devices import peak_memory
from hetcl.types import BadImage, BadRecord, OtherPixels
from hetcl.weights.encoder import digest_of
from hetcl.weights.facts import InputFacts

OURS = {RESULT, "predictions.csv", "legend.png", "bad_images.csv", *FOLDERS}
"""What ``--out`` holds besides log.txt and the files of progress."""


def predict(
    run: str | Path,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    out: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> dict[str, Any]:
    """What a fine-tuned detector or segmenter finds in images; ``out/predictions.json``, and drawings to look at.

    Args:
        run: a folder that ``finetune`` wrote.
        images: files, folders (any depth) or patterns, one or several.
        out: the folder to write.
        resume: go on with what is in ``out``; images that are done, and unchanged, are not looked at again.
        overwrite: replace predictions that are there.
        overrides: settings by name, as a mapping or as command-line words.

    Returns:
        the content of ``predictions.json`` (docs/predict.md describes it).

    Raises:
        InputError: unusable arguments, run or images; nothing has been written then.
        WorkFailed: the work began and could not go on.
        Stopped: a signal came; what was found is kept.
    """
    out = Path(expand(out))
    named = [images] if isinstance(images, str | os.PathLike) else list(images)
    with reserved(FolderLock(out), lambda: _check_out(out, resume, overwrite)) as lock:
        settings = resolve_predict(overrides)
        how = {"resume": resume, "overwrite": overwrite}
        return Predict(RunFolder(run), named, out, settings, lock, **how).go()


def _is_progress(name: str) -> bool:
    return name.startswith(PROGRESS) and name.endswith((".jsonl", ".jsonl.part"))


def _check_out(out: Path, resume: bool, overwrite: bool) -> None:
    held = held_in(out, "a folder for the predictions") - {"log.txt"}
    begun = RESULT in held or any(map(_is_progress, held))
    foreign = any(name.removesuffix(".part") not in OURS and not _is_progress(name) for name in held)
    foreign |= bool(held) and not begun
    check_own(
        out, "a set of predictions", foreign=foreign, again=begun and not (resume or overwrite),
        add="--resume to go on with them, --overwrite to replace them",
    )  # fmt: skip


class Predict(RunSession[None]):
    """One pass over images: looks, draws, puts down, says."""

    settings: PredictSettings

    def __init__(
        self, run: RunFolder, images: Sequence[str | os.PathLike[str]], out: Path, settings: PredictSettings,
        lock: FolderLock, *, resume: bool, overwrite: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.out = out
        self.claim = lambda: claim(lock, lambda: _check_out(out, resume, overwrite), self._prepare)
        self.open_run(run, settings)
        s = self.settings
        self.classes: list[str] = self.saved["classes"]
        self.maps = self.words["model"] == "fcn"
        self.images = ImageFiles(images, but=out, pixels=self.pixels)
        self._first_look()
        ending, folder = (".png", "label_maps") if self.maps else (".jpg", "drawn")
        self.results = [f"{folder}/{name}" for name in files.file_names(self.images.names, ending)]
        self.start(s, out / "log.txt")
        self.look = EvaluationContext(self.fabric, self.workers, s.channels_last, s.max_bad)
        self.model = self.load_model()
        self.key = self._key()
        self.held = self._held() if self.main and resume else {}

    def _first_look(self) -> None:
        """Raises ``InputError`` where images go with the run in none of those looked at first."""
        others, some = list[str](), chosen(len(self.images), GLANCED)
        for index in some:
            try:
                self.images.image(index)
            except OtherPixels as error:
                others.append(f"{self.images.paths[index]}: {error}")
            except BadImage:
                continue  # listed when its turn comes
        if len(others) == len(some):
            raise InputError(
                f"{others[0]}; the run {self.run.path} takes images of {self.pixels}: give it such"
            )

    def _key(self) -> dict[str, Any]:
        """All that a prediction is a function of, besides the image; and what is drawn."""
        s, facts = self.settings, InputFacts.from_dict(self.saved["facts"], "settings.yaml")
        names = ("score_threshold", "test_size", "detections", "test_proposals", "drawn")
        weights = digest_of(self.model.state_dict(), facts)
        return {"weights": weights, "precision": self.precision, **{name: getattr(s, name) for name in names}}

    def _held(self) -> dict[Stamp, Record]:
        """What is done already. Raises ``InputError`` when it is of another run or other settings."""
        key, records = files.read_records(self.out)
        if key is not None and (differ := changes(key, self.key)):
            raise InputError(
                f"{self.out} holds predictions of other settings: {', '.join(differ)}; set them back, add --overwrite "
                "in place of --resume, or name a new --out"
            )
        return records

    def _prepare(self) -> None:
        """Have what is done in one file of progress. Results that are gone on with stay until there are new ones; of
        others nothing stays. Raises ``OSError``."""
        done = b"".join(map(files.line_of, ({"key": self.key}, *self.held.values())))
        write_atomic(self.out / f"{PROGRESS}.jsonl", done)
        for name in held_in(self.out) - {"log.txt", f"{PROGRESS}.jsonl"} - (OURS if self.held else set()):
            if name in FOLDERS:
                shutil.rmtree(self.out / name)
            else:
                (self.out / name).unlink(missing_ok=True)

    def _introduce(self) -> None:
        self.say_run()
        self.reporter.say(f"images    {len(self.images):,} in {self.images.folder}")
        if aside := left_aside(self.images.folder, self.images.aside):
            (self.reporter.warn if aside[0] >= logging.WARNING else self.reporter.say)(aside[1])
        self.say_where(self.out, precision=self.precision)

    # ---- the pass --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        s, images = self.settings, self.images
        _, records = files.read_records(self.out)
        self.stamps = [(name, *images.stamp(i)) for i, name in enumerate(images.names)]
        todo = [i for i, stamp in enumerate(self.stamps) if not self._is_done(i, records.get(stamp))]
        self.fabric.barrier()  # every rank has looked, and none has begun to write
        have, total = len(images) - len(todo), len(images)
        if have:
            self.reporter.say(f"done      {count(have, 'image')} of {total:,} already")
        bad = BadImages(
            self.out / "bad_images.csv",
            s.max_bad,
            total,
            fate=" and is left out;",
            warn=self.reporter.warn,
        )
        bad.seen = have  # the share is one of all images, in whatever pieces they are looked at
        batch = s.batch or (8 if self.fabric.device.type == "cuda" else 1)
        self.reporter.start("looking at images", have, total)
        ranks, seen = self.fabric.world_size, have
        place = self.out / f"{PROGRESS}-{self.fabric.global_rank}.jsonl"
        with StopSignal() as signal, self._writing(place) as f:
            f.write(files.line_of({"key": self.key}))
            for i, image, answer in answers(
                self.model, images, self.look, images=todo, maps=self.maps, batch=batch
            ):
                if image is None:
                    name, size, modified = self.stamps[i]
                    entry = {"file_name": name, "bytes": size, "modified": modified}
                    f.write(files.line_of({"image": entry, "reason": answer}))
                    bad.see(0, [BadRecord(i, name, answer)])
                else:
                    f.write(files.line_of(self._record(i, image, answer)))
                    f.flush()
                    bad.see(1, [])
                seen = min(total, seen + ranks)
                self.advance(seen, total)
                signal.check(f"stopped after {seen:,} of {total:,} images; go on with --resume")
        self.fabric.barrier()

    def _is_done(self, index: int, record: Record | None) -> bool:
        """Whether an image needs no look: its record is there, and what is drawn of it, under its name of today."""
        if record is None or "reason" in record:
            return False
        wanted = {self.results[index]} if self.maps or self.settings.drawn else set()
        if self.maps and self.settings.drawn:
            wanted.add(self._drawn(index))
        return files.files_of(record) == wanted and all((self.out / file).is_file() for file in wanted)

    def _drawn(self, index: int) -> str:
        """The drawing of an image, below the folder."""
        file = self.results[index]
        return f"drawn/{Path(file).relative_to('label_maps').with_suffix('.jpg')}" if self.maps else file

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Any:
        """A new file; what the disk refuses while it is written is ``WorkFailed``."""
        try:
            with create(path) as f:
                yield f
        except OSError as e:
            raise disk_problem(path, e) from None

    def _record(self, index: int, image: Tensor, answer: Any) -> Record:
        """What was found in an image; drawings and label maps are written. Raises ``OSError``."""
        pixels, (name, size, modified) = (
            drawable(image.permute(1, 2, 0).contiguous().numpy()),
            self.stamps[index],
        )
        height, width = pixels.shape[:2]
        entry = {"file_name": name, "width": width, "height": height, "bytes": size, "modified": modified}
        file, longest = self._drawn(index), self.settings.drawn
        if self.maps:
            files.save(self.out / self.results[index], files.label_image(answer, self.classes))
            entry["label_map"] = self.results[index]
            found = files.pixels_of(answer)
            picture = files.draw_labels(pixels, answer, self.classes, longest) if longest else None
        else:
            prediction = prediction_of(answer, 0, name)
            found = files.detections_of(prediction)
            picture = files.draw_detections(pixels, prediction, self.classes, longest) if longest else None
        if picture is not None:
            files.save(self.out / file, Image.fromarray(picture))
            entry["drawn"] = file
        return {"image": entry, "found": found}

    # ---- what was found --------------------------------------------------------------------------------------------

    def _write(self, found: None) -> dict[str, Any]:
        """All records, in the order of the images, as one file; the progress goes, and what is drawn of others."""
        _, records = files.read_records(self.out)
        unseen = {"reason": "no process put down what it found: all need the same folder"}
        known = [records.get(stamp, unseen) for stamp in self.stamps]
        kept = [record for record in known if "reason" not in record]
        ledger = self.out / "bad_images.csv"
        named = zip(self.images.names, known, strict=True)
        bad = [BadRecord(i, name, r["reason"]) for i, (name, r) in enumerate(named) if "reason" in r]
        files.write_bad(ledger, bad)
        if not kept:
            raise WorkFailed(f"none of the images can be used; {ledger} says why")
        check_share(len(bad), len(known), self.settings.max_bad, ledger)
        info = {
            "kind": files.KIND,
            "hetcl": __version__,
            "run": str(self.run.path),
            "model": {"model": self.words["model"], "arch": self.saved["arch"], "trained": self.trained},
            "key": self.key,
            "images": len(self.images),
            "bad_images": len(bad),
            **self.cost(),
        }
        tree = files.tree_of(kept, self.classes, maps=self.maps, info=info)
        if self.maps:
            key = sheets.class_key(self.classes, range(len(self.classes)))
            try:
                files.save(self.out / "legend.png", Image.fromarray(sheets.keyed(None, key)))
            except OSError as e:
                raise disk_problem(self.out / "legend.png", e) from None
        files.write_tables(self.out, tree)
        write_atomic(self.out / RESULT, files.line_of(tree))  # last: where it is, all is whole
        stale = set[str]().union(*map(files.files_of, self.held.values()))
        stale.difference_update(*map(files.files_of, kept))
        for path in [*(self.out / file for file in stale), *self.out.glob(f"{PROGRESS}*.jsonl")]:
            path.unlink(missing_ok=True)
        return tree

    def _say(self, report: Mapping[str, Any]) -> None:
        say, images = self.reporter.say, len(report["images"])
        names = {category["id"]: category["name"] for category in report["categories"]}
        if self.maps:
            pixels = Counter[str]()
            for entry in report["pixels"]:
                pixels[names[entry["category_id"]]] += entry["pixels"]
            whole = sum(pixels.values())
            shares = [f"{name} {n / whole:.1%}" for name, n in pixels.most_common(8)]
            say(f"found     in {count(images, 'image')}, of all pixels: {', '.join(shares)}")
        else:
            classes = Counter(names[entry["category_id"]] for entry in report["annotations"])
            shown = ", ".join(f"{name} {n:,}" for name, n in classes.most_common(8))
            more = f" and {len(classes) - 8} more classes" if len(classes) > 8 else ""
            within = len({entry["image_id"] for entry in report["annotations"]})
            total = len(report["annotations"])
            say(
                f"found     {count(total, 'object')} in {within:,} of {count(images, 'image')}"
                + f": {shown}{more}" * bool(total)
            )
            least = self.settings.score_threshold
            if within < images / 2 and least > 0.1:
                say(
                    f"          with a score of {least:g} or more; --score_threshold 0.1 shows what is less sure"
                )
        if bad := report["info"]["bad_images"]:
            self.reporter.warn(
                f"{count(bad, 'image')} could not be used: {self.out / 'bad_images.csv'} lists them"
            )
        where = (
            f"{self.out / 'drawn'} to look at, {self.out / RESULT}"
            if self.settings.drawn
            else self.out / RESULT
        )
        self.say_done(self.seconds(), where, megabytes=peak_memory(self.fabric.device))
